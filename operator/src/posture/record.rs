//! What is told besides status: events on the Posture, and metrics.

use super::status::message;
use crate::metrics::Metrics;
use cinch_api::names::OPERATOR;
use cinch_api::{Posture, PostureState};
use cinch_promotion::{Event, EventKind, State};
use kube::runtime::events::{Event as ApiEvent, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tracing::{info, warn};

/// A note of an event may not be longer.
const NOTE: usize = 1000;

type Label = [(&'static str, &'static str); 1];

/// Where events and counts go.
pub(super) struct Record {
    recorder: Recorder,
    states: Family<Label, Gauge>,
    told: Family<Label, Counter>,
}

impl Record {
    pub(super) fn new(client: Client, instance: &str, metrics: &Metrics) -> Self {
        let reporter = Reporter { controller: OPERATOR.to_owned(), instance: Some(instance.to_owned()) };
        let (states, told) = (Family::default(), Family::default());
        metrics.register(|registry| {
            registry.register("postures", "Enrolled namespaces, by state", Family::clone(&states));
            registry.register("posture_events", "Events of promotion, by reason", Family::clone(&told));
        });
        Record { recorder: Recorder::new(client, reporter), states, told }
    }

    /// Tells an event of a namespace. One that can't be written is in the log at least.
    pub(super) async fn tell(&self, namespace: &str, posture: &Posture, event: &Event) {
        let word = event.reason.as_str();
        let note: String = message(event.reason, &event.detail).chars().take(NOTE).collect();
        info!(namespace, reason = word, note, "promotion");
        self.told.get_or_create(&[("reason", word)]).inc();
        let type_ = match event.kind {
            EventKind::Normal => EventType::Normal,
            EventKind::Warning => EventType::Warning,
        };
        let event = ApiEvent {
            type_,
            reason: word.to_owned(),
            note: Some(note),
            action: "Promote".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &posture.object_ref(&())).await {
            warn!(namespace, reason = word, %error, "an event could not be written");
        }
    }

    /// Sets how many namespaces are in each state.
    pub(super) fn count(&self, states: &[State]) {
        const ALL: [State; 7] = [
            State::Observing,
            State::Blocked,
            State::Eligible,
            State::Probation,
            State::Strict,
            State::RolledBack,
            State::Relaxed,
        ];
        for state in ALL {
            let count = states.iter().filter(|held| **held == state).count();
            let word: &'static str = PostureState::as_str(super::status::state(state));
            self.states.get_or_create(&[("state", word)]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

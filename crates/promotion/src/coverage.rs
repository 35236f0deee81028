//! For which time pods have spoken. Reports are cumulative, so a late one covers the gap before it; what a
//! proxy took with it unreported is unobserved time.

use crate::facts::{Facts, Millis, Pod, PodClass, Report};
use crate::memory::{Memory, short};
use std::collections::{BTreeMap, BTreeSet};

/// Clocks and transport blur a proxy's start by this much; only known from another leader's memory.
const BLUR: Millis = 1_000;
/// The last word of a pod may be heard this long after the pod is gone.
const LAST_WORD_WITHIN: Millis = 2_000;
/// Proxies prove the outbound redirect at each report, but at least this often.
const LONGEST_SELF_TEST: Millis = 30_000;
/// No proof of the outbound redirect is asked to be younger than this. A proxy that has just started gets as long
/// before its missing proofs are held against it; until then it only does not count as reporting.
const PROOF_FLOOR: Millis = 30_000;
/// As [`PROOF_FLOOR`], for inbound: the kubelet's probes prove it, each 5 s if the node has the time.
const INBOUND_PROOF_FLOOR: Millis = 90_000;
/// Each 30 s the node agent confirms the redirect and looks at what passes by the proxy; the first look is 10 s after
/// the proxy's start. Without a word for three of these times nobody knows. A pod that has just started gets as long
/// before its missing look is held against it; until then it is only waited for.
const HEARD_OF_WITHIN: Millis = 90_000;
/// At most so many pods of a namespace are named in status.
const REMEMBERED: usize = 4_000;

/// How far a pod has reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Track {
    /// The proxy that reported; `None` when another leader heard it, or nobody has.
    boot: Option<u64>,
    /// Another leader heard this pod.
    inherited: bool,
    through: Millis,
    /// That was its last word.
    last_word: bool,
    /// When this leader first saw the sidecar started.
    first_seen: Millis,
    /// When the pod was found to be gone.
    gone: Option<Millis>,
}

/// What the reports amount to at this moment.
#[derive(Debug, Default)]
pub(crate) struct Coverage<'a> {
    /// Pods that must report.
    pub must_report: usize,
    /// Of these, with a recent report of a proxy that proves its redirect.
    pub reporting: usize,
    /// Late for longer than a start takes.
    pub late: Vec<&'a Pod>,
    /// Late, on a node that can't be reached.
    pub unreachable: Vec<&'a Pod>,
    /// They report, but what they count is not all: their redirect is not proved.
    pub unproved: Vec<&'a Pod>,
    /// They report, but the node agent has not lately confirmed their redirect.
    pub unconfirmed: Vec<&'a Pod>,
    /// They report, but nobody has lately looked at what passes by their proxies.
    pub unlooked: Vec<&'a Pod>,
    /// They have just started, and nobody has looked yet.
    pub unseen: Vec<&'a Pod>,
    /// When the oldest of the newest reports came.
    pub oldest: Option<Millis>,
    /// Pods that are gone and whose last word may still come.
    pub leaving: usize,
    /// What became unobserved in this step.
    pub lost: Lost,
}

impl Coverage<'_> {
    /// Every pod that must report has done so recently, and nobody's last word is waited for.
    pub(crate) fn is_full(&self) -> bool {
        self.must_report > 0 && self.leaving == 0 && self.reporting == self.must_report
    }

    /// Something is known not to be known: the clock stands still.
    pub(crate) fn is_in_doubt(&self) -> bool {
        !(self.unproved.is_empty() && self.unconfirmed.is_empty() && self.unlooked.is_empty())
    }

    /// Every pod that must report has done so after `time`.
    pub(crate) fn reaches(&self, time: Millis) -> bool {
        self.is_full() && self.oldest.is_none_or(|oldest| oldest >= time)
    }
}

/// A report older than this says nothing about now: two may be lost, and the network may be slow.
pub(crate) fn freshness(facts: &Facts) -> Millis {
    facts.spec.report_interval.saturating_mul(3).saturating_add(2_000)
}

/// Whether the proxy had lately proved that everything meets it, both ways. Without that its counts say nothing.
fn is_proved(report: Report, facts: &Facts) -> bool {
    let interval = facts.spec.report_interval;
    let outbound = interval.min(LONGEST_SELF_TEST).saturating_mul(3).max(PROOF_FLOOR);
    let inbound = interval.saturating_mul(3).max(INBOUND_PROOF_FLOOR);
    report.outbound_proof_age.is_some_and(|age| age <= outbound)
        && report.inbound_proof_age.is_some_and(|age| age <= inbound)
}

/// Whether the node agent has lately said that the redirect is in force. The proxy proves more often that it works for
/// the proxy's own dials; that it captures those of other processes only the agent has tried.
fn is_confirmed(pod: &Pod, report: Report) -> bool {
    !pod.by_agent || report.agent_proof_age.is_some_and(|age| age <= HEARD_OF_WITHIN)
}

/// What is known of looks at a pod.
enum Looked {
    Lately,
    NotYet,
    TooLongAgo,
}

/// Whether the node agent has lately looked at what passes by the proxy. Where there is no agent nobody looks, and
/// nobody is waited for. A restart of the proxy gives no more time: who has seen the pod longer knows how old it is.
fn looked_at(pod: &Pod, report: Report, track: &Track) -> Looked {
    let since = report.last_look.unwrap_or_else(|| report.boot_started.min(track.first_seen));
    if pod.by_agent && report.received.saturating_sub(since) > HEARD_OF_WITHIN {
        Looked::TooLongAgo
    } else if pod.by_agent && report.last_look.is_none() && !report.last_word {
        Looked::NotYet
    } else {
        Looked::Lately
    }
}

/// Follows every pod, adds what was lost to the memory, and moves `observed_through`.
pub(crate) fn observe<'a>(memory: &mut Memory, facts: &'a Facts) -> Coverage<'a> {
    let inherited = memory.observed_through;
    let mut tracks = match memory.tracks.take() {
        Some(tracks) => tracks,
        None => {
            memory.reporting.iter().map(|uid| (uid.clone(), Track::inherited(inherited, facts.now))).collect()
        }
    };
    let mut lost = Lost::default();
    let mut coverage = Coverage::default();
    for pod in facts.pods.iter().filter(|pod| pod.class == PodClass::Started) {
        let track = tracks.entry(short(&pod.uid).to_owned()).or_insert_with(|| Track::new(pod, facts.now));
        lost.add(track.hear(pod));
        coverage.count(pod, track, facts);
    }
    forget_departed(&mut tracks, facts, &mut lost);
    memory.unobserved = memory.unobserved.saturating_add(lost.pods);
    memory.unobserved_wall = memory.unobserved_wall.saturating_add(lost.wall);
    coverage.leaving = tracks.values().filter(|track| track.gone.is_some()).count();
    let through = tracks.values().filter(|track| !track.last_word).map(|track| track.through).min();
    memory.observed_through = through.unwrap_or(facts.now).max(memory.observed_through);
    memory.reporting = tracks.keys().take(REMEMBERED).cloned().collect();
    memory.tracks = Some(tracks);
    coverage.lost = lost;
    coverage
}

/// Drops the tracks of pods that are gone or have ended; what they did not report is lost.
fn forget_departed(tracks: &mut BTreeMap<String, Track>, facts: &Facts, lost: &mut Lost) {
    let present: BTreeSet<&str> =
        facts.pods.iter().filter(|pod| pod.class != PodClass::Ended).map(|pod| short(&pod.uid)).collect();
    tracks.retain(|uid, track| {
        if present.contains(uid.as_str()) {
            track.gone = None;
            return true;
        }
        let gone = *track.gone.get_or_insert(facts.now);
        let ended = facts.pods.iter().find(|pod| short(&pod.uid) == uid).and_then(|pod| pod.report);
        let departed = facts.departures.iter().find(|departure| short(&departure.uid) == uid);
        let (through, last_word) = match (ended, departed) {
            (Some(report), _) => (report.received, report.last_word),
            (None, Some(departure)) => (departure.through, departure.last_word),
            (None, None) => (track.through, track.last_word),
        };
        if last_word || track.last_word {
            return false;
        }
        let waits = facts.now.saturating_sub(gone) < LAST_WORD_WITHIN;
        if !waits {
            lost.add(gone.saturating_sub(through.max(track.through)));
        }
        waits
    });
}

/// Time for which nobody can speak.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Lost {
    /// Summed over pods.
    pub pods: Millis,
    /// The longest of this step.
    pub wall: Millis,
}

impl Lost {
    fn add(&mut self, gap: Millis) {
        self.pods = self.pods.saturating_add(gap);
        self.wall = self.wall.max(gap);
    }
}

impl Track {
    fn inherited(through: Millis, now: Millis) -> Self {
        Track { boot: None, inherited: true, through, last_word: false, first_seen: now, gone: None }
    }

    /// A pod whose sidecar has just started: before its proxy started nothing reached the app.
    fn new(pod: &Pod, now: Millis) -> Self {
        let through = pod.report.map_or(now, |report| report.boot_started.min(now));
        let boot = pod.report.map(|report| report.boot);
        Track { boot, inherited: false, through, last_word: false, first_seen: now, gone: None }
    }

    /// Brings its times back to `now` when the clock was set back.
    pub(crate) fn not_after(&mut self, now: Millis) {
        self.through = self.through.min(now);
        self.first_seen = self.first_seen.min(now);
        self.gone = self.gone.map(|gone| gone.min(now));
    }

    /// Takes the pod's newest report and tells the time that nobody speaks for.
    fn hear(&mut self, pod: &Pod) -> Millis {
        let Some(report) = pod.report else { return 0 };
        let blur = if self.inherited { BLUR } else { 0 };
        let same = self.boot == Some(report.boot) || self.last_word;
        let gap = report.boot_started.saturating_sub(self.through);
        let lost = if same || gap <= blur { 0 } else { gap };
        *self = Track {
            boot: Some(report.boot),
            inherited: false,
            through: self.through.max(report.received),
            last_word: report.last_word,
            first_seen: self.first_seen,
            gone: None,
        };
        lost
    }
}

impl<'a> Coverage<'a> {
    fn count(&mut self, pod: &'a Pod, track: &Track, facts: &Facts) {
        self.must_report += 1;
        let limit = freshness(facts);
        // One that seems to come from the future is from before the clock was set back.
        let recent =
            pod.report.filter(|report| report.last_word || facts.now.abs_diff(report.received) <= limit);
        if let Some(report) = recent {
            if !is_proved(report, facts) {
                if report.received.saturating_sub(report.boot_started) > PROOF_FLOOR {
                    self.unproved.push(pod);
                }
                return;
            }
            if !is_confirmed(pod, report) {
                // Proxies that are older than this word of theirs give it with their first look.
                if report.received.saturating_sub(report.boot_started) > HEARD_OF_WITHIN {
                    self.unconfirmed.push(pod);
                }
                return;
            }
            match looked_at(pod, report, track) {
                Looked::Lately => {}
                Looked::NotYet => self.unseen.push(pod),
                Looked::TooLongAgo => self.unlooked.push(pod),
            }
            self.reporting += 1;
            let received = (!report.last_word).then_some(report.received);
            self.oldest = match (self.oldest, received) {
                (Some(oldest), Some(received)) => Some(oldest.min(received)),
                (oldest, received) => oldest.or(received),
            };
        } else if !pod.node_reachable {
            self.unreachable.push(pod);
        } else if facts.now.saturating_sub(track.first_seen) > limit {
            self.late.push(pod);
        }
    }
}

use super::*;
use cinch_reason::Reason;
use parking_lot::Mutex;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::mpsc;

/// Keeps what is written.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Kept {
    fn lines(&self) -> Vec<Value> {
        let bytes = self.0.lock();
        bytes
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }
}

/// A reader that reads nothing until it is let.
struct Stuck(mpsc::Receiver<()>, Kept);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

fn passed(code: u16) -> Entry<'static> {
    let ends = Ends {
        reporter: Reporter::Destination,
        from: SocketAddr::from(([10, 0, 0, 9], 40_000)),
        to: SocketAddr::from(([10, 0, 0, 1], 80)),
        upstream: None,
        source: Some("spiffe://td/ns/shop/sa/web"),
        destination: None,
        is_mutual: true,
    };
    let head = Some(Head { method: b"GET", path: b"/", protocol: "HTTP/1.1", ..Head::default() });
    let duration = Duration::ZERO;
    Entry { ends, head, code, grpc: None, flags: "-", ruling: None, received: 0, sent: 0, duration }
}

fn denied(policy: &Arc<str>) -> Entry<'_> {
    let ruling = Ruling {
        decision: Decision::Denied,
        reason: Reason::DeniedByPolicy,
        policy: Some(policy),
        rule: Some(0),
        detail: "",
    };
    Entry { ruling: Some(ruling), ..passed(403) }
}

#[test]
fn denials_and_errors_are_always_told_and_the_rest_as_it_is_sampled() {
    for (sampling, told) in [(0.0, 2), (1.0, 4)] {
        let kept = Kept::default();
        let settings = AccessLogSettings { sampling, ..AccessLogSettings::default() };
        let log = AccessLog::start_to(&settings, kept.clone()).unwrap();
        for entry in [passed(200), passed(404), passed(503), denied(&"shop/no".into())] {
            log.tell(&entry, log.samples());
        }
        log.close(PATIENCE);
        assert_eq!(kept.lines().len(), told, "{sampling}");
    }
}

#[test]
fn a_log_that_is_off_has_no_writer_and_tells_nothing() {
    let off = AccessLogSettings { enabled: false, sampling: 1.0, ..AccessLogSettings::default() };
    let kept = Kept::default();
    let log = AccessLog::start_to(&off, kept.clone()).unwrap();
    assert!(!log.is_on() && !log.samples());
    log.tell(&denied(&"shop/no".into()), true);
    log.close(PATIENCE);
    assert!(kept.lines().is_empty());
}

#[test]
fn a_share_is_taken_evenly() {
    for share in [0.0, 0.01, 0.5, 1.0] {
        let sampler = Sampler::new(share);
        let taken = (0..100_000).filter(|_| sampler.takes()).count() as f64 / 100_000.0;
        assert!((taken - share).abs() < 0.01, "{share}: {taken}");
    }
}

#[test]
fn a_reader_that_is_stuck_costs_bounded_memory_and_no_denial() {
    let (let_go, stuck) = mpsc::channel();
    let kept = Kept::default();
    let room = 16 * 1024;
    let settings = AccessLogSettings {
        sampling: 1.0,
        queue_bytes: room,
        lines_per_second: 1_000_000,
        ..AccessLogSettings::default()
    };
    let log = AccessLog::start_to(&settings, Stuck(stuck, kept.clone())).unwrap();
    let policies: Vec<Arc<str>> = (0..1000).map(|number| format!("shop/p{number}").into()).collect();
    for round in 0..100 {
        for policy in &policies {
            log.tell(&denied(policy), false);
            log.tell(&passed(200), true);
        }
        assert!(round < 100);
    }
    let metrics = log.0.as_ref().unwrap().queue.metrics.clone();
    assert!(metrics.summed.get() > 90_000, "{}", metrics.summed.get());
    assert!(metrics.dropped.get() > 90_000, "{}", metrics.dropped.get());
    drop(let_go);
    log.close(PATIENCE);
    let lines = kept.lines();
    let of_denials = lines.iter().filter(|line| line["decision"] == "deny");
    let told: u64 = of_denials.map(|line| line["denials"].as_u64().unwrap_or(1)).sum();
    assert_eq!(told, 100_000, "each denial is in a line or in a sum");
    // Two rooms of each kind, the one that was being written and the one that was queued, and the sums.
    let bound = 2 * 2 * (room as usize + 1024) + 512 * 512;
    assert!(kept.0.lock().len() < bound, "{}", kept.0.lock().len());
    let passed = lines.iter().filter(|line| line["response_code"] == 200).count() as u64;
    assert_eq!(passed + metrics.dropped.get(), 100_000, "what is lost is counted");
}

#[test]
fn a_flood_within_a_second_is_summed_and_others_are_dropped_and_counted() {
    let kept = Kept::default();
    let settings = AccessLogSettings { sampling: 1.0, lines_per_second: 5, ..AccessLogSettings::default() };
    let log = AccessLog::start_to(&settings, kept.clone()).unwrap();
    let policy: Arc<str> = "shop/no".into();
    for _ in 0..1000 {
        log.tell(&denied(&policy), false);
        log.tell(&passed(200), true);
    }
    log.close(PATIENCE);
    let lines = kept.lines();
    let sums: Vec<&Value> = lines.iter().filter(|line| line.get("denials").is_some()).collect();
    assert!(!sums.is_empty());
    for sum in &sums {
        let of = (&sum["policy"], &sum["rule"], &sum["reason"], &sum["source_principal"], &sum["port"]);
        assert_eq!(
            of,
            (
                &"shop/no".into(),
                &0.into(),
                &"DeniedByPolicy".into(),
                &"spiffe://td/ns/shop/sa/web".into(),
                &80.into()
            )
        );
    }
    let of_denials = lines.iter().filter(|line| line["decision"] == "deny");
    let told: u64 = of_denials.map(|line| line["denials"].as_u64().unwrap_or(1)).sum();
    assert_eq!(told, 1000);
    let metrics = log.0.as_ref().unwrap().queue.metrics.clone();
    assert!(metrics.dropped.get() >= 980, "{}", metrics.dropped.get());
}

/// Fails at once.
struct Broken;

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_output_that_is_gone_is_counted_and_harms_nothing() {
    let log = AccessLog::start_to(&AccessLogSettings::default(), Broken).unwrap();
    log.tell(&denied(&"shop/no".into()), false);
    log.close(PATIENCE);
    assert_eq!(log.0.as_ref().unwrap().queue.metrics.write_errors.get(), 1);
}

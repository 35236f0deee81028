//! Floods, slow peers and hungry peers against a proxy in a network namespace of its own, with honest traffic going
//! on meanwhile: none of it fails, the proxy's memory stays under a bound, and each limit that refuses is counted.
//! Prints the figures under each attack and without one (`--nocapture`). In [`endings`]: how proxies end; in
//! [`slow_readers`]: thousands that never read.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../../../crates/redirect/tests/support/mod.rs"]
mod support;

mod apps;
mod attackers;
mod endings;
mod honest;
mod http2;
mod packets;
mod scene;
mod slow_readers;

use attackers::Attack;
use honest::Honest;
use scene::Scene;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Memory of its own (RssAnon) that the attacked proxy may have at its worst. What its limits sum up to is less:
/// 2,000 connections of some 5 KiB, 4 MiB of heads, and the sockets' bytes are the kernel's.
const BOUND: u64 = 24 << 20;
/// One round of an attack.
const ROUND: Duration = Duration::from_millis(1500);

/// The attack that is played until its limit has been met.
const RESETS: &str = "HTTP/2 rapid reset";

/// What is known after a round.
struct Figures {
    name: &'static str,
    done: u64,
    honest: honest::Score,
    memory: u64,
    cpu: Duration,
}

impl Figures {
    fn print(&self) {
        let Self { name, done, honest, memory, cpu } = self;
        println!(
            "{name:32} {done:>8}   {:>6} {:>6}   {:>8.1} {:>8.1}   {:>6.1}   {:>6.2}",
            honest.good,
            honest.failures.len(),
            honest.quantile(0.5),
            honest.quantile(0.99),
            *memory as f64 / f64::from(1 << 20),
            cpu.as_secs_f64(),
        );
    }
}

fn play(scene: &Scene, honest: &Honest, name: &'static str, attack: Option<(Attack, u32)>) -> Figures {
    honest.take();
    let (begin, cpu) = (Instant::now(), scene.cpu());
    let stop = Arc::new(AtomicBool::new(false));
    let rounds = attack.map_or(1, |(_, rounds)| rounds);
    let attacker = attack.map(|(attack, _)| scene.attack(attack, stop.clone()));
    let mut memory = 0;
    // On a slow machine an honest request may take longer than a round: the attack goes on until one has come through.
    while begin.elapsed() < ROUND * rounds || !honest.has_done() && begin.elapsed() < honest::PATIENCE {
        memory = memory.max(scene.memory());
        std::thread::sleep(Duration::from_millis(10));
    }
    let score = honest.take();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let done = attacker.map_or(0, |attacker| attacker.join().unwrap());
    Figures { name, done, honest: score, memory: memory.max(scene.memory()), cpu: scene.cpu() - cpu }
}

#[test]
fn honest_traffic_goes_on_under_attack_and_memory_stays_bounded() {
    need_namespaces!("honest_traffic_goes_on_under_attack_and_memory_stays_bounded");
    let scene = Scene::start();
    let honest = Honest::start(&scene);
    println!(
        "{:32} {:>8}   {:>6} {:>6}   {:>8} {:>8}   {:>6}   {:>6}",
        "", "attacker", "honest", "failed", "p50 ms", "p99 ms", "MiB", "CPU s"
    );
    let mut all = vec![play(&scene, &honest, "nobody attacks", None)];
    all[0].print();
    for (name, rounds, attack) in attackers::ALL {
        let figures = play(&scene, &honest, name, Some((*attack, *rounds)));
        figures.print();
        all.push(figures);
    }
    // Which limit a flood of resets meets first is a matter of the machine's pace.
    let (begin, resets) = (Instant::now(), attackers::ALL.iter().find(|attack| attack.0 == RESETS).unwrap());
    while !scene.metrics().contains("limit=\"http.early_resets_after\"") && begin.elapsed() < honest::PATIENCE
    {
        all.push(play(&scene, &honest, RESETS, Some((resets.2, resets.1))));
    }
    all.push(play(&scene, &honest, "nobody attacks any more", None));
    all[all.len() - 1].print();
    let page = scene.metrics();
    let limits: Vec<&str> =
        page.lines().filter(|line| line.starts_with("cinch_limit_refusals_total")).collect();
    println!("bound: {} MiB; refused by limits:\n{}", BOUND >> 20, limits.join("\n"));

    for Figures { name, honest, memory, .. } in &all {
        assert!(honest.good > 0, "{name}: nothing honest was done");
        assert!(honest.failures.is_empty(), "{name}: {:?}", honest.failures);
        assert!(*memory < BOUND, "{name}: {} MiB", memory >> 20);
    }
    for limit in [
        "connections",
        "handshake_timeout",
        "http.head_timeout",
        "http_first_byte",
        "http_held_bytes",
        "http.continuations",
        "http.early_resets_after",
        "http.idle_frames",
        "http.streams",
    ] {
        let counted = limits.iter().any(|line| line.contains(&format!("limit=\"{limit}\"")));
        assert!(counted, "nothing was refused by {limit}:\n{}", limits.join("\n"));
    }
}

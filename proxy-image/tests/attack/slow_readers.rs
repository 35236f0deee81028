//! Thousands that ask for more than they read, with the limits as they come.

use crate::apps::TORRENT;
use crate::attackers::{Material, Stop, crowd};
use crate::honest::Honest;
use crate::scene::{ATTACKED_IP, Scene};
use crate::support;
use cinch_proxy::limits::Limits;
use cinch_proxy::{memory, process};
use std::cell::Cell;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;

const READERS: usize = 4000;
/// Until all of them are there.
const WAIT: Duration = Duration::from_secs(120);
/// How long they then go on.
const ROUND: Duration = Duration::from_secs(1);

/// Memory of its own (RssAnon) that the attacked proxy may have: its own (8 MiB), what an open connection costs (6 KiB),
/// what may be kept for each side anyway (4 KiB), and what may be kept for all (`keptBytes`). Without a common bound it
/// would be some 40 KiB for each.
const BOUND: u64 = (8 << 20) + (READERS as u64) * (10 << 10) + (16 << 20);

/// As many as this process may have descriptors for, being their clients and the app, and as the proxy takes of one
/// source where the memory of both is bounded.
fn readers() -> usize {
    process::raise_descriptor_limit(0);
    let most = usize::try_from(process::descriptor_limit().unwrap()).unwrap().saturating_sub(2000) / 2;
    let limits = Limits::default();
    let limits = memory::of_container().map_or(limits.clone(), |memory| memory::fitting(limits, memory));
    READERS.min(most).min(limits.connections.min(limits.connections_per_source).saturating_sub(100))
}

fn never_read(_: Arc<Material>, stop: Stop) -> u64 {
    let begun = Cell::new(0);
    crowd(readers(), &stop, || {
        // Two a millisecond: it is about what they keep, not about how many come at once.
        let delay = Duration::from_micros(500) * begun.replace(begun.get() + 1);
        async move {
            tokio::time::sleep(delay).await;
            let socket = TcpSocket::new_v4()?;
            socket.set_recv_buffer_size(4096)?;
            let mut stream =
                socket.connect((ATTACKED_IP.parse::<Ipv4Addr>().unwrap(), TORRENT).into()).await?;
            stream.write_all(b"more").await?;
            std::future::pending().await
        }
    })
}

fn figure(page: &str, name: &str) -> u64 {
    let line = page.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

#[test]
fn thousands_that_never_read_do_not_fill_the_memory() {
    crate::need_namespaces!("thousands_that_never_read_do_not_fill_the_memory");
    let scene = Scene::with("{}");
    let honest = Honest::start(&scene);
    let (stop, begin) = (Arc::new(AtomicBool::new(false)), Instant::now());
    let readers = readers() as u64;
    let attack = scene.attack(never_read, stop.clone());
    let (mut memory, mut all_since) = (0, None);
    let page = loop {
        memory = memory.max(scene.memory());
        let page = scene.metrics();
        let open = figure(&page, "cinch_connections_open{direction=\"inbound\",transport=\"plaintext\"}");
        match all_since {
            None if open >= readers => all_since = Some(Instant::now()),
            None => assert!(begin.elapsed() < WAIT, "{open} connections are open"),
            Some(since) if since.elapsed() >= ROUND => break page,
            Some(_) => {}
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let score = honest.take();
    stop.store(true, Ordering::Relaxed);
    attack.join().unwrap();
    let kept = figure(&page, "cinch_kept_bytes ");
    println!(
        "{readers} that never read: {:.1} MiB of at most {} MiB, {kept} bytes kept beyond the floors; \
         honest {}, failed {}, p99 {:.1} ms",
        memory as f64 / f64::from(1 << 20),
        BOUND >> 20,
        score.good,
        score.failures.len(),
        score.quantile(0.99),
    );
    assert!(score.good > 0 && score.failures.is_empty(), "{:?}", score.failures);
    assert!(memory < BOUND, "{} MiB", memory >> 20);
    assert!(
        figure(&page, "cinch_limit_refusals_total{limit=\"kept_bytes\"}") > 0,
        "nothing was bounded:\n{page}"
    );
}

//! Every load against the server, on loopback: each answers its line, and nothing fails.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use serde_json::Value;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cinch-load");

/// A server that ends with the test.
struct Server {
    child: Child,
    http: u16,
    bytes: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn server() -> Server {
    let (http, bytes) = (free_port(), free_port());
    let mut command = Command::new(PROGRAM);
    command.args(["serve", &format!("--http={http}"), &format!("--bytes={bytes}")]).stdin(Stdio::null());
    let server = Server { child: command.spawn().unwrap(), http, bytes };
    let begun = Instant::now();
    while [http, bytes].iter().any(|port| TcpStream::connect(("127.0.0.1", *port)).is_err()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "the server does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    server
}

/// Runs a load that watches the server; its line.
fn load(server: &Server, words: &str, port: u16) -> Value {
    let mut command = Command::new(PROGRAM);
    command.args(words.split_whitespace()).arg(format!("--to=127.0.0.1:{port}"));
    command.arg(format!("--pids={}", server.child.id()));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_load_is_served_without_a_failure_and_sees_what_it_costs() {
    let server = server();
    let window = "--warm-up=0.05 --seconds=0.3";
    for (words, port) in [
        (format!("closed --protocol=http1 --connections=4 {window}"), server.http),
        (format!("closed --protocol=http2 --connections=2 --streams=4 {window}"), server.http),
        (format!("closed --protocol=http1 --connections=4 --new-connections {window}"), server.http),
        (format!("closed --protocol=echo --connections=4 --new-connections {window}"), server.bytes),
        (format!("open --connections=4 --rate=200 {window}"), server.http),
        ("burst --connections=50".to_owned(), server.http),
    ] {
        let line = load(&server, &words, port);
        assert_eq!(line["errors"], 0, "{words}: {line}");
        assert!(line["done"].as_u64().unwrap() > 10, "{words}: {line}");
        assert!(
            line["p50"].as_f64().unwrap() > 0.0 && line["p99"].as_f64() >= line["p50"].as_f64(),
            "{words}: {line}"
        );
        assert!(line["processor"][0].as_f64().unwrap() > 0.0, "{words}: {line}");
    }
}

#[test]
fn bulk_counts_bytes_and_idle_connections_show_their_memory() {
    let server = server();
    for direction in ["up", "down"] {
        let line = load(
            &server,
            &format!("bulk --direction={direction} --warm-up=0.05 --seconds=0.2"),
            server.bytes,
        );
        assert!(line["bytes"].as_u64().unwrap() > 1_000_000, "{direction}: {line}");
    }
    let line = load(&server, "hold --connections=200 --idle=0.1 --after=0.1", server.http);
    assert_eq!((line["done"].as_u64(), line["errors"].as_u64()), (Some(200), Some(0)), "{line}");
    let resident = |moment: usize| line["memory"][moment][0]["resident"].as_u64().unwrap();
    assert!(resident(0) > 0 && resident(1) > resident(0), "200 connections take memory: {line}");
    assert_eq!(line["memory"].as_array().unwrap().len(), 3);
}

#[test]
fn what_is_not_answered_as_it_should_be_is_counted() {
    let server = server();
    // A server of bytes ends what it does not understand.
    let line =
        load(&server, "closed --protocol=http1 --connections=1 --warm-up=0 --seconds=0.2", server.bytes);
    assert_eq!(line["done"], 0, "{line}");
    assert!(line["errors"].as_u64().unwrap() > 0 && line["last_error"].is_string(), "{line}");
}

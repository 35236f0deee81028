use super::*;
use crate::access_log::{Entry, Head};
use crate::copy::{End, Failure, Which};
use std::sync::atomic::Ordering;
use std::time::Duration;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const API: &str = "spiffe://cluster.local/ns/shop/sa/api";

fn telemetry() -> Telemetry {
    let telemetry = Telemetry::default();
    telemetry.set_own(SpiffeId::parse(API).unwrap());
    telemetry
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], port))
}

fn page(telemetry: &Telemetry) -> String {
    let mut registry = Registry::with_prefix("istio");
    telemetry.register_istio(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

fn assert_has(page: &str, line: &str) {
    assert!(page.lines().any(|of| of == line), "{line}\nis not in\n{page}");
}

#[test]
fn a_connection_is_counted_under_every_label_that_istio_has_for_it() {
    let telemetry = telemetry();
    let peer = SpiffeId::parse(WEB).unwrap();
    let record =
        ConnectionRecord::outbound(&telemetry, (address(1), address(80)), address(8080), Some(&peer));
    record.app_sent(5);
    record.app_received(7);
    record.ended(End::Finished, None);
    let of = "reporter=\"source\",source_workload=\"api\",source_workload_namespace=\"shop\",source_canonical_service=\"api\",source_principal=\"spiffe://cluster.local/ns/shop/sa/api\",destination_workload=\"web\",destination_workload_namespace=\"shop\",destination_canonical_service=\"web\",destination_principal=\"spiffe://cluster.local/ns/shop/sa/web\",destination_service=\"unknown\",request_protocol=\"tcp\",connection_security_policy=\"mutual_tls\"";
    assert_has(
        &page(&telemetry),
        &format!("istio_tcp_connections_closed_total{{{of},response_flags=\"-\"}} 0"),
    );
    drop(record);
    let page = page(&telemetry);
    for (name, value) in [
        ("tcp_connections_opened", 1),
        ("tcp_connections_closed", 1),
        ("tcp_received_bytes", 5),
        ("tcp_sent_bytes", 7),
    ] {
        assert_has(&page, &format!("istio_{name}_total{{{of},response_flags=\"-\"}} {value}"));
    }
}

#[test]
fn a_connection_that_fails_is_closed_under_the_flag_of_who_failed() {
    for (reporter, end, flags) in [
        (Reporter::Destination, Some(End::Failed(Which::First, Failure::Reset)), "DC"),
        (Reporter::Destination, Some(End::Failed(Which::Second, Failure::Reset)), "UC"),
        (Reporter::Source, Some(End::Failed(Which::First, Failure::Broken)), "UC"),
        (Reporter::Source, Some(End::Failed(Which::Second, Failure::Reset)), "DC"),
        (Reporter::Source, Some(End::Finished), "-"),
        (Reporter::Destination, None, "LR"),
    ] {
        assert_eq!(flags::of_end(end, reporter), flags, "{reporter:?} {end:?}");
    }
    let telemetry = telemetry();
    let record = ConnectionRecord::outbound(&telemetry, (address(1), address(80)), address(80), None);
    record.ended(End::Failed(Which::First, Failure::Reset), None);
    drop(record);
    let page = page(&telemetry);
    let closed: Vec<_> =
        page.lines().filter(|line| line.starts_with("istio_tcp_connections_closed_total")).collect();
    assert_eq!(closed.len(), 2, "{page}");
    assert!(closed.iter().any(|line| line.ends_with("response_flags=\"-\"} 0")));
    assert!(closed.iter().any(|line| {
        line.contains("destination_workload=\"unknown\"") && line.ends_with("response_flags=\"UC\"} 1")
    }));
    assert_eq!(page.matches("istio_tcp_connections_opened_total{").count(), 1, "opened once");
}

fn told<'a>(telemetry: &'a Telemetry, peer: &'a str, code: u16) -> Told<'a> {
    let entry = Entry {
        ends: telemetry.inbound(address(1), address(80), Some(peer)),
        head: Some(Head::default()),
        code,
        grpc: None,
        flags: "-",
        ruling: None,
        received: 50,
        sent: 5000,
        duration: Duration::from_micros(1500),
    };
    Told { entry, is_grpc: false, is_sampled: false }
}

#[test]
fn a_request_is_counted_and_measured_under_every_label_that_istio_has_for_it() {
    let telemetry = telemetry();
    let mut handles = Handles::default();
    handles.record(&telemetry, &told(&telemetry, WEB, 200));
    handles.record(&telemetry, &told(&telemetry, WEB, 200));
    let mut call = told(&telemetry, WEB, 200);
    (call.is_grpc, call.entry.grpc) = (true, Some(7));
    handles.record(&telemetry, &call);
    let page = page(&telemetry);
    let ends = "reporter=\"destination\",source_workload=\"web\",source_workload_namespace=\"shop\",source_canonical_service=\"web\",source_principal=\"spiffe://cluster.local/ns/shop/sa/web\",destination_workload=\"api\",destination_workload_namespace=\"shop\",destination_canonical_service=\"api\",destination_principal=\"spiffe://cluster.local/ns/shop/sa/api\",destination_service=\"unknown\"";
    let of = |protocol: &str| {
        format!("{ends},request_protocol=\"{protocol}\",connection_security_policy=\"mutual_tls\"")
    };
    let (http, grpc) = (of("http"), of("grpc"));
    let answered = "response_code=\"200\",response_flags=\"-\",grpc_response_status";
    assert_has(&page, &format!("istio_requests_total{{{http},{answered}=\"\"}} 2"));
    assert_has(&page, &format!("istio_requests_total{{{grpc},{answered}=\"7\"}} 1"));
    for (name, sum, bound) in [
        ("request_duration_milliseconds", "3.0", "5.0"),
        ("request_bytes", "100.0", "100.0"),
        ("response_bytes", "10000.0", "10000.0"),
    ] {
        assert_has(&page, &format!("istio_{name}_sum{{{http}}} {sum}"));
        assert_has(&page, &format!("istio_{name}_count{{{http}}} 2"));
        assert_has(&page, &format!("istio_{name}_bucket{{le=\"{bound}\",{http}}} 2"));
        assert_has(&page, &format!("istio_{name}_bucket{{le=\"+Inf\",{http}}} 2"));
    }
}

#[test]
fn what_is_beyond_the_bound_is_counted_together_and_that_is_counted() {
    let telemetry = telemetry();
    let peers: Vec<String> =
        (0..2 * COUNTED).map(|number| format!("spiffe://td/ns/n/sa/a{number}")).collect();
    for _ in 0..2 {
        for peer in &peers {
            Handles::default().record(&telemetry, &told(&telemetry, peer, 200));
        }
    }
    let page = page(&telemetry);
    let requests = || page.lines().filter(|line| line.starts_with("istio_requests_total{"));
    assert_eq!(requests().count(), COUNTED + 1);
    let others: Vec<_> = requests().filter(|line| line.contains("source_principal=\"other\"")).collect();
    assert_eq!(others.len(), 1);
    assert!(others[0].ends_with(&format!(" {}", 2 * COUNTED)), "{}", others[0]);
    assert!(others[0].contains("response_code=\"other\"") && others[0].contains("reporter=\"destination\""));
    let counts = page.lines().filter(|line| line.starts_with("istio_request_bytes_count{"));
    assert_eq!(counts.count(), MEASURED + 1);
    // A connection looks its handles up when its peer's kind is new to it; here each request is another peer's.
    assert!(telemetry.0.overflows.get() >= 2 * COUNTED as u64, "{}", telemetry.0.overflows.get());
    assert!(page.len() < 5 << 20, "{} bytes of page", page.len());
}

#[test]
fn a_connection_looks_its_handles_up_once() {
    let telemetry = telemetry();
    let mut handles = Handles::default();
    for _ in 0..1000 {
        handles.record(&telemetry, &told(&telemetry, WEB, 200));
    }
    let all = telemetry.0.answers.all();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].2.requests.load(Ordering::Relaxed), 1000);
    // One handle of the table, one of this list, one of the connection, and no other.
    assert_eq!(Arc::strong_count(&all[0].2), 3);
}

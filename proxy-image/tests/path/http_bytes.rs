//! What goes through a connection that is read as HTTP, bit by bit: bodies, upgrades, ends, deadlines, the drain.

use crate::mesh::*;
use crate::web::*;
use cinch_policy::Mode;
use cinch_proxy::limits::Limits;
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Everything but what nobody asks for.
fn nearly_all() -> Value {
    json!({"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/denied*"]}}]}]})
}

async fn start() -> (Mesh, Heard) {
    let mesh = Mesh::start(Mode::Permissive).await;
    let heard = web(&mesh.api).await;
    put(&mesh.api, 2, &[("shop/http", nearly_all())]).await;
    (mesh, heard)
}

#[tokio::test]
async fn large_bodies_go_both_ways_unchanged() {
    const LENGTH: usize = 5 << 20;
    for over in BOTH {
        let (mesh, _heard) = start().await;
        let mut client = connect(&mesh, over).await;
        let body = pattern(LENGTH);
        client.send(format!("POST /up HTTP/1.1\r\nHost: shop\r\nContent-Length: {LENGTH}\r\n\r\n")).await;
        client.send(&body).await;
        let answer = client.answer().await;
        assert_eq!(answer.body, format!("{LENGTH} {}", checksum(&body)).into_bytes(), "{over:?}");
        let answer = client.ask(&format!("GET /big/{LENGTH}")).await;
        assert!(answer.body == body, "{over:?}: another body came back");
        let transport = if over == Over::Tunnel { "tunnel" } else { "plaintext" };
        for way in ["sent", "received"] {
            let name = format!("{way}_bytes_total{{direction=\"inbound\",transport=\"{transport}\"}}");
            assert!(mesh.api.metric(&name).unwrap() > LENGTH as i64, "{name}");
        }
    }
}

#[tokio::test]
async fn a_client_that_reads_late_gets_all_of_an_answer_without_length() {
    const LENGTH: usize = 8 << 20;
    for over in BOTH {
        let (mesh, _heard) = start().await;
        let mut client = connect(&mesh, over).await;
        client.send(format!("GET /to-the-end/{LENGTH} HTTP/1.1\r\nHost: shop\r\n\r\n")).await;
        // Longer than the filter lingers after the end of the answer.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let (bytes, error) = client.rest().await;
        assert_eq!(error, None, "{over:?}");
        assert!(bytes.ends_with(&pattern(LENGTH)), "{over:?}: {} bytes", bytes.len());
    }
}

#[tokio::test]
async fn chunked_bodies_go_both_ways() {
    for over in BOTH {
        let (mesh, _heard) = start().await;
        let mut client = connect(&mesh, over).await;
        client
            .send("POST /up HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            .await;
        client.send("4\r\ndefg\r\n0\r\n\r\n").await;
        assert_eq!(
            client.answer().await.body,
            format!("7 {}", checksum(b"abcdefg")).into_bytes(),
            "{over:?}"
        );
        assert_eq!(client.ask("GET /chunked").await.body, b"abcdefg", "{over:?}");
        assert_eq!(client.ask("GET /after").await.status, 200, "{over:?}");
    }
}

#[tokio::test]
async fn a_websocket_is_copied_after_the_upgrade_and_ends_by_halves() {
    for over in BOTH {
        let (mesh, heard) = start().await;
        let mut client = connect(&mesh, over).await;
        client
            .send("GET /ws HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x01early")
            .await;
        assert_eq!(client.answer().await.status, 101, "{over:?}");
        let mut back = [0; 6];
        within(client.0.read_exact(&mut back)).await.unwrap();
        assert_eq!(&back, b"\x01early", "{over:?}");
        client.send("GET /denied HTTP/1.1\r\n\r\n").await;
        client.0.get_mut().shutdown().await.unwrap();
        assert_eq!(client.rest().await, (b"GET /denied HTTP/1.1\r\n\r\n".to_vec(), None), "{over:?}");
        assert_eq!(lines(&heard).len(), 1, "{over:?}");
    }
}

#[tokio::test]
async fn a_reset_of_the_app_resets_the_client_after_what_came_before() {
    for over in BOTH {
        let (mesh, _heard) = start().await;
        let mut client = connect(&mesh, over).await;
        client.send("GET /reset HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        let (bytes, error) = client.rest().await;
        assert_eq!(error, Some(ErrorKind::ConnectionReset), "{over:?}");
        assert!(bytes.ends_with(b"half"), "{over:?}");
    }
}

#[tokio::test]
async fn a_tunnel_is_used_again_after_a_filtered_connection() {
    let (mesh, _heard) = start().await;
    for _ in 0..3 {
        let mut client = connect(&mesh, Over::Tunnel).await;
        assert_eq!(client.ask("GET /a").await.status, 200);
        client.0.get_mut().shutdown().await.unwrap();
        assert_eq!(client.rest().await, (Vec::new(), None));
        eventually("it is back", || mesh.web.metric("tunnels_idle ") == Some(1)).await;
    }
    assert_eq!(mesh.web.metric("tunnels_reused_total"), Some(2));
}

#[tokio::test]
async fn a_denied_body_is_not_waited_for() {
    for over in BOTH {
        let (mesh, heard) = start().await;
        let mut client = connect(&mesh, over).await;
        client.send("POST /denied HTTP/1.1\r\nHost: shop\r\nContent-Length: 1000000\r\n\r\nfirst").await;
        let answer = client.answer().await;
        assert_eq!((answer.status, field(&answer.head, "connection")), (403, Some("close")), "{over:?}");
        assert_eq!(client.rest().await, (Vec::new(), None), "{over:?}");
        assert!(lines(&heard).is_empty());
    }
}

/// A mesh whose api has short deadlines.
async fn hasty(change: impl FnOnce(&mut Limits)) -> (Mesh, Heard) {
    let mut mesh = Mesh::start(Mode::Permissive).await;
    let mut limits = limits();
    change(&mut limits);
    mesh.api = Pod::with(API_IP, mesh.authority.good(API), Mode::Permissive, limits).await;
    mesh.web.told.say(SERVICE, one_of(vec![endpoint(mesh.api.inbound, API)]));
    let heard = web(&mesh.api).await;
    put(&mesh.api, 2, &[("shop/http", nearly_all())]).await;
    (mesh, heard)
}

#[tokio::test]
async fn a_slow_head_is_answered_with_408_and_the_connection_ends() {
    for over in BOTH {
        let (mesh, heard) = hasty(|limits| limits.http.head_timeout = Duration::from_millis(200)).await;
        let mut client = connect(&mesh, over).await;
        client.send("GET /slow HTTP/1.1\r\nHost:").await;
        assert_eq!(client.answer().await.status, 408, "{over:?}");
        assert_eq!(client.rest().await, (Vec::new(), None), "{over:?}");
        assert_eq!(mesh.api.metric("limit_refusals_total{limit=\"http.head_timeout\"}"), Some(1));
        assert!(lines(&heard).is_empty());
    }
}

#[tokio::test]
async fn a_slow_first_byte_closes_and_never_makes_the_connection_one_that_is_not_read() {
    for over in BOTH {
        let (mesh, heard) = hasty(|limits| limits.http_first_byte = Duration::from_secs(1)).await;
        let mut silent = connect(&mesh, over).await;
        let mut begun = connect(&mesh, over).await;
        begun.send("GE").await;
        assert_eq!(silent.rest().await.0, b"", "{over:?}");
        assert_eq!(begun.rest().await, (Vec::new(), Some(ErrorKind::ConnectionReset)), "{over:?}");
        assert_eq!(mesh.api.metric("limit_refusals_total{limit=\"http_first_byte\"}"), Some(2), "{over:?}");
        assert!(lines(&heard).is_empty());
    }
}

#[tokio::test]
async fn heads_of_all_connections_together_are_bounded() {
    let (mesh, _heard) = hasty(|limits| limits.http_held_bytes = 10_000).await;
    let (mut one, mut other) = (connect(&mesh, Over::Tunnel).await, connect(&mesh, Over::Tunnel).await);
    let head = format!("GET / HTTP/1.1\r\nHost: shop\r\nX: {}", "x".repeat(8000));
    one.send(&head).await;
    eventually("it is held", || mesh.api.metric("http_held_bytes").is_some_and(|held| held > 8000)).await;
    other.send(format!("{head}and so it is the largest")).await;
    assert_eq!(other.rest().await, (Vec::new(), Some(ErrorKind::ConnectionReset)));
    assert_eq!(mesh.api.metric("limit_refusals_total{limit=\"http_held_bytes\"}"), Some(1));
    one.send("\r\n\r\n").await;
    assert_eq!(one.answer().await.status, 200);
    eventually("nothing is held", || mesh.api.metric("http_held_bytes").is_some_and(|held| held < 8000))
        .await;
}

#[tokio::test]
async fn a_head_that_comes_in_two_reads_is_served_in_the_drain() {
    const HALVES: [&str; 2] = ["GET /new HTTP/1.1\r\nHo", "st: shop\r\n\r\n"];
    let (mesh, heard) = start().await;
    // Its request stays under way, so the app still serves.
    let mut busy = connect(&mesh, Over::Plaintext).await;
    busy.send("POST /b HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\n").await;
    let (mut open, mut used) = (connect(&mesh, Over::Tunnel).await, connect(&mesh, Over::Plaintext).await);
    assert_eq!(used.ask("GET /a").await.status, 200);
    open.send("G").await;
    used.send(HALVES[0]).await;
    pass(Duration::from_millis(200)).await;
    mesh.api.ctx.drain.cancel();
    pass(Duration::from_millis(50)).await;
    let mut late = Vec::new();
    for over in BOTH {
        for first in ["", "G", HALVES[0]] {
            let mut client = connect(&mesh, over).await;
            client.send(first).await;
            late.push((client, first));
        }
    }
    late.extend([(open, "G"), (used, HALVES[0])]);
    // Whoever would lose them has by now.
    pass(Duration::from_millis(200)).await;
    for (client, first) in &mut late {
        client.send(&HALVES.concat()[first.len()..]).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, field(&answer.head, "connection")), (200, Some("close")), "{first:?}");
        assert_eq!(client.rest().await, (Vec::new(), None), "{first:?}");
    }
    assert_eq!(heard.lock().unwrap().len(), 2 + late.len());
    busy.send("body").await;
    assert_eq!(busy.answer().await.status, 200);
}

#[tokio::test]
async fn a_request_that_meets_the_drain_of_an_idle_connection_is_served() {
    let (mesh, heard) = start().await;
    let mut kept = Vec::new();
    for over in BOTH {
        for uses in 0..2 {
            let mut client = connect(&mesh, over).await;
            for _ in 0..uses {
                assert_eq!(client.ask("GET /a").await.status, 200);
            }
            kept.push((client, format!("{over:?}, {uses} before")));
        }
    }
    // Those that were never used are known to the proxy too by now.
    pass(Duration::from_millis(200)).await;
    // It lies in the socket when the drain is told, and the proxy has not heard of it.
    for (client, _) in &mut kept {
        client.send("GET /b HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    }
    mesh.api.ctx.drain.cancel();
    for (client, case) in &mut kept {
        let answer = client.answer().await;
        assert_eq!((answer.status, field(&answer.head, "connection")), (200, Some("close")), "{case}");
        assert_eq!(client.rest().await, (Vec::new(), None), "{case}");
    }
    assert_eq!(heard.lock().unwrap().len(), 2 + kept.len());
}

#[tokio::test]
async fn the_drain_ends_idle_connections_and_lets_requests_finish() {
    let (mesh, heard) = start().await;
    let (mut idle, mut busy) = (connect(&mesh, Over::Tunnel).await, connect(&mesh, Over::Plaintext).await);
    assert_eq!(idle.ask("GET /a").await.status, 200);
    busy.send("POST /b HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\n").await;
    eventually("it is on its way", || heard.lock().unwrap().len() == 2).await;
    mesh.api.ctx.drain.cancel();
    assert_eq!(idle.rest().await, (Vec::new(), None));
    // Where requests are under way the app still serves, so new ones find it too.
    for over in BOTH {
        let mut new = connect(&mesh, over).await;
        let answer = new.ask("GET /new").await;
        assert_eq!((answer.status, field(&answer.head, "connection")), (200, Some("close")), "{over:?}");
        assert_eq!(new.rest().await, (Vec::new(), None), "{over:?}");
    }
    busy.send("body").await;
    let answer = busy.answer().await;
    assert_eq!((answer.status, field(&answer.head, "connection")), (200, Some("close")));
    assert_eq!(busy.rest().await, (Vec::new(), None));
}

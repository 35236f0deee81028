//! Policies that need HTTP, request by request, over tunnels and in plaintext.

use crate::mesh::*;
use crate::web::*;
use cinch_policy::Mode;
use serde_json::{Value, json};
use std::io::ErrorKind;

fn allow_public() -> Value {
    json!({"action": "ALLOW", "rules": [{"to": [{"operation": {"methods": ["GET", "POST"], "paths": ["/public", "/public/*"]}}]}]})
}

fn to(action: &str, paths: &[&str]) -> Value {
    json!({"action": action, "rules": [{"to": [{"operation": {"paths": paths}}]}]})
}

async fn start(policy: Value) -> (Mesh, Heard) {
    let mesh = Mesh::start(Mode::Permissive).await;
    let heard = web(&mesh.api).await;
    put(&mesh.api, 2, &[("shop/http", policy)]).await;
    (mesh, heard)
}

#[tokio::test]
async fn an_allowed_method_and_path_passes_and_a_403_leaves_the_connection_open() {
    for over in BOTH {
        let (mesh, heard) = start(allow_public()).await;
        let mut client = connect(&mesh, over).await;
        assert_eq!(client.ask("GET /public/a").await.status, 200, "{over:?}");
        let denied = client.ask("DELETE /public/a").await;
        assert_eq!((denied.status, &denied.body[..]), (403, &b"RBAC: access denied"[..]), "{over:?}");
        assert_eq!(client.ask("GET /private").await.status, 403, "{over:?}");
        assert_eq!(client.ask("GET /public/b?c=d").await.status, 200, "{over:?}");
        assert_eq!(lines(&heard), ["GET /public/a HTTP/1.1", "GET /public/b?c=d HTTP/1.1"], "{over:?}");
        let security = if over == Over::Tunnel { "mutual_tls" } else { "none" };
        let count = |class: &str, reason: &str| {
            mesh.api.metric(&format!("requests_total{{reporter=\"destination\",request_protocol=\"http\",connection_security_policy=\"{security}\",response_code_class=\"{class}\",reason=\"{reason}\"}}"))
        };
        assert_eq!((count("2xx", ""), count("4xx", "NoAllowMatched")), (Some(2), Some(2)), "{over:?}");
    }
}

#[tokio::test]
async fn a_denied_path_is_denied_however_it_is_written() {
    let (mesh, heard) = start(to("DENY", &["/admin", "/admin/*"])).await;
    for target in [
        "/admin",
        "/admin/",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/%61dmin",
        "/%2561dmin",
        "/admin%2Fx",
        "/admin;x=y",
        "/x/..%2Fadmin",
        "/admin?x",
        "/\\admin",
        "/x/%2e%2e/admin",
        "/admin%00",
        "http://shop/admin",
    ] {
        for over in BOTH {
            let status = connect(&mesh, over).await.ask(&format!("GET {target}")).await.status;
            assert!(matches!(status, 400 | 403), "{over:?} {target}: {status}");
        }
    }
    assert!(lines(&heard).is_empty(), "{heard:?}");
    assert_eq!(connect(&mesh, Over::Tunnel).await.ask("GET /administrator").await.status, 200);
    let of_policy = "policy_denials_total{policy=\"shop/http\",rule=\"0\"}";
    assert!(mesh.api.metric(of_policy).unwrap() >= 20);
}

#[tokio::test]
async fn the_app_gets_the_path_that_was_judged() {
    let (mesh, heard) = start(to("ALLOW", &["/b*"])).await;
    let mut client = connect(&mesh, Over::Tunnel).await;
    assert_eq!(client.ask("GET /a/../b/%63?d=%2e").await.status, 200);
    client.send("GET /b HTTP/1.1\r\nHost: shop\r\nX-Forwarded-Client-Cert: By=me\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(lines(&heard), ["GET /b/c?d=%2e HTTP/1.1", "GET /b HTTP/1.1"]);
    let forged = field(&heard.lock().unwrap()[1], "x-forwarded-client-cert").map(str::to_owned);
    assert_eq!(forged, None, "only proxies say who the client is");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    for over in BOTH {
        let (mesh, heard) = start(allow_public()).await;
        let mut client = connect(&mesh, over).await;
        let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n");
        let paths = ["/public/1", "/private/2", "/public/3", "/private/4"];
        client.send(paths.map(request).concat()).await;
        let mut statuses = Vec::new();
        for _ in paths {
            statuses.push(client.answer().await.status);
        }
        assert_eq!(statuses, [200, 403, 200, 403], "{over:?}");
        assert_eq!(lines(&heard).len(), 2, "{over:?}");
    }
}

#[tokio::test]
async fn a_principal_opens_the_path_to_the_tunnel_only() {
    let rule = json!({"action": "ALLOW", "rules": [{
        "from": [{"source": {"principals": ["cluster.local/ns/shop/sa/web"]}}],
        "to": [{"operation": {"methods": ["GET"]}}],
    }]});
    let (mesh, heard) = start(rule).await;
    assert_eq!(connect(&mesh, Over::Tunnel).await.ask("GET /").await.status, 200);
    assert_eq!(connect(&mesh, Over::Tunnel).await.ask("POST /").await.status, 403);
    // Whatever plaintext asks for, it is not allowed: it is refused before a byte is read.
    let (bytes, _) = {
        let mut plain = connect(&mesh, Over::Plaintext).await;
        let _ = tokio::io::AsyncWriteExt::write_all(&mut plain.0, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        plain.rest().await
    };
    assert!(bytes.is_empty());
    assert_eq!(lines(&heard), ["GET / HTTP/1.1"]);
}

#[tokio::test]
async fn what_is_no_http_is_reset_and_counted_and_the_app_hears_nothing() {
    let (mesh, heard) = start(allow_public()).await;
    for (number, words) in [
        &b"\0\x01\x02"[..],
        b"SSH-2.0-OpenSSH_9\r\n",
        b"\x16\x03\x01\0\x05\x02hell",
        b" GET / HTTP/1.1\r\n\r\n",
    ]
    .into_iter()
    .enumerate()
    {
        for over in BOTH {
            let mut client = connect(&mesh, over).await;
            client.send(words).await;
            assert_eq!(
                client.rest().await,
                (Vec::new(), Some(ErrorKind::ConnectionReset)),
                "{over:?} {number}"
            );
        }
    }
    let cut = "connections_cut_total{direction=\"inbound\",reason=\"HttpNeeded\"}";
    assert_eq!(mesh.api.metric(cut), Some(8));
    assert!(lines(&heard).is_empty());
    assert_eq!((mesh.api.totals().denied, mesh.api.totals().served), (4, 0));
}

#[tokio::test]
async fn an_app_that_does_not_listen_is_a_reset_and_no_answer_of_ours() {
    let http_1 = b"GET /public HTTP/1.1\r\nHost: shop\r\n\r\n";
    let http_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for over in BOTH {
        for words in [&http_1[..], http_2] {
            // Nothing listens where the app would be.
            let mesh = Mesh::start(Mode::Permissive).await;
            put(&mesh.api, 2, &[("shop/http", allow_public())]).await;
            let mut client = connect(&mesh, over).await.0.into_inner();
            assert_refuses(&mut client, words).await;
            let refused = |pod: &Pod, direction: &str| {
                let line = "connections_refused_total{direction=\"DIRECTION\",reason=\"NoListener\"}";
                pod.metric(&line.replace("DIRECTION", direction))
            };
            eventually("it is counted", || refused(&mesh.api, "inbound") == Some(1)).await;
            let (of_client, of_plaintext) = if over == Over::Tunnel { (Some(1), 0) } else { (None, 1) };
            assert_eq!(refused(&mesh.web, "outbound"), of_client, "{over:?}");
            let totals = mesh.api.totals();
            assert_eq!((totals.no_listener, totals.served), (of_plaintext, 0), "{over:?}");
            assert_eq!(mesh.api.metric("requests_total{"), None, "{over:?}: no request is made up");
        }
    }
}

#[tokio::test]
async fn a_port_without_http_policies_is_not_read() {
    let mesh = Mesh::with_echo(Mode::Permissive).await;
    let port = port(&mesh.api);
    let elsewhere = json!({"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["GET"], "ports": [(port ^ 1).to_string()]}}]}]});
    put(&mesh.api, 2, &[("shop/http", elsewhere)]).await;
    for over in BOTH {
        let mut client = connect(&mesh, over).await.0.into_inner();
        for words in [&b"\0\x01\x02"[..], b"GET / HTTP/9.9\r\n\r\n"] {
            assert_eq!(exchange(&mut client, words).await.unwrap(), words, "{over:?}");
        }
    }
}

#[tokio::test]
async fn a_connection_that_was_not_read_is_cut_when_a_policy_needs_http() {
    let mesh = Mesh::with_echo(Mode::Permissive).await;
    for over in BOTH {
        put(&mesh.api, 2, &[]).await;
        let mut client = connect(&mesh, over).await.0.into_inner();
        assert_eq!(exchange(&mut client, b"one").await.unwrap(), b"one");
        put(&mesh.api, 3, &[("shop/http", allow_public())]).await;
        assert_eq!(to_end(&mut client).await.1, Some(ErrorKind::ConnectionReset), "{over:?}");
    }
}

#[tokio::test]
async fn a_policy_change_cuts_requests_in_flight_that_it_refuses_and_no_others() {
    for over in BOTH {
        let (mesh, heard) = start(to("ALLOW", &["/poll/*", "/other"])).await;
        let (mut one, mut other) = (connect(&mesh, over).await, connect(&mesh, over).await);
        one.send("GET /poll/one HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        other.send("GET /poll/other HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        eventually("both wait", || heard.lock().unwrap().len() == 2).await;
        put(&mesh.api, 3, &[("shop/http", to("ALLOW", &["/poll/other", "/other"]))]).await;
        assert_eq!(one.rest().await, (Vec::new(), Some(ErrorKind::ConnectionReset)), "{over:?}");
        let still = tokio::time::timeout(std::time::Duration::from_millis(50), other.rest()).await;
        assert!(still.is_err(), "{over:?}: {still:?}");
        assert_eq!(
            mesh.api.metric("connections_cut_total{direction=\"inbound\",reason=\"NoAllowMatched\"}"),
            Some(1)
        );
    }
}

#[tokio::test]
async fn the_next_request_is_judged_by_the_policy_of_now() {
    let (mesh, heard) = start(allow_public()).await;
    let mut client = connect(&mesh, Over::Tunnel).await;
    assert_eq!(client.ask("GET /public").await.status, 200);
    put(&mesh.api, 3, &[("shop/http", to("ALLOW", &["/other"]))]).await;
    assert_eq!(client.ask("GET /public").await.status, 403);
    assert_eq!(client.ask("GET /other").await.status, 200);
    assert_eq!(lines(&heard).len(), 2);
}

#[tokio::test]
async fn a_request_that_has_passed_is_judged_anew_by_another_policy_and_by_fields_that_one_asks_for() {
    let no_guests = json!({"action": "DENY", "rules": [{"when": [{"key": "request.headers[x-role]", "values": ["guest"]}]}]});
    for over in BOTH {
        let (mesh, heard) = start(allow_public()).await;
        let mut client = connect(&mesh, over).await;
        for _ in 0..4 {
            assert_eq!(client.ask("GET /public").await.status, 200, "{over:?}");
        }
        for other in ["DELETE /public", "GET /publics", "GET /public/../private"] {
            assert_eq!(client.ask(other).await.status, 403, "{over:?} {other}");
        }
        put(&mesh.api, 3, &[("shop/http", allow_public()), ("shop/no-guests", no_guests.clone())]).await;
        for _ in 0..3 {
            assert_eq!(client.ask("GET /public").await.status, 200, "{over:?}");
            client.send("GET /public HTTP/1.1\r\nHost: shop\r\nX-Role: guest\r\n\r\n").await;
            assert_eq!(client.answer().await.status, 403, "{over:?}");
        }
        put(&mesh.api, 4, &[("shop/http", to("ALLOW", &["/other"]))]).await;
        assert_eq!(client.ask("GET /public").await.status, 403, "{over:?}");
        assert_eq!(lines(&heard).len(), 7, "{over:?}");
    }
}

#[tokio::test]
async fn audits_and_dry_runs_hear_of_requests_and_refuse_none() {
    let mesh = Mesh::start(Mode::Permissive).await;
    let heard = web(&mesh.api).await;
    let all = [
        ("shop/http", allow_public()),
        ("shop/watch", to("AUDIT", &["/public/a"])),
        ("shop/dry", to("DENY", &["/public/b"])),
    ];
    put(&mesh.api, 2, &all).await;
    let mut client = connect(&mesh, Over::Tunnel).await;
    for path in ["/public/a", "/public/b", "/public/c"] {
        assert_eq!(client.ask(&format!("GET {path}")).await.status, 200, "{path}");
    }
    for line in [
        "policy_reports_total{policy=\"shop/watch\",rule=\"audit\"}",
        "policy_reports_total{policy=\"shop/dry\",rule=\"dry-run\"}",
        "policy_would_deny_total{reason=\"DeniedByPolicy\"}",
    ] {
        assert_eq!(mesh.api.metric(line), Some(1), "{line}");
    }
    assert_eq!(lines(&heard).len(), 3);
}

#[tokio::test]
async fn refused_plaintext_is_denied_in_the_evidence_and_served_plaintext_is_served() {
    let (mesh, _heard) = start(allow_public()).await;
    let mut refused = connect(&mesh, Over::Plaintext).await;
    assert_eq!(refused.ask("GET /private").await.status, 403);
    assert_eq!((mesh.api.totals().served, mesh.api.totals().open), (0, 0));
    drop(refused);
    eventually("it is counted", || mesh.api.totals().denied == 1).await;
    let mut served = connect(&mesh, Over::Plaintext).await;
    assert_eq!(served.ask("GET /public").await.status, 200);
    let totals = mesh.api.totals();
    assert_eq!((totals.served, totals.open, totals.denied, totals.empty), (1, 1, 1, 0));
}

#[tokio::test]
async fn the_pods_requests_to_itself_are_judged_too() {
    let mesh = Mesh::start(Mode::Strict).await;
    let (heard, own) = web_at(WEB_IP).await;
    mesh.web.told.say(SERVICE, one_of(vec![endpoint(own, WEB)]));
    put(&mesh.web, 2, &[("shop/http", allow_public())]).await;
    let mut client = connect(&mesh, Over::Tunnel).await;
    assert_eq!(client.ask("GET /public").await.status, 200);
    assert_eq!(client.ask("GET /private").await.status, 403);
    assert_eq!(lines(&heard), ["GET /public HTTP/1.1"]);
    assert_eq!(mesh.web.metric("connections_total{direction=\"inbound\",transport=\"local\"}"), Some(1));
    put(&mesh.web, 3, &[("shop/http", json!({"action": "ALLOW"}))]).await;
    assert_eq!(client.rest().await, (Vec::new(), Some(ErrorKind::ConnectionReset)));
}

//! Two proxies in network namespaces of their own, with the redirect of `cinch-proxy init` and no control plane:
//! what crosses the wire is sealed, and a STRICT port refuses whoever has no tunnel.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unsafe_code)]

#[path = "../../crates/redirect/tests/support/mod.rs"]
mod support;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyUsagePurpose, SanType};
use std::fs::Permissions;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::Namespace;

const WAIT: Duration = Duration::from_secs(60);
const MARKER: &[u8] = b"the-marker-that-nobody-may-read";
const CLIENT_IP: &str = "10.11.0.1";
const SERVER_IP: &str = "10.11.0.2";
/// The server's address towards the stranger.
const SERVER_OTHER_IP: &str = "10.12.0.2";
/// The same of the other family.
const CLIENT_IP6: &str = "fd00:11::1";
const SERVER_IP6: &str = "fd00:11::2";
const SERVER_OTHER_IP6: &str = "fd00:12::2";

/// Files that the proxies' user can read, with the program itself: a checkout need not be open to others.
struct Files {
    directory: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let program = directory.path().join("cinch-proxy");
        std::fs::copy(env!("CARGO_BIN_EXE_cinch-proxy"), &program).unwrap();
        std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
        let files = Self { directory, issuer };
        files.write("ca.pem", &files.issuer.pem());
        files
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        path
    }

    /// Certificate, key and configuration of the service account `name`.
    fn config(&self, name: &str, policies: &str, peers: &str) -> PathBuf {
        let mut params = CertificateParams::default();
        let id = format!("spiffe://cluster.local/ns/default/sa/{name}");
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        self.write(&format!("{name}.pem"), &params.signed_by(&key, &self.issuer).unwrap().pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
        self.write(
            &format!("{name}.yaml"),
            &format!(
                "workload: {{namespace: default, serviceAccount: {name}, labels: {{app: {name}}}}}\n\
                 identity: {{certificateChain: {name}.pem, privateKey: {name}.key, trustBundle: ca.pem}}\n\
                 mesh: {{trustDomain: cluster.local}}\npolicies: [{policies}]\npeers: [{peers}]\n"
            ),
        )
    }

    fn program(&self) -> PathBuf {
        self.directory.path().join("cinch-proxy")
    }
}

/// A proxy that ends with the test.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that was just written may be held open for writing, for a moment, by what another test of this process
/// has forked meanwhile.
fn when_free<T>(mut run: impl FnMut() -> std::io::Result<T>) -> T {
    let begin = Instant::now();
    loop {
        match run() {
            Err(error)
                if error.kind() == std::io::ErrorKind::ExecutableFileBusy && begin.elapsed() < WAIT =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result.unwrap(),
        }
    }
}

fn start(namespace: &Namespace, program: &Path, config: PathBuf) -> Proxy {
    let init = program.to_owned();
    let output = namespace.run(move || when_free(|| Command::new(&init).arg("init").output()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("redirect in force and proved by a dial to 192.0.2.1:9"), "{said}");
    let mut command = Command::new(program);
    command.stdout(std::fs::File::create(config.with_extension("log")).unwrap());
    command.arg("run").arg("--config").arg(config).uid(1507).gid(1507).stdin(Stdio::null());
    let proxy = Proxy(namespace.run(move || when_free(|| command.spawn())));
    let begin = Instant::now();
    while namespace.run(|| TcpStream::connect("127.0.0.1:15001").is_err()) {
        assert!(begin.elapsed() < WAIT, "the proxy does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    proxy
}

/// Connects two namespaces, with addresses of both families on either end and the default routes of `a` to `b`.
fn link(a: &Namespace, b: &Namespace, devices: (&str, &str), v4: (&str, &str), v6: (&str, &str)) {
    a.ip(&format!("link add {} type veth peer name {} netns {}", devices.0, devices.1, b.thread()));
    for (namespace, device, v4, v6) in [(a, devices.0, v4.0, v6.0), (b, devices.1, v4.1, v6.1)] {
        namespace.ip(&format!("link set {device} up"));
        namespace.ip(&format!("addr add {v4}/24 dev {device}"));
        namespace.ip(&format!("addr add {v6}/64 dev {device} nodad"));
    }
    a.ip(&format!("route replace default via {}", v4.1));
    a.ip(&format!("-6 route replace default via {}", v6.1));
}

/// Copies every packet that crosses eth0 of `namespace`.
fn capture(namespace: &Namespace) -> Arc<Mutex<Vec<u8>>> {
    let packets = Arc::new(Mutex::new(Vec::new()));
    let fd = namespace.run(packet_socket);
    let seen = packets.clone();
    std::thread::spawn(move || {
        let mut buffer = vec![0u8; 70_000];
        loop {
            // SAFETY: `buffer` is valid for writes of its length and not aliased.
            let read = unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            let Ok(read) = usize::try_from(read) else { return };
            seen.lock().unwrap().extend_from_slice(&buffer[..read]);
        }
    });
    packets
}

fn packet_socket() -> OwnedFd {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: the descriptor is checked and owned at once; the name ends with NUL; all-zero is a valid
    // sockaddr_ll, and it lives through the call.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, i32::from(protocol));
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(fd);
        let mut device: libc::sockaddr_ll = std::mem::zeroed();
        device.sll_family = libc::AF_PACKET as u16;
        device.sll_protocol = protocol;
        device.sll_ifindex = libc::if_nametoindex(c"eth0".as_ptr()).cast_signed();
        let length = size_of::<libc::sockaddr_ll>() as u32;
        assert_eq!(libc::bind(fd.as_raw_fd(), (&raw const device).cast(), length), 0);
        fd
    }
}

/// Waits until `condition` holds.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < WAIT, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    // What comes with it has come, too.
    std::thread::sleep(Duration::from_millis(50));
}

fn holds(packets: &Mutex<Vec<u8>>, marker: &[u8]) -> bool {
    packets.lock().unwrap().windows(marker.len()).any(|window| window == marker)
}

/// An app that echoes on port 8080 of either family and counts what it was sent.
fn echo(namespace: &Namespace) -> Arc<AtomicUsize> {
    let listener = namespace.run(|| TcpListener::bind("[::]:8080").unwrap());
    let received = Arc::new(AtomicUsize::new(0));
    let count = received.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let count = count.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    count.fetch_add(read, Ordering::Relaxed);
                    let _ = stream.write_all(&buffer[..read]);
                }
            });
        }
    });
    received
}

fn exchange(to: String) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&to.parse().unwrap(), WAIT)?;
    stream.set_read_timeout(Some(WAIT))?;
    stream.write_all(MARKER)?;
    let mut answer = vec![0; MARKER.len()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn get(to: String, path: &'static str) -> String {
    let mut stream = TcpStream::connect_timeout(&to.parse().unwrap(), WAIT).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {to}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                      metadata: {name: default, namespace: default}\nspec: {mtls: {mode: STRICT}}\n";

struct Mesh {
    client: Namespace,
    server: Namespace,
    stranger: Namespace,
    received: Arc<AtomicUsize>,
    proxies: Vec<Proxy>,
    files: Files,
}

fn mesh(policy: &str) -> Mesh {
    let (client, server, stranger) = (Namespace::new(), Namespace::new(), Namespace::new());
    link(&client, &server, ("eth0", "eth0"), (CLIENT_IP, SERVER_IP), (CLIENT_IP6, SERVER_IP6));
    let other = (("10.12.0.1", SERVER_OTHER_IP), ("fd00:12::1", SERVER_OTHER_IP6));
    link(&stranger, &server, ("eth0", "eth1"), other.0, other.1);
    server.ip(&format!("route replace default via {CLIENT_IP}"));
    server.ip(&format!("-6 route replace default via {CLIENT_IP6}"));
    let received = echo(&server);
    let files = Files::new();
    let policies = if policy.is_empty() { "" } else { "policies.yaml" };
    files.write("policies.yaml", policy);
    let peer = |address: &str| {
        format!(
            "{{address: \"{address}\", identity: \"spiffe://cluster.local/ns/default/sa/server\", meshed: true}}"
        )
    };
    let peers = [peer(SERVER_IP), peer(SERVER_IP6)].join(", ");
    let configs = (files.config("client", "", &peers), files.config("server", policies, ""));
    let proxies =
        vec![start(&client, &files.program(), configs.0), start(&server, &files.program(), configs.1)];
    Mesh { client, server, stranger, received, proxies, files }
}

#[test]
fn between_proxies_the_wire_is_sealed_and_strict_refuses_plaintext() {
    need_namespaces!("between_proxies_the_wire_is_sealed_and_strict_refuses_plaintext");
    let mut mesh = mesh(STRICT);
    let wire = capture(&mesh.client);
    for _ in 0..3 {
        let answer = mesh.client.run(|| exchange(format!("{SERVER_IP}:8080"))).unwrap();
        assert_eq!(answer, MARKER);
    }
    assert_eq!(mesh.received.load(Ordering::Relaxed), 3 * MARKER.len());
    eventually("packets are seen", || !wire.lock().unwrap().is_empty());
    assert!(!holds(&wire, MARKER), "the marker crossed the wire");

    let refused = mesh.stranger.run(|| exchange(format!("{SERVER_OTHER_IP}:8080"))).unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof), "{refused}");
    assert_eq!(mesh.received.load(Ordering::Relaxed), 3 * MARKER.len(), "no byte of it reached the app");

    let page = mesh.stranger.run(|| get(format!("{SERVER_OTHER_IP}:15020"), "/metrics"));
    for line in [
        "cinch_connections_total{direction=\"inbound\",transport=\"tunnel\"} 3",
        "cinch_connections_refused_total{direction=\"inbound\",reason=\"StrictPlaintext\"} 1",
        "cinch_tunnel_handshakes_total{direction=\"inbound\",outcome=\"ok\"} ",
        "istio_tcp_connections_opened_total{reporter=\"destination\",source_workload=\"client\",source_workload_namespace=\"default\",",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    assert!(page.ends_with("# EOF\n") && page.matches("# EOF").count() == 1, "one page of OpenMetrics");
    assert!(
        mesh.stranger.run(|| get(format!("{SERVER_OTHER_IP}:15021"), "/ready")).starts_with("HTTP/1.1 200 ")
    );
    assert!(
        mesh.server.run(|| exchange(format!("{SERVER_IP}:8080"))).is_ok(),
        "own loopback is not captured"
    );

    for proxy in &mut mesh.proxies {
        let begin = Instant::now();
        // SAFETY: the process is our child and not yet waited for.
        unsafe { libc::kill(i32::try_from(proxy.0.id()).unwrap(), libc::SIGTERM) };
        assert!(proxy.0.wait().unwrap().success());
        let drain = cinch_proxy::limits::Limits::default().drain_timeout;
        assert!(begin.elapsed() < drain, "it waits for connections that are not there");
    }
    let log = std::fs::read_to_string(mesh.files.directory.path().join("server.log")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Once `start` has dialled the listener itself to see whether it is there.
    let denials: Vec<_> = lines.iter().filter(|line| line["reason"] != "DestinationRefused").collect();
    assert_eq!(denials.len(), 1, "tunnels that passed are not told: {log}");
    assert_eq!((&denials[0]["decision"], &denials[0]["reason"]), (&"deny".into(), &"StrictPlaintext".into()));
}

#[test]
fn with_two_families_each_has_its_redirect_its_tunnels_and_its_refusals() {
    need_namespaces!("with_two_families_each_has_its_redirect_its_tunnels_and_its_refusals");
    let mesh = mesh(STRICT);
    let wire = capture(&mesh.client);
    // The same pod under both addresses, one after the other and again, over tunnels of their own.
    for address in [SERVER_IP6, SERVER_IP, SERVER_IP6] {
        let to = SocketAddr::new(address.parse().unwrap(), 8080).to_string();
        assert_eq!(mesh.client.run(|| exchange(to)).unwrap(), MARKER, "{address}");
    }
    eventually("packets are seen", || !wire.lock().unwrap().is_empty());
    assert!(!holds(&wire, MARKER), "the marker crossed the wire");
    let received = mesh.received.load(Ordering::Relaxed);
    for address in [SERVER_OTHER_IP6, SERVER_OTHER_IP] {
        let to = SocketAddr::new(address.parse().unwrap(), 8080).to_string();
        let refused = mesh.stranger.run(|| exchange(to)).unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof), "{refused}");
    }
    assert_eq!(mesh.received.load(Ordering::Relaxed), received, "no byte of it reached the app");
    let page = mesh.stranger.run(|| get(format!("[{SERVER_OTHER_IP6}]:15020"), "/metrics"));
    for line in [
        "cinch_connections_total{direction=\"inbound\",transport=\"tunnel\"} 3",
        "cinch_connections_refused_total{direction=\"inbound\",reason=\"StrictPlaintext\"} 2",
        // One for each address: the second connection to the same one found its tunnel.
        "cinch_tunnel_handshakes_total{direction=\"inbound\",outcome=\"ok\"} 2",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    // Nobody reaches the proxy's own listeners from outside, nor the app's address of loopback.
    for port in [15001, 15006] {
        let to = format!("[{SERVER_OTHER_IP6}]:{port}");
        assert!(mesh.stranger.run(|| exchange(to)).is_err(), "{port}");
    }
    assert!(mesh.server.run(|| exchange("[::1]:8080".to_owned())).is_ok(), "own loopback is not captured");
}

#[test]
fn a_permissive_port_serves_tunnels_and_plaintext() {
    need_namespaces!("a_permissive_port_serves_tunnels_and_plaintext");
    let mesh = mesh("");
    assert_eq!(mesh.client.run(|| exchange(format!("{SERVER_IP}:8080"))).unwrap(), MARKER);
    let wire = capture(&mesh.stranger);
    assert_eq!(mesh.stranger.run(|| exchange(format!("{SERVER_OTHER_IP}:8080"))).unwrap(), MARKER);
    eventually("the capture sees what is not sealed", || holds(&wire, MARKER));
    let page = mesh.stranger.run(|| get(format!("{SERVER_OTHER_IP}:15020"), "/metrics"));
    for line in [
        "cinch_connections_total{direction=\"inbound\",transport=\"tunnel\"} 1",
        "cinch_connections_total{direction=\"inbound\",transport=\"plaintext\"} 1",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
}

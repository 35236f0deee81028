//! The program where a pod would have it, with a node agent that the test plays: until that agent says that the
//! redirect is in force, the sidecar's own dials would lead back to itself or past everything, so there are none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../../crates/redirect/tests/support/mod.rs"]
mod support;

use cinch_redirect::request::{Answer, Request};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::Namespace;

/// Where the operator would be, and what the self-test dials.
const DIALLED: [&str; 2] = ["127.0.0.1:7443", "192.0.2.1:9"];
/// Before it gives in. The sidecar asks again after 20, 40, 80 … ms: enough time for all that it might do meanwhile.
const REFUSALS: usize = 6;

struct Sidecar(Child);

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a pod has below /var/run/cinch.
fn mounts(directory: &Path) -> UnixListener {
    for folder in ["agent", "trust", "token"] {
        fs::create_dir(directory.join(folder)).unwrap();
    }
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    fs::write(directory.join("trust/bundle.pem"), authority.pem()).unwrap();
    fs::write(directory.join("trust/operator"), DIALLED[0]).unwrap();
    fs::write(directory.join("token/token"), "a token").unwrap();
    let socket = directory.join("agent/agent.sock");
    let agent = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
    agent
}

fn start(namespace: &Namespace, directory: &Path) -> Sidecar {
    let script = format!(
        "mount -t tmpfs none /var/run && mkdir /var/run/cinch && mount --bind {} /var/run/cinch && exec {} run",
        directory.display(),
        env!("CARGO_BIN_EXE_cinch-proxy")
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]).stdin(Stdio::null());
    for (name, value) in [
        ("POD_NAME", "web-1"),
        ("POD_NAMESPACE", "shop"),
        ("POD_UID", "0b1f"),
        ("POD_IPS", "10.0.0.5"),
        ("SERVICE_ACCOUNT", "web"),
        ("TRUST_DOMAIN", "cluster.local"),
        ("OPERATOR_ID", "spiffe://cluster.local/ns/cinch-system/sa/cinch-operator"),
        ("REDIRECT", "agent"),
    ] {
        command.env(format!("CINCH_{name}"), value);
    }
    Sidecar(namespace.run(move || command.spawn().unwrap()))
}

/// Takes one question and answers it.
fn answer(agent: &UnixListener, answer: &Answer) {
    let (mut stream, _) = agent.accept().unwrap();
    let mut request = [0; 15];
    stream.read_exact(&mut request).unwrap();
    assert!(Request::decode(&request).unwrap().is_some());
    stream.write_all(&answer.encode()).unwrap();
}

#[test]
fn the_sidecar_dials_nobody_before_the_node_agent_has_set_the_redirect() {
    need_namespaces!("the_sidecar_dials_nobody_before_the_node_agent_has_set_the_redirect");
    let directory = tempfile::tempdir().unwrap();
    let agent = mounts(directory.path());
    let namespace = Namespace::new();
    namespace.ip("addr add 192.0.2.1/32 dev lo");
    let listeners = namespace.run(|| DIALLED.map(|at| TcpListener::bind(at).unwrap()));
    listeners.iter().for_each(|listener| listener.set_nonblocking(true).unwrap());
    let _sidecar = start(&namespace, directory.path());
    for _ in 0..REFUSALS {
        answer(&agent, &Answer::Refused { reason: "PeerUnknown".into(), sentence: "not yet".into() });
    }
    for (listener, at) in listeners.iter().zip(DIALLED) {
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "{at} was dialled");
    }
    answer(&agent, &Answer::Done { cgroup: 1, level: 1, sightings: None, was_gone: false });
    for (listener, at) in listeners.iter().zip(DIALLED) {
        let dialled = (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            listener.accept().is_ok()
        });
        assert!(dialled, "{at} is not dialled with the redirect in force either");
    }
}

#[test]
fn the_sidecar_hardens_itself_before_it_asks_for_anything() {
    need_namespaces!("the_sidecar_hardens_itself_before_it_asks_for_anything");
    let directory = tempfile::tempdir().unwrap();
    let agent = mounts(directory.path());
    let namespace = Namespace::new();
    let sidecar = start(&namespace, directory.path());
    answer(&agent, &Answer::Refused { reason: "PeerUnknown".into(), sentence: "not yet".into() });
    let limits = fs::read_to_string(format!("/proc/{}/limits", sidecar.0.id())).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"], "soft and hard");
}

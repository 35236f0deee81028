//! Three namespaces: a client with a proxy, the attacked server with a proxy and its apps, and a stranger on a link
//! of his own. The proxies are the program as it is released, with a configuration file.

use crate::attackers::{Attack, Material, Stop};
use crate::support::Namespace;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyUsagePurpose, SanType};
use std::fs::Permissions;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const CLIENT_IP: &str = "10.11.0.1";
/// The server's address towards the client.
pub const SERVER_IP: &str = "10.11.0.2";
const STRANGER_IP: &str = "10.12.0.1";
/// The server's address towards the stranger.
pub const ATTACKED_IP: &str = "10.12.0.2";
const WAIT: Duration = Duration::from_secs(60);

/// One HTTP rule for the two HTTP ports; the others are not read, and the echo's is STRICT.
const POLICIES: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: ports, namespace: default}
spec: {selector: {matchLabels: {app: server}}, portLevelMtls: {9090: {mode: STRICT}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: http, namespace: default}
spec:
  selector: {matchLabels: {app: server}}
  rules:
  - to: [{operation: {methods: [GET], ports: ["8080", "8082"]}}]
  - to: [{operation: {ports: ["7070", "9090"]}}]
"#;

/// Times as short as a test wants them, and still longer than an honest client needs on a slow machine whose cores are
/// all busy; few connections, so that a test can make more of them.
const SETTINGS: &str = "{limits: {connections: 2000, handshakeTimeout: 2s, httpFirstByte: 2s, \
                        silenceOfPeers: 500ms, httpHeldBytes: 4194304, http: {headTimeout: 1s, streams: 100}}}";

/// Certificates, configurations and the program, where the proxies' user can read them.
struct Files {
    directory: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
        let this = Self { directory, issuer };
        std::fs::copy(env!("CARGO_BIN_EXE_cinch-proxy"), this.program()).unwrap();
        std::fs::set_permissions(this.program(), Permissions::from_mode(0o755)).unwrap();
        this.write("ca.pem", &this.issuer.pem());
        this.write("policies.yaml", POLICIES);
        this
    }

    fn program(&self) -> PathBuf {
        self.directory.path().join("cinch-proxy")
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        path
    }

    /// Certificate and key of a service account, PEM.
    fn leaf(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::default();
        let id = format!("spiffe://cluster.local/ns/default/sa/{name}");
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn config(&self, name: &str, policies: &str, peers: &str, settings: &str) -> PathBuf {
        let (certificate, key) = self.leaf(name);
        self.write(&format!("{name}.pem"), &certificate);
        self.write(&format!("{name}.key"), &key);
        let text = format!(
            "workload: {{namespace: default, serviceAccount: {name}, labels: {{app: {name}}}}}\n\
             identity: {{certificateChain: {name}.pem, privateKey: {name}.key, trustBundle: ca.pem}}\n\
             mesh: {{trustDomain: cluster.local}}\nsettings: {settings}\npolicies: [{policies}]\npeers: [{peers}]\n"
        );
        self.write(&format!("{name}.yaml"), &text)
    }
}

/// A proxy that ends with the test.
pub struct Proxy(Child);

impl Proxy {
    /// Sends a signal.
    #[allow(unsafe_code)]
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill takes plain integers; the process is our child and not yet waited for.
        unsafe { libc::kill(i32::try_from(self.0.id()).unwrap(), signal) };
    }

    /// Waits for its end; says whether it ended well.
    pub fn wait(&mut self) -> bool {
        self.0.wait().unwrap().success()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Another thread of this process may hold a program that was just written open, for a moment, by a fork.
fn when_free<T>(mut run: impl FnMut() -> std::io::Result<T>) -> T {
    let begin = Instant::now();
    loop {
        match run() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && begin.elapsed() < WAIT => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result.unwrap(),
        }
    }
}

fn start(namespace: &Namespace, program: PathBuf, config: PathBuf) -> Proxy {
    let init = program.clone();
    let output = namespace.run(move || when_free(|| Command::new(&init).arg("init").output()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut command = Command::new(program);
    command.args(["run", "--config"]).arg(config).uid(1507).gid(1507);
    // Its access log, which tells each denial, would hide the figures.
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.env("CINCH_LOG", std::env::var("CINCH_LOG").unwrap_or_else(|_| "error".to_owned()));
    let proxy = Proxy(namespace.run(move || when_free(|| command.spawn())));
    let begin = Instant::now();
    while namespace.run(|| TcpStream::connect("127.0.0.1:15001").is_err()) {
        assert!(begin.elapsed() < WAIT, "the proxy does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    proxy
}

fn link(a: &Namespace, b: &Namespace, devices: (&str, &str), addresses: (&str, &str)) {
    a.ip(&format!("link add {} type veth peer name {} netns {}", devices.0, devices.1, b.thread()));
    for (namespace, device, address) in [(a, devices.0, addresses.0), (b, devices.1, addresses.1)] {
        namespace.ip(&format!("link set {device} up"));
        namespace.ip(&format!("addr add {address}/24 dev {device}"));
    }
    a.ip(&format!("route replace default via {}", addresses.1));
}

/// Everything that a test needs; it ends with this.
pub struct Scene {
    pub client: Namespace,
    pub stranger: Namespace,
    pub server_proxy: Proxy,
    pub client_proxy: Proxy,
    server: Namespace,
    material: Arc<Material>,
    files: Files,
    client_config: PathBuf,
    server_config: PathBuf,
}

impl Scene {
    pub fn start() -> Self {
        Self::with(SETTINGS)
    }

    /// The attacked proxy has these settings.
    pub fn with(settings: &str) -> Self {
        let (client, server, stranger) = (Namespace::new(), Namespace::new(), Namespace::new());
        link(&client, &server, ("eth0", "eth0"), (CLIENT_IP, SERVER_IP));
        link(&stranger, &server, ("eth0", "eth1"), (STRANGER_IP, ATTACKED_IP));
        server.ip(&format!("route replace default via {CLIENT_IP}"));
        server.run(|| std::thread::spawn(|| crate::attackers::runtime().block_on(crate::apps::serve())));
        let files = Files::new();
        let peer = format!(
            "{{address: {SERVER_IP}, identity: \"spiffe://cluster.local/ns/default/sa/server\", meshed: true}}"
        );
        let client_config = files.config("client", "", &peer, "{}");
        let server_config = files.config("server", "policies.yaml", "", settings);
        let (certificate, key) = files.leaf("mallory");
        let material = Material { certificate, key, bundle: files.issuer.pem() };
        Self {
            server_proxy: start(&server, files.program(), server_config.clone()),
            client_proxy: start(&client, files.program(), client_config.clone()),
            material: Arc::new(material),
            client,
            stranger,
            server,
            files,
            client_config,
            server_config,
        }
    }

    /// A new proxy in place of the client's, which has ended.
    pub fn restart_client_proxy(&mut self) {
        self.client_proxy = start(&self.client, self.files.program(), self.client_config.clone());
    }

    /// A new proxy in place of the server's, which has ended.
    pub fn restart_server_proxy(&mut self) {
        self.server_proxy = start(&self.server, self.files.program(), self.server_config.clone());
    }

    /// Lets the stranger attack until `stop`; gives what he did.
    pub fn attack(&self, attack: Attack, stop: Stop) -> JoinHandle<u64> {
        let material = self.material.clone();
        self.stranger.run(move || std::thread::spawn(move || attack(material, stop)))
    }

    /// Memory of the attacked proxy's own, in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.server_proxy.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("the proxy is gone");
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Processor time that the attacked proxy has used.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.server_proxy.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // utime and stime (proc(5)), in hundredths of a second on all usual kernels.
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// The metrics page of the attacked proxy, asked for by the stranger when there is room for it.
    pub fn metrics(&self) -> String {
        let ask = || {
            let mut stream = TcpStream::connect(format!("{ATTACKED_IP}:15020"))?;
            stream.set_read_timeout(Some(WAIT))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        let begin = Instant::now();
        loop {
            match self.stranger.run(ask) {
                Ok(page) => return page,
                Err(error) => assert!(begin.elapsed() < WAIT, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

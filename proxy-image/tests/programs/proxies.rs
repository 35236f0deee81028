//! The program `cinch-proxy` with its files. In go a name, settings and peers, out comes a running proxy, what it logs
//! and what it uses.

use crate::support::Namespace;
use crate::{WAIT, eventually};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyUsagePurpose, SanType};
use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The user of the proxies, whom the redirect lets pass.
pub const USER: u32 = 1507;

/// The file of the policies of all proxies; empty where a test writes none.
pub const POLICIES: &str = "policies.yaml";

/// Certificates, configurations and the program, where the proxies' user can read them.
pub struct Files {
    directory: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Files {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
        let this = Self { directory, issuer };
        // The program as it was built for tests, or another one: figures are of interest for the released one.
        let program = std::env::var("CINCH_PROGRAM");
        let program = program.unwrap_or_else(|_| env!("CARGO_BIN_EXE_cinch-proxy").to_owned());
        std::fs::copy(program, this.path("cinch-proxy")).unwrap();
        std::fs::set_permissions(this.path("cinch-proxy"), Permissions::from_mode(0o755)).unwrap();
        this.write("ca.pem", &this.issuer.pem());
        this.write(POLICIES, "");
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file that everybody can read.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        path
    }

    /// Certificate, key and configuration of the service account `name`; all of `peers` (addresses or CIDRs with a
    /// service account each) are meshed.
    fn configure(&self, name: &str, settings: &str, peers: &[(&str, &str)]) -> PathBuf {
        let id = |name: &str| format!("spiffe://cluster.local/ns/default/sa/{name}");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id(name).as_str().try_into().unwrap())];
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        self.write(&format!("{name}.pem"), &params.signed_by(&key, &self.issuer).unwrap().pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
        let peers = peers.iter().map(|(address, account)| {
            format!("{{address: {address}, identity: \"{}\", meshed: true}}", id(account))
        });
        let peers = peers.collect::<Vec<_>>().join(", ");
        self.write(
            &format!("{name}.yaml"),
            &format!(
                "workload: {{namespace: default, serviceAccount: {name}, labels: {{app: {name}}}}}\n\
                 identity: {{certificateChain: {name}.pem, privateKey: {name}.key, trustBundle: ca.pem}}\n\
                 mesh: {{trustDomain: cluster.local}}\nsettings: {settings}\npolicies: [{POLICIES}]\npeers: [{peers}]\n"
            ),
        )
    }
}

/// A proxy that ends with the test.
pub struct Proxy {
    child: Child,
    access_log: PathBuf,
    log: PathBuf,
}

impl Proxy {
    /// Sets the redirect of `namespace` and starts a proxy there, of the service account `name`.
    pub fn start(
        namespace: &Namespace,
        files: &Files,
        name: &str,
        settings: &str,
        peers: &[(&str, &str)],
    ) -> Proxy {
        let config = files.configure(name, settings, peers);
        let program = files.path("cinch-proxy");
        let init = program.clone();
        let output = namespace.run(move || when_free(|| Command::new(&init).arg("init").output()));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (access_log, log) = (files.path(&format!("{name}.access")), files.path(&format!("{name}.log")));
        let mut command = Command::new(program);
        command.args(["run", "--config"]).arg(config).uid(USER).gid(USER).stdin(Stdio::null());
        command.stdout(File::create(&access_log).unwrap()).stderr(File::create(&log).unwrap());
        let child = namespace.run(move || when_free(|| command.spawn()));
        let proxy = Proxy { child, access_log, log };
        eventually("a proxy that listens", || {
            namespace.run(|| TcpStream::connect("127.0.0.1:15001").is_ok())
        });
        proxy
    }

    /// Sends a signal.
    #[allow(unsafe_code)]
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill takes plain integers; the process is our child and not yet waited for.
        unsafe { libc::kill(i32::try_from(self.child.id()).unwrap(), signal) };
    }

    /// What it wrote to its log, and to the access log.
    pub fn logs(&self) -> (String, String) {
        let read = |path| std::fs::read_to_string(path).unwrap();
        (read(&self.log), read(&self.access_log))
    }

    /// Memory of its own, in bytes.
    pub fn memory(&self) -> u64 {
        self.status("RssAnon:")
    }

    /// Resident memory, the program's own pages among it, in bytes.
    pub fn resident(&self) -> u64 {
        self.status("VmRSS:")
    }

    fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).expect("the proxy is gone");
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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

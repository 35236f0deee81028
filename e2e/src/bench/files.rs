//! What the proxies read: programs, certificates, configurations, in a folder of the run that is removed at its end.
//! The proxies run as a user of their own, so all of it lies where that user can read it.

use super::pair::{PROXY_USER, raise_open_files};
use super::peers::{Peer, Proxies, Variant};
use super::programs::Programs;
use super::workloads::{BYTES, HTTP, OPAQUE};
use super::{envoy, network};
use anyhow::{Context, Result};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// The trust domain, namespace and accounts of both sides.
pub const SERVER_ID: &str = "spiffe://cluster.local/ns/default/sa/server";
/// The client's identity.
pub const CLIENT_ID: &str = "spiffe://cluster.local/ns/default/sa/client";
const ISSUER: &str = "https://issuer.bench.local";
/// Longer than any run.
const TOKEN_LIFETIME: u64 = 24 * 3600;

/// The folder of a run.
pub struct Files {
    folder: TempDir,
    token: String,
}

impl Files {
    /// Writes all of it.
    ///
    /// # Errors
    /// When the folder can't be written.
    pub fn write(programs: &Programs) -> Result<Self> {
        raise_open_files().context("the limit of open files")?;
        // A name that nobody can guess: programs in it are started as root.
        let folder = tempfile::Builder::new().prefix("cinch-bench-").tempdir()?;
        let issuer = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        let files = Self { folder, token: token(&issuer)? };
        fs::set_permissions(files.folder.path(), Permissions::from_mode(0o755))?;
        let envoy = programs.envoy.as_ref().map(|path| (path, "envoy"));
        for (program, name) in
            [(&programs.proxy, "cinch-proxy"), (&programs.load, "cinch-load")].into_iter().chain(envoy)
        {
            fs::copy(program, files.path(name)).with_context(|| program.display().to_string())?;
            fs::set_permissions(files.path(name), Permissions::from_mode(0o755))?;
        }
        files.write_certificates()?;
        files.write_cinch(&issuer)?;
        files.put("envoy-client.json", &envoy::client(files.folder.path()).to_string())?;
        files.put("envoy-server.json", &envoy::server(files.folder.path()).to_string())?;
        Ok(files)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        fs::write(&path, text).with_context(|| path.display().to_string())
    }

    fn write_certificates(&self) -> Result<()> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        // A certificate whose issuer has its own name would look self-signed.
        params.distinguished_name.push(DnType::CommonName, "bench authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        self.put("authority.pem", &authority.pem())?;
        for (side, id) in [("client", CLIENT_ID), ("server", SERVER_ID)] {
            let mut params = CertificateParams::default();
            // Cinch and Envoy ask for the identity, the bare pair for the name.
            params.subject_alt_names = vec![
                SanType::URI(id.try_into()?),
                SanType::DnsName(format!("{side}.bench.local").try_into()?),
            ];
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate()?;
            self.put(&format!("{side}.pem"), &params.signed_by(&key, &authority)?.pem())?;
            let secret = format!("{side}.key");
            self.put(&secret, &key.serialize_pem())?;
            fs::set_permissions(self.path(&secret), Permissions::from_mode(0o600))?;
            chown(self.path(&secret), Some(PROXY_USER), Some(PROXY_USER))?;
        }
        Ok(())
    }

    fn write_cinch(&self, issuer: &EcdsaKeyPair) -> Result<()> {
        let server = network::SERVER;
        let peer = format!("{{address: {server}, identity: \"{SERVER_ID}\", meshed: true}}");
        self.put("cinch-client.yaml", &configuration("client", "", &peer, ""))?;
        for variant in
            [Variant::Plain, Variant::Rules(50), Variant::Rules(500), Variant::Tokens, Variant::Logged]
        {
            let name = variant_name(variant);
            let settings = if variant == Variant::Logged {
                "settings: {accessLog: {sampling: 1.0, linesPerSecond: 1000000}}\n"
            } else {
                ""
            };
            self.put(&format!("{name}-policies.yaml"), &policies(variant, issuer))?;
            let text = configuration("server", &format!("{name}-policies.yaml"), "", settings);
            self.put(&format!("{name}.yaml"), &text)?;
        }
        Ok(())
    }

    /// The proxy of one side, to be started; nothing where there is none.
    #[must_use]
    pub fn proxy_command(&self, proxies: Proxies, side: &str) -> Option<Command> {
        let at = |name: &str| self.path(name);
        let command = match proxies {
            Proxies::None => return None,
            Proxies::Limit { reuse } => {
                let port = if side == "client" { "127.0.0.1:15001" } else { "0.0.0.0:15006" };
                let mut command = Command::new(at("cinch-load"));
                command.args(["limit", side, "--listen", port]).arg("--authority").arg(at("authority.pem"));
                command.arg("--certificate").arg(at(&format!("{side}.pem")));
                command.arg("--key").arg(at(&format!("{side}.key"))).args(reuse.then_some("--reuse"));
                command
            }
            Proxies::Cinch(variant) => {
                let config = if side == "client" { "cinch-client".to_owned() } else { variant_name(variant) };
                let mut command = Command::new(at("cinch-proxy"));
                command.args(["run", "--config"]).arg(at(&format!("{config}.yaml")));
                command
            }
            Proxies::Envoy => {
                let mut command = Command::new(at("envoy"));
                command.arg("-c").arg(at(&format!("envoy-{side}.json")));
                command.args(envoy::ARGUMENTS);
                command
            }
        };
        Some(command)
    }

    /// The server behind everything, to be started.
    #[must_use]
    pub fn server(&self) -> Command {
        let mut command = Command::new(self.load());
        command.arg("serve").arg(format!("--http={HTTP},{OPAQUE}")).arg(format!("--bytes={BYTES}"));
        command.stdin(std::process::Stdio::null());
        command
    }

    /// The load generator.
    #[must_use]
    pub fn load(&self) -> PathBuf {
        self.path("cinch-load")
    }

    /// Our proxy.
    #[must_use]
    pub fn proxy(&self) -> PathBuf {
        self.path("cinch-proxy")
    }

    /// Where a proxy's words go.
    #[must_use]
    pub fn log(&self, peer: &str, side: &str) -> PathBuf {
        self.path(&format!("{peer}-{side}.log"))
    }

    /// What requests to a peer have to show.
    #[must_use]
    pub fn token_for(&self, peer: &Peer) -> Option<String> {
        (peer.proxies == Proxies::Cinch(Variant::Tokens)).then(|| self.token.clone())
    }
}

fn variant_name(variant: Variant) -> String {
    match variant {
        Variant::Plain => "cinch-server".to_owned(),
        Variant::Rules(count) => format!("cinch-server-{count}-rules"),
        Variant::Tokens => "cinch-server-tokens".to_owned(),
        Variant::Logged => "cinch-server-logged".to_owned(),
    }
}

fn configuration(side: &str, policies: &str, peers: &str, settings: &str) -> String {
    format!(
        "workload: {{namespace: default, serviceAccount: {side}, labels: {{app: {side}}}}}\n\
         identity: {{certificateChain: {side}.pem, privateKey: {side}.key, trustBundle: authority.pem}}\n\
         ports: {{{HTTP}: http, {OPAQUE}: tcp, {BYTES}: tcp}}\n\
         mesh: {{trustDomain: cluster.local}}\npolicies: [{policies}]\npeers: [{peers}]\n{settings}"
    )
}

/// STRICT, and an ALLOW policy whose last rules are those that match.
fn policies(variant: Variant, issuer: &EcdsaKeyPair) -> String {
    let client = CLIENT_ID.trim_start_matches("spiffe://");
    let others = if let Variant::Rules(count) = variant { count - 1 } else { 0 };
    let mut rules: Vec<Value> = (0..others)
        .map(|number| {
            json!({"from": [{"source": {"principals": [format!("cluster.local/ns/default/sa/other-{number}")]}}],
                "to": [{"operation": {"ports": [HTTP.to_string()], "methods": ["PUT"], "paths": [format!("/other/{number}/*")]}}]})
        })
        .collect();
    let mut source = json!({"principals": [client]});
    if variant == Variant::Tokens {
        source = json!({"principals": [client], "requestPrincipals": [format!("{ISSUER}/*")]});
    }
    rules.push(json!({"from": [{"source": source}],
        "to": [{"operation": {"ports": [HTTP.to_string()], "methods": ["GET", "POST"], "paths": ["/bench/*"]}}]}));
    rules.push(json!({"from": [{"source": {"principals": [client]}}],
        "to": [{"operation": {"ports": [OPAQUE.to_string(), BYTES.to_string()]}}]}));
    let object = |kind: &str, name: &str, spec: Value| {
        json!({"apiVersion": "security.istio.io/v1", "kind": kind,
            "metadata": {"name": name, "namespace": "default"}, "spec": spec})
    };
    let mut objects = vec![
        object("PeerAuthentication", "default", json!({"mtls": {"mode": "STRICT"}})),
        object("AuthorizationPolicy", "bench", json!({"action": "ALLOW", "rules": rules})),
    ];
    if variant == Variant::Tokens {
        let rule = json!({"issuer": ISSUER, "jwks": key_set(issuer)});
        objects.push(object("RequestAuthentication", "bench", json!({"jwtRules": [rule]})));
    }
    objects.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n")
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The issuer's public key, as RFC 7517 and RFC 7518 write it: an uncompressed point is 0x04, x, y.
fn key_set(issuer: &EcdsaKeyPair) -> String {
    let point = issuer.public_key().as_ref();
    let half = |range: std::ops::Range<usize>| base64(point.get(range).unwrap_or_default());
    json!({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "bench", "x": half(1..33), "y": half(33..65)}]}).to_string()
}

fn token(issuer: &EcdsaKeyPair) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let claims = json!({"iss": ISSUER, "sub": "load", "iat": now, "exp": now + TOKEN_LIFETIME});
    let head = json!({"alg": "ES256", "kid": "bench"});
    let signed = format!("{}.{}", base64(head.to_string()), base64(claims.to_string()));
    let signature = issuer.sign(&SystemRandom::new(), signed.as_bytes())?;
    Ok(format!("{signed}.{}", base64(signature.as_ref())))
}

/// The paths of certificate, key and authority of one side, for configurations of others.
#[must_use]
pub fn certificate_paths(folder: &Path, side: &str) -> [String; 3] {
    [format!("{side}.pem"), format!("{side}.key"), "authority.pem".to_owned()]
        .map(|name| folder.join(name).display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_have_as_many_rules_as_they_are_asked_for_and_the_last_ones_match() {
        let issuer = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        for (variant, wanted) in [(Variant::Plain, 1), (Variant::Rules(50), 50), (Variant::Rules(500), 500)] {
            let text = policies(variant, &issuer);
            let policy: Value = serde_json::from_str(text.split("\n---\n").nth(1).unwrap()).unwrap();
            let rules = policy.pointer("/spec/rules").unwrap().as_array().unwrap();
            // The last one is for the ports that are not declared.
            assert_eq!(rules.len(), wanted + 1);
            assert!(rules[wanted - 1].to_string().contains("/bench/*"));
        }
        assert!(policies(Variant::Tokens, &issuer).contains("requestPrincipals"));
    }

    #[test]
    fn a_token_has_three_parts_and_its_key_has_a_whole_point() {
        let issuer = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        assert_eq!(token(&issuer).unwrap().split('.').count(), 3);
        let keys: Value = serde_json::from_str(&key_set(&issuer)).unwrap();
        for half in ["/keys/0/x", "/keys/0/y"] {
            let coordinate = URL_SAFE_NO_PAD.decode(keys.pointer(half).unwrap().as_str().unwrap()).unwrap();
            assert_eq!(coordinate.len(), 32);
        }
    }
}

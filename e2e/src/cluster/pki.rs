//! The cluster's keys, certificates and kubeconfigs. They live as long as the cluster, so that nothing needs
//! renewal and the validity is the library's default.

use super::layout::{API_PORT, API_SERVICE, CONTROL_PLANE, Layout, Node};
use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use std::fs;

/// Whom a certificate names and what it is for.
struct Leaf<'a> {
    file: &'a str,
    name: &'a str,
    group: Option<&'a str>,
    /// DNS names and addresses; a certificate with some is a server's, one without a client's.
    served: Vec<String>,
}

/// Writes everything into the cluster's `pki` folder.
///
/// # Errors
/// When a key can't be made or a file can't be written.
pub fn write(layout: &Layout, nodes: &[Node]) -> Result<()> {
    fs::create_dir_all(layout.pki(""))?;
    let authority = authority(layout)?;
    let tokens = KeyPair::generate()?;
    fs::write(layout.pki("sa.key"), tokens.serialize_pem())?;
    fs::write(layout.pki("sa.pub"), tokens.public_key_pem())?;
    leaf(layout, &authority, &api_server())?;
    leaf(layout, &authority, &client("apiserver-kubelet", "kube-apiserver-kubelet", Some("system:masters")))?;
    let users = [
        ("admin", "admin", Some("system:masters")),
        ("controllers", "system:kube-controller-manager", None),
        ("scheduler", "system:kube-scheduler", None),
        ("proxy", "system:kube-proxy", None),
        ("dns", "cluster-dns", None),
    ];
    for (file, name, group) in users {
        leaf(layout, &authority, &client(file, name, group))?;
        kubeconfig(layout, file, &format!("https://{CONTROL_PLANE}:{API_PORT}"), file)?;
    }
    for node in nodes {
        let (name, serving) = (node.name(), format!("{}-serving", node.name()));
        let user = format!("system:node:{name}");
        leaf(layout, &authority, &client(&name, &user, Some("system:nodes")))?;
        kubeconfig(layout, &name, &format!("https://{CONTROL_PLANE}:{API_PORT}"), &name)?;
        let served = vec![name.clone(), node.address().to_string()];
        leaf(layout, &authority, &Leaf { file: &serving, name: &name, group: None, served })?;
    }
    Ok(())
}

fn client<'a>(file: &'a str, name: &'a str, group: Option<&'a str>) -> Leaf<'a> {
    Leaf { file, name, group, served: Vec::new() }
}

fn api_server() -> Leaf<'static> {
    let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned);
    let mut served = names.to_vec();
    served.push("kubernetes.default.svc.cluster.local".into());
    served.extend([
        "localhost".into(),
        "127.0.0.1".into(),
        API_SERVICE.to_string(),
        CONTROL_PLANE.to_string(),
    ]);
    Leaf { file: "apiserver", name: "kube-apiserver", group: None, served }
}

fn authority(layout: &Layout) -> Result<Issuer<'static, KeyPair>> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = subject("cinch-e2e", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    fs::write(layout.pki("ca.crt"), params.self_signed(&key)?.pem())?;
    fs::write(layout.pki("ca.key"), key.serialize_pem())?;
    Ok(Issuer::new(params, key))
}

fn leaf(layout: &Layout, authority: &Issuer<'static, KeyPair>, leaf: &Leaf<'_>) -> Result<()> {
    let key = KeyPair::generate()?;
    let usage = match leaf.served.is_empty() {
        true => ExtendedKeyUsagePurpose::ClientAuth,
        false => ExtendedKeyUsagePurpose::ServerAuth,
    };
    let mut params = CertificateParams::new(leaf.served.clone())?;
    params.distinguished_name = subject(leaf.name, leaf.group);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    let certificate = params.signed_by(&key, authority)?;
    fs::write(layout.pki(&format!("{}.crt", leaf.file)), certificate.pem())?;
    fs::write(layout.pki(&format!("{}.key", leaf.file)), key.serialize_pem())?;
    Ok(())
}

fn subject(name: &str, group: Option<&str>) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    if let Some(group) = group {
        subject.push(DnType::OrganizationName, group);
    }
    subject.push(DnType::CommonName, name);
    subject
}

/// Writes `pki/NAME.conf`: a kubeconfig with everything inside, for the holder of the certificate `user`.
///
/// # Errors
/// When a certificate is missing or the file can't be written.
pub fn kubeconfig(layout: &Layout, name: &str, server: &str, user: &str) -> Result<()> {
    let encoded = |file: String| -> Result<String> {
        let path = layout.pki(&file);
        let bytes = fs::read(&path).with_context(|| format!("{} can't be read", path.display()))?;
        Ok(BASE64_STANDARD.encode(bytes))
    };
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cinch-e2e", "cluster": {
            "server": server, "certificate-authority-data": encoded("ca.crt".into())?}}],
        "users": [{"name": "user", "user": {
            "client-certificate-data": encoded(format!("{user}.crt"))?,
            "client-key-data": encoded(format!("{user}.key"))?}}],
        "contexts": [{"name": "cinch-e2e", "context": {"cluster": "cinch-e2e", "user": "user"}}],
        "current-context": "cinch-e2e",
    });
    fs::write(layout.pki(&format!("{name}.conf")), serde_json::to_vec_pretty(&config)?)?;
    Ok(())
}

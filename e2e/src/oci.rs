//! Writes a container image as an OCI layout in one tar file (OCI image spec 1.1: `oci-layout`, `index.json`,
//! `blobs/sha256/*`), with one uncompressed layer. The same input gives the same bytes.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

/// Folders that programs expect: the rest of the root is empty.
const FOLDERS: [(&str, u32); 4] = [("tmp/", 0o1777), ("etc/", 0o755), ("var/", 0o755), ("var/run/", 0o755)];

/// What an image holds.
pub struct Image {
    /// Its full name with a tag.
    pub reference: String,
    /// What its containers run.
    pub entrypoint: Vec<String>,
    /// Absolute path and content of each file; all are executable.
    pub files: Vec<(String, Vec<u8>)>,
}

struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let mut digest = String::from("sha256:");
        for byte in Sha256::digest(&bytes) {
            // Writing to a String can't fail.
            let _ = write!(digest, "{byte:02x}");
        }
        Self { digest, bytes }
    }

    fn described(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// Writes `image` to `file`.
///
/// # Errors
/// When the file can't be written.
pub fn write(image: &Image, file: &Path) -> Result<()> {
    let layer = Blob::new(layer(image)?);
    let config = Blob::new(serde_json::to_vec(&json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {"Entrypoint": image.entrypoint, "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
    }))?);
    let manifest = Blob::new(serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.described("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.described("application/vnd.oci.image.layer.v1.tar")],
    }))?);
    let mut entry = manifest.described("application/vnd.oci.image.manifest.v1+json");
    if let Some(fields) = entry.as_object_mut() {
        let tag = image.reference.rsplit(':').next().unwrap_or_default();
        let names =
            json!({"io.containerd.image.name": image.reference, "org.opencontainers.image.ref.name": tag});
        fields.insert("annotations".into(), names);
        fields.insert("platform".into(), json!({"architecture": architecture(), "os": "linux"}));
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    let out = File::create(file).with_context(|| format!("{} can't be written", file.display()))?;
    let mut archive = tar::Builder::new(io::BufWriter::new(out));
    append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    append(&mut archive, "index.json", &serde_json::to_vec(&index)?, 0o644)?;
    for blob in [&config, &manifest, &layer] {
        append(&mut archive, &format!("blobs/{}", blob.digest.replace(':', "/")), &blob.bytes, 0o644)?;
    }
    archive.into_inner()?.flush()?;
    Ok(())
}

fn layer(image: &Image) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, mode) in FOLDERS {
        let mut header = header(0, mode);
        header.set_entry_type(tar::EntryType::Directory);
        archive.append_data(&mut header, path, io::empty())?;
    }
    for (path, content) in &image.files {
        append(&mut archive, path.trim_start_matches('/'), content, 0o755)?;
    }
    Ok(archive.into_inner()?)
}

fn append<W: io::Write>(archive: &mut tar::Builder<W>, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
    archive.append_data(&mut header(bytes.len() as u64, mode), path, bytes)?;
    Ok(())
}

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Go's name of the architecture that the binaries were built for, which images use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    fn entries(file: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(File::open(file).unwrap());
        let read = |entry: io::Result<tar::Entry<'_, File>>| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.path().unwrap().display().to_string(), bytes)
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn the_layout_names_the_image_and_every_digest_is_the_blobs_own() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("image.tar");
        let image = Image {
            reference: "cinch.local/app:1".into(),
            entrypoint: vec!["/app".into(), "pause".into()],
            files: vec![("/app".into(), b"binary".to_vec())],
        };
        write(&image, &file).unwrap();
        let entries = entries(&file);
        let index: Value = serde_json::from_slice(&entries["index.json"]).unwrap();
        let described = &index["manifests"][0];
        assert_eq!(described["annotations"]["io.containerd.image.name"], "cinch.local/app:1");
        for (path, bytes) in entries.iter().filter(|(path, _)| path.starts_with("blobs/")) {
            assert_eq!(*path, format!("blobs/{}", Blob::new(bytes.clone()).digest.replace(':', "/")));
        }
        let manifest = format!("blobs/{}", described["digest"].as_str().unwrap().replace(':', "/"));
        let manifest: Value = serde_json::from_slice(&entries[&manifest]).unwrap();
        let config = format!("blobs/{}", manifest["config"]["digest"].as_str().unwrap().replace(':', "/"));
        let config: Value = serde_json::from_slice(&entries[&config]).unwrap();
        assert_eq!(config["config"]["Entrypoint"], json!(["/app", "pause"]));
    }
}

//! The Secrets of the authority and of the webhook: read, create, replace. Keys in, keys out; never logged.

use anyhow::Context;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use std::collections::BTreeMap;

/// A Secret's text entries, with the version that it was read at.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// `None`: it is not there.
    pub resource_version: Option<String>,
    entries: BTreeMap<String, Vec<u8>>,
}

impl Stored {
    /// A Secret of constants, for tests.
    #[cfg(test)]
    pub(crate) fn of(resource_version: &str, entries: BTreeMap<String, Vec<u8>>) -> Self {
        Self { resource_version: Some(resource_version.to_owned()), entries }
    }

    /// All entries, for tests.
    #[cfg(test)]
    pub(crate) fn entries(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.entries
    }

    /// The bytes of an entry; `None` when missing or empty.
    #[must_use]
    pub fn bytes(&self, key: &str) -> Option<&[u8]> {
        self.entries.get(key).map(Vec::as_slice).filter(|bytes| !bytes.is_empty())
    }

    /// An entry as text.
    ///
    /// # Errors
    /// When it is missing or no UTF-8; the message names the key.
    pub fn text(&self, key: &str) -> anyhow::Result<&str> {
        let bytes = self.bytes(key).with_context(|| format!("the entry {key} is missing"))?;
        std::str::from_utf8(bytes).with_context(|| format!("the entry {key} is no text"))
    }
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// It is stored.
    Done,
    /// Somebody else wrote in between: read again.
    Conflict,
}

/// The Secrets of one namespace.
#[derive(Clone)]
pub struct Secrets {
    api: Api<Secret>,
}

impl Secrets {
    /// Those of `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client, namespace) }
    }

    /// Reads a Secret; one that is not there is empty.
    ///
    /// # Errors
    /// When the API server can't be asked or refuses.
    pub async fn read(&self, name: &str) -> anyhow::Result<Stored> {
        let secret =
            self.api.get_opt(name).await.with_context(|| format!("the Secret {name} can not be read"))?;
        let Some(secret) = secret else { return Ok(Stored::default()) };
        Ok(Stored {
            resource_version: secret.metadata.resource_version,
            entries: secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect(),
        })
    }

    /// Writes `entries`, on the condition that the Secret still is as `seen`.
    ///
    /// # Errors
    /// When the API server can't be asked or refuses for another reason than a conflict.
    pub async fn write(
        &self,
        name: &str,
        seen: &Stored,
        entries: BTreeMap<String, Vec<u8>>,
    ) -> anyhow::Result<Write> {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                resource_version: seen.resource_version.clone(),
                labels: Some(BTreeMap::from([(
                    "app.kubernetes.io/managed-by".to_owned(),
                    "cinch-operator".to_owned(),
                )])),
                ..ObjectMeta::default()
            },
            type_: Some("Opaque".to_owned()),
            data: Some(entries.into_iter().map(|(key, value)| (key, ByteString(value))).collect()),
            ..Secret::default()
        };
        let params = PostParams { field_manager: Some("cinch-operator".to_owned()), ..PostParams::default() };
        let result = match seen.resource_version {
            None => self.api.create(&params, &secret).await,
            Some(_) => self.api.replace(name, &params, &secret).await,
        };
        match result {
            Ok(_) => Ok(Write::Done),
            // AlreadyExists, Conflict, or deleted since.
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => Ok(Write::Conflict),
            Err(error) => Err(error).with_context(|| format!("the Secret {name} can not be written")),
        }
    }
}

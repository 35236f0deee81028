//! A view of the raw pod: typed look-ups without a typed copy. Fields of a wrong type are errors here, once,
//! so that the rest can rely on shapes.

use crate::sidecar::is_ours;
use serde_json::{Map, Value};

/// The pod is not shaped as a pod; the text names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not what a pod has there")]
pub(crate) struct Malformed(pub String);

/// A checked view of a pod.
pub(crate) struct Pod<'a> {
    pub raw: &'a Value,
    pub containers: Vec<Container<'a>>,
    pub init_containers: Vec<Container<'a>>,
    pub volumes: &'a [Value],
}

/// A container and where it stands.
#[derive(Clone, Copy)]
pub(crate) struct Container<'a> {
    pub name: &'a str,
    pub raw: &'a Value,
    pub list: List,
    pub index: usize,
}

/// Which list of the pod's spec a container stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum List {
    Containers,
    InitContainers,
}

impl List {
    pub const fn path(self) -> &'static str {
        match self {
            Self::Containers => "/spec/containers",
            Self::InitContainers => "/spec/initContainers",
        }
    }
}

impl<'a> Pod<'a> {
    pub fn of(raw: &'a Value) -> Result<Self, Malformed> {
        for path in ["/metadata", "/spec"] {
            if !raw.pointer(path).is_some_and(Value::is_object) {
                return Err(Malformed(path.to_owned()));
            }
        }
        for path in ["/metadata/labels", "/metadata/annotations"] {
            map(raw, path)?;
        }
        let apps = containers(raw, List::Containers)?;
        if apps.is_empty() {
            return Err(Malformed("/spec/containers".to_owned()));
        }
        let init_containers = containers(raw, List::InitContainers)?;
        Ok(Self { raw, containers: apps, init_containers, volumes: array(raw, "/spec/volumes")? })
    }

    /// Every container that is the user's, app containers first.
    pub fn users(&self) -> impl Iterator<Item = &Container<'a>> {
        self.containers.iter().chain(self.init_containers.iter().filter(|c| !is_ours(c.name)))
    }

    pub fn text(&self, pointer: &str) -> Option<&'a str> {
        self.raw.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    pub fn flag(&self, pointer: &str) -> Option<bool> {
        self.raw.pointer(pointer).and_then(Value::as_bool)
    }

    pub fn label(&self, key: &str) -> Option<&'a str> {
        self.raw.pointer("/metadata/labels")?.get(key)?.as_str()
    }

    pub fn annotation(&self, key: &str) -> Option<&'a str> {
        self.raw.pointer("/metadata/annotations")?.get(key)?.as_str()
    }
}

impl Container<'_> {
    /// JSON Pointer of the container.
    pub fn path(&self) -> String {
        format!("{}/{}", self.list.path(), self.index)
    }

    /// Elements of a list member; empty where there is none.
    pub fn list(&self, key: &str) -> &[Value] {
        self.raw.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

fn containers(raw: &Value, list: List) -> Result<Vec<Container<'_>>, Malformed> {
    let mut result = Vec::new();
    for (index, container) in array(raw, list.path())?.iter().enumerate() {
        let name = container.get("name").and_then(Value::as_str);
        let name = name.ok_or_else(|| Malformed(format!("{}/{index}/name", list.path())))?;
        for key in ["ports", "volumeMounts"] {
            array(container, &format!("/{key}"))
                .map_err(|_| Malformed(format!("{}/{index}/{key}", list.path())))?;
        }
        result.push(Container { name, raw: container, list, index });
    }
    Ok(result)
}

/// An array, or nothing where it is absent or null.
pub(crate) fn array<'a>(raw: &'a Value, pointer: &str) -> Result<&'a [Value], Malformed> {
    match raw.pointer(pointer) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(list)) => Ok(list),
        Some(_) => Err(Malformed(pointer.to_owned())),
    }
}

/// An object, or `None` where it is absent or null.
pub(crate) fn map<'a>(raw: &'a Value, pointer: &str) -> Result<Option<&'a Map<String, Value>>, Malformed> {
    match raw.pointer(pointer) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(_) => Err(Malformed(pointer.to_owned())),
    }
}

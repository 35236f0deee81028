//! What a port accepts, and how PeerAuthentications and the lock compose to it.

use crate::mesh::{MeshConfig, Workload};
use crate::object::PeerAuthentication;
use crate::peer_authentication::MutualTlsMode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What a port accepts, ordered by strictness: `DISABLE < PERMISSIVE < STRICT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mode {
    /// Plaintext only.
    Disable,
    /// Plaintext and tunnels.
    Permissive,
    /// Tunnels only.
    Strict,
}

impl Mode {
    /// Istio's word for the mode.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Mode::Disable => "DISABLE",
            Mode::Permissive => "PERMISSIVE",
            Mode::Strict => "STRICT",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The mode of every port of one workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PortModes {
    mode: Mode,
    ports: BTreeMap<u16, Mode>,
}

impl PortModes {
    /// `mode` for every port, but for `ports`. Entries that say the same as `mode` are left out, so that equal
    /// meanings compare equal.
    #[must_use]
    pub fn uniform(mode: Mode, ports: impl IntoIterator<Item = (u16, Mode)>) -> Self {
        let ports = ports.into_iter().filter(|(_, of_port)| *of_port != mode).collect();
        PortModes { mode, ports }
    }

    /// Composes all PeerAuthentications of the mesh that select `workload`, as Istio does (port, then workload,
    /// then namespace, then root namespace; UNSET inherits; the oldest object of a scope wins whole, equal ages
    /// by name; nothing at all is PERMISSIVE), and lifts each port to `floor`: `Some(Mode::Strict)` where the
    /// namespace is locked.
    #[must_use]
    pub fn compose<'a>(
        authentications: impl IntoIterator<Item = &'a PeerAuthentication>,
        mesh: &MeshConfig,
        workload: &Workload,
        floor: Option<Mode>,
    ) -> Self {
        let mut of_scope: [Option<&PeerAuthentication>; 3] = [None, None, None];
        for object in authentications {
            let Some(level) = level(object, mesh, workload) else { continue };
            if let Some(best) = of_scope.get_mut(level as usize)
                && best.is_none_or(|held| object.age_key() < held.age_key())
            {
                *best = Some(object);
            }
        }
        let mut mode = Mode::Permissive;
        let mut ports = BTreeMap::new();
        for object in of_scope.into_iter().flatten() {
            mode = set(object.mode()).unwrap_or(mode);
            ports = object.port_modes().filter_map(|(port, mode)| Some((port, set(mode)?))).collect();
        }
        let modes = PortModes::uniform(mode, ports);
        match floor {
            Some(floor) => modes.at_least(floor),
            None => modes,
        }
    }

    /// Every port lifted to at least `floor`.
    #[must_use]
    pub fn at_least(self, floor: Mode) -> Self {
        let mode = self.mode.max(floor);
        PortModes::uniform(mode, self.ports.into_iter().map(|(port, mode)| (port, mode.max(floor))))
    }

    /// What `port` accepts.
    #[must_use]
    pub fn mode(&self, port: u16) -> Mode {
        self.ports.get(&port).copied().unwrap_or(self.mode)
    }

    /// What every port accepts that [`PortModes::exceptions`] does not name.
    #[must_use]
    pub fn default_mode(&self) -> Mode {
        self.mode
    }

    /// The ports whose mode differs from the default, in ascending order.
    pub fn exceptions(&self) -> impl Iterator<Item = (u16, Mode)> + '_ {
        self.ports.iter().map(|(port, mode)| (*port, *mode))
    }

    /// The least strict mode that any port has.
    #[must_use]
    pub fn weakest(&self) -> Mode {
        self.ports.values().copied().fold(self.mode, Mode::min)
    }
}

impl Default for PortModes {
    /// Where nothing is said, Istio accepts both.
    fn default() -> Self {
        PortModes { mode: Mode::Permissive, ports: BTreeMap::new() }
    }
}

#[derive(Clone, Copy)]
enum Level {
    Mesh = 0,
    Namespace = 1,
    Workload = 2,
}

/// Where `object` stands for `workload`; `None` when it does not select it.
fn level(object: &PeerAuthentication, mesh: &MeshConfig, workload: &Workload) -> Option<Level> {
    let in_root = object.name().namespace == mesh.root_namespace;
    let in_own = object.name().namespace == workload.namespace;
    let selector = object.selector();
    match (in_root, in_own) {
        // An object with a selector in the root namespace selects nothing, as in Istio.
        (true, _) => selector.is_empty().then_some(Level::Mesh),
        (false, true) if selector.is_empty() => Some(Level::Namespace),
        (false, true) => selector.selects(&workload.labels).then_some(Level::Workload),
        (false, false) => None,
    }
}

fn set(mode: MutualTlsMode) -> Option<Mode> {
    match mode {
        MutualTlsMode::Unset => None,
        MutualTlsMode::Disable => Some(Mode::Disable),
        MutualTlsMode::Permissive => Some(Mode::Permissive),
        MutualTlsMode::Strict => Some(Mode::Strict),
    }
}

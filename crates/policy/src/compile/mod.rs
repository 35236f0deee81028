//! All policies of one workload, compiled once into an immutable form.

mod attribute;
pub(crate) mod index;
mod rule;
mod value;

pub(crate) use attribute::Attribute;
pub(crate) use rule::compile as compile_rules;
pub(crate) use value::port;

use crate::authorization::Action;
use crate::decide::rules::{Rule, RuleSet};
use crate::error::{PolicyError, UNKNOWN};
use crate::mesh::{MeshConfig, Workload};
use crate::mode::PortModes;
use crate::object::{AuthorizationPolicy, Enforcement, ObjectName, PolicyObject};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The policies that apply to one workload, ready for decisions. Immutable but for [`WorkloadPolicies::close`];
/// the order in which policies were given makes no difference.
#[derive(Debug, Clone, Default)]
pub struct WorkloadPolicies {
    pub(crate) modes: PortModes,
    /// Policies that could not be used and close the workload, the lowest name first.
    pub(crate) invalid: Vec<Arc<str>>,
    faults: Vec<(Arc<str>, PolicyError)>,
    /// By provider.
    pub(crate) custom: Vec<(Arc<str>, RuleSet)>,
    pub(crate) deny: RuleSet,
    pub(crate) allow: RuleSet,
    pub(crate) audit: RuleSet,
    pub(crate) dry_deny: RuleSet,
    pub(crate) dry_allow: RuleSet,
    /// RequestAuthentications select the workload: a token can be refused.
    pub(crate) checks_tokens: bool,
    /// Ports that are declared to carry no HTTP.
    pub(crate) other: BTreeSet<u16>,
    /// Headers that conditions ask for, in lower case.
    headers: BTreeSet<Box<str>>,
    asks_path: bool,
}

/// Policies of one action on their way into a [`RuleSet`].
#[derive(Default)]
struct Gathered {
    policies: Vec<(Arc<str>, Vec<Rule>)>,
}

impl Gathered {
    fn set(mut self) -> RuleSet {
        self.policies.sort_by(|one, other| one.0.cmp(&other.0));
        let (mut names, mut all) = (Vec::new(), Vec::new());
        for (number, (name, rules)) in (0..).zip(self.policies) {
            names.push(name);
            all.extend(rules.into_iter().map(|rule| Rule { policy: number, ..rule }));
        }
        RuleSet::new(names, all)
    }
}

#[derive(Default)]
struct AllGathered {
    custom: BTreeMap<Arc<str>, Gathered>,
    deny: Gathered,
    allow: Gathered,
    audit: Gathered,
    dry_deny: Gathered,
    dry_allow: Gathered,
}

impl WorkloadPolicies {
    /// Picks and compiles what applies to `workload`. An AuthorizationPolicy or RequestAuthentication that can't
    /// be used closes the workload if it selects it; a PeerAuthentication that can't be used is STRICT.
    #[must_use]
    pub fn compile<'a>(
        mesh: &MeshConfig,
        policies: impl IntoIterator<Item = &'a PolicyObject>,
        workload: &Workload,
    ) -> Self {
        let mut all = WorkloadPolicies::default();
        let mut gathered = AllGathered::default();
        let mut authentications = Vec::new();
        for object in policies {
            match object {
                PolicyObject::PeerAuthentication(object) => authentications.push(object),
                PolicyObject::AuthorizationPolicy(object) if object.applies_to(mesh, workload) => {
                    all.add(object, mesh, &mut gathered);
                }
                PolicyObject::RequestAuthentication(object) if object.applies_to(mesh, workload) => {
                    match object.spec() {
                        // Without rules it checks nothing, and connections need not be HTTP for it.
                        Ok(spec) => all.checks_tokens |= !spec.jwt_rules.is_empty(),
                        Err(fault) => all.close(object.name(), fault.clone()),
                    }
                }
                PolicyObject::AuthorizationPolicy(_) | PolicyObject::RequestAuthentication(_) => {}
            }
        }
        all.modes = PortModes::compose(authentications, mesh, workload, None);
        all.custom = gathered.custom.into_iter().map(|(name, gathered)| (name, gathered.set())).collect();
        all.deny = gathered.deny.set();
        all.allow = gathered.allow.set();
        all.audit = gathered.audit.set();
        all.dry_deny = gathered.dry_deny.set();
        all.dry_allow = gathered.dry_allow.set();
        let custom = all.custom.iter().map(|(_, rules)| rules);
        let sets = [&all.deny, &all.allow, &all.audit, &all.dry_deny, &all.dry_allow];
        let every: Vec<&RuleSet> = custom.chain(sets).collect();
        let headers = every.iter().flat_map(|rules| rules.headers()).map(Into::into).collect();
        all.asks_path = every.iter().any(|rules| rules.asks_path());
        all.headers = headers;
        all
    }

    /// Whether a rule asks for the path. Where none does, one reading of it is enough.
    #[must_use]
    pub fn asks_path(&self) -> bool {
        self.asks_path
    }

    /// Whether a condition asks for the header `name`, in lower case.
    #[must_use]
    pub fn asks_header(&self, name: &str) -> bool {
        self.headers.contains(name)
    }

    /// Whether a condition asks for any header. Where none does, of a request only method, path and host count, and its
    /// token.
    #[must_use]
    pub fn asks_headers(&self) -> bool {
        !self.headers.is_empty()
    }

    fn add(&mut self, object: &AuthorizationPolicy, mesh: &MeshConfig, gathered: &mut AllGathered) {
        let namespace = &object.name().namespace;
        let compiled = object.spec().cloned().map_err(Clone::clone).and_then(|spec| {
            match compile_rules(&spec, namespace, mesh) {
                Ok(rules) => Ok((spec, rules)),
                Err(faults) => Err(faults.into_iter().next().unwrap_or_else(|| UNKNOWN.clone())),
            }
        });
        let (spec, rules) = match compiled {
            Ok(compiled) => compiled,
            Err(fault) if object.enforcement() == Enforcement::DryRun => {
                return self.faults.push((object.name().to_string().into(), fault));
            }
            Err(fault) => return self.close(object.name(), fault),
        };
        let into = match (spec.action, object.enforcement()) {
            (Action::Allow, Enforcement::Enforced) => &mut gathered.allow,
            (Action::Allow, Enforcement::DryRun) => &mut gathered.dry_allow,
            (Action::Deny, Enforcement::Enforced) => &mut gathered.deny,
            (Action::Deny, Enforcement::DryRun) => &mut gathered.dry_deny,
            (Action::Audit, _) => &mut gathered.audit,
            (Action::Custom, _) => {
                let provider = spec.provider.map_or_else(String::new, |provider| provider.name);
                gathered.custom.entry(provider.into()).or_default()
            }
        };
        into.policies.push((object.name().to_string().into(), rules));
    }

    /// Says which ports are declared to carry something other than HTTP. There a RequestAuthentication alone asks for
    /// nothing, as in Istio: tokens come with requests. An AuthorizationPolicy that asks for requests, a token's
    /// principal among them, does so on these ports too.
    pub fn declare_other(&mut self, ports: impl IntoIterator<Item = u16>) {
        self.other = ports.into_iter().collect();
    }

    /// Refuses everything on account of `name`: for policies that could not even be received whole.
    pub fn close(&mut self, name: &ObjectName, fault: PolicyError) {
        let name: Arc<str> = name.to_string().into();
        self.invalid.push(name.clone());
        self.invalid.sort();
        self.faults.push((name, fault));
    }

    /// Whether there is nothing to decide or to report: every connection is allowed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let sets = [&self.deny, &self.allow, &self.audit, &self.dry_deny, &self.dry_allow];
        self.invalid.is_empty()
            && self.custom.is_empty()
            && !self.checks_tokens
            && sets.into_iter().all(RuleSet::is_empty)
    }

    /// The policies that could not be used, with their first fault. All but dry runs close the workload.
    pub fn faults(&self) -> impl Iterator<Item = (&str, &PolicyError)> {
        self.faults.iter().map(|(name, fault)| (&**name, fault))
    }

    /// What each port accepts by the PeerAuthentications; knows no lock.
    #[must_use]
    pub fn mtls(&self) -> &PortModes {
        &self.modes
    }
}

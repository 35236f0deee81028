//! Labels, annotations, field managers and object names that several parts write or read.

/// The API group of our kinds, and the prefix of our labels and annotations.
pub const GROUP: &str = "cinch.dev";
/// The version of our kinds.
pub const VERSION: &str = "v1alpha1";

/// Namespace label: `enabled` enrols it.
pub const MESH_LABEL: &str = "cinch.dev/mesh";
/// Value of [`MESH_LABEL`] that enrols.
pub const MESH_ENABLED: &str = "enabled";
/// Namespace label: `required` refuses pods without the sidecar. Guarded.
pub const INJECTION_LABEL: &str = "cinch.dev/injection";
/// Value of [`INJECTION_LABEL`].
pub const INJECTION_REQUIRED: &str = "required";
/// Namespace label: `STRICT` is the lock. Guarded.
pub const MODE_LABEL: &str = "cinch.dev/mode";
/// Value of [`MODE_LABEL`].
pub const MODE_STRICT: &str = "STRICT";
/// Namespace label: `allowed` lets pods on the host network in where injection is required. Guarded.
pub const HOST_NETWORK_LABEL: &str = "cinch.dev/host-network";
/// Value of [`HOST_NETWORK_LABEL`].
pub const HOST_NETWORK_ALLOWED: &str = "allowed";
/// Namespace annotation: stands from the first label of a promotion to the end of probation; its value is the
/// time at which the promotion began (RFC 3339). The operator's alone.
pub const PROMOTION_ANNOTATION: &str = "cinch.dev/promotion";
/// Namespace annotation: why a person with the verb `relax` undid something guarded.
pub const RELAX_REASON_ANNOTATION: &str = "cinch.dev/relax-reason";

/// Pod label: `disabled` opts out of injection where it is not required.
pub const INJECT_LABEL: &str = "cinch.dev/inject";
/// Value of [`INJECT_LABEL`] that opts out.
pub const INJECT_DISABLED: &str = "disabled";
/// Pod annotation: the proxy's version, or the reason why the pod was left out.
pub const INJECTED_ANNOTATION: &str = "cinch.dev/injected";

/// Who manages an object (`app.kubernetes.io/managed-by`).
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

/// Field manager, service account, Deployment, Service and Lease of the operator.
pub const OPERATOR: &str = "cinch-operator";
/// Field manager, service account, Deployment and Service of the webhook.
pub const WEBHOOK: &str = "cinch-webhook";
/// Field manager of the command line.
pub const CLI: &str = "kubectl-cinch";

/// The one name of a Posture.
pub const POSTURE: &str = "mesh";
/// The ConfigMap with the trust bundle in each enrolled namespace.
pub const TRUST_CONFIG_MAP: &str = "cinch-trust";
/// The audience of the sidecar's token.
pub const TOKEN_AUDIENCE: &str = "cinch.dev";

/// The sidecar's init container.
pub const INIT_CONTAINER: &str = "cinch-init";
/// The sidecar.
pub const PROXY_CONTAINER: &str = "cinch-proxy";

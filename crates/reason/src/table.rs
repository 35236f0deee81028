//! The table itself: word, sentence, hint. Sentences carry no full stop and no apostrophe: messages append
//! to them, and admission policies quote them.

reasons! {
    // Injection and admission of pods.
    Injected: "the sidecar was injected", "";
    SidecarMissing: "this namespace requires the Cinch sidecar and the pod does not have it in first place", "remove the label cinch.dev/inject: disabled from the pod template, or wait until the webhook cinch-injector answers again";
    OptedOut: "the pod opted out of injection with the label cinch.dev/inject: disabled", "remove the label to mesh the pod";
    SidecarImage: "a container with the name of the Cinch sidecar has an image that this installation does not know", "do not set images of cinch-proxy and cinch-init by hand; restart the workload to get the current one";
    SidecarShape: "a container with the name of the Cinch sidecar has other arguments, command or environment than the webhook gives it", "leave cinch-init and cinch-proxy out of the pod template";
    CouldUndoRedirect: "a container could undo the redirect or act as the proxy (UID 1507, privileged, shared or host processes, a capability such as NET_ADMIN, NET_RAW, SYS_ADMIN or SYS_PTRACE, a hostPath that leads to sockets, processes or programs of the node)", "drop the capability or the volume, or use another UID";
    SidecarMount: "a container mounts a volume of the Cinch sidecar", "remove the mount of volumes named cinch-";
    ForeignToken: "a volume asks for a token of the audience cinch.dev", "use another audience: this one is for the sidecar alone";
    EphemeralIntoSidecar: "an ephemeral container targets the Cinch sidecar or acts as its UID", "choose another target container and UID";
    ExecIntoSidecar: "exec and attach into the Cinch sidecar are refused in a locked namespace", "choose another container with -c";
    HostNetwork: "a pod on the host network can not be meshed", "move it to another namespace, or let someone with relax set the namespace label cinch.dev/host-network: allowed";
    HostUsersDisabled: "a pod in its own user namespace can not have its redirect set", "leave hostUsers unset";
    ProbeNotSupported: "the pod has a probe or lifecycle hook of a kind that the proxy does not yet answer (grpc, https, httpGet or tcpSocket hooks)", "use httpGet over HTTP, tcpSocket or exec";
    PodSecurityForbidsInit: "the namespace enforces Pod Security baseline or restricted, which refuse the NET_ADMIN of cinch-init", "install with redirect.mode=agent, or label the namespace pod-security.kubernetes.io/enforce: privileged";
    PortConflict: "a container declares a port that the sidecar uses (15000, 15001, 15006, 15020, 15021)", "use another port";
    ReservedName: "a volume or container of the pod has a name that Cinch reserves", "rename it: names that begin with cinch- are reserved";
    DriverOutsideMesh: "the socket of the Cinch node agent is for pods of enrolled namespaces", "take the volume of the driver node.cinch.dev out of the pod, or enrol the namespace";
    OtherMesh: "the pod or namespace belongs to another mesh", "remove the other mesh first";
    StaticPod: "a static pod can not be meshed", "";
    WindowsPod: "Windows pods can not be meshed", "";
    ServiceAccountPending: "the service account or trust bundle of this workload is not there yet", "the controller retries within seconds, so there is nothing to do unless it lasts";
    NoStableOwner: "the pod has no stable owner and keeps the service account default", "";
    DefaultServiceAccountBound: "permissions hang on the service account default, so workloads keep it", "bind the permissions to an account of the workload";
    MalformedReview: "the admission review could not be understood", "";
    ObjectTooLarge: "the object is larger, or nested more deeply, than the webhook reads", "make it smaller: look at its annotations, environment variables and managedFields";
    WebhookFault: "the webhook could not handle the pod", "look at the log of cinch-webhook";

    // Guards of namespaces, tokens, trust and postures.
    NamespaceLocked: "the namespace is locked STRICT", "going back needs the verb relax on postures.cinch.dev and a new value of the annotation cinch.dev/relax-reason in the same update";
    InjectionRequired: "injection is required in this namespace", "lifting it needs the verb relax on postures.cinch.dev and a new value of the annotation cinch.dev/relax-reason in the same update";
    HostNetworkGuarded: "allowing host network in an enrolled or new namespace needs the verb relax", "ask for relax on postures.cinch.dev and give a new value of the annotation cinch.dev/relax-reason";
    SystemNamespace: "system namespaces and the namespace of Cinch are never meshed", "leave the label cinch.dev/mesh off";
    PromotionAnnotation: "the annotation cinch.dev/promotion belongs to the operator", "leave it alone";
    OperatorKeysOnly: "the operator changes only cinch.dev keys of a namespace", "";
    RollbackWindow: "the operator may take back only what it set, while the annotation cinch.dev/promotion stands", "";
    TokenMint: "only kubelets get tokens of the audience cinch.dev", "use another audience";
    TrustBundleGuarded: "the ConfigMap cinch-trust belongs to the operator", "leave it alone: it is re-created";
    PostureStatus: "the status of a Posture belongs to the operator", "change its spec instead";
    PostureGuarded: "the change would widen what the namespace accepts, or judge it on less than the installation asks for", "it needs the verb relax on postures.cinch.dev";

    // Promotion: states, blockers, events.
    Observing: "the namespace is watched for plaintext", "";
    NotEnrolled: "the namespace is not enrolled", "label it cinch.dev/mesh: enabled";
    PodsNotInjected: "pods run without the sidecar", "restart the workloads: kubectl cinch enroll NAMESPACE --restart";
    WorkloadNotInjectable: "pods of a workload would be made without the sidecar, and are refused once injection is required", "change the template of the workload as the reason that is named says, or remove the workload";
    PodsNotReporting: "started sidecars have not reported, and missing data is not zero", "look at the log of cinch-proxy in the named pods";
    NodeUnreachable: "a node can not be reached, so the clock stands still", "";
    HostNetworkPods: "pods on the host network can not be meshed", "move them, or label the namespace cinch.dev/host-network: allowed";
    BypassSeen: "connections pass by the proxy of a pod", "find out how the named process does it, and restart the pod once that is mended";
    BypassUnknown: "the node agent has not looked lately at what passes by the proxies of pods", "look at the log of cinch-node on the nodes of the named pods";
    RedirectByInit: "the redirect of pods was set by an init container, so no node agent looks at what passes by their proxies", "restart the workloads";
    RedirectWasGone: "the redirect of a pod was gone and was set again, so what passed meanwhile was seen by nobody", "find out what removes it (it takes NET_ADMIN in the pod, or root on the node), and restart the pod once that is mended";
    RedirectUnconfirmed: "the node agent has not lately confirmed the redirect of pods", "look at the log of cinch-node on the nodes of the named pods";
    UdpOutsideMesh: "pods speak UDP, which the mesh does not carry", "";
    PlaintextServed: "plaintext was served within the quiet period", "enrol the named clients or move them away";
    PlaintextOpen: "plaintext connections are open", "enrol the named clients or move them away";
    QuietPeriod: "nothing blocks; the quiet period has not yet passed", "";
    UnobservedTime: "more time went unobserved than the budget allows", "";
    NoEvidence: "there are no pods to observe", "start the workloads";
    PinnedByPolicy: "a PeerAuthentication of a user pins the mode", "remove it or set its mode to STRICT";
    AwaitingApproval: "promotion is Manual and waits for spec.approve", "set spec.approve to status.evidence.hash";
    PromotionPaused: "promotion is paused", "set spec.promotion to Automatic or Manual";
    PromotionSlot: "another namespace is in probation", "";
    Settling: "injection is required and the namespace settles before the lock", "";
    AwaitingAcknowledgement: "proxies have not yet acknowledged the lock", "";
    LockNotAcknowledged: "not all proxies acknowledged the lock in time, so it was taken back", "look at the log of cinch-proxy in the named pods";
    PromotionEligible: "all gates have held over the quiet period", "";
    PromotionStarted: "the namespace was locked STRICT and is in probation", "";
    PromotionCompleted: "probation has passed; STRICT stays", "";
    PromotionRolledBack: "a workload that had been served plaintext was refused in probation", "enrol the named workload";
    NeedsDecision: "promotion was rolled back twice", "enrol the named clients, then give spec.promotion another value, Paused first if it is to be the same";
    LockedByUser: "the namespace was locked by a user", "";
    RelaxedByUser: "a person with the verb relax took the lock away", "give spec.promotion another value to begin again, Paused first if it is to be the same";
    Strict: "the namespace is STRICT", "";

    // Identity.
    TokenRejected: "the API server did not accept the token for the audience cinch.dev", "";
    PodMismatch: "the live pod does not agree with the token", "";
    PodNotMeshed: "the pod has no Cinch sidecar or its namespace is not enrolled", "";
    OperatorIdentity: "the identity of the operator is never given to a workload", "";
    CsrInvalid: "the certificate request could not be read or its signature does not hold", "";
    CsrKey: "the key of the certificate request is not P-256", "";
    IssueRateLimited: "the pod asks for certificates too often", "";
    CertificateExpired: "the certificate is out of its validity", "";
    CertificateUntrusted: "the certificate does not chain to the trust bundle", "";
    CertificateIdentity: "the certificate does not hold exactly one SPIFFE ID", "";
    PeerIdentityMismatch: "the peer has another identity than the operator named", "";
    NotLeader: "this operator is not the leader", "";
    ControlUnreachable: "the operator can not be reached", "look at the pods of cinch-operator";
    Overloaded: "a limit was reached", "";

    // Connections.
    Allowed: "a policy allows it", "";
    AllowedByDefault: "no policy forbids it", "";
    DeniedByPolicy: "a DENY policy matches", "";
    NoAllowMatched: "there are ALLOW policies and none matches", "";
    DeniedByProvider: "the provider of a CUSTOM policy did not allow it", "";
    TokenInvalid: "a token came with the request and is not valid", "get a new token from the issuer that a RequestAuthentication names";
    AudienceMismatch: "the token is meant for another audience", "ask the issuer for a token of an audience that the RequestAuthentication lists";
    BadRequest: "the request could not be understood", "";
    BadAnswer: "the answer of the app could not be understood", "";
    HttpNeeded: "a policy of the port needs HTTP, and the connection is none or was opened before the policy", "speak HTTP/1.1 or HTTP/2 to the port, or name the HTTP ports in the policy";
    HttpPolicyClosed: "the policy needs HTTP, which the proxy of the pod does not read, so it fails closed", "restart the pod so that it gets the current proxy";
    PolicyInvalid: "a policy that selects the workload could not be used, so it closes what it selects", "";
    PolicyAccepted: "the policy was accepted", "";
    PolicyRefused: "the policy can not be accepted as it is", "";
    UnsupportedPolicy: "the policy holds what this version can not enforce, so it closes what it selects", "change or remove what is named";
    PolicyNacked: "a proxy could not use the policy, so it closed what the policy selects", "look at the log of cinch-proxy in the named pods";
    PolicyEnforced: "every proxy that the policy selects enforces it", "";
    EnforcementPending: "not every proxy that the policy selects has acknowledged it yet", "";
    NoPodSelected: "the policy selects no pod with the sidecar", "";
    KeysFetched: "the keys of all issuers are there", "";
    KeysUnavailable: "keys of an issuer could not be fetched", "";
    KeySourceRefused: "keys are not fetched from an address inside the cluster or its networks", "let the installation allow it with jwks.allowedCIDRs, or put the keys into the policy (jwks)";
    PoliciesUsable: "every policy that selects pods here can be used", "";
    PoliciesBroken: "policies that select pods here can not be used as they are", "see status.policies";
    StrictPlaintext: "plaintext came to a STRICT port", "enrol the client";
    PlaintextCut: "an open plaintext connection was cut because the port became STRICT", "enrol the client";
    DestinationUnknown: "the operator has not answered for the destination and nothing is cached", "";
    DestinationRefused: "the destination may not be dialled by the proxy", "";
    NoListener: "the app does not listen on the port", "";
    TunnelBroken: "the tunnel broke", "";
    AgentPending: "the node agent has not yet set the redirect of this pod", "";
    AgentUnreachable: "the node agent does not answer, and without it the pod has no redirect", "look at the pod of the DaemonSet cinch-node on the node of this pod";
    AgentRequestMalformed: "the request to the node agent could not be understood", "restart the pod: sidecar and agent may be at most one version apart";
    AskedTooOften: "the pod asks the node agent for its redirect too often", "";
    NotTheSidecar: "only the container cinch-proxy gets an answer from the node agent", "do not mount the volume cinch-agent elsewhere";
    PeerOfAnotherPod: "the process that asks the node agent does not belong to the pod of the socket", "";
    PeerUnknown: "the node agent can not see the process that asks", "pods of sandboxed runtimes can not be meshed; look at the log of cinch-node on the node otherwise";
    NodeUnsupported: "the node can not exempt the sidecar by its cgroup", "use a kernel of 5.13 or later with nf_tables and cgroup v2, or install with redirect.mode=init";
    RedirectMissing: "the redirect of the pod does not work", "look at the logs of cinch-init and cinch-proxy in the named pods, and restart them";
    CertificatePending: "the proxy has no certificate yet", "";
    PolicyPending: "the proxy has no policy yet", "";
    NotIndexed: "the operator has not yet acknowledged the addresses of the pod", "";
}

//! What hangs on a namespace's account `default`: role bindings that name it. Workloads must keep the account then,
//! or they would lose what they may do. (The clouds that know it by its annotations: `cinch-injection`.)

use k8s_openapi::api::rbac::v1::Subject;

/// The namespace whose `default` account a subject names, if it names one. Groups are not specific: all
/// accounts of a namespace are in `system:serviceaccounts:<namespace>`, those that we make too.
pub(super) fn names_default_of<'a>(
    subject: &'a Subject,
    binding_namespace: Option<&'a str>,
) -> Option<&'a str> {
    match subject.kind.as_str() {
        "ServiceAccount" if subject.name == "default" => {
            subject.namespace.as_deref().filter(|namespace| !namespace.is_empty()).or(binding_namespace)
        }
        "User" => subject.name.strip_prefix("system:serviceaccount:")?.strip_suffix(":default"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_subject_that_means_default_is_found() {
        let subject = |kind: &str, name: &str, namespace: Option<&str>| Subject {
            kind: kind.into(),
            name: name.into(),
            namespace: namespace.map(Into::into),
            ..Subject::default()
        };
        let cases = [
            ("account", subject("ServiceAccount", "default", Some("shop")), Some("shop")),
            (
                "account of the binding's own namespace",
                subject("ServiceAccount", "default", None),
                Some("own"),
            ),
            ("another account", subject("ServiceAccount", "web", Some("shop")), None),
            ("user form", subject("User", "system:serviceaccount:shop:default", None), Some("shop")),
            ("user form of another account", subject("User", "system:serviceaccount:shop:web", None), None),
            ("a person", subject("User", "default", None), None),
            ("the group of a namespace", subject("Group", "system:serviceaccounts:shop", None), None),
            ("a group called default", subject("Group", "default", None), None),
        ];
        for (case, subject, want) in cases {
            assert_eq!(names_default_of(&subject, Some("own")), want, "{case}");
        }
    }
}

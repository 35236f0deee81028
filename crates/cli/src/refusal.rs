//! What the API server answers, without its wrapping: a denial of ours already says why and what to do.

use anyhow::Error;

/// The API server puts this between its own words and the policy's.
const DENIED: &str = "denied request: ";

/// An error as a person should read it.
#[must_use]
pub fn words(error: &Error) -> String {
    for cause in error.chain() {
        if let Some(kube::Error::Api(status)) = cause.downcast_ref::<kube::Error>() {
            let said = denial(&status.message).unwrap_or(&status.message);
            return match error.to_string() {
                context if cause.to_string() == context => said.to_owned(),
                context => format!("{context}: {said}"),
            };
        }
    }
    format!("{error:#}")
}

/// The sentence of an admission policy within a message of the API server or a controller.
#[must_use]
pub fn denial(message: &str) -> Option<&str> {
    message.split_once(DENIED).map(|(_, sentence)| sentence.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn refused(message: &str) -> Error {
        let status = Status { code: 403, message: message.to_owned(), ..Default::default() };
        kube::Error::Api(Box::new(status)).into()
    }

    #[test]
    fn a_denial_is_said_in_the_words_of_the_policy() {
        let wrapped = "namespaces \"shop\" is forbidden: ValidatingAdmissionPolicy 'cinch-namespaces' with binding \
                       'cinch-namespaces' denied request: NamespaceLocked: the namespace is locked STRICT";
        assert_eq!(words(&refused(wrapped)), "NamespaceLocked: the namespace is locked STRICT");
    }

    #[test]
    fn other_errors_keep_their_own_words_and_their_context() {
        let forbidden = "User \"eve\" cannot patch resource \"namespaces\"";
        assert_eq!(words(&refused(forbidden)), forbidden);
        assert_eq!(words(&refused(forbidden).context("labelling")), format!("labelling: {forbidden}"));
        assert_eq!(words(&anyhow::anyhow!("there is no namespace x")), "there is no namespace x");
    }
}

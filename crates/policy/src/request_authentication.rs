//! `RequestAuthentication` as Istio's API writes it (`security.istio.io/v1`): plain types. What they mean is in
//! [`crate::jwt`].

use crate::authorization::TargetReference;
use crate::peer_authentication::LabelSelector;
use serde::{Deserialize, Serialize};

/// `spec` of a RequestAuthentication.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RequestAuthenticationSpec {
    /// Pods that it applies to; absent or empty: all of the namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Gateways and waypoints that it applies to instead of ordinary workloads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetReference>,
    /// As `targetRef`, several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_refs: Option<Vec<TargetReference>>,
    /// Which tokens are accepted.
    pub jwt_rules: Vec<JwtRule>,
}

/// One issuer's tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct JwtRule {
    /// What `iss` must be; may be left out when `jwksUri` is given.
    pub issuer: String,
    /// Any of them must be in `aud`; empty: any audience.
    pub audiences: Vec<String>,
    /// Where the keys are.
    #[serde(alias = "jwks_uri")]
    pub jwks_uri: String,
    /// The keys themselves.
    pub jwks: String,
    /// Headers that may carry the token.
    pub from_headers: Vec<JwtHeader>,
    /// Query parameters that may carry the token.
    pub from_params: Vec<String>,
    /// Cookies that may carry the token.
    pub from_cookies: Vec<String>,
    /// Header in which the app gets the payload, base64url.
    pub output_payload_to_header: String,
    /// Single claims that the app gets in headers.
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    /// Whether the app gets the token itself.
    pub forward_original_token: bool,
    /// How long a fetch of the keys may take, such as `5s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Claims whose strings are lists parted by spaces, besides `scope` and `permission`.
    pub space_delimited_claims: Vec<String>,
}

/// A header that may carry a token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JwtHeader {
    /// Its name.
    pub name: String,
    /// What stands before the token, with its trailing space.
    pub prefix: String,
}

/// A claim that the app gets in a header.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClaimToHeader {
    /// The header's name.
    pub header: String,
    /// The claim, nested with dots.
    pub claim: String,
}

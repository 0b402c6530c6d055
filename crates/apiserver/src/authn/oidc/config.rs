//! What issuers are trusted with: an `AuthenticationConfiguration`, or the one issuer of the `--oidc-*` flags, which
//! is written as one.
//!
//! Upstream: apiserver/pkg/apis/apiserver/v1/types.go, apiserver/pkg/apis/apiserver/validation/validation.go

use serde::Deserialize;

/// The algorithms that tokens of a configuration may be signed with.
///
/// Upstream: apiserver/plugin/pkg/authenticator/token/oidc/oidc.go allowedSigningAlgs
pub const ALGORITHMS: &[&str] = &["RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "PS384", "PS512"];
const API_VERSIONS: &[&str] = &["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1"];
/// Upstream: apiserver/pkg/apis/apiserver/validation/validation.go
const MOST_ISSUERS: usize = 64;

/// The file of `--authentication-config`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthenticationConfiguration {
    pub api_version: String,
    pub kind: String,
    #[serde(default)]
    pub jwt: Vec<Jwt>,
    pub anonymous: Option<Anonymous>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Anonymous {
    pub enabled: bool,
    #[serde(default)]
    pub conditions: Vec<AnonymousCondition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AnonymousCondition {
    pub path: String,
}

/// One issuer, and what its tokens say of users.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Jwt {
    pub issuer: Issuer,
    #[serde(default)]
    pub claim_validation_rules: Vec<ClaimRule>,
    pub claim_mappings: Mappings,
    #[serde(default)]
    pub user_validation_rules: Vec<UserRule>,
    /// Those of the flag; a configuration allows all.
    #[serde(skip)]
    pub algorithms: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Issuer {
    pub url: String,
    #[serde(rename = "discoveryURL", default)]
    pub discovery_url: String,
    /// PEM; the machine's authorities when empty.
    #[serde(default)]
    pub certificate_authority: String,
    pub audiences: Vec<String>,
    #[serde(default)]
    pub audience_match_policy: String,
}

/// Either a claim with the value that it must have, or an expression over `claims`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClaimRule {
    pub claim: String,
    pub required_value: String,
    pub expression: String,
    pub message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UserRule {
    pub expression: String,
    pub message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mappings {
    pub username: Mapping,
    pub groups: Mapping,
    pub uid: Mapping,
    pub extra: Vec<Extra>,
}

/// Either a claim, with what is put before its value, or an expression over `claims`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mapping {
    pub claim: String,
    pub prefix: Option<String>,
    pub expression: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Extra {
    pub key: String,
    pub value_expression: String,
}

/// The flags, as they are given.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub issuer_url: String,
    pub client_id: String,
    pub username_claim: String,
    pub username_prefix: String,
    pub groups_claim: String,
    pub groups_prefix: String,
    pub required_claims: Vec<(String, String)>,
    pub signing_algorithms: Vec<String>,
    /// PEM.
    pub authority: String,
}

impl Flags {
    /// The issuer that they describe.
    ///
    /// Upstream: pkg/kubeapiserver/options/authentication.go ToAuthenticationConfig
    pub fn issuer(self) -> Jwt {
        // Names of other issuers' users must not collide with the cluster's own, so that they have a prefix unless
        // it is said to be none.
        let prefix = match self.username_prefix.as_str() {
            "-" => String::new(),
            "" if self.username_claim != "email" => format!("{}#", self.issuer_url),
            prefix => prefix.to_owned(),
        };
        let rule = |(claim, required_value)| ClaimRule { claim, required_value, ..ClaimRule::default() };
        let groups = Mapping {
            prefix: (!self.groups_claim.is_empty()).then_some(self.groups_prefix),
            claim: self.groups_claim,
            ..Mapping::default()
        };
        Jwt {
            issuer: Issuer {
                url: self.issuer_url,
                certificate_authority: self.authority,
                audiences: vec![self.client_id],
                ..Issuer::default()
            },
            claim_validation_rules: self.required_claims.into_iter().map(rule).collect(),
            claim_mappings: Mappings {
                username: Mapping { claim: self.username_claim, prefix: Some(prefix), ..Mapping::default() },
                groups,
                ..Mappings::default()
            },
            user_validation_rules: Vec::new(),
            algorithms: Some(self.signing_algorithms),
        }
    }
}

impl AuthenticationConfiguration {
    /// Reads the file; all that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let read: Self = serde_saphyr::from_str(text).map_err(|error| vec![error.to_string()])?;
        let mut errors = Vec::new();
        if read.kind != "AuthenticationConfiguration" || !API_VERSIONS.contains(&read.api_version.as_str()) {
            errors.push(format!("no kind {:?} is registered for version {:?}", read.kind, read.api_version));
        }
        if read.jwt.len() > MOST_ISSUERS {
            errors.push(format!("jwt: Too many: {}: must have at most {MOST_ISSUERS} items", read.jwt.len()));
        }
        for (index, jwt) in read.jwt.iter().enumerate() {
            let path = format!("jwt[{index}]");
            errors.extend(jwt.wrong(&path));
            if read.jwt[..index].iter().any(|other| other.issuer.url == jwt.issuer.url) {
                errors.push(format!("{path}.issuer.url: Duplicate value: {:?}", jwt.issuer.url));
            }
        }
        if let Some(anonymous) = &read.anonymous
            && !anonymous.enabled
            && !anonymous.conditions.is_empty()
        {
            errors.push(
                "anonymous.conditions: Invalid value: enabled should be set to true when conditions are \
                         defined"
                    .to_owned(),
            );
        }
        if errors.is_empty() { Ok(read) } else { Err(errors) }
    }
}

impl Jwt {
    /// What is wrong with the issuer, expressions excepted, which are compiled later.
    pub fn wrong(&self, path: &str) -> Vec<String> {
        let mut errors = Vec::new();
        let issuer = &self.issuer;
        let at = format!("{path}.issuer");
        match issuer.url.parse::<http::Uri>() {
            _ if issuer.url.is_empty() => errors.push(format!("{at}.url: Required value: URL is required")),
            Ok(uri) if uri.scheme_str() == Some("https") => {}
            _ => errors.push(format!("{at}.url: Invalid value: {:?}: URL scheme must be https", issuer.url)),
        }
        if issuer.audiences.iter().all(String::is_empty) {
            errors.push(format!("{at}.audiences: Required value: at least one audience is required"));
        }
        let policy = issuer.audience_match_policy.as_str();
        if issuer.audiences.len() > 1 && policy != "MatchAny" {
            errors.push(format!(
                "{at}.audienceMatchPolicy: Invalid value: {policy:?}: audienceMatchPolicy must be MatchAny for multiple \
                 audiences"
            ));
        }
        let mappings = &self.claim_mappings;
        let at = format!("{path}.claimMappings");
        if mappings.username.claim.is_empty() && mappings.username.expression.is_empty() {
            errors.push(format!("{at}.username: Required value: claim or expression is required"));
        }
        for (name, mapping) in
            [("username", &mappings.username), ("groups", &mappings.groups), ("uid", &mappings.uid)]
        {
            if !mapping.claim.is_empty() && !mapping.expression.is_empty() {
                errors.push(format!(
                    "{at}.{name}: Invalid value: \"\": claim and expression can't both be set"
                ));
            }
            if name != "uid" && !mapping.claim.is_empty() && mapping.prefix.is_none() {
                let why = "prefix is required when claim is set. It can be set to an empty string to disable prefixing";
                errors.push(format!("{at}.{name}.prefix: Required value: {why}"));
            }
        }
        for algorithm in self.algorithms.iter().flatten() {
            if !ALGORITHMS.contains(&algorithm.as_str()) {
                errors.push(format!("oidc: unsupported signing alg: {algorithm:?}"));
            }
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_at_once() {
        let text = "
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer: {url: 'http://a', audiences: [x, y]}
  claimMappings: {username: {claim: sub, expression: claims.sub}}
";
        assert_eq!(
            AuthenticationConfiguration::parse(text).unwrap_err(),
            [
                "jwt[0].issuer.url: Invalid value: \"http://a\": URL scheme must be https",
                "jwt[0].issuer.audienceMatchPolicy: Invalid value: \"\": audienceMatchPolicy must be MatchAny for \
                 multiple audiences",
                "jwt[0].claimMappings.username: Invalid value: \"\": claim and expression can't both be set",
                "jwt[0].claimMappings.username.prefix: Required value: prefix is required when claim is set. It can be \
                 set to an empty string to disable prefixing",
            ]
        );
        let unknown = "apiVersion: v1\nkind: X\nnothing: 1\n";
        assert!(AuthenticationConfiguration::parse(unknown).unwrap_err()[0].contains("nothing"));
    }

    #[test]
    fn names_of_others_have_a_prefix_unless_told() {
        let prefix = |claim: &str, prefix: &str| {
            let flags = Flags {
                issuer_url: "https://a".into(),
                username_claim: claim.into(),
                username_prefix: prefix.into(),
                ..Flags::default()
            };
            flags.issuer().claim_mappings.username.prefix.unwrap()
        };
        for (claim, given, wanted) in
            [("sub", "", "https://a#"), ("email", "", ""), ("sub", "-", ""), ("sub", "x:", "x:")]
        {
            assert_eq!(prefix(claim, given), wanted, "{claim} {given}");
        }
    }
}

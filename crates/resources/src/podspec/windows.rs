//! What holds for the options of Windows, which other nodes do not look at.
//!
//! Upstream: pkg/apis/core/validation/validation.go validateWindowsSecurityContextOptions

use crate::prelude::*;
use crate::validate::each;

const LONGEST_CREDENTIAL_KIB: usize = 64;
const LONGEST_DOMAIN: usize = 256;
const LONGEST_USER: usize = 104;
/// Characters that no user's name has.
const NOT_OF_USERS: &str = r#""/\:;|=,+*?<>@[]"#;
const NOT_OF_DOMAINS: &str = r#"\/:*?"<>|"#;

/// Of the `windowsOptions` of a security context.
pub fn validate_options(context: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let given = |field: &str| at(context, &format!("windowsOptions.{field}")).and_then(Value::as_str);
    if let Some(name) = given("gmsaCredentialSpecName") {
        errors.extend(each(names::dns1123_subdomain(name), &path.child("gmsaCredentialSpecName"), name));
    }
    if let Some(credential) = given("gmsaCredentialSpec") {
        let at = path.child("gmsaCredentialSpec");
        if credential.is_empty() {
            errors.push(Error::invalid(&at, credential, "gmsaCredentialSpec cannot be an empty string"));
        } else if credential.len() > LONGEST_CREDENTIAL_KIB * 1024 {
            let detail = format!("gmsaCredentialSpec size must be under {LONGEST_CREDENTIAL_KIB} KiB");
            errors.push(Error::invalid(&at, credential, detail));
        }
    }
    if let Some(name) = given("runAsUserName") {
        errors.extend(each(wrong_user(name), &path.child("runAsUserName"), name));
    }
    errors
}

/// What is wrong with `DOMAIN\\USER`, of which the domain may be left out.
fn wrong_user(name: &str) -> Vec<String> {
    let one = |detail: &str| vec![format!("runAsUserName {detail}")];
    if name.is_empty() {
        return one("cannot be an empty string");
    }
    if name.chars().any(|c| c.is_ascii_control()) {
        return one("cannot contain control characters");
    }
    let (domain, user) = match name.split_once('\\') {
        Some((_, user)) if user.contains('\\') => return one("cannot contain more than one backslash"),
        Some((domain, user)) => (Some(domain), user),
        None => (None, name),
    };
    let mut errors = Vec::new();
    if domain.is_some_and(|domain| domain.len() >= LONGEST_DOMAIN) {
        errors.push(format!("runAsUserName's Domain length must be under {LONGEST_DOMAIN} characters"));
    }
    if domain.is_some_and(|domain| !is_net_bios(domain) && !is_dns(domain)) {
        errors.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format".to_owned());
    }
    if user.is_empty() {
        errors.push("runAsUserName's User cannot be empty".to_owned());
    } else if user.len() > LONGEST_USER {
        errors.push(format!("runAsUserName's User length must not be longer than {LONGEST_USER} characters"));
    }
    if !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')) {
        errors.push("runAsUserName's User cannot contain only periods or spaces".to_owned());
    }
    if user.contains(|c| NOT_OF_USERS.contains(c)) {
        errors.push(
            r#"runAsUserName's User cannot contain the following characters: "/\:;|=,+*?<>@[]"#.to_owned(),
        );
    }
    errors
}

fn is_net_bios(domain: &str) -> bool {
    let length = domain.chars().count();
    (1..=15).contains(&length) && !domain.starts_with('.') && !domain.contains(|c| NOT_OF_DOMAINS.contains(c))
}

fn is_dns(domain: &str) -> bool {
    domain.split('.').all(|label| {
        let bytes = label.as_bytes();
        let plain = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        bytes.len() <= 63
            && plain(bytes.first())
            && plain(bytes.last())
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_windows_have_a_domain_or_none() {
        for (name, wrong) in [
            ("ContainerUser", &[][..]),
            (r"NT AUTHORITY\NETWORK SERVICE", &[]),
            (r"a.example\x", &[]),
            ("", &["runAsUserName cannot be an empty string"]),
            ("a\tb", &["runAsUserName cannot contain control characters"]),
            (r"a\b\c", &["runAsUserName cannot contain more than one backslash"]),
            (
                r".a\",
                &[
                    "runAsUserName's Domain doesn't match the NetBios nor the DNS format",
                    "runAsUserName's User cannot be empty",
                ],
            ),
            (". .", &["runAsUserName's User cannot contain only periods or spaces"]),
            ("a:b", &[r#"runAsUserName's User cannot contain the following characters: "/\:;|=,+*?<>@[]"#]),
        ] {
            assert_eq!(wrong_user(name), wrong, "{name}");
        }
    }
}

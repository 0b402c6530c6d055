//! The order of API versions: `v10`, `v2`, `v1`, `v11beta2`, `v3beta1`, `v12alpha1`, `foo1`, `foo10`.

use std::cmp::Ordering;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Maturity {
    Alpha,
    Beta,
    General,
}

/// `v1beta2` taken apart; `None` for names of another form.
fn parse(version: &str) -> Option<(Maturity, u64, u64)> {
    let rest = version.strip_prefix('v')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let major = rest[..digits].parse().ok()?;
    let rest = &rest[digits..];
    if rest.is_empty() {
        return Some((Maturity::General, major, 0));
    }
    let (maturity, minor) = match (rest.strip_prefix("alpha"), rest.strip_prefix("beta")) {
        (Some(minor), _) => (Maturity::Alpha, minor),
        (None, Some(minor)) => (Maturity::Beta, minor),
        (None, None) => return None,
    };
    if !minor.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((maturity, major, minor.parse().ok()?))
}

/// Which version is preferred: the greater one.
///
/// Upstream: apimachinery/pkg/version/helpers.go CompareKubeAwareVersionStrings
pub fn compare(a: &str, b: &str) -> Ordering {
    match (parse(a), parse(b)) {
        (None, None) => b.cmp(a),
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(a), Some(b)) => a.cmp(&b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn general_goes_before_beta_before_alpha_before_all_else() {
        let ordered =
            ["v10", "v2", "v1", "v11beta2", "v10beta3", "v3beta1", "v12alpha1", "v11alpha2", "foo1", "foo10"];
        let mut sorted = ordered.to_vec();
        sorted.reverse();
        sorted.sort_by(|a, b| compare(b, a));
        assert_eq!(sorted, ordered);
    }
}

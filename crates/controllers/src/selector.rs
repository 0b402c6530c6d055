//! Label selectors as objects hold them, matched without another form between.

use std::collections::BTreeMap;

use api::meta::LabelSelector;

pub(crate) type Labels = BTreeMap<String, String>;

/// Whether the labels pass. A selector without requirements passes everything.
pub(crate) fn matches(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let get = |key: &str| labels.and_then(|labels| labels.get(key));
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|requirement| {
            let value = get(&requirement.key);
            let listed =
                || value.is_some_and(|value| requirement.values.iter().flatten().any(|v| v == value));
            match requirement.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                // Validation lets no other operator in; what is unknown selects nothing.
                _ => false,
            }
        })
}

pub(crate) fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// Whether all pairs of `wanted` are among the labels.
pub(crate) fn contains(labels: Option<&Labels>, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// As Go writes a pointer to one.
pub(crate) fn as_go(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return "nil".to_owned() };
    let labels: String =
        selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}: {value},")).collect();
    let expressions = selector.match_expressions.iter().flatten().map(|requirement| {
        let values = requirement.values.as_deref().unwrap_or_default().join(" ");
        let (key, operator) = (&requirement.key, &requirement.operator);
        format!("LabelSelectorRequirement{{Key:{key},Operator:{operator},Values:[{values}],}},")
    });
    let expressions: String = expressions.collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

#[cfg(test)]
mod tests {
    use api::meta::LabelSelectorRequirement;

    use super::*;

    #[test]
    fn requirements_are_all_needed() {
        let labels = Labels::from([("app".into(), "web".into()), ("tier".into(), "front".into())]);
        let check = |operator: &str, key: &str, values: &[&str], expected: bool| {
            let requirement = LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: Some(values.iter().map(|v| v.to_string()).collect()),
            };
            let selector = LabelSelector {
                match_labels: Some(Labels::from([("app".into(), "web".into())])),
                match_expressions: Some(vec![requirement]),
            };
            assert_eq!(matches(&selector, Some(&labels)), expected, "{key} {operator} {values:?}");
            assert!(!matches(&selector, None));
        };
        check("In", "tier", &["front", "back"], true);
        check("In", "tier", &["back"], false);
        check("NotIn", "tier", &["back"], true);
        check("NotIn", "none", &["back"], true);
        check("NotIn", "tier", &["front"], false);
        check("Exists", "tier", &[], true);
        check("Exists", "none", &[], false);
        check("DoesNotExist", "none", &[], true);
        check("Wrong", "tier", &[], false);
        assert!(matches(&LabelSelector::default(), None) && is_empty(&LabelSelector::default()));
    }
}

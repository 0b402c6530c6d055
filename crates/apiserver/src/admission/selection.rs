//! [`Selection`]: which plugins run, by the flags `--enable-admission-plugins` and `--disable-admission-plugins`.
//!
//! Upstream: pkg/kubeapiserver/options/plugins.go, apiserver/pkg/server/options/admission.go

use std::collections::BTreeSet;

use super::{PLUGINS, Plugin, WAITING};

/// The names of the plugins that run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection(BTreeSet<&'static str>);

impl Default for Selection {
    fn default() -> Self {
        let usual = PLUGINS.iter().filter(|plugin| plugin.is_default()).map(|plugin| plugin.name());
        Selection(usual.chain(WAITING).collect())
    }
}

/// All plugins that there are.
fn known() -> impl Iterator<Item = &'static str> {
    PLUGINS.iter().map(|plugin| plugin.name()).chain(WAITING)
}

impl Selection {
    /// The usual plugins with some more and some less; else all that is wrong with the names.
    pub fn of_flags(enable: &[String], disable: &[String]) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        for name in enable.iter().filter(|name| !known().any(|known| known == *name)) {
            errors.push(format!("enable-admission-plugins plugin {name:?} is unknown"));
        }
        for name in disable {
            if !known().any(|known| known == name) {
                errors.push(format!("disable-admission-plugins plugin {name:?} is unknown"));
            }
        }
        let both: BTreeSet<&str> =
            enable.iter().filter(|name| disable.contains(name)).map(String::as_str).collect();
        if !both.is_empty() {
            let both = both.into_iter().collect::<Vec<_>>().join(" ");
            errors.push(format!(
                "[{both}] in enable-admission-plugins and disable-admission-plugins overlapped"
            ));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let usual = Selection::default();
        let runs = |name: &&'static str| {
            let is = |listed: &String| listed == name;
            enable.iter().any(is) || (usual.has(name) && !disable.iter().any(is))
        };
        Ok(Selection(known().filter(runs).collect()))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    #[cfg(test)]
    pub(super) fn names(&self) -> Vec<&'static str> {
        known().filter(|name| self.has(name)).collect()
    }

    pub(super) fn plugins(&self) -> Vec<&'static dyn Plugin> {
        PLUGINS.iter().copied().filter(|plugin| self.has(plugin.name())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_flags(enable: &[&str], disable: &[&str]) -> Result<Selection, Vec<String>> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        Selection::of_flags(&owned(enable), &owned(disable))
    }

    #[test]
    fn what_is_enabled_runs_besides_and_what_is_disabled_does_not() {
        assert_eq!(of_flags(&[], &[]), Ok(Selection::default()));
        let selection = of_flags(&["AlwaysPullImages"], &["ResourceQuota", "PodSecurity"]).unwrap();
        for (name, runs) in [
            ("AlwaysPullImages", true),
            ("ResourceQuota", false),
            ("PodSecurity", false),
            ("NamespaceLifecycle", true),
            ("AlwaysDeny", false),
        ] {
            assert_eq!(selection.has(name), runs, "{name}");
        }
        assert!(!of_flags(&[], &["PodGroupProtection"]).unwrap().has("PodGroupProtection"));
    }

    #[test]
    fn wrong_names_are_told_in_upstreams_words() {
        for (enable, disable, wanted) in [
            (&["Nothing"][..], &[][..], "enable-admission-plugins plugin \"Nothing\" is unknown"),
            (&[], &["Nothing"], "disable-admission-plugins plugin \"Nothing\" is unknown"),
            (
                &["PodSecurity", "LimitRanger"],
                &["LimitRanger", "PodSecurity"],
                "[LimitRanger PodSecurity] in enable-admission-plugins and disable-admission-plugins overlapped",
            ),
        ] {
            assert_eq!(of_flags(enable, disable), Err(vec![wanted.to_owned()]));
        }
    }
}

//! [`Features`]: what upstream has and leaves off, and what of it is switched on here; and the kinds that are served
//! only then.

use std::sync::Arc;

use crate::definition::ResourceDef;
use crate::kinds::*;

/// A feature that is off unless `--feature-gates` names it.
///
/// Upstream: pkg/features/kube_features.go
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Of what it switches on upstream, the serving: what is stored is JSON.
    CborServingAndStorage,
    CoordinatedLeaderElection,
    GangScheduling,
    GenericWorkload,
    StorageVersionMigrator,
    TopologyAwareWorkloadScheduling,
}

impl Feature {
    const ALL: [Feature; 6] = [
        Feature::CborServingAndStorage,
        Feature::CoordinatedLeaderElection,
        Feature::GangScheduling,
        Feature::GenericWorkload,
        Feature::StorageVersionMigrator,
        Feature::TopologyAwareWorkloadScheduling,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Feature::CborServingAndStorage => "CBORServingAndStorage",
            Feature::CoordinatedLeaderElection => "CoordinatedLeaderElection",
            Feature::GangScheduling => "GangScheduling",
            Feature::GenericWorkload => "GenericWorkload",
            Feature::StorageVersionMigrator => "StorageVersionMigrator",
            Feature::TopologyAwareWorkloadScheduling => "TopologyAwareWorkloadScheduling",
        }
    }

    /// What it cannot be without.
    fn needs(self) -> Option<Feature> {
        let of_groups = matches!(self, Feature::GangScheduling | Feature::TopologyAwareWorkloadScheduling);
        of_groups.then_some(Feature::GenericWorkload)
    }
}

/// The features that are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(u8);

impl Features {
    pub const NONE: Features = Features(0);
    pub const ALL: Features = Features((1 << Feature::ALL.len()) - 1);

    pub fn has(self, feature: Feature) -> bool {
        self.0 & (1 << feature as u8) != 0
    }

    pub fn with(self, feature: Feature) -> Self {
        Features(self.0 | (1 << feature as u8))
    }

    /// The same by its name; false for one that nobody knows.
    pub fn has_named(self, name: &str) -> bool {
        Feature::ALL.into_iter().any(|feature| feature.name() == name && self.has(feature))
    }

    /// Reads what `--feature-gates` says: `Name=true` or `Name=false` each, the last word on a name counts.
    ///
    /// Upstream: component-base/featuregate/feature_gate.go SetFromMap
    pub fn parse<'a>(gates: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut features = Features::NONE;
        for gate in gates.into_iter().filter(|gate| !gate.is_empty()) {
            let (name, on) = switch(gate)?;
            let feature = Feature::ALL.into_iter().find(|feature| feature.name() == name);
            let feature = feature.ok_or_else(|| format!("unrecognized feature gate: {name}"))?;
            features = match on {
                true => features.with(feature),
                false => Features(features.0 & !(1 << feature as u8)),
            };
        }
        let lacking = |feature: &Feature| {
            features.has(*feature) && feature.needs().is_some_and(|needed| !features.has(needed))
        };
        match Feature::ALL.into_iter().find(lacking) {
            None => Ok(features),
            Some(feature) => {
                let needed = feature.needs().map_or("", Feature::name);
                Err(format!(
                    "{} is enabled, but depends on features that are disabled: [{needed}]",
                    feature.name()
                ))
            }
        }
    }
}

/// Reads `name=true`; a name alone is true.
fn switch(text: &str) -> Result<(&str, bool), String> {
    let (name, value) = text.split_once('=').unwrap_or((text, "true"));
    match value.trim() {
        "true" => Ok((name.trim(), true)),
        "false" => Ok((name.trim(), false)),
        value => Err(format!("invalid value of {name}={value}, err: not true or false")),
    }
}

/// Kinds that are served only with a feature, and only in a version that is switched on.
const OPTIONAL: &[(Feature, fn() -> Arc<ResourceDef>)] = &[
    (Feature::CoordinatedLeaderElection, coordination::leasecandidates::row),
    (Feature::CoordinatedLeaderElection, coordination::leasecandidates::row_v1alpha2),
    (Feature::GenericWorkload, scheduling::podgroups::row),
    (Feature::GenericWorkload, scheduling::workloads::row),
    (Feature::StorageVersionMigrator, storagemigration::storageversionmigrations::row),
];

/// Which versions are served that by default are not, by `--runtime-config`.
#[derive(Clone, Debug, Default)]
pub struct Versions(Vec<(String, bool)>);

impl Versions {
    /// Reads `GROUP/VERSION=true`, `GROUP/VERSION/RESOURCE=true`, and `api/all`, `api/beta`, `api/alpha`.
    ///
    /// Upstream: apiserver/pkg/server/resourceconfig/helpers.go MergeAPIResourceConfigs
    pub fn parse<'a>(config: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut versions = Vec::new();
        for text in config.into_iter().filter(|text| !text.is_empty()) {
            let (name, on) = switch(text)?;
            let known = matches!(name, "api/all" | "api/ga" | "api/beta" | "api/alpha")
                || optional().chain(crate::table().iter().cloned()).any(|def| {
                    let version = def.gvr().group_version().to_string();
                    name == version
                        || name.strip_prefix(&version).is_some_and(|rest| rest == format!("/{}", def.plural))
                });
            if !known {
                return Err(format!("unknown api groups {name}"));
            }
            let default = crate::table().iter().any(|def| def.gvr().group_version().to_string() == name);
            if matches!(name, "api/ga") || default && !on {
                return Err(format!("{name} cannot be switched off: everything else stands on it"));
            }
            versions.push((name.to_owned(), on));
        }
        Ok(Versions(versions))
    }

    /// Whether a kind's version is switched on: by its own name, or by how stable it is.
    fn serves(&self, def: &ResourceDef) -> bool {
        let version = def.gvr().group_version().to_string();
        let said = |name: &str| self.0.iter().rfind(|(known, _)| known == name).map(|(_, on)| *on);
        let stability = if def.version.contains("alpha") { "api/alpha" } else { "api/beta" };
        said(&format!("{version}/{}", def.plural))
            .or_else(|| said(&version))
            .or_else(|| said(stability))
            .or_else(|| said("api/all"))
            .unwrap_or(false)
    }
}

fn optional() -> impl Iterator<Item = Arc<ResourceDef>> {
    OPTIONAL.iter().map(|(_, row)| row())
}

/// The kinds of a server with these features: those of a default one, and the optional ones that are switched on.
pub fn table(features: Features, versions: &Versions) -> Vec<Arc<ResourceDef>> {
    let usual = crate::table().iter().cloned();
    let on = OPTIONAL.iter().filter(|(feature, _)| features.has(*feature)).map(|(_, row)| row());
    let rows = usual.chain(on.filter(|def| versions.serves(def)));
    if features == Features::NONE {
        return rows.collect();
    }
    rows.map(|def| Arc::new(ResourceDef { features, ..(*def).clone() })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_read_as_upstream_reads_them() {
        let check = |gates: &[&str], expected: Result<&[Feature], &str>| {
            let expected =
                expected.map(|on| on.iter().fold(Features::NONE, |all, feature| all.with(*feature)));
            assert_eq!(Features::parse(gates.iter().copied()), expected.map_err(str::to_owned), "{gates:?}");
        };
        check(&[], Ok(&[]));
        check(&["StorageVersionMigrator=true"], Ok(&[Feature::StorageVersionMigrator]));
        check(&["StorageVersionMigrator=true", "StorageVersionMigrator=false"], Ok(&[]));
        check(
            &["GenericWorkload", "GangScheduling=true"],
            Ok(&[Feature::GenericWorkload, Feature::GangScheduling]),
        );
        check(&["Nonsense=true"], Err("unrecognized feature gate: Nonsense"));
        check(&["GenericWorkload=1x"], Err("invalid value of GenericWorkload=1x, err: not true or false"));
        check(
            &["GangScheduling=true"],
            Err("GangScheduling is enabled, but depends on features that are disabled: [GenericWorkload]"),
        );
    }

    #[test]
    fn a_kind_is_served_when_its_feature_and_its_version_are_on() {
        let served = |features: Features, config: &[&str]| {
            let versions = Versions::parse(config.iter().copied()).unwrap();
            let more = table(features, &versions).split_off(crate::table().len());
            more.iter().map(|def| def.plural.to_string()).collect::<Vec<_>>().join(" ")
        };
        let both = Features::NONE.with(Feature::GenericWorkload).with(Feature::StorageVersionMigrator);
        assert_eq!(served(both, &[]), "");
        assert_eq!(served(Features::NONE, &["api/all=true"]), "");
        assert_eq!(served(both, &["api/alpha=true"]), "podgroups workloads");
        assert_eq!(served(both, &["api/beta=true"]), "storageversionmigrations");
        assert_eq!(served(both, &["api/all=true", "api/beta=false"]), "podgroups workloads");
        let of_one = "scheduling.k8s.io/v1alpha2/workloads=true";
        assert_eq!(served(both, &[of_one]), "workloads");
        assert_eq!(Versions::parse(["x/v1=true"]).unwrap_err(), "unknown api groups x/v1");
        assert!(Versions::parse(["apps/v1=false"]).is_err());
    }
}

//! `KubeSchedulerConfiguration`: the file that says which profiles there are and what their plugins do.
//!
//! Start with [`Configuration::parse`]. [`args`] are the arguments of the plugins.
//!
//! Upstream: staging/src/k8s.io/kube-scheduler/config/v1/types.go

pub mod args;
mod extenders;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::field::{self, Path};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::extender::Extender;
use crate::plugins::{Gates, Point, Row, TABLE};
use crate::profile::{Configured, Preemption, Profile};

const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
const KIND: &str = "KubeSchedulerConfiguration";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the scheduler's configuration cannot be read: {0}")]
    Decode(String),
    #[error("no kind {kind:?} is registered for version {version:?}")]
    Kind { kind: String, version: String },
    #[error("{}", field::aggregate(.0))]
    Invalid(Vec<field::Error>),
    #[error("{0}")]
    Plugins(String),
}

/// What the scheduler runs with.
pub struct Configuration {
    pub gates: Gates,
    pub profiles: Vec<Arc<Profile>>,
    pub extenders: Arc<[Extender]>,
    /// How long a pod waits after its first failed attempt; doubled with each, up to the maximum.
    pub initial_backoff: Duration,
    pub max_backoff: Duration,
}

impl Default for Configuration {
    fn default() -> Self {
        Configuration::with(Gates::default())
    }
}

impl Configuration {
    /// The default one, with what is switched on.
    pub fn with(gates: Gates) -> Self {
        Configuration {
            gates,
            profiles: vec![Arc::new(Profile::with(gates))],
            extenders: Arc::new([]),
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(10),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    parallelism: Option<i64>,
    percentage_of_nodes_to_score: Option<i64>,
    pod_initial_backoff_seconds: Option<i64>,
    pod_max_backoff_seconds: Option<i64>,
    #[serde(default)]
    profiles: Vec<ProfileFile>,
    /// Flags of the binary say these.
    #[serde(default, rename = "leaderElection")]
    _leader_election: Option<Value>,
    #[serde(default, rename = "clientConnection")]
    _client_connection: Option<Value>,
    #[serde(default, rename = "enableProfiling")]
    _enable_profiling: Option<bool>,
    #[serde(default, rename = "enableContentionProfiling")]
    _enable_contention_profiling: Option<bool>,
    #[serde(default, rename = "delayCacheUntilActive")]
    _delay_cache_until_active: Option<bool>,
    #[serde(default)]
    extenders: Vec<extenders::File>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProfileFile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<i64>,
    #[serde(default)]
    plugins: PluginsFile,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct PluginsFile {
    multi_point: PluginSet,
    pre_enqueue: PluginSet,
    queue_sort: PluginSet,
    pre_filter: PluginSet,
    filter: PluginSet,
    post_filter: PluginSet,
    pre_score: PluginSet,
    score: PluginSet,
    reserve: PluginSet,
    permit: PluginSet,
    pre_bind: PluginSet,
    bind: PluginSet,
    post_bind: PluginSet,
}

impl PluginsFile {
    fn at(&self, point: Point) -> &PluginSet {
        match point {
            Point::PreEnqueue => &self.pre_enqueue,
            Point::QueueSort => &self.queue_sort,
            Point::PreFilter => &self.pre_filter,
            Point::Filter => &self.filter,
            Point::PostFilter => &self.post_filter,
            Point::PreScore => &self.pre_score,
            Point::Score => &self.score,
            Point::Reserve => &self.reserve,
            Point::Permit => &self.permit,
            Point::PreBind => &self.pre_bind,
            Point::Bind => &self.bind,
            Point::PostBind => &self.post_bind,
        }
    }

    fn sets(&self) -> impl Iterator<Item = &PluginSet> {
        [
            Point::PreEnqueue,
            Point::QueueSort,
            Point::PreFilter,
            Point::Filter,
            Point::PostFilter,
            Point::PreScore,
            Point::Score,
            Point::Reserve,
            Point::Permit,
            Point::PreBind,
            Point::Bind,
            Point::PostBind,
        ]
        .into_iter()
        .map(|point| self.at(point))
        .chain([&self.multi_point])
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PluginSet {
    enabled: Vec<PluginName>,
    disabled: Vec<PluginName>,
}

impl PluginSet {
    fn enables(&self, name: &str) -> Option<&PluginName> {
        self.enabled.iter().find(|plugin| plugin.name == name)
    }

    fn disables(&self, name: &str) -> bool {
        self.disabled.iter().any(|plugin| plugin.name == name || plugin.name == "*")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginName {
    name: String,
    weight: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginConfig {
    name: String,
    args: Option<Value>,
}

impl Configuration {
    /// Reads and checks a configuration in YAML or JSON.
    pub fn parse(text: &str, gates: Gates) -> Result<Self, Error> {
        let file: File = serde_saphyr::from_str(text).map_err(|error| Error::Decode(error.to_string()))?;
        if file.api_version != API_VERSION || file.kind != KIND {
            return Err(Error::Kind { kind: file.kind, version: file.api_version });
        }
        let mut errors = file.validate();
        errors.extend(extenders::validate(&file.extenders));
        if !errors.is_empty() {
            return Err(Error::Invalid(errors));
        }
        let ignored = extenders::ignored(&file.extenders);
        let extenders = extenders::build(file.extenders)?;
        let share = file.percentage_of_nodes_to_score;
        let profiles = if file.profiles.is_empty() { vec![ProfileFile::default()] } else { file.profiles };
        let only = profiles.len() == 1;
        let profiles = profiles.iter().enumerate().map(|(at, profile)| {
            let path = Path::new("profiles").index(at);
            build(profile, share, only, &ignored, gates, &path).map(Arc::new)
        });
        Ok(Configuration {
            gates,
            profiles: profiles.collect::<Result<_, _>>()?,
            extenders,
            initial_backoff: Duration::from_secs(file.pod_initial_backoff_seconds.unwrap_or(1) as u64),
            max_backoff: Duration::from_secs(file.pod_max_backoff_seconds.unwrap_or(10) as u64),
        })
    }
}

impl File {
    /// Upstream: pkg/scheduler/apis/config/validation/validation.go
    fn validate(&self) -> Vec<field::Error> {
        let mut errors = Vec::new();
        if let Some(parallelism) = self.parallelism.filter(|p| *p <= 0) {
            let path = Path::new("parallelism");
            errors.push(field::Error::invalid(
                &path,
                parallelism,
                "should be an integer value greater than zero",
            ));
        }
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        for (at, profile) in self.profiles.iter().enumerate() {
            let path = Path::new("profiles").index(at);
            let fallback = if self.profiles.len() == 1 { "default-scheduler" } else { "" };
            let name = profile.scheduler_name.as_deref().unwrap_or(fallback);
            if name.is_empty() {
                errors.push(field::Error::required(&path.child("schedulerName"), ""));
            }
            if let Some(first) = names.insert(name, at) {
                let first = Path::new("profiles").index(first).child("schedulerName");
                errors.push(field::Error::duplicate(&path.child("schedulerName"), first.as_str()));
            }
            percentage(&path, profile.percentage_of_nodes_to_score, &mut errors);
        }
        percentage(&Path::root(), self.percentage_of_nodes_to_score, &mut errors);
        let initial = self.pod_initial_backoff_seconds.unwrap_or(1);
        let max = self.pod_max_backoff_seconds.unwrap_or(10);
        if initial <= 0 {
            let path = Path::new("podInitialBackoffSeconds");
            errors.push(field::Error::invalid(&path, initial, "must be greater than 0"));
        }
        if max < initial {
            let path = Path::new("podMaxBackoffSeconds");
            let detail = "must be greater than or equal to PodInitialBackoffSeconds";
            errors.push(field::Error::invalid(&path, max, detail));
        }
        errors
    }
}

fn percentage(path: &Path, value: Option<i64>, errors: &mut Vec<field::Error>) {
    if let Some(value) = value.filter(|value| !(0..=100).contains(value)) {
        let path = path.child("percentageOfNodesToScore");
        errors.push(field::Error::invalid(&path, value, "not in valid range [0-100]"));
    }
}

/// Makes a profile of what the file says of it. Resources that extenders look after are ignored by its own fit.
fn build(
    file: &ProfileFile,
    share: Option<i64>,
    only: bool,
    ignored: &[String],
    gates: Gates,
    path: &Path,
) -> Result<Profile, Error> {
    for name in file.plugins.sets().flat_map(|set| &set.enabled) {
        if !TABLE.iter().any(|row| row.name == name.name && row.is_usual(gates)) {
            return Err(Error::Plugins(format!("{}: plugin {:?} does not exist", path.as_str(), name.name)));
        }
    }
    let mut configs: BTreeMap<&str, (&Value, Path)> = BTreeMap::new();
    for (at, config) in file.plugin_config.iter().enumerate() {
        let path = path.child("pluginConfig").index(at);
        let args = config.args.as_ref().unwrap_or(&Value::Null);
        if configs.insert(&config.name, (args, path.clone())).is_some() {
            return Err(Error::Invalid(vec![field::Error::duplicate(&path, config.name.as_str())]));
        }
    }
    let mut profile = Profile {
        scheduler_name: file
            .scheduler_name
            .clone()
            .unwrap_or_else(|| if only { "default-scheduler".into() } else { String::new() }),
        plugins: Vec::new(),
        preemption: None,
        percentage_of_nodes: file.percentage_of_nodes_to_score.or(share).unwrap_or(0) as usize,
    };
    for row in ordered(&file.plugins).into_iter().filter(|row| row.is_usual(gates)) {
        let config = configs.get(row.name);
        let args = config.map(|(args, _)| *args).filter(|args| !args.is_null());
        let more = (row.name == "NodeResourcesFit" && !ignored.is_empty()).then(|| {
            let mut args = args.cloned().unwrap_or_else(|| json!({}));
            match args["ignoredResources"].as_array_mut() {
                Some(given) => given.extend(ignored.iter().cloned().map(Value::String)),
                None => args["ignoredResources"] = json!(ignored),
            }
            args
        });
        let args = more.as_ref().or(args);
        let wrong = |why: String| {
            let path = config.map_or(path, |(_, path)| path);
            Error::Plugins(format!("{}: {why}", path.as_str()))
        };
        let at = |point| placed(&file.plugins, row, point);
        match row.make {
            None if row.name == "DefaultPreemption" => {
                let preemption: Preemption = args::preemption(args).map_err(wrong)?;
                profile.preemption = at(Point::PostFilter).map(|_| preemption);
            }
            None => {}
            Some(make) => profile.plugins.push(Configured {
                plugin: make(args).map_err(wrong)?,
                weight: at(Point::Score).unwrap_or(0),
                holds_back: at(Point::PreEnqueue).is_some(),
                filters: at(Point::Filter).is_some(),
                reserves: at(Point::Reserve).is_some(),
                permits: at(Point::Permit).is_some(),
                hears: at(Point::PostBind).is_some(),
            }),
        }
    }
    if !TABLE.iter().any(|row| placed(&file.plugins, row, Point::QueueSort).is_some()) {
        return Err(Error::Plugins(format!("{}: no queue sort plugin is enabled", path.as_str())));
    }
    if !TABLE.iter().any(|row| placed(&file.plugins, row, Point::Bind).is_some()) {
        return Err(Error::Plugins(format!("{}: at least one bind plugin is needed", path.as_str())));
    }
    Ok(profile)
}

/// The rows as the profile orders them: those that it names first, in its order.
fn ordered(plugins: &PluginsFile) -> Vec<&'static Row> {
    let named = plugins.multi_point.enabled.iter().chain(&plugins.filter.enabled);
    let named: Vec<&str> = named.map(|plugin| plugin.name.as_str()).collect();
    let mut rows: Vec<&Row> = TABLE.iter().collect();
    rows.sort_by_key(|row| named.iter().position(|name| *name == row.name).unwrap_or(usize::MAX));
    rows
}

/// The weight that a plugin has where it is asked; none where it is not.
///
/// Upstream: pkg/scheduler/framework/runtime/framework.go expandMultiPointPlugins
fn placed(plugins: &PluginsFile, row: &Row, point: Point) -> Option<i64> {
    if !row.points.contains(&point) {
        return None;
    }
    let (here, everywhere) = (plugins.at(point), &plugins.multi_point);
    let weight = |plugin: &PluginName| plugin.weight.filter(|weight| *weight != 0);
    if let Some(plugin) = here.enables(row.name) {
        return Some(weight(plugin).unwrap_or(1));
    }
    if here.disables(row.name) {
        return None;
    }
    if let Some(plugin) = everywhere.enables(row.name) {
        return Some(weight(plugin).unwrap_or(row.weight.max(1)));
    }
    (!everywhere.disables(row.name)).then_some(row.weight.max(1))
}

#[cfg(test)]
mod tests;

//! What the fields of a KubeletConfiguration may say that are not read here.

use serde_json::Value;

/// Fields by what they may say, in JSON or as a text; one without any says nothing that could be done otherwise
/// here: how often upstream's kubelet looks at what ours is told, how fast it may call whom, where it logs.
///
/// Upstream: kubelet/config/v1beta1/types.go KubeletConfiguration, pkg/kubelet/apis/config/v1beta1/defaults.go
const FIELDS: [(&str, &[&str]); 56] = [
    ("cgroupsPerQOS", &["true"]),
    ("configMapAndSecretChangeDetectionStrategy", &["Watch"]),
    ("containerLogMaxWorkers", &[]),
    ("containerLogMonitorInterval", &[]),
    ("contentType", &[]),
    ("cpuCFSQuota", &["true"]),
    ("cpuCFSQuotaPeriod", &["100ms"]),
    ("cpuManagerPolicy", &["none"]),
    ("cpuManagerReconcilePeriod", &[]),
    ("enableContentionProfiling", &[]),
    ("enableControllerAttachDetach", &["true"]),
    ("enableDebugFlagsHandler", &[]),
    ("enableDebuggingHandlers", &["true"]),
    ("enableProfilingHandler", &[]),
    ("enableServer", &["true"]),
    ("enableSystemLogHandler", &[]),
    ("eventBurst", &[]),
    ("eventRecordQPS", &[]),
    ("fileCheckFrequency", &[]),
    ("hairpinMode", &[]),
    ("healthzBindAddress", &[]),
    ("healthzPort", &[]),
    ("httpCheckFrequency", &[]),
    ("imagePullCredentialsVerificationPolicy", &["NeverVerifyPreloadedImages"]),
    ("iptablesDropBit", &[]),
    ("iptablesMasqueradeBit", &[]),
    ("kernelMemcgNotification", &[]),
    ("kubeAPIBurst", &[]),
    ("kubeAPIQPS", &[]),
    ("localStorageCapacityIsolation", &["true"]),
    ("logging", &[]),
    ("makeIPTablesUtilChains", &[]),
    ("maxOpenFiles", &[]),
    ("maxParallelImagePulls", &[]),
    ("memoryManagerPolicy", &["None"]),
    ("memoryReservationPolicy", &["None"]),
    ("memoryThrottlingFactor", &["0.9"]),
    ("nodeLeaseDurationSeconds", &["40"]),
    ("nodeStatusReportFrequency", &["5m", "5m0s"]),
    ("nodeStatusUpdateFrequency", &[]),
    ("oomScoreAdj", &["-999"]),
    ("podsPerCore", &["0"]),
    ("readOnlyPort", &["0"]),
    ("registryBurst", &[]),
    ("registryPullQPS", &[]),
    ("runtimeRequestTimeout", &[]),
    ("serializeImagePulls", &[]),
    ("singleProcessOOMKill", &["false"]),
    ("streamingConnectionIdleTimeout", &[]),
    ("syncFrequency", &[]),
    ("tlsMinVersion", &["VersionTLS12"]),
    ("topologyManagerPolicy", &["none"]),
    ("topologyManagerScope", &["container"]),
    ("userNamespaces", &[r#"{"idsPerPod":65536}"#]),
    ("volumePluginDir", &["/usr/libexec/kubernetes/kubelet-plugins/volume/exec/"]),
    ("volumeStatsAggPeriod", &[]),
];

/// Whether a field may say this: what upstream takes for nothing, or one of its own words.
pub fn may_say(field: &str, value: &Value) -> bool {
    match FIELDS.iter().find(|(name, _)| *name == field) {
        Some((_, [])) => true,
        // Where only `true` will do, `false` is not nothing.
        Some((_, words)) if value.is_boolean() => words.contains(&value.to_string().as_str()),
        Some((_, words)) => is_nothing(value) || words.iter().any(|word| is_word(value, word)),
        None => is_nothing(value),
    }
}

fn is_word(value: &Value, word: &str) -> bool {
    value.as_str().map_or_else(|| format!("{value}") == word, |text| text == word)
}

/// Whether a value says no more than a field that is not there.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0s" | "0"),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.values().all(is_nothing),
        Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_say_what_is_done() {
        for (field, value, may) in [
            ("syncFrequency", json!("7m"), true),
            ("cgroupsPerQOS", json!(true), true),
            ("cgroupsPerQOS", json!(false), false),
            ("cpuManagerPolicy", json!("none"), true),
            ("cpuManagerPolicy", json!("static"), false),
            ("cpuManagerPolicy", json!(""), true),
            ("nodeLeaseDurationSeconds", json!(40), true),
            ("nodeLeaseDurationSeconds", json!(10), false),
            ("memoryThrottlingFactor", json!(0.9), true),
            ("userNamespaces", json!({"idsPerPod": 65536}), true),
            ("reservedSystemCPUs", json!("0-1"), false),
            ("reservedSystemCPUs", json!(""), true),
        ] {
            assert_eq!(may_say(field, &value), may, "{field}: {value}");
        }
    }
}

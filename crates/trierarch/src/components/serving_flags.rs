//! Flags of the API server that `trierarch server` has too: admission, audit, and how much is done at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use apiserver::admission::configuration::Documents;
use apiserver::admission::selection::Selection;
use apiserver::audit::log::{Format, LogFile, Mode, Options};
use apiserver::audit::policy::Policy;
use apiserver::audit::webhook::{self, WebhookSink};
use apiserver::audit::{Auditor, Sink, Sinks};
use apiserver::authn::{Clock, Random};
use apiserver::pace::Throttle;
use clap::{Args, ValueEnum};
use client::https::Config;
use client::kubeconfig::Kubeconfig;
use resources::ResourceDef;
use resources::features::{Features, Versions};

use super::leadership::Leadership;
use super::{duration, features};

/// Upstream: apiserver/pkg/server/options/{admission,audit,server_run_options}.go,
/// cmd/kube-apiserver/app/options/options.go
#[derive(Args, Clone)]
#[command(next_help_heading = "API requests")]
pub struct ServingFlags {
    /// How many reading requests run at once; together with the writing ones they are shared out by priority
    #[arg(long, value_name = "COUNT", default_value_t = 400)]
    pub max_requests_inflight: u32,
    /// How many writing requests run at once
    #[arg(long, value_name = "COUNT", default_value_t = 200)]
    pub max_mutating_requests_inflight: u32,
    /// How long events are kept after they were last written
    #[arg(long, value_name = "DURATION", default_value = "1h0m0s", value_parser = duration)]
    pub event_ttl: Duration,
    /// Admission plugins that run besides the usual ones
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub enable_admission_plugins: Vec<String>,
    /// Admission plugins that do not run although they usually do
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub disable_admission_plugins: Vec<String>,
    /// A file with an AdmissionConfiguration: what plugins are told
    #[arg(long, value_name = "FILE")]
    pub admission_control_config_file: Option<PathBuf>,
    /// What is off by default and is to be on: `Name=true`, as upstream names it
    #[arg(long, value_name = "GATES", value_delimiter = ',')]
    pub feature_gates: Vec<String>,
    /// Versions that are served besides the usual ones: `GROUP/VERSION=true`, or `api/alpha`, `api/beta`, `api/all`
    #[arg(long, value_name = "VERSIONS", value_delimiter = ',')]
    pub runtime_config: Vec<String>,
    /// A file with a Policy of audit.k8s.io/v1: of which requests how much is noted
    #[arg(long, value_name = "FILE")]
    pub audit_policy_file: Option<PathBuf>,
    /// Where requests are noted; `-` is standard output
    #[arg(long, value_name = "FILE")]
    pub audit_log_path: Option<PathBuf>,
    /// How a line of it looks
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "json")]
    pub audit_log_format: AuditFormat,
    /// Whether a request waits until it is noted
    #[arg(long, value_enum, value_name = "MODE", default_value = "blocking")]
    pub audit_log_mode: AuditMode,
    /// The size in megabytes at which the file is put aside and a new one begun; 0 for never
    #[arg(long, value_name = "MEGABYTES", default_value_t = 100)]
    pub audit_log_maxsize: u64,
    /// How many days files that were put aside are kept; 0 for ever
    #[arg(long, value_name = "DAYS", default_value_t = 366)]
    pub audit_log_maxage: u32,
    /// How many files that were put aside are kept; 0 for all
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    pub audit_log_maxbackup: u32,
    /// Compress files that were put aside
    #[arg(long)]
    pub audit_log_compress: bool,
    #[command(flatten)]
    pub audit_webhook: AuditWebhook,
    #[command(flatten)]
    pub leadership: Leadership,
}

/// Upstream: apiserver/pkg/server/options/audit.go AuditWebhookOptions
#[derive(Args, Clone)]
pub struct AuditWebhook {
    /// A kubeconfig of a server that requests are noted at
    #[arg(long, value_name = "FILE")]
    pub audit_webhook_config_file: Option<PathBuf>,
    /// How long to wait before what could not be noted there is sent again
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub audit_webhook_initial_backoff: Duration,
    /// Whether a request waits until it is noted there
    #[arg(long, value_enum, value_name = "MODE", default_value = "batch")]
    pub audit_webhook_mode: AuditMode,
    /// How many events may wait to be sent
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    pub audit_webhook_batch_buffer_size: usize,
    /// How many events are sent at once
    #[arg(long, value_name = "COUNT", default_value_t = 400)]
    pub audit_webhook_batch_max_size: usize,
    /// How long the first event of a batch waits for others
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub audit_webhook_batch_max_wait: Duration,
    /// Whether batches keep a pace
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub audit_webhook_batch_throttle_enable: bool,
    /// How many batches are sent a second
    #[arg(long, value_name = "RATE", default_value_t = 10.0)]
    pub audit_webhook_batch_throttle_qps: f64,
    /// How many batches are sent at once after a quiet while
    #[arg(long, value_name = "COUNT", default_value_t = 15)]
    pub audit_webhook_batch_throttle_burst: u32,
    /// Whether events and batches are cut down to a size
    #[arg(long)]
    pub audit_webhook_truncate_enabled: bool,
    /// The size in bytes above which an event loses its objects
    #[arg(long, value_name = "BYTES", default_value_t = 100 * 1024)]
    pub audit_webhook_truncate_max_event_size: usize,
    /// The size in bytes above which a batch is split
    #[arg(long, value_name = "BYTES", default_value_t = 10 * 1024 * 1024)]
    pub audit_webhook_truncate_max_batch_size: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AuditFormat {
    Json,
    Legacy,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AuditMode {
    Batch,
    Blocking,
    BlockingStrict,
}

impl From<AuditMode> for Mode {
    fn from(mode: AuditMode) -> Self {
        match mode {
            AuditMode::Batch => Mode::Batch,
            AuditMode::Blocking => Mode::Blocking,
            AuditMode::BlockingStrict => Mode::BlockingStrict,
        }
    }
}

impl AuditWebhook {
    /// The server and how it is told; `None` when there is none.
    fn settings(&self) -> anyhow::Result<Option<(Config, webhook::Options)>> {
        let Some(path) = &self.audit_webhook_config_file else { return Ok(None) };
        self.check()?;
        let config = Kubeconfig::read(path).and_then(|kubeconfig| kubeconfig.config(None))?;
        let throttle = Throttle {
            per_second: self.audit_webhook_batch_throttle_qps,
            burst: self.audit_webhook_batch_throttle_burst,
        };
        let truncating = webhook::Truncating {
            max_event: self.audit_webhook_truncate_max_event_size,
            max_batch: self.audit_webhook_truncate_max_batch_size,
        };
        let options = webhook::Options {
            mode: self.audit_webhook_mode.into(),
            batching: webhook::Batching {
                buffer_size: self.audit_webhook_batch_buffer_size,
                max_size: self.audit_webhook_batch_max_size,
                max_wait: self.audit_webhook_batch_max_wait,
                throttle: self.audit_webhook_batch_throttle_enable.then_some(throttle),
            },
            truncating: self.audit_webhook_truncate_enabled.then_some(truncating),
            patience: self.audit_webhook_initial_backoff,
        };
        Ok(Some((config, options)))
    }

    /// Upstream: validateBackendBatchOptions, AuditTruncateOptions.Validate
    fn check(&self) -> anyhow::Result<()> {
        let batches = matches!(self.audit_webhook_mode, AuditMode::Batch);
        let paced = batches && self.audit_webhook_batch_throttle_enable;
        let (qps, burst) = (self.audit_webhook_batch_throttle_qps, self.audit_webhook_batch_throttle_burst);
        for (concerned, well, what, value) in [
            (batches, self.audit_webhook_batch_buffer_size > 0, "buffer size", 0.0),
            (batches, self.audit_webhook_batch_max_size > 0, "max batch size", 0.0),
            (paced, qps > 0.0, "throttle QPS", qps),
            (paced, burst > 0, "throttle burst", 0.0),
        ] {
            anyhow::ensure!(
                !concerned || well,
                "invalid audit batch webhook {what} {value}, must be a positive number"
            );
        }
        let (event, batch) =
            (self.audit_webhook_truncate_max_event_size, self.audit_webhook_truncate_max_batch_size);
        anyhow::ensure!(
            event > 0,
            "invalid audit truncate webhook max event size {event}, must be a positive number"
        );
        anyhow::ensure!(
            batch >= event,
            "invalid audit truncate webhook max batch size {batch}, must be greater than max event size ({event})"
        );
        Ok(())
    }
}

impl ServingFlags {
    /// What is wrong is told before anything is touched.
    pub fn settings(&self) -> anyhow::Result<ServingSettings> {
        let max_in_flight = self.max_requests_inflight.saturating_add(self.max_mutating_requests_inflight);
        anyhow::ensure!(
            max_in_flight > 0,
            "--max-requests-inflight and --max-mutating-requests-inflight: their sum must be positive"
        );
        self.leadership.check()?;
        let plugins = Selection::of_flags(&self.enable_admission_plugins, &self.disable_admission_plugins);
        Ok(ServingSettings {
            max_in_flight,
            event_ttl: self.event_ttl,
            plugins: plugins.map_err(|errors| anyhow::anyhow!("{}", errors.join("; ")))?,
            admission: Arc::new(self.admission()?),
            audit: self.audit()?,
            features: features(&self.feature_gates)?,
            versions: Versions::parse(self.runtime_config.iter().map(String::as_str))
                .map_err(|error| anyhow::anyhow!("--runtime-config: {error}"))?,
            leadership: self.leadership.clone(),
        })
    }

    fn admission(&self) -> anyhow::Result<Documents> {
        let documents = self.admission_control_config_file.as_deref().map(Documents::read).transpose();
        documents.map(Option::unwrap_or_default).map_err(|why| anyhow::anyhow!("{why}"))
    }

    fn audit(&self) -> anyhow::Result<Option<Audit>> {
        let webhook = self.audit_webhook.settings()?;
        let goes_somewhere = self.audit_log_path.is_some() || webhook.is_some();
        let Some(policy) = self.audit_policy_file.as_ref().filter(|_| goes_somewhere) else {
            if self.audit_policy_file.is_some() || goes_somewhere {
                tracing::warn!(
                    "nothing is audited: it takes --audit-policy-file, and --audit-log-path or \
                     --audit-webhook-config-file"
                );
            }
            return Ok(None);
        };
        let shown = policy.display();
        let text = std::fs::read(policy)
            .with_context(|| format!("loading audit policy file: failed to read file path \"{shown}\""))?;
        let (policy, problems) = Policy::parse(&text)
            .map_err(|error| anyhow::anyhow!("loading audit policy file: {error}: from file {shown}"))?;
        if !problems.is_empty() {
            let problems = problems.join(", ");
            tracing::warn!("Audit policy contains errors, falling back to lenient decoding: {problems}");
        }
        let log = self.audit_log_path.as_ref().map(|path| Options {
            path: path.clone(),
            format: match self.audit_log_format {
                AuditFormat::Json => Format::Json,
                AuditFormat::Legacy => Format::Legacy,
            },
            mode: self.audit_log_mode.into(),
            max_size: self.audit_log_maxsize,
            max_age: self.audit_log_maxage,
            max_backups: self.audit_log_maxbackup,
            compress: self.audit_log_compress,
        });
        Ok(Some(Audit { policy: Arc::new(policy), log, webhook }))
    }
}

/// What the flags come to.
#[derive(Clone)]
pub struct ServingSettings {
    pub max_in_flight: u32,
    pub event_ttl: Duration,
    pub plugins: Selection,
    /// What they are told.
    pub admission: Arc<Documents>,
    pub audit: Option<Audit>,
    /// What is on that is off by default.
    pub features: Features,
    pub versions: Versions,
    pub leadership: Leadership,
}

impl ServingSettings {
    /// The kinds that are served.
    pub fn table(&self) -> Vec<Arc<ResourceDef>> {
        resources::features::table(self.features, &self.versions)
    }
}

#[derive(Clone)]
pub struct Audit {
    policy: Arc<Policy>,
    log: Option<Options>,
    webhook: Option<(Config, webhook::Options)>,
}

impl Audit {
    pub fn open(&self, clock: Clock, random: Random) -> anyhow::Result<Auditor> {
        let mut sinks: Vec<Arc<dyn Sink>> = Vec::new();
        if let Some(log) = &self.log {
            sinks.push(Arc::new(LogFile::open(log, clock)?));
        }
        if let Some((config, options)) = &self.webhook {
            sinks.push(Arc::new(WebhookSink::new(config, options.clone(), random)?));
        }
        let sink = if sinks.len() == 1 { sinks.remove(0) } else { Arc::new(Sinks(sinks)) };
        Ok(Auditor { policy: self.policy.clone(), sink })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        flags: ServingFlags,
    }

    fn refusal(arguments: &[&str]) -> String {
        let parsed = Flags::try_parse_from([&["x"], arguments].concat()).unwrap();
        parsed.flags.settings().err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn wrong_flags_are_told_before_anything_starts() {
        let dir = tempfile::tempdir().unwrap();
        let policy = dir.path().join("policy.yaml");
        std::fs::write(&policy, "apiVersion: audit.k8s.io/v1\nkind: Policy\n").unwrap();
        let policy = policy.to_str().unwrap();
        for (arguments, wanted) in [
            (&[][..], String::new()),
            (&["--audit-log-path=-"], String::new()),
            (
                &["--enable-admission-plugins=PodSecurity,Nothing"],
                "enable-admission-plugins plugin \"Nothing\" is unknown".to_owned(),
            ),
            (
                &["--max-requests-inflight=0", "--max-mutating-requests-inflight=0"],
                "--max-requests-inflight and --max-mutating-requests-inflight: their sum must be positive"
                    .to_owned(),
            ),
            (
                &["--coordinated-leadership-lease-duration=2s", "--coordinated-leadership-renew-deadline=2s"],
                "--coordinated-leadership-lease-duration must be greater than \
                 --coordinated-leadership-renew-deadline; --coordinated-leadership-renew-deadline must be greater \
                 than --coordinated-leadership-retry-period"
                    .to_owned(),
            ),
            (
                &["--audit-log-path=-", "--audit-policy-file", policy],
                format!("loading audit policy file: loaded illegal policy with 0 rules: from file {policy}"),
            ),
        ] {
            assert_eq!(refusal(arguments), wanted, "{arguments:?}");
        }
    }
}

//! Flags of the API server that `trierarch server` has too: admission, audit, and how much is done at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use apiserver::admission::selection::Selection;
use apiserver::audit::Auditor;
use apiserver::audit::log::{Format, LogFile, Mode, Options};
use apiserver::audit::policy::Policy;
use apiserver::authn::Clock;
use clap::{Args, ValueEnum};

use super::duration;

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

impl ServingFlags {
    /// What is wrong is told before anything is touched.
    pub fn settings(&self) -> anyhow::Result<ServingSettings> {
        let max_in_flight = self.max_requests_inflight.saturating_add(self.max_mutating_requests_inflight);
        anyhow::ensure!(
            max_in_flight > 0,
            "--max-requests-inflight and --max-mutating-requests-inflight: their sum must be positive"
        );
        let plugins = Selection::of_flags(&self.enable_admission_plugins, &self.disable_admission_plugins);
        Ok(ServingSettings {
            max_in_flight,
            event_ttl: self.event_ttl,
            plugins: plugins.map_err(|errors| anyhow::anyhow!("{}", errors.join("; ")))?,
            audit: self.audit()?,
        })
    }

    fn audit(&self) -> anyhow::Result<Option<Audit>> {
        let (Some(policy), Some(path)) = (&self.audit_policy_file, &self.audit_log_path) else {
            if self.audit_policy_file.is_some() || self.audit_log_path.is_some() {
                tracing::warn!("nothing is audited: it takes --audit-policy-file and --audit-log-path");
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
        let log = Options {
            path: path.clone(),
            format: match self.audit_log_format {
                AuditFormat::Json => Format::Json,
                AuditFormat::Legacy => Format::Legacy,
            },
            mode: match self.audit_log_mode {
                AuditMode::Batch => Mode::Batch,
                AuditMode::Blocking => Mode::Blocking,
                AuditMode::BlockingStrict => Mode::BlockingStrict,
            },
            max_size: self.audit_log_maxsize,
            max_age: self.audit_log_maxage,
            max_backups: self.audit_log_maxbackup,
            compress: self.audit_log_compress,
        };
        Ok(Some(Audit { policy: Arc::new(policy), log }))
    }
}

/// What the flags come to.
#[derive(Clone)]
pub struct ServingSettings {
    pub max_in_flight: u32,
    pub event_ttl: Duration,
    pub plugins: Selection,
    pub audit: Option<Audit>,
}

#[derive(Clone)]
pub struct Audit {
    policy: Arc<Policy>,
    log: Options,
}

impl Audit {
    pub fn open(&self, clock: Clock) -> anyhow::Result<Auditor> {
        Ok(Auditor { policy: self.policy.clone(), sink: Arc::new(LogFile::open(&self.log, clock)?) })
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
                &["--audit-log-path=-", "--audit-policy-file", policy],
                format!("loading audit policy file: loaded illegal policy with 0 rules: from file {policy}"),
            ),
        ] {
            assert_eq!(refusal(arguments), wanted, "{arguments:?}");
        }
    }
}

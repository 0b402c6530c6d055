//! Errors for people on stderr and for engines as JSON lines in `--log`, in runc's form.
//!
//! libcontainer says what really failed only in `tracing` events, from the process that it clones to become
//! the container. Their text goes to the log file, which that process has open too, and is read back from there.

use std::error::Error as StdError;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tracing_subscriber::fmt::MakeWriter;

/// What libcontainer logged as errors, gathered for the message of the failure.
#[derive(Clone, Default)]
pub(crate) struct Details {
    /// What this process logged.
    own: Arc<Mutex<Vec<u8>>>,
    /// Where the process that becomes the container logs too, and from where on that is about this command.
    log: Option<(PathBuf, u64)>,
}

const DETAILS_MAX: usize = 4096;

impl Details {
    /// The errors from the cause on; those after it are its callers', who often know more of it.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for line in self.logged().unwrap_or_else(|| self.own()) {
            let line = line.trim().to_owned();
            if !line.is_empty() && !lines.contains(&line) {
                lines.push(line);
            }
        }
        lines
    }

    fn own(&self) -> Vec<String> {
        let Ok(text) = self.own.lock() else { return Vec::new() };
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    }

    fn logged(&self) -> Option<Vec<String>> {
        let (path, from) = self.log.as_ref()?;
        let mut file = File::open(path).ok()?;
        file.seek(SeekFrom::Start(*from)).ok()?;
        let mut text = Vec::new();
        file.take(DETAILS_MAX as u64).read_to_end(&mut text).ok()?;
        // The last line may be cut, and is then no JSON.
        let message = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(line.get("msg")?.as_str()?.to_owned())
        };
        Some(String::from_utf8_lossy(&text).lines().filter_map(message).collect())
    }
}

/// Writes each event to memory, and to the log file if there is one.
struct Writer {
    details: Details,
    file: Option<Arc<File>>,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Ok(mut kept) = self.details.own.lock()
            && kept.len() < DETAILS_MAX
        {
            kept.extend_from_slice(bytes);
        }
        if let Some(file) = &self.file {
            let line = json_line("error", String::from_utf8_lossy(bytes).trim());
            file.as_ref().write_all(line.as_bytes())?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Sink {
    details: Details,
    file: Option<Arc<File>>,
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Writer;

    fn make_writer(&'a self) -> Writer {
        Writer { details: self.details.clone(), file: self.file.clone() }
    }
}

/// Starts gathering libcontainer's errors.
pub(crate) fn start(log: Option<&Path>) -> Details {
    let file =
        log.and_then(|path| OpenOptions::new().create(true).append(true).open(path).ok()).map(Arc::new);
    let length = file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
    let details = Details { own: Arc::default(), log: log.map(|path| (path.to_path_buf(), length)) };
    let sink = Sink { details: details.clone(), file };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::ERROR)
        .with_ansi(false)
        .without_time()
        .with_level(false)
        .with_target(false)
        .with_writer(sink)
        .finish();
    // A second call in one process (tests) keeps the first subscriber.
    let _ = tracing::subscriber::set_global_default(subscriber);
    details
}

/// Appends one line to the log; a log that cannot be written must not hide the error itself.
pub(crate) fn append(path: &Path, level: &str, message: &str) {
    if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path) {
        let _ = file.write_all(json_line(level, message).as_bytes());
    }
}

fn json_line(level: &str, message: &str) -> String {
    format!("{}\n", serde_json::json!({ "level": level, "msg": message }))
}

/// The error with all its causes on one line, and what libcontainer logged if that says more.
pub(crate) fn with_causes(error: &dyn StdError, details: &Details) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    if cause.is_none() {
        return text;
    }
    while let Some(source) = cause {
        let next = source.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = source.source();
    }
    for line in details.lines() {
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn the_words_of_the_process_that_became_the_container_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        append(&path, "error", "of another command");
        let from = std::fs::metadata(&path).unwrap().len();
        let details = Details { own: Arc::default(), log: Some((path.clone(), from)) };
        for line in ["failed to mount /x: ENOENT", "failed to mount /x: ENOENT", "failed to prepare rootfs"] {
            append(&path, "error", line);
        }
        let source = io::Error::other("failed to prepare rootfs");
        let error = Error::File { path: "create".into(), source };
        let told = with_causes(&error, &details);
        assert_eq!(told, "create: failed to prepare rootfs: failed to mount /x: ENOENT");
        let own = Details { own: Arc::new(Mutex::new(b"why\n".to_vec())), log: None };
        assert_eq!(with_causes(&error, &own), "create: failed to prepare rootfs: why");
    }
}

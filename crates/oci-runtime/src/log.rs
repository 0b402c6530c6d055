//! Errors for people on stderr and for engines as JSON lines in `--log`, in runc's form.
//!
//! libcontainer says what really failed only in `tracing` events, from the process that it clones to become
//! the container. Their text goes to the log file, which that process has open too, and is read back from there.

use std::error::Error as StdError;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use tracing_subscriber::fmt::MakeWriter;

/// What libcontainer logged as errors, gathered for the message of the failure.
#[derive(Clone, Default)]
pub(crate) struct Details(Arc<Mutex<Vec<u8>>>);

/// The first error is the cause; those after it are the callers that pass it on.
const DETAILS_MAX: usize = 4096;

impl Details {
    fn first_line(&self) -> Option<String> {
        let text = self.0.lock().ok()?;
        let text = String::from_utf8_lossy(&text);
        text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
    }
}

/// Writes each event to memory, and to the log file if there is one.
struct Writer {
    details: Details,
    file: Option<Arc<File>>,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Ok(mut kept) = self.details.0.lock()
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
    let details = Details::default();
    let file =
        log.and_then(|path| OpenOptions::new().create(true).append(true).open(path).ok()).map(Arc::new);
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

/// The error with all its causes on one line, and what libcontainer logged first if that says more.
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
    if let Some(first) = details.first_line()
        && !text.contains(&first)
    {
        text.push_str(": ");
        text.push_str(&first);
    }
    text
}

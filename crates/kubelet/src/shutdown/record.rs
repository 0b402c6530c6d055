//! When the machine was last shut down in order, which the next kubelet still tells.

use std::fs;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};

/// Upstream: pkg/kubelet/nodeshutdown/nodeshutdown_manager.go localStorageStateFile
const FILE: &str = "graceful_node_shutdown_state";
/// How a time that there was not yet is written.
const NEVER: &str = "0001-01-01T00:00:00Z";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub start: Option<Timestamp>,
    pub end: Option<Timestamp>,
}

impl Record {
    /// What the last shutdown left; a file that makes no sense is as none.
    pub fn read(root: &Path) -> Self {
        let text = fs::read(root.join(FILE)).unwrap_or_default();
        let record: Value = serde_json::from_slice(&text).unwrap_or_default();
        let time = |field: &str| {
            let text = record[field].as_str().filter(|text| *text != NEVER)?;
            text.parse().ok()
        };
        Record { start: time("startTime"), end: time("endTime") }
    }

    /// The shutdown goes on if this fails.
    pub fn write(&self, root: &Path) {
        if let Err(error) = self.try_write(root) {
            tracing::warn!(%error, "cannot write down when the machine shut down");
        }
    }

    fn try_write(&self, root: &Path) -> io::Result<()> {
        let time = |time: Option<Timestamp>| time.map_or(NEVER.to_owned(), |time| time.to_string());
        let text = json!({"startTime": time(self.start), "endTime": time(self.end)}).to_string();
        let temporary = root.join(format!(".{FILE}"));
        let file = fs::File::create(&temporary)?;
        io::Write::write_all(&mut &file, text.as_bytes())?;
        file.sync_all()?;
        fs::rename(temporary, root.join(FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(dir.path()), Record::default());
        let begun = Record { start: Some(Timestamp::UNIX_EPOCH), end: None };
        begun.write(dir.path());
        assert_eq!(Record::read(dir.path()), begun);
    }
}

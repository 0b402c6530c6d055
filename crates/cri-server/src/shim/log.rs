//! Container logs in the CRI format: `<RFC 3339 time with nanoseconds> <stream> <F or P> <text>`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use std::os::unix::fs::OpenOptionsExt;

/// A longer line is written in parts marked P, as containerd does, so that a reader's buffer can be bounded.
pub(crate) const MAX_LINE: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// One container's log file. The file is opened anew when it was rotated.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    /// The beginning of a line that is still being written, per stream.
    partial: [Vec<u8>; 2],
}

impl Log {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_path_buf(), file: open(path)?, partial: [Vec::new(), Vec::new()] })
    }

    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    /// Writes whole lines and keeps the rest.
    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8], now_nanos: i64) -> io::Result<()> {
        let partial = &mut self.partial[stream as usize];
        partial.extend_from_slice(bytes);
        let mut out = Vec::with_capacity(bytes.len() + 128);
        let used = format_lines(stream, partial, now_nanos, false, &mut out);
        partial.drain(..used);
        self.append(&out)
    }

    /// Writes what is left of an unfinished last line.
    pub(crate) fn finish(&mut self, stream: Stream, now_nanos: i64) -> io::Result<()> {
        let partial = std::mem::take(&mut self.partial[stream as usize]);
        let mut out = Vec::new();
        format_lines(stream, &partial, now_nanos, true, &mut out);
        self.append(&out)
    }

    /// All of it, or nothing: half a line would spoil the one after it.
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let end = self.file.metadata()?.len();
        self.file.write_all(lines).inspect_err(|_| drop(self.file.set_len(end)))
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// Formats whole lines, full parts of long ones, and at the end the rest; returns how much was used.
fn format_lines(stream: Stream, bytes: &[u8], now_nanos: i64, at_end: bool, out: &mut Vec<u8>) -> usize {
    let mut used = 0;
    let stamp = stamp(now_nanos);
    let mut line = |tag: &str, text: &[u8]| {
        out.extend_from_slice(format!("{stamp} {} {tag} ", stream.name()).as_bytes());
        out.extend_from_slice(text);
        out.push(b'\n');
    };
    loop {
        let rest = &bytes[used..];
        let window = &rest[..rest.len().min(MAX_LINE + 1)];
        match window.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                line("F", &rest[..end]);
                used += end + 1;
            }
            None if rest.len() > MAX_LINE => {
                line("P", &rest[..MAX_LINE]);
                used += MAX_LINE;
            }
            None => {
                if at_end && !rest.is_empty() {
                    line("P", rest);
                    used += rest.len();
                }
                return used;
            }
        }
    }
}

/// `2006-01-02T15:04:05.000000000Z`.
fn stamp(nanos: i64) -> String {
    let timestamp =
        jiff::Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{timestamp:.9}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8], at_end: bool) -> (usize, Vec<String>) {
        let mut out = Vec::new();
        let used = format_lines(Stream::Stdout, bytes, 1_500_000_000, at_end, &mut out);
        let text = String::from_utf8(out).unwrap();
        (used, text.lines().map(str::to_owned).collect())
    }

    #[test]
    fn lines_are_stamped_tagged_and_cut() {
        let (used, text) = lines(b"one\n\ntwo", false);
        assert_eq!(used, 5);
        assert_eq!(
            text,
            ["1970-01-01T00:00:01.500000000Z stdout F one", "1970-01-01T00:00:01.500000000Z stdout F "]
        );
        assert_eq!(lines(b"two", true).1, ["1970-01-01T00:00:01.500000000Z stdout P two"]);
        let long = [vec![b'x'; MAX_LINE], vec![b'y', b'\n']].concat();
        let (used, text) = lines(&long, false);
        assert_eq!(used, long.len());
        assert!(text[0].contains(" P x") && text[1].ends_with(" F y"), "{text:?}");
        let exact = [vec![b'x'; MAX_LINE], vec![b'\n']].concat();
        assert_eq!(lines(&exact, false).1.len(), 1);
    }

    #[test]
    fn a_full_disk_leaves_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        linux::mounts::mount_tmpfs(dir.path(), rustix::mount::MountFlags::empty(), "size=64k")
            .expect("mounting needs root");
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path).unwrap();
        let written = (0..2000).take_while(|_| log.write(Stream::Stdout, b"0123456789\n", 0).is_ok()).count();
        assert!(log.write(Stream::Stdout, b"lost\n", 0).is_err());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().count() == written && text.ends_with("stdout F 0123456789\n"), "{written}");
        linux::mounts::unmount_lazy(dir.path()).unwrap();
    }

    #[test]
    fn a_reopened_log_goes_to_the_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/0.log");
        let mut log = Log::open(&path).unwrap();
        log.write(Stream::Stderr, b"a\nb", 0).unwrap();
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        log.reopen().unwrap();
        log.write(Stream::Stderr, b"c\n", 0).unwrap();
        assert!(std::fs::read_to_string(path).unwrap().ends_with("stderr F bc\n"));
    }
}

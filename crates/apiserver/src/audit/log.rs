//! [`LogFile`]: the audit log as a file that is rotated, or standard output. One thread writes; requests wait for it
//! or do not, as they were told.
//!
//! Upstream: apiserver/plugin/pkg/audit/log/backend.go; the names of rotated files are lumberjack's

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use async_trait::async_trait;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::sync::{mpsc, oneshot};

use super::Sink;
use super::event::Event;
use crate::authn::Clock;

/// How many lines may wait to be written.
///
/// Upstream: apiserver/pkg/server/options/audit.go defaultBatchBufferSize
const BUFFERED: usize = 10_000;
/// How much is written at once.
const BLOCK_BYTES: usize = 1 << 20;
const MEGABYTE: u64 = 1 << 20;
const SECONDS_PER_DAY: i64 = 24 * 60 * 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Legacy,
}

/// Whether a request waits until its line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Batch,
    Blocking,
    /// And fails when it cannot be.
    BlockingStrict,
}

#[derive(Clone, Debug)]
pub struct Options {
    /// `-` for standard output.
    pub path: PathBuf,
    pub format: Format,
    pub mode: Mode,
    /// In megabytes; zero for a file that grows for ever.
    pub max_size: u64,
    /// Days after which a rotated file is removed; zero for never.
    pub max_age: u32,
    /// How many rotated files are kept; zero for all.
    pub max_backups: u32,
    pub compress: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot write the audit log {}", path.display())]
pub struct LogError {
    path: PathBuf,
    source: io::Error,
}

struct Line {
    text: Vec<u8>,
    written: Option<oneshot::Sender<bool>>,
}

/// The way to the thread that writes.
pub struct LogFile {
    lines: Option<mpsc::Sender<Line>>,
    thread: Option<JoinHandle<()>>,
    format: Format,
    mode: Mode,
}

impl LogFile {
    /// Opens the file, so that what is wrong with it is known before anything is served.
    pub fn open(options: &Options, clock: Clock) -> Result<Self, LogError> {
        let failed = |source| LogError { path: options.path.clone(), source };
        let output = Output::open(options, clock).map_err(failed)?;
        let (lines, waiting) = mpsc::channel(BUFFERED);
        let thread = std::thread::Builder::new().name("audit".to_owned());
        let thread = thread.spawn(move || write_lines(output, waiting)).map_err(failed)?;
        Ok(LogFile { lines: Some(lines), thread: Some(thread), format: options.format, mode: options.mode })
    }

    fn line(&self, event: &Event) -> Vec<u8> {
        match self.format {
            Format::Json => event.json_line(),
            Format::Legacy => event.legacy_line(),
        }
    }
}

/// What is waiting is written before the log is gone.
impl Drop for LogFile {
    fn drop(&mut self) {
        self.lines = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the audit log's thread failed");
        }
    }
}

#[async_trait]
impl Sink for LogFile {
    async fn write(&self, event: &Event) -> bool {
        let Some(lines) = &self.lines else { return false };
        if self.mode == Mode::Batch {
            self.write_late(event);
            return true;
        }
        let (written, told) = oneshot::channel();
        let line = Line { text: self.line(event), written: Some(written) };
        let well = lines.send(line).await.is_ok() && told.await.unwrap_or(false);
        well || self.mode == Mode::Blocking
    }

    fn write_late(&self, event: &Event) {
        let Some(lines) = &self.lines else { return };
        if lines.try_send(Line { text: self.line(event), written: None }).is_err() {
            tracing::warn!(event = event.audit_id, "an audit event is lost: too many wait to be written");
        }
    }
}

/// Writes what comes, all that waits at once.
fn write_lines(mut output: Output, mut lines: mpsc::Receiver<Line>) {
    let mut failing = false;
    while let Some(first) = lines.blocking_recv() {
        let mut block = first.text;
        let mut waiting: Vec<_> = first.written.into_iter().collect();
        let limit = output.room(block.len());
        while let Ok(line) = lines.try_recv() {
            let full = block.len() + line.text.len() > limit;
            if full {
                failing = finish(output.write(&block), &mut waiting, failing);
                block.clear();
            }
            block.extend(line.text);
            waiting.extend(line.written);
            if full {
                break;
            }
        }
        failing = finish(output.write(&block), &mut waiting, failing);
    }
}

/// Tells those who wait how it went, and the operator when it begins and ends to fail.
fn finish(result: io::Result<()>, waiting: &mut Vec<oneshot::Sender<bool>>, was_failing: bool) -> bool {
    match &result {
        Err(error) if !was_failing => tracing::error!(%error, "the audit log cannot be written"),
        Ok(()) if was_failing => tracing::info!("the audit log can be written again"),
        _ => {}
    }
    for waiter in waiting.drain(..) {
        // Who has gone away does not want to know.
        let _ = waiter.send(result.is_ok());
    }
    result.is_err()
}

enum Output {
    Standard,
    File(Rotated),
}

impl Output {
    fn open(options: &Options, clock: Clock) -> io::Result<Self> {
        if options.path.as_os_str() == "-" {
            return Ok(Output::Standard);
        }
        Ok(Output::File(Rotated::open(options, clock)?))
    }

    /// How many bytes may be written at once, of which `next` must be.
    fn room(&self, next: usize) -> usize {
        match self {
            Output::Standard => BLOCK_BYTES,
            Output::File(file) => file.room(next).min(BLOCK_BYTES),
        }
    }

    fn write(&mut self, block: &[u8]) -> io::Result<()> {
        match self {
            Output::Standard => io::stdout().lock().write_all(block),
            Output::File(file) => file.write(block),
        }
    }
}

/// A file that is put aside when it is full.
struct Rotated {
    path: PathBuf,
    file: File,
    size: u64,
    options: Options,
    clock: Clock,
}

impl Rotated {
    fn open(options: &Options, clock: Clock) -> io::Result<Self> {
        let path = options.path.clone();
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let file = append(&path)?;
        let size = file.metadata()?.len();
        Ok(Rotated { path, file, size, options: options.clone(), clock })
    }

    fn limit(&self) -> u64 {
        match self.options.max_size {
            0 => u64::MAX,
            megabytes => megabytes.saturating_mul(MEGABYTE),
        }
    }

    fn room(&self, next: usize) -> usize {
        let left = self.limit().saturating_sub(self.size);
        // What does not fit goes into a new file, which has room for all.
        let room = if next as u64 > left { self.limit() } else { left };
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    fn write(&mut self, block: &[u8]) -> io::Result<()> {
        let length = block.len() as u64;
        if self.size > 0 && self.size.saturating_add(length) > self.limit() {
            self.rotate()?;
        }
        self.file.write_all(block)?;
        self.size += length;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let now = (self.clock)();
        let backup = backup_of(&self.path, now);
        fs::rename(&self.path, &backup)?;
        self.file = append(&self.path)?;
        self.size = 0;
        let tidied = self.tidy(&backup, now);
        if let Err(error) = tidied {
            tracing::warn!(%error, "old audit logs cannot be tidied up");
        }
        Ok(())
    }

    /// Compresses the newest backup, and removes those that are too many or too old.
    fn tidy(&self, newest: &Path, now: Timestamp) -> io::Result<()> {
        if self.options.compress {
            compress(newest)?;
        }
        let backups = backups(&self.path)?;
        for path in superfluous(&backups, now, self.options.max_backups, self.options.max_age) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn stem_and_extension(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let extension = text(path.extension());
    (text(path.file_stem()), if extension.is_empty() { extension } else { format!(".{extension}") })
}

const BACKUP_TIME: &str = "%Y-%m-%dT%H-%M-%S";

/// `audit.log` is put aside as `audit-2026-01-02T03-04-05.678.log`.
fn backup_of(path: &Path, now: Timestamp) -> PathBuf {
    let (stem, extension) = stem_and_extension(path);
    let time = now.to_zoned(TimeZone::UTC);
    let milliseconds = now.subsec_millisecond();
    path.with_file_name(format!("{stem}-{}.{milliseconds:03}{extension}", time.strftime(BACKUP_TIME)))
}

/// The moment that a file of this name was put aside; `None` for other files.
fn put_aside(path: &Path, name: &str) -> Option<Timestamp> {
    let (stem, extension) = stem_and_extension(path);
    let name = name.strip_suffix(".gz").unwrap_or(name);
    let time = name.strip_prefix(&format!("{stem}-"))?.strip_suffix(&extension)?;
    let (seconds, milliseconds) = time.rsplit_once('.')?;
    let moment = jiff::civil::DateTime::strptime(BACKUP_TIME, seconds).ok()?;
    let moment = moment.to_zoned(TimeZone::UTC).ok()?.timestamp();
    let milliseconds: i64 = milliseconds.parse().ok()?;
    moment.checked_add(jiff::SignedDuration::from_millis(milliseconds)).ok()
}

/// What was put aside, the newest first.
fn backups(path: &Path) -> io::Result<Vec<(Timestamp, PathBuf)>> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if let Some(moment) = put_aside(path, &entry.file_name().to_string_lossy()) {
            found.push((moment, entry.path()));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found)
}

/// What is too many or too old, of files with the newest first. Zero means no limit.
fn superfluous(backups: &[(Timestamp, PathBuf)], now: Timestamp, most: u32, days: u32) -> Vec<&Path> {
    let oldest = now.as_second() - i64::from(days) * SECONDS_PER_DAY;
    let kept = if most == 0 { usize::MAX } else { most as usize };
    let is_old = |moment: &Timestamp| days > 0 && moment.as_second() < oldest;
    let numbered = backups.iter().enumerate();
    numbered
        .filter(|(at, (moment, _))| *at >= kept || is_old(moment))
        .map(|(_, (_, path))| path.as_path())
        .collect()
}

fn compress(path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".gz");
    let target = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&name)?;
    let mut encoder = flate2::write::GzEncoder::new(target, flate2::Compression::default());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    fn moment(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn options(path: &Path) -> Options {
        Options {
            path: path.to_owned(),
            format: Format::Json,
            mode: Mode::Blocking,
            max_size: 1,
            max_age: 0,
            max_backups: 2,
            compress: false,
        }
    }

    /// A clock that goes on by a second each time that it is read.
    fn clock() -> Clock {
        let seconds = AtomicI64::new(1_700_000_000);
        Arc::new(move || moment(seconds.fetch_add(1, Ordering::Relaxed)))
    }

    #[test]
    fn backups_are_known_by_their_names() {
        let path = Path::new("/var/log/audit.log");
        let backup = backup_of(path, moment(1_700_000_000));
        assert_eq!(backup, Path::new("/var/log/audit-2023-11-14T22-13-20.000.log"));
        let name = backup.file_name().unwrap().to_str().unwrap();
        assert_eq!(put_aside(path, name), Some(moment(1_700_000_000)));
        assert_eq!(put_aside(path, &format!("{name}.gz")), Some(moment(1_700_000_000)));
        for other in ["audit.log", "audit-x.log", "other-2023-11-14T22-13-20.000.log"] {
            assert_eq!(put_aside(path, other), None, "{other}");
        }
    }

    #[test]
    fn too_many_and_too_old_backups_go() {
        let day = |day: i64| (moment(day * SECONDS_PER_DAY), PathBuf::from(format!("{day}")));
        let backups = [day(9), day(8), day(5), day(1)];
        for (most, days, gone) in
            [(0, 0, &[][..]), (2, 0, &["5", "1"][..]), (0, 3, &["5", "1"][..]), (3, 6, &["1"][..])]
        {
            let found = superfluous(&backups, moment(10 * SECONDS_PER_DAY), most, days);
            assert_eq!(found, gone.iter().map(Path::new).collect::<Vec<_>>(), "{most} {days}");
        }
    }

    #[test]
    fn a_full_file_is_put_aside_and_only_some_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/audit.log");
        for compress in [false, true] {
            let mut file = Rotated::open(&Options { compress, ..options(&path) }, clock()).unwrap();
            let block = vec![b'x'; 600_000];
            for _ in 0..5 {
                file.write(&block).unwrap();
            }
            assert_eq!(fs::metadata(&path).unwrap().len(), 600_000);
            assert_eq!(backups(&path).unwrap().len(), 2);
        }
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn what_was_answered_is_written_and_what_waits_is_written_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let log = LogFile::open(&options(&path), clock()).unwrap();
        assert!(log.write(&Event { audit_id: "one".into(), ..Default::default() }).await);
        assert!(fs::read_to_string(&path).unwrap().contains(r#""auditID":"one""#));
        for id in ["two", "three"] {
            log.write_late(&Event { audit_id: id.into(), ..Default::default() });
        }
        drop(log);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 3);
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_written_fails_requests_only_when_told_to() {
        // The kernel's device that is always full.
        for (mode, goes_on) in [(Mode::Blocking, true), (Mode::BlockingStrict, false), (Mode::Batch, true)] {
            let options = Options { mode, max_size: 0, ..options(Path::new("/dev/full")) };
            let log = LogFile::open(&options, clock()).unwrap();
            assert_eq!(log.write(&Event::default()).await, goes_on, "{mode:?}");
        }
    }
}

//! Container logs in the CRI format: parsing, the end of one, and reading one as a client asked.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use jiff::Timestamp;
use tokio::sync::mpsc;

/// The longest line that is taken whole.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// One line of a log file: `2016-10-06T00:17:09.669794202Z stdout P content`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    pub time: &'a str,
    pub stdout: bool,
    /// More of the same line of output follows.
    pub partial: bool,
    pub content: &'a [u8],
}

/// `None` for what is not in the format, such as a line that a crash cut short.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stdout = match parts.next()? {
        b"stdout" => true,
        b"stderr" => false,
        _ => return None,
    };
    let partial = match parts.next()?.split(|b| *b == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Line { time, stdout, partial, content: parts.next().unwrap_or_default() })
}

/// What part of a log is asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub follow: bool,
    pub tail_lines: Option<u64>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
    /// `Stdout`, `Stderr`, or both.
    pub stream: Option<String>,
}

/// Turns lines of the file into what the client sees.
struct Writer {
    options: Options,
    left: Option<u64>,
    /// The last line was partial: the next goes on without a timestamp.
    continues: bool,
}

impl Writer {
    fn new(options: Options) -> Self {
        let left = options.limit_bytes;
        Writer { options, left, continues: false }
    }

    fn wants(&self, line: &Line) -> bool {
        let by_stream = match self.options.stream.as_deref() {
            Some("Stdout") => line.stdout,
            Some("Stderr") => !line.stdout,
            _ => true,
        };
        let late = |since: &Timestamp| line.time.parse::<Timestamp>().is_ok_and(|t| t >= *since);
        by_stream && self.options.since.as_ref().is_none_or(late)
    }

    /// The text of a line; `None` when the limit is reached.
    fn write(&mut self, raw: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let raw = raw.strip_suffix(b"\n").unwrap_or(raw);
        if let Some(line) = parse(raw).filter(|l| self.wants(l)) {
            if self.options.timestamps && !self.continues {
                out.extend_from_slice(line.time.as_bytes());
                out.push(b' ');
            }
            out.extend_from_slice(line.content);
            if !line.partial {
                out.push(b'\n');
            }
            self.continues = line.partial;
        }
        if let Some(left) = &mut self.left {
            if *left == 0 {
                return None;
            }
            out.truncate((*left).min(out.len() as u64) as usize);
            *left -= out.len() as u64;
        }
        Some(out)
    }
}

/// Where the last `lines` lines of a file begin. Reads backwards in blocks.
fn tail_offset(file: &mut File, lines: u64) -> std::io::Result<u64> {
    const BLOCK: u64 = 64 << 10;
    let mut end = file.metadata()?.len();
    if lines == 0 {
        return Ok(end);
    }
    let mut seen = 0;
    let mut block = Vec::new();
    let length = end;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        (&mut *file).take(end - start).read_to_end(&mut block)?;
        for (at, _) in block.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            let at = start + at as u64;
            // The newline that ends the file ends its last line.
            if at + 1 == length {
                continue;
            }
            seen += 1;
            if seen == lines {
                return Ok(at + 1);
            }
        }
        end = start;
    }
    Ok(0)
}

/// The end of a log as one text, for a container that left no other last words.
pub fn tail_text(path: &str, lines: usize, max_bytes: usize) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let offset = tail_offset(&mut file, lines as u64)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut writer = Writer::new(Options::default());
        let mut last: VecDeque<u8> = VecDeque::new();
        for line in BufReader::new(file.take(lines as u64 * MAX_LINE_BYTES)).split(b'\n') {
            last.extend(writer.write(&line?).unwrap_or_default());
            let over = last.len().saturating_sub(max_bytes);
            last.drain(..over);
        }
        Ok(last.into())
    };
    match read() {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("Error on reading termination message from logs: {error}"),
    }
}

/// Tells a follower whether the container still runs. Answers when something about the container has changed.
pub type Ended = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Sends a log to `out`, and goes on while it grows until `ended` resolves if the client follows. Ends when the
/// client goes.
pub async fn stream(
    path: PathBuf,
    options: Options,
    mut ended: Ended,
    out: mpsc::Sender<Bytes>,
) -> std::io::Result<()> {
    let follow = options.follow;
    let mut file = File::open(&path)?;
    if let Some(lines) = options.tail_lines {
        let offset = tail_offset(&mut file, lines)?;
        file.seek(SeekFrom::Start(offset))?;
    }
    let mut writer = Writer::new(options);
    let mut changes = if follow { Some(watch(&path)?) } else { None };
    let mut reader = BufReader::new(file);
    let mut pending = Vec::new();
    let mut last_round = !follow;
    loop {
        if !drain(&mut reader, &mut pending, &mut writer, &out).await? {
            return Ok(());
        }
        if rotated(&path, reader.get_ref()) {
            reader = BufReader::new(File::open(&path)?);
            continue;
        }
        if last_round {
            return Ok(());
        }
        let Some(changes) = &mut changes else { return Ok(()) };
        tokio::select! {
            event = changes.next() => last_round = event.is_none(),
            () = &mut ended => last_round = true,
            () = out.closed() => return Ok(()),
        }
    }
}

fn watch(path: &Path) -> std::io::Result<inotify::EventStream<[u8; 1024]>> {
    let inotify = Inotify::init()?;
    let dir = path.parent().unwrap_or(path);
    inotify.watches().add(dir, WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO)?;
    inotify.into_event_stream([0; 1024])
}

/// Whether another file took the path's place.
fn rotated(path: &Path, open: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (std::fs::metadata(path), open.metadata()) {
        (Ok(named), Ok(open)) => named.ino() != open.ino(),
        _ => false,
    }
}

/// Sends the whole lines that are there. False when no more is wanted.
async fn drain(
    reader: &mut BufReader<File>,
    pending: &mut Vec<u8>,
    writer: &mut Writer,
    out: &mpsc::Sender<Bytes>,
) -> std::io::Result<bool> {
    const CHUNK: usize = 32 << 10;
    let mut chunk = Vec::new();
    loop {
        let room = MAX_LINE_BYTES.saturating_sub(pending.len() as u64).max(1);
        let read = reader.by_ref().take(room).read_until(b'\n', pending)?;
        let whole = pending.ends_with(b"\n") || pending.len() as u64 >= MAX_LINE_BYTES;
        if whole {
            let Some(text) = writer.write(pending) else {
                send(out, &mut chunk).await;
                return Ok(false);
            };
            chunk.extend(text);
            pending.clear();
        }
        if chunk.len() >= CHUNK && !send(out, &mut chunk).await {
            return Ok(false);
        }
        if read == 0 {
            return Ok(send(out, &mut chunk).await);
        }
    }
}

async fn send(out: &mpsc::Sender<Bytes>, chunk: &mut Vec<u8>) -> bool {
    if chunk.is_empty() {
        return true;
    }
    out.send(Bytes::from(std::mem::take(chunk))).await.is_ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LOG: &str = "2026-01-01T00:00:01.000000001Z stdout F one\n\
                       2026-01-01T00:00:02Z stderr P tw\n\
                       2026-01-01T00:00:02Z stderr F o\n\
                       garbage\n\
                       2026-01-01T00:00:03Z stdout F three\n";

    async fn read(options: Options) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(LOG.as_bytes()).unwrap();
        let (out, mut chunks) = mpsc::channel(8);
        stream(file.path().to_owned(), options, Box::pin(async {}), out).await.unwrap();
        let mut text = String::new();
        while let Some(chunk) = chunks.recv().await {
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        text
    }

    #[test]
    fn lines() {
        assert_eq!(
            parse(b"t stdout F a b"),
            Some(Line { time: "t", stdout: true, partial: false, content: b"a b" })
        );
        assert_eq!(parse(b"t stderr P:tag x").map(|l| (l.stdout, l.partial)), Some((false, true)));
        for bad in [&b""[..], b"t", b"t stdout", b"t other F x", b"t stdout X x"] {
            assert_eq!(parse(bad), None);
        }
    }

    #[tokio::test]
    async fn logs_are_read_as_asked() {
        let options = Options::default;
        assert_eq!(read(options()).await, "one\ntwo\nthree\n");
        assert_eq!(read(Options { tail_lines: Some(1), ..options() }).await, "three\n");
        assert_eq!(read(Options { tail_lines: Some(0), ..options() }).await, "");
        assert_eq!(read(Options { limit_bytes: Some(5), ..options() }).await, "one\nt");
        let since = Some("2026-01-01T00:00:03Z".parse().unwrap());
        assert_eq!(read(Options { since, ..options() }).await, "three\n");
        assert_eq!(read(Options { stream: Some("Stderr".into()), ..options() }).await, "two\n");
        let stamped = read(Options { timestamps: true, tail_lines: Some(1), ..options() }).await;
        assert_eq!(stamped, "2026-01-01T00:00:03Z three\n");
    }

    #[tokio::test]
    async fn a_follower_sees_what_is_added() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(LOG.as_bytes()).unwrap();
        let (out, mut chunks) = mpsc::channel(8);
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let options = Options { follow: true, tail_lines: Some(1), ..Options::default() };
        let ended: Ended = Box::pin(async move { drop(ended.await) });
        let reading = tokio::spawn(stream(file.path().to_owned(), options, ended, out));
        assert_eq!(chunks.recv().await.unwrap(), "three\n");
        file.write_all(b"2026-01-01T00:00:04Z stdout F four\n").unwrap();
        assert_eq!(chunks.recv().await.unwrap(), "four\n");
        end.send(()).unwrap();
        assert_eq!(chunks.recv().await, None);
        reading.await.unwrap().unwrap();
    }
}

//! SPDY/3.1, as much of it as Kubernetes' clients speak: streams with headers, compressed with the protocol's
//! dictionary, data, half-close, reset, ping.
//!
//! Sending does not wait for the peer's window: the clients (moby/spdystream) neither keep nor announce one, so
//! waiting would be for ever. What they send is bounded by a small channel a stream, and announced as consumed.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::Work;
use super::session::{self, Ends, Input, Output};
use crate::SharedEngine;

const DICTIONARY: &[u8] = include_bytes!("../data/spdy3-dictionary.bin");
const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const WINDOW_UPDATE: u16 = 9;
const FIN: u8 = 1;
/// A frame's length has 24 bits; nobody sends more than one read gave.
const MAX_FRAME: usize = 1 << 20;
const MAX_HEADERS: usize = 64 * 1024;
const MAX_STREAMS: usize = 256;
const QUEUE: usize = 8;
const CHUNK: usize = 32 * 1024;
const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 3;

/// A stream that the peer has opened.
pub(super) struct Stream {
    pub headers: BTreeMap<String, String>,
    /// What the peer sends; it ends when the peer has closed its half.
    pub data: mpsc::Receiver<Bytes>,
    pub writer: Writer,
}

/// Our half of a stream.
#[derive(Clone)]
pub(super) struct Writer {
    id: u32,
    frames: mpsc::Sender<Vec<u8>>,
}

impl Writer {
    /// Sends data; `false` when the connection is gone.
    pub(super) async fn send(&self, bytes: &[u8]) -> bool {
        for chunk in bytes.chunks(CHUNK) {
            if self.frames.send(data_frame(self.id, 0, chunk)).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Closes our half.
    pub(super) async fn finish(&self) {
        // A connection that is gone is closed as well.
        let _ = self.frames.send(data_frame(self.id, FIN, &[])).await;
    }
}

fn data_frame(id: u32, flags: u8, bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(bytes.len() + 8);
    frame.extend_from_slice(&(id & 0x7fff_ffff).to_be_bytes());
    push_length(&mut frame, flags, bytes.len());
    frame.extend_from_slice(bytes);
    frame
}

fn control_frame(kind: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 8);
    frame.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    frame.extend_from_slice(&kind.to_be_bytes());
    push_length(&mut frame, flags, payload.len());
    frame.extend_from_slice(payload);
    frame
}

fn push_length(frame: &mut Vec<u8>, flags: u8, length: usize) {
    let length = u32::try_from(length).expect("frames are cut to CHUNK, far below 24 bits");
    frame.extend_from_slice(&(u32::from(flags) << 24 | length).to_be_bytes());
}

fn two_words(first: u32, second: u32) -> Vec<u8> {
    [first.to_be_bytes(), second.to_be_bytes()].concat()
}

/// Header blocks of one direction: one zlib stream for the whole connection.
struct Inflater(Decompress);

impl Inflater {
    fn headers(&mut self, block: &[u8]) -> io::Result<BTreeMap<String, String>> {
        let malformed = || io::Error::from(io::ErrorKind::InvalidData);
        let mut text = Vec::new();
        let mut rest = block;
        loop {
            let mut buffer = [0; 4096];
            let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
            match self.0.decompress(rest, &mut buffer, FlushDecompress::Sync) {
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    rest =
                        &rest[usize::try_from(self.0.total_in() - before_in).map_err(|_| malformed())?..];
                    self.0.set_dictionary(DICTIONARY).map_err(|_| malformed())?;
                    continue;
                }
                Err(_) => return Err(malformed()),
            }
            let read = usize::try_from(self.0.total_in() - before_in).map_err(|_| malformed())?;
            let written = usize::try_from(self.0.total_out() - before_out).map_err(|_| malformed())?;
            rest = &rest[read..];
            text.extend_from_slice(&buffer[..written]);
            if text.len() > MAX_HEADERS {
                return Err(malformed());
            }
            if written < buffer.len() && rest.is_empty() || (read == 0 && written == 0) {
                break;
            }
        }
        parse_headers(&text).ok_or_else(malformed)
    }
}

/// Names and values, each after its length. Names are compared without regard to case, so they are lowered.
fn parse_headers(text: &[u8]) -> Option<BTreeMap<String, String>> {
    let mut rest = text;
    let number = |rest: &mut &[u8]| {
        let (head, tail) = rest.split_first_chunk::<4>()?;
        *rest = tail;
        usize::try_from(u32::from_be_bytes(*head)).ok()
    };
    let count = number(&mut rest)?;
    let mut headers = BTreeMap::new();
    for _ in 0..count {
        let mut field = || {
            let length = number(&mut rest)?;
            let (head, tail) = rest.split_at_checked(length)?;
            rest = tail;
            Some(String::from_utf8_lossy(head).into_owned())
        };
        let (name, value) = (field()?, field()?);
        headers.insert(name.to_ascii_lowercase(), value);
    }
    Some(headers)
}

fn compress_headers(deflater: &mut Compress, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut push = |bytes: &[u8]| {
        text.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes());
        text.extend_from_slice(bytes);
    };
    for (name, value) in headers {
        push(name.as_bytes());
        push(value.as_bytes());
    }
    let mut whole = u32::try_from(headers.len()).unwrap_or(0).to_be_bytes().to_vec();
    whole.extend_from_slice(&text);
    let mut block = Vec::with_capacity(whole.len() + 256);
    // A vector with room to spare takes it all, and compression into memory cannot fail.
    let _ = deflater.compress_vec(&whole, &mut block, FlushCompress::Sync);
    block
}

/// A stream's channel as the reader keeps it.
struct Incoming {
    data: Option<mpsc::Sender<Bytes>>,
}

/// Speaks SPDY on `io` and hands each stream that the peer opens to `accept`, until the connection ends.
pub(super) async fn serve(io: impl AsyncRead + AsyncWrite, accept: mpsc::Sender<Stream>) {
    let (read, write) = tokio::io::split(io);
    let (frames, queue) = mpsc::channel(64);
    let reader = read_frames(read, frames, accept);
    let writer = write_frames(write, queue);
    // The reader holds a sender, and so does every open stream: the writer ends after the last of them.
    let (read, ()) = tokio::join!(reader, writer);
    if let Err(error) = read {
        tracing::debug!(%error, "a SPDY connection ended");
    }
}

async fn write_frames(mut write: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = queue.recv().await {
        if write.write_all(&frame).await.is_err() || write.flush().await.is_err() {
            return;
        }
    }
    let _ = write.shutdown().await;
}

async fn read_frames(
    mut read: impl AsyncRead + Unpin,
    frames: mpsc::Sender<Vec<u8>>,
    accept: mpsc::Sender<Stream>,
) -> io::Result<()> {
    let mut inflater = Inflater(Decompress::new(true));
    let mut deflater = Compress::new(Compression::default(), true);
    deflater.set_dictionary(DICTIONARY).map_err(io::Error::other)?;
    let mut streams: BTreeMap<u32, Incoming> = BTreeMap::new();
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    loop {
        let mut header = [0; 8];
        if read.read_exact(&mut header).await.is_err() {
            return Ok(());
        }
        let [a, b, c, d, flags, l1, l2, l3] = header;
        let length = u32::from_be_bytes([0, l1, l2, l3]) as usize;
        if length > MAX_FRAME {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut payload = vec![0; length];
        read.read_exact(&mut payload).await?;
        if a & 0x80 == 0 {
            let id = u32::from_be_bytes([a, b, c, d]);
            receive_data(&mut streams, id, flags, payload, &frames).await.map_err(gone)?;
            continue;
        }
        match u16::from_be_bytes([c, d]) {
            SYN_STREAM => {
                let Some((id, rest)) = payload.split_first_chunk::<4>() else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                let id = u32::from_be_bytes(*id) & 0x7fff_ffff;
                let block = rest.get(6..).ok_or(io::ErrorKind::InvalidData)?;
                let headers = inflater.headers(block)?;
                streams.retain(|_, stream| stream.data.as_ref().is_some_and(|data| !data.is_closed()));
                if streams.contains_key(&id) || streams.len() >= MAX_STREAMS {
                    let why = if streams.contains_key(&id) { PROTOCOL_ERROR } else { REFUSED_STREAM };
                    frames.send(control_frame(RST_STREAM, 0, &two_words(id, why))).await.map_err(gone)?;
                    continue;
                }
                let reply = [&id.to_be_bytes()[..], &compress_headers(&mut deflater, &[])].concat();
                frames.send(control_frame(SYN_REPLY, 0, &reply)).await.map_err(gone)?;
                let (data, receiver) = mpsc::channel(QUEUE);
                // A stream opened with FIN has nothing to say, only to hear.
                streams.insert(id, Incoming { data: (flags & FIN == 0).then_some(data) });
                let writer = Writer { id, frames: frames.clone() };
                if accept.send(Stream { headers, data: receiver, writer }).await.is_err() {
                    return Ok(());
                }
            }
            RST_STREAM => {
                if let Some((id, _)) = payload.split_first_chunk::<4>() {
                    streams.remove(&(u32::from_be_bytes(*id) & 0x7fff_ffff));
                }
            }
            PING => frames.send(control_frame(PING, 0, &payload)).await.map_err(gone)?,
            GOAWAY => return Ok(()),
            // Settings, windows and further headers change nothing here, but headers move the zlib stream on.
            8 => drop(inflater.headers(payload.get(4..).ok_or(io::ErrorKind::InvalidData)?)?),
            _ => {}
        }
    }
}

async fn receive_data(
    streams: &mut BTreeMap<u32, Incoming>,
    id: u32,
    flags: u8,
    payload: Vec<u8>,
    frames: &mpsc::Sender<Vec<u8>>,
) -> Result<(), mpsc::error::SendError<Vec<u8>>> {
    let Some(stream) = streams.get_mut(&id) else { return Ok(()) };
    let length = u32::try_from(payload.len()).unwrap_or(0);
    if let Some(data) = &stream.data
        && !payload.is_empty()
    {
        // A stream whose reader has left swallows the rest.
        let _ = data.send(payload.into()).await;
    }
    if flags & FIN != 0 {
        stream.data = None;
    }
    if length > 0 {
        frames.send(control_frame(WINDOW_UPDATE, 0, &two_words(id, length))).await?;
    }
    Ok(())
}

/// The streams that a command needs; clients open them all before anything else.
fn expected(work: &Work, protocol: &str) -> usize {
    let (stdin, stdout, stderr, terminal) = match work {
        Work::Exec(r) => (r.stdin, r.stdout, r.stderr, r.terminal),
        Work::Attach { stdin, stdout, stderr, terminal, .. } => (*stdin, *stdout, *stderr, *terminal),
        Work::PortForward { .. } => return 0,
    };
    // Resizing came with v3.
    let resizes = terminal && (protocol.starts_with("v4") || protocol.starts_with("v3"));
    1 + [stdin, stdout, stderr, resizes].into_iter().filter(|wanted| *wanted).count()
}

/// Serves a command whose channels are SPDY streams.
pub(super) async fn serve_command(
    io: impl AsyncRead + AsyncWrite,
    protocol: &str,
    engine: &SharedEngine,
    work: &Work,
) {
    let (accept, mut accepted) = mpsc::channel::<Stream>(QUEUE);
    let command = async {
        let mut streams = BTreeMap::new();
        while streams.len() < expected(work, protocol) {
            let Some(stream) = accepted.recv().await else { return };
            let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
            streams.insert(kind, stream);
        }
        let (session, ends) = session::channel();
        tokio::join!(session::run(engine, work, session), carry(streams, ends, protocol));
    };
    tokio::select! {
        () = serve(io, accept) => {}
        // The writer is drained before the connection goes: the peer must see the last frames.
        () = async { command.await; tokio::time::sleep(CLOSING).await } => {}
    }
}

/// How long the peer has to take the last frames and close.
const CLOSING: std::time::Duration = std::time::Duration::from_secs(1);

async fn carry(mut streams: BTreeMap<String, Stream>, ends: Ends, protocol: &str) {
    let Ends { input, mut output } = ends;
    let writer = |name: &str| streams.get(name).map(|stream| stream.writer.clone());
    let (error, stdout, stderr) = (writer("error"), writer("stdout"), writer("stderr"));
    let (stdin, resize) = (streams.remove("stdin"), streams.remove("resize"));
    let type_in = async {
        let Some(mut stream) = stdin else { return };
        while let Some(bytes) = stream.data.recv().await {
            if input.send(Input::Stdin(bytes)).await.is_err() {
                return;
            }
        }
        let _ = input.send(Input::CloseStdin).await;
    };
    let resizes = async {
        let Some(mut stream) = resize else { return };
        while let Some(bytes) = stream.data.recv().await {
            // One frame may carry several sizes, a line each; the last one counts.
            let last = bytes.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty());
            if let Some(size) = last.and_then(session::resize)
                && input.send(size).await.is_err()
            {
                return;
            }
        }
    };
    let put_out = async {
        while let Some(output) = output.recv().await {
            let (to, bytes) = match &output {
                Output::Stdout(bytes) => (&stdout, bytes),
                Output::Stderr(bytes) => (&stderr, bytes),
                // Before v4 only failures are told.
                Output::Status(bytes)
                    if !protocol.starts_with("v4") && bytes.windows(9).any(|w| w == b"\"Success\"") =>
                {
                    break;
                }
                Output::Status(bytes) => (&error, bytes),
            };
            if let Some(writer) = to
                && !writer.send(bytes).await
            {
                return;
            }
        }
        for writer in [&error, &stdout, &stderr].into_iter().flatten() {
            writer.finish().await;
        }
    };
    tokio::select! {
        () = put_out => {}
        _ = async { tokio::join!(type_in, resizes, std::future::pending::<()>()) } => {}
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The client's side, for tests.
    pub(in crate::streaming) struct Peer {
        deflater: Compress,
    }

    impl Peer {
        pub(in crate::streaming) fn new() -> Self {
            let mut deflater = Compress::new(Compression::default(), true);
            deflater.set_dictionary(DICTIONARY).unwrap();
            Self { deflater }
        }

        pub(in crate::streaming) fn open(&mut self, id: u32, headers: &[(&str, &str)]) -> Vec<u8> {
            let mut payload = id.to_be_bytes().to_vec();
            payload.extend_from_slice(&[0; 6]);
            payload.extend(compress_headers(&mut self.deflater, headers));
            control_frame(SYN_STREAM, 0, &payload)
        }
    }

    pub(in crate::streaming) async fn next_frame(
        read: &mut (impl AsyncRead + Unpin),
    ) -> ([u8; 4], u8, Vec<u8>) {
        let mut header = [0; 8];
        read.read_exact(&mut header).await.unwrap();
        let [a, b, c, d, flags, l1, l2, l3] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, l1, l2, l3]) as usize];
        read.read_exact(&mut payload).await.unwrap();
        ([a, b, c, d], flags, payload)
    }

    pub(in crate::streaming) fn data(id: u32, flags: u8, bytes: &[u8]) -> Vec<u8> {
        data_frame(id, flags, bytes)
    }

    #[tokio::test]
    async fn streams_open_with_headers_and_carry_data_both_ways() {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let (accept, mut accepted) = mpsc::channel(4);
        let served = tokio::spawn(async move { serve(server, accept).await });
        let (mut read, mut write) = tokio::io::split(client);
        let mut peer = Peer::new();
        for (id, kind) in [(1, "error"), (3, "stdout")] {
            write.write_all(&peer.open(id, &[("streamType", kind)])).await.unwrap();
            let (head, _, payload) = next_frame(&mut read).await;
            assert_eq!((head, &payload[..4]), ([0x80, 3, 0, 2], &[0, 0, 0, id as u8][..]));
        }
        let error = accepted.recv().await.unwrap();
        let mut stdout = accepted.recv().await.unwrap();
        assert_eq!(error.headers["streamtype"], "error");
        assert_eq!(stdout.headers["streamtype"], "stdout");
        write.write_all(&data(3, FIN, b"hello")).await.unwrap();
        assert_eq!(stdout.data.recv().await.unwrap(), "hello");
        assert_eq!(stdout.data.recv().await, None);
        let (head, ..) = next_frame(&mut read).await;
        assert_eq!(head, [0x80, 3, 0, 9], "a window update");
        assert!(stdout.writer.send(b"there").await);
        assert_eq!(next_frame(&mut read).await, ([0, 0, 0, 3], 0, b"there".to_vec()));
        write.write_all(&control_frame(PING, 0, &[0, 0, 0, 1])).await.unwrap();
        assert_eq!(next_frame(&mut read).await.2, [0, 0, 0, 1]);
        drop((stdout, error, read, write));
        served.await.unwrap();
    }

    #[test]
    fn hostile_header_blocks_are_errors() {
        for text in [&b""[..], &[0, 0, 0, 9], &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 1]] {
            assert_eq!(parse_headers(text), None);
        }
        assert!(Inflater(Decompress::new(true)).headers(b"not zlib").is_err());
    }
}

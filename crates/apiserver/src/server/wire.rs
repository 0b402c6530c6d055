//! What lies between HTTP and TLS: small writes are gathered, and a peer that does not read is given up.
//!
//! HTTP/2 writes and flushes each frame by itself. A hundred watchers of one change on four connections would be
//! a hundred records and a hundred system calls; gathered until all who were woken with the connection have had
//! their say ([`Wire::drive`]), they are a few.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How much is gathered before it is written in any case.
const GATHERED_BYTES: usize = 64 << 10;
/// The least that is made room for.
const FIRST_BYTES: usize = 16 << 10;
/// An idle connection keeps no larger buffer than this.
const KEPT_BYTES: usize = 4 << 10;
/// How long a peer may take none of what is written for it.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(60);

struct Io<S> {
    stream: S,
    pending: Vec<u8>,
    /// How much of `pending` the stream has taken.
    taken: usize,
    /// Flushes wait for the connection's next turn.
    gathers: bool,
    /// What is pending waits for others that are about to write.
    waits: bool,
    stall: Option<Pin<Box<Sleep>>>,
}

/// The stream as HTTP sees it. Clones are the same stream.
pub struct Wire<S>(Arc<Mutex<Io<S>>>);

impl<S> Clone for Wire<S> {
    fn clone(&self) -> Self {
        Wire(self.0.clone())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Writes go out when they are flushed.
    pub fn direct(stream: S) -> Self {
        Self::new(stream, false)
    }

    /// Writes go out by [`Wire::drive`].
    pub fn gathering(stream: S) -> Self {
        Self::new(stream, true)
    }

    fn new(stream: S, gathers: bool) -> Self {
        let io = Io { stream, pending: Vec::new(), taken: 0, gathers, waits: false, stall: None };
        Wire(Arc::new(Mutex::new(io)))
    }

    /// Only the connection's own task ever takes this lock, and never across a wait.
    fn io(&self) -> MutexGuard<'_, Io<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the connection that writes here, and sends what it wrote one turn later: a connection is woken by the
    /// first of its streams that has something to send, and runs again behind the others that were woken before.
    pub async fn drive<F, E>(&self, mut connection: Pin<&mut F>) -> Result<(), BoxError>
    where
        F: Future<Output = Result<(), E>>,
        E: Into<BoxError>,
    {
        std::future::poll_fn(|context| {
            let turn = connection.as_mut().poll(context).map_err(Into::into);
            let mut io = self.io();
            if turn.is_pending() && io.begins_to_wait() {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            match (turn, io.flush(context)) {
                (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error.into())),
                (turn, _) => turn,
            }
        })
        .await
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl<S: AsyncRead + AsyncWrite + Unpin> Io<S> {
    /// Whether there is something that may as well be sent a turn later.
    fn begins_to_wait(&mut self) -> bool {
        self.waits = !self.waits && self.taken == 0 && !self.pending.is_empty();
        self.waits
    }

    fn flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(context))?;
        if self.pending.capacity() > KEPT_BYTES {
            self.pending = Vec::new();
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.unless_stalled(context, flushed)
    }

    /// Hands the stream all that was gathered.
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.taken < self.pending.len() {
            let written = Pin::new(&mut self.stream).poll_write(context, &self.pending[self.taken..]);
            match ready!(self.unless_stalled(context, written))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.taken += count,
            }
        }
        self.taken = 0;
        self.pending.clear();
        Poll::Ready(Ok(()))
    }

    fn unless_stalled<T>(
        &mut self,
        context: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.stall = None;
            return progress;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL_TIMEOUT)));
        ready!(stall.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read")))
    }

    fn write(&mut self, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if !self.pending.is_empty() && self.pending.len() + length > GATHERED_BYTES {
            ready!(self.drain(context))?;
        }
        if length >= GATHERED_BYTES {
            // Nothing is pending: large blocks need not be copied.
            let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
            let written = Pin::new(&mut self.stream).poll_write(context, first);
            return self.unless_stalled(context, written);
        }
        if self.gathers && self.pending.len() + length > self.pending.capacity() {
            // What does not fit into the first buffer is likely to be much.
            let wanted = if self.pending.is_empty() { length.max(FIRST_BYTES) } else { GATHERED_BYTES };
            self.pending.reserve_exact(wanted - self.pending.len());
        }
        slices.iter().for_each(|slice| self.pending.extend_from_slice(slice));
        Poll::Ready(Ok(length))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.io().write(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io().write(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut io = self.io();
        if io.gathers { Poll::Ready(Ok(())) } else { io.flush(context) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut io = self.io();
        ready!(io.flush(context))?;
        Pin::new(&mut io.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_is_flushed_in_a_turn_goes_out_at_its_end() {
        let (ours, mut theirs) = duplex(1 << 20);
        let mut wire = Wire::gathering(ours);
        for _ in 0..3 {
            wire.write_all(b"frame").await.unwrap();
            wire.flush().await.unwrap();
        }
        let mut got = [0; 15];
        assert!(futures::FutureExt::now_or_never(theirs.read(&mut got)).is_none());
        let mut turn = std::pin::pin!(async { Ok::<_, io::Error>(()) });
        wire.drive(turn.as_mut()).await.unwrap();
        theirs.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"frameframeframe");
    }

    #[tokio::test]
    async fn what_is_written_in_a_turn_waits_for_the_next() {
        let (ours, mut theirs) = duplex(1 << 20);
        let wire = Wire::gathering(ours);
        let mut writer = wire.clone();
        let connection = std::future::poll_fn(move |context| {
            let _ = Pin::new(&mut writer).poll_write(context, b"frame");
            Poll::<io::Result<()>>::Pending
        });
        let connection = std::pin::pin!(connection);
        let mut driven = std::pin::pin!(wire.drive(connection));
        let mut got = [0; 20];
        for (turn, sent) in [(1, 0), (2, 10), (3, 0), (4, 10)] {
            assert!(futures::poll!(driven.as_mut()).is_pending());
            let read = futures::FutureExt::now_or_never(theirs.read(&mut got));
            assert_eq!(read.map_or(0, |count| count.unwrap()), sent, "turn {turn}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_given_up() {
        let (ours, _theirs) = duplex(16);
        let mut wire = Wire::direct(ours);
        wire.write_all(&[0; 64]).await.unwrap();
        let error = wire.flush().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}

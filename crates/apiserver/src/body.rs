//! The bodies of answers: ready bytes, blocks made as they are sent, or a stream.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use http_body::{Frame, SizeHint};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Makes the next block of a long answer.
pub type Blocks = Box<dyn FnMut() -> Option<Bytes> + Send>;

pub enum Body {
    Full(Bytes),
    /// Blocks whose total length is known.
    Blocks {
        next: Blocks,
        remaining: u64,
    },
    Stream(Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>),
}

pub type Response = http::Response<Body>;

impl Body {
    pub fn empty() -> Self {
        Body::Full(Bytes::new())
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Body::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Body::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Body::Blocks { next, remaining } => Poll::Ready(next().map(|block| {
                *remaining = remaining.saturating_sub(block.len() as u64);
                Ok(Frame::data(block))
            })),
            Body::Stream(stream) => {
                stream.as_mut().poll_next(context).map(|next| next.map(|r| r.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Full(bytes) => bytes.is_empty(),
            Body::Blocks { remaining, .. } => *remaining == 0,
            Body::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Blocks { remaining, .. } => SizeHint::with_exact(*remaining),
            Body::Stream(_) => SizeHint::default(),
        }
    }
}

/// Smaller bodies are not worth compressing.
///
/// Upstream: apiserver/pkg/endpoints/handlers/responsewriters/writers.go defaultGzipThresholdBytes
const GZIP_THRESHOLD: u64 = 128 * 1024;

/// Compresses a long answer at the level that costs least, as upstream does.
pub fn compress(response: Response) -> Response {
    use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, VARY};
    let length = http_body::Body::size_hint(response.body()).exact().unwrap_or(0);
    if length < GZIP_THRESHOLD || response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let mut source: Blocks = match body {
        Body::Full(bytes) => {
            let mut bytes = Some(bytes);
            Box::new(move || bytes.take())
        }
        Body::Blocks { next, .. } => next,
        other => return Response::from_parts(parts, other),
    };
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.insert(CONTENT_ENCODING, http::HeaderValue::from_static("gzip"));
    parts.headers.append(VARY, http::HeaderValue::from_static("Accept-Encoding"));
    let mut encoder = Some(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1)));
    let blocks = std::iter::from_fn(move || {
        use std::io::Write;
        loop {
            let gzip = encoder.as_mut()?;
            let Some(block) = source() else {
                let rest = encoder.take()?.finish();
                return Some(rest.map(Bytes::from).map_err(BoxError::from));
            };
            if let Err(error) = gzip.write_all(&block) {
                encoder = None;
                return Some(Err(error.into()));
            }
            if !gzip.get_ref().is_empty() {
                return Some(Ok(Bytes::from(std::mem::take(gzip.get_mut()))));
            }
        }
    });
    Response::from_parts(parts, Body::Stream(Box::pin(futures::stream::iter(blocks))))
}

//! The channel protocol over WebSocket: the first byte of a message names its stream.

use base64::Engine as _;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode};

use super::session::{self, Ends, Input, Output};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// In v5 the client closes a stream with this byte and the stream's number.
const CLOSE: u8 = 255;

/// Larger messages are an attack: clients send what one read gave them.
const MAX_MESSAGE: usize = 4 << 20;
const TUNNEL_BUFFER: usize = 64 * 1024;

async fn accept<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> WebSocketStream<S> {
    let config =
        WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// One client message as input, if it is any.
fn decode(message: &[u8]) -> Option<Input> {
    let (channel, rest) = message.split_first()?;
    match *channel {
        // Some clients open with an empty message.
        STDIN if !rest.is_empty() => Some(Input::Stdin(Bytes::copy_from_slice(rest))),
        RESIZE => session::resize(rest),
        CLOSE if rest == [STDIN] => Some(Input::CloseStdin),
        _ => None,
    }
}

fn encode(channel: u8, bytes: &[u8], base64: bool) -> Message {
    if base64 {
        let text = base64::engine::general_purpose::STANDARD.encode(bytes);
        return Message::text(format!("{channel}{text}"));
    }
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(channel);
    message.extend_from_slice(bytes);
    Message::binary(message)
}

/// The older protocols spell the channel as a digit and the rest in base64.
fn decode_base64(text: &str) -> Option<Input> {
    let (channel, rest) = text.split_at_checked(1)?;
    let mut message = vec![channel.parse::<u8>().ok()?];
    message.extend(base64::engine::general_purpose::STANDARD.decode(rest).ok()?);
    decode(&message)
}

/// Carries a session over the connection until it ends or the client has left.
pub(super) async fn serve_command<S: AsyncRead + AsyncWrite + Unpin>(io: S, protocol: &str, ends: Ends) {
    let base64 = protocol.contains("base64");
    // Before v4 a success says nothing, and a failure is plain text.
    let has_status = protocol.starts_with("v5") || protocol.starts_with("v4");
    let (mut sink, mut stream) = accept(io).await.split();
    let Ends { input, mut output } = ends;
    let receive = async {
        while let Some(Ok(message)) = stream.next().await {
            let decoded = match &message {
                Message::Binary(bytes) => decode(bytes),
                Message::Text(text) if base64 => decode_base64(text),
                Message::Text(text) => decode(text.as_bytes()),
                Message::Close(_) => return,
                _ => None,
            };
            if let Some(decoded) = decoded
                && input.send(decoded).await.is_err()
            {
                // The session has ended; its last words are on their way.
                std::future::pending::<()>().await;
            }
        }
    };
    let send = async {
        while let Some(output) = output.recv().await {
            let message = match &output {
                Output::Stdout(bytes) => encode(STDOUT, bytes, base64),
                Output::Stderr(bytes) => encode(STDERR, bytes, base64),
                Output::Status(bytes) => {
                    let succeeded = bytes.windows(9).any(|window| window == b"\"Success\"");
                    if !has_status && succeeded {
                        break;
                    }
                    encode(ERROR, bytes, base64)
                }
            };
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = sink.send(Message::Close(Some(close))).await;
        let _ = sink.close().await;
    };
    tokio::select! {
        () = receive => {}
        () = send => {}
    }
}

/// Gives `serve` the bytes inside the WebSocket's binary messages as a stream of its own.
pub(super) async fn tunnel<S, F>(io: S, serve: impl FnOnce(DuplexStream) -> F)
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()>,
{
    let (mut sink, mut stream) = accept(io).await.split();
    let (inner, outer) = tokio::io::duplex(TUNNEL_BUFFER);
    let (mut read, mut write) = tokio::io::split(outer);
    let receive = async move {
        while let Some(Ok(message)) = stream.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Close(_) => return,
                _ => continue,
            };
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let send = async move {
        let mut buffer = vec![0; 32 * 1024];
        while let Ok(length @ 1..) = read.read(&mut buffer).await {
            if sink.send(Message::binary(buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
        let _ = sink.close().await;
    };
    // When either direction ends both halves are dropped: that ends the inner stream, and what is served on it.
    let carry = async move {
        tokio::select! {
            () = receive => {}
            () = send => {}
        }
    };
    tokio::join!(serve(inner), carry);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_their_channel() {
        assert_eq!(decode(b"\x00hi"), Some(Input::Stdin(Bytes::from_static(b"hi"))));
        assert_eq!(decode(b"\xff\x00"), Some(Input::CloseStdin));
        assert_eq!(decode(b"\x04{\"Width\":2,\"Height\":1}"), Some(Input::Resize { columns: 2, rows: 1 }));
        assert_eq!(decode(b""), None);
        assert_eq!(decode_base64("0aGk="), Some(Input::Stdin(Bytes::from_static(b"hi"))));
        assert_eq!(decode_base64("é"), None);
    }

    #[tokio::test]
    async fn a_session_ends_with_its_status_and_a_close() {
        let (client, server) = tokio::io::duplex(1024);
        let (session, ends) = session::channel();
        drop(session);
        let (sender, output) = tokio::sync::mpsc::channel(4);
        let ends = Ends { output, ..ends };
        sender.send(Output::Stdout(Bytes::from_static(b"x"))).await.unwrap();
        sender.send(Output::Status(session::status(Ok(0)))).await.unwrap();
        drop(sender);
        let served = tokio::spawn(serve_command(server, "v5.channel.k8s.io", ends));
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(b"\x01x".to_vec()));
        assert_eq!(client.next().await.unwrap().unwrap().into_data()[0], ERROR);
        assert!(client.next().await.unwrap().unwrap().is_close());
        served.await.unwrap();
    }
}

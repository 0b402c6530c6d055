//! Port-forwarding: for each connection of the client's a data and an error stream, joined by a request id.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::spdy::{self, Stream};
use crate::SharedEngine;

/// Halves of a pair whose other half never came are not kept without end.
const HALVES_MAX: usize = 64;
const CHUNK: usize = 32 * 1024;

/// Serves port-forwarding into a sandbox on a SPDY connection.
pub(super) async fn serve_spdy(io: impl AsyncRead + AsyncWrite, engine: &SharedEngine, sandbox: &str) {
    let (accept, accepted) = mpsc::channel(8);
    let dial = |port| dial(engine, sandbox, port);
    tokio::select! {
        () = spdy::serve(io, accept) => {}
        () = pair_up(accepted, dial) => {}
    }
}

/// Joins the halves and serves each pair; ends when the connection does.
async fn pair_up<F>(mut accepted: mpsc::Receiver<Stream>, dial: impl Fn(u16) -> F)
where
    F: Future<Output = Result<TcpStream, String>> + Send + 'static,
{
    let mut halves: BTreeMap<String, Stream> = BTreeMap::new();
    let mut pairs = JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = accepted.recv() => stream,
            Some(_) = pairs.join_next() => continue,
        };
        let Some(stream) = stream else { break };
        let header = |name: &str| stream.headers.get(name).cloned().unwrap_or_default();
        // Clients older than request ids open the error stream first, so that a port alone joins the two.
        let (id, port) = (header("requestid"), header("port"));
        let key = if id.is_empty() { format!("port {port}") } else { id };
        let Some(other) = halves.remove(&key) else {
            if halves.len() >= HALVES_MAX {
                halves.pop_first();
            }
            halves.insert(key, stream);
            continue;
        };
        let (data, error) = if header("streamtype") == "data" { (stream, other) } else { (other, stream) };
        match port.parse::<u16>() {
            Ok(port) if port > 0 => {
                let dialed = dial(port);
                pairs.spawn(async move { forward(data, error, port, dialed.await).await });
            }
            _ => complain(&error, &format!("invalid port {port:?}")).await,
        }
    }
    while pairs.join_next().await.is_some() {}
}

async fn complain(error: &Stream, message: &str) {
    error.writer.send(message.as_bytes()).await;
    error.writer.finish().await;
}

async fn forward(mut data: Stream, error: Stream, port: u16, dialed: Result<TcpStream, String>) {
    let socket = match dialed {
        Ok(socket) => socket,
        Err(why) => {
            complain(&error, &format!("error forwarding port {port} to pod: {why}")).await;
            data.writer.finish().await;
            return;
        }
    };
    let (mut read, mut write) = socket.into_split();
    let out = async {
        while let Some(bytes) = data.data.recv().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    };
    let back = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(length @ 1..) = read.read(&mut buffer).await {
            if !data.writer.send(&buffer[..length]).await {
                return;
            }
        }
        data.writer.finish().await;
    };
    tokio::pin!(out);
    tokio::pin!(back);
    // When the pod's side has ended nothing can be answered any more; when the client's has, the answer is due.
    tokio::select! {
        () = &mut back => {}
        () = &mut out => back.await,
    }
    error.writer.finish().await;
}

/// Connects to a port of the pod's loopback, from inside its network namespace.
fn dial(
    engine: &SharedEngine,
    sandbox: &str,
    port: u16,
) -> impl Future<Output = Result<TcpStream, String>> + Send + 'static {
    let found = engine.sandbox(sandbox).map_err(|e| e.to_string());
    async move {
        let sandbox = found?;
        let own_network = sandbox.options().network() != cri::v1::NamespaceMode::Node;
        let netns = sandbox.namespaces_dir().join("net");
        let mut last = String::new();
        for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let address = SocketAddr::new(address, port);
            // The socket belongs to the namespace it was made in; connecting may then wait anywhere.
            let make = move || {
                if address.is_ipv4() {
                    tokio::net::TcpSocket::new_v4()
                } else {
                    tokio::net::TcpSocket::new_v6()
                }
            };
            let made = match own_network {
                false => make().map_err(|e| e.to_string()),
                true => {
                    let netns = netns.clone();
                    let handle = tokio::runtime::Handle::current();
                    let made = tokio::task::spawn_blocking(move || {
                        linux::namespaces::within(linux::namespaces::Kind::Net, &netns, move || {
                            let _runtime = handle.enter();
                            Ok(make())
                        })
                    });
                    match made.await {
                        Ok(Ok(socket)) => socket.map_err(|e| e.to_string()),
                        Ok(Err(error)) => Err(error.to_string()),
                        Err(error) => Err(error.to_string()),
                    }
                }
            };
            match made {
                Ok(socket) => match socket.connect(address).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => {
                        last = format!("failed to connect to localhost:{port} inside namespace: {error}")
                    }
                },
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streaming::spdy::tests::{Peer, data, next_frame};

    #[tokio::test]
    async fn a_pair_of_streams_is_one_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let echo = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut text = String::new();
            socket.read_to_string(&mut text).await.unwrap();
            socket.write_all(text.to_uppercase().as_bytes()).await.unwrap();
        });
        let (client, server) = tokio::io::duplex(64 * 1024);
        let (accept, accepted) = mpsc::channel(4);
        let dial = move |_| async move { TcpStream::connect(address).await.map_err(|e| e.to_string()) };
        let served =
            tokio::spawn(async move { tokio::join!(spdy::serve(server, accept), pair_up(accepted, dial)) });
        let (mut read, mut write) = tokio::io::split(client);
        let mut peer = Peer::new();
        for (id, kind) in [(1, "error"), (3, "data")] {
            let headers = [("streamType", kind), ("port", "80"), ("requestID", "0")];
            write.write_all(&peer.open(id, &headers)).await.unwrap();
        }
        write.write_all(&data(3, 1, b"hello")).await.unwrap();
        let mut answer = Vec::new();
        loop {
            let (head, flags, payload) = next_frame(&mut read).await;
            if head == [0, 0, 0, 3] {
                answer.extend(payload);
                if flags == 1 {
                    break;
                }
            }
        }
        assert_eq!(answer, b"HELLO");
        echo.await.unwrap();
        drop((read, write));
        served.await.unwrap();
    }
}

//! From a [`Config`] to a server that answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use client::Client;
use controller_runtime::InformerFactory;
use hickory_server::Server;
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

use crate::forward::{self, Forwarder};
use crate::server::Handler;
use crate::zone::Zone;
use crate::{Config, Error, Informers};

/// How long a TCP client may say nothing.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers that wait for one TCP client to read.
const TCP_ANSWERS: usize = 32;

/// Answers questions until shutdown. The sockets are open from the start, and questions wait in them until the
/// API server's state is known: an early "no such name" would be remembered.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let zone = Zone::new(&config.cluster_domain)?;
    let mut sockets = Vec::new();
    for address in &config.bind_addresses {
        sockets.push(listen(*address).await?);
    }
    let bound: Vec<SocketAddr> = sockets.iter().filter_map(|(udp, _)| udp.local_addr().ok()).collect();
    let servers = forward::without_self(&config.upstreams, &bound, &config.service_addresses);
    if servers.is_empty() {
        tracing::warn!("there is no upstream DNS server; names outside the cluster are refused");
    }
    let forwarder = Forwarder::new(&servers)?;

    let stop = shutdown.child_token();
    let _stop_informers = stop.clone().drop_guard();
    let factory = InformerFactory::new(client, stop.clone());
    let cluster = Arc::new(Informers::new(&factory));
    factory.start();
    if factory.synced().await {
        let mut server = Server::new(Handler::new(zone, cluster, forwarder, config.metrics));
        for (udp, tcp) in sockets {
            server.register_socket(udp);
            server.register_listener(tcp, TCP_TIMEOUT, TCP_ANSWERS);
        }
        tokio::select! {
            () = stop.cancelled() => server.shutdown_gracefully().await.map_err(Error::Serve)?,
            ended = server.block_until_done() => ended.map_err(Error::Serve)?,
        }
    }
    stop.cancel();
    factory.stopped().await;
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<(UdpSocket, TcpListener), Error> {
    let failed = |source| Error::Listen { address, source };
    let udp = UdpSocket::bind(address).await.map_err(failed)?;
    // Port 0 means any: then the same for both.
    let address = udp.local_addr().map_err(failed)?;
    let tcp = TcpListener::bind(address).await.map_err(failed)?;
    Ok((udp, tcp))
}

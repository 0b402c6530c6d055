//! Connections to a server: HTTP/2 with many requests on each, or HTTP/1.1 with one at a time. Bodies of answers
//! are counted and dropped unless they are asked for.

use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

use crate::{Encoding, Http};

/// How many connections HTTP/2's requests share.
const CONNECTIONS: usize = 4;
/// Enough that a list of some megabytes never waits for the other side.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

/// Where a server is, and who asks.
#[derive(Clone)]
pub struct Address {
    host: String,
    port: u16,
    tls: Arc<rustls::ClientConfig>,
    authorization: Option<String>,
}

impl Address {
    pub fn new(config: &client::https::Config) -> anyhow::Result<Self> {
        let uri: http::Uri = config.server.parse()?;
        let host = uri.host().context("the server has a host")?.trim_matches(['[', ']']).to_owned();
        let authorization = match &config.token {
            Some(client::https::Token::Text(token)) => Some(format!("Bearer {token}")),
            Some(client::https::Token::File(path)) => {
                Some(format!("Bearer {}", std::fs::read_to_string(path)?.trim()))
            }
            None => None,
        };
        let tls = Arc::new(client::https::tls_config(config)?);
        Ok(Address { host, port: uri.port_u16().unwrap_or(443), tls, authorization })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// One lane for each request that is to be in flight.
    pub async fn lanes(&self, http: Http, count: usize) -> anyhow::Result<Vec<Lane>> {
        let mut lanes = Vec::with_capacity(count);
        let mut shared = Vec::new();
        for at in 0..count {
            let sender = match http {
                Http::One => self.connect(http).await?,
                Http::Two if at < CONNECTIONS => {
                    let sender = self.connect(http).await?;
                    shared.push(sender.share());
                    sender
                }
                Http::Two => shared[at % CONNECTIONS].share(),
            };
            let base = match http {
                Http::One => String::new(),
                Http::Two => format!("https://{}:{}", self.host, self.port),
            };
            lanes.push(Lane { sender: sender.context_sender()?, address: self.clone(), base });
        }
        Ok(lanes)
    }

    pub async fn lane(&self) -> anyhow::Result<Lane> {
        self.lanes(Http::Two, 1).await?.pop().context("one lane was asked for")
    }

    async fn connect(&self, http: Http) -> anyhow::Result<Connected> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let mut tls = (*self.tls).clone();
        tls.alpn_protocols = vec![if http == Http::Two { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let name = ServerName::try_from(self.host.clone())?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
        match http {
            Http::Two => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .handshake(TokioIo::new(stream))
                    .await?;
                tokio::spawn(connection);
                Ok(Connected::Two(sender))
            }
            Http::One => {
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                Ok(Connected::One(Some(sender)))
            }
        }
    }
}

enum Connected {
    One(Option<http1::SendRequest<Full<Bytes>>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Connected {
    /// Another handle of an HTTP/2 connection.
    fn share(&self) -> Connected {
        match self {
            Connected::Two(sender) => Connected::Two(sender.clone()),
            Connected::One(_) => Connected::One(None),
        }
    }

    fn context_sender(self) -> anyhow::Result<Sender> {
        match self {
            Connected::One(sender) => Ok(Sender::One(sender.context("HTTP/1.1 connections are not shared")?)),
            Connected::Two(sender) => Ok(Sender::Two(sender)),
        }
    }
}

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

/// One request at a time.
pub struct Lane {
    sender: Sender,
    address: Address,
    base: String,
}

/// What to ask.
pub struct Ask<'a> {
    pub method: Method,
    pub path: &'a str,
    pub content_type: &'static str,
    pub accept: &'static str,
    pub body: Bytes,
}

impl<'a> Ask<'a> {
    pub fn get(path: &'a str, encoding: Encoding) -> Self {
        Ask {
            method: Method::GET,
            path,
            content_type: "",
            accept: encoding.content_type(),
            body: Bytes::new(),
        }
    }

    pub fn send(method: Method, path: &'a str, encoding: Encoding, body: Bytes) -> Self {
        Ask { method, path, content_type: encoding.content_type(), accept: encoding.content_type(), body }
    }
}

impl Lane {
    pub async fn open(&mut self, ask: Ask<'_>) -> anyhow::Result<http::Response<Incoming>> {
        let mut request = Request::builder()
            .method(ask.method)
            .uri(format!("{}{}", self.base, ask.path))
            .header(header::ACCEPT, ask.accept)
            .header(header::USER_AGENT, "bench");
        if !ask.content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, ask.content_type);
        }
        if let Some(authorization) = &self.address.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        match &mut self.sender {
            Sender::One(sender) => {
                let host = format!("{}:{}", self.address.host, self.address.port);
                sender.ready().await?;
                Ok(sender.send_request(request.header(header::HOST, host).body(Full::new(ask.body))?).await?)
            }
            Sender::Two(sender) => {
                sender.ready().await?;
                Ok(sender.send_request(request.body(Full::new(ask.body))?).await?)
            }
        }
    }

    /// Asks, and answers the status and how long the body was.
    pub async fn count(&mut self, ask: Ask<'_>) -> anyhow::Result<(StatusCode, usize)> {
        let mut response = self.open(ask).await?;
        if response.status().is_success() {
            let mut length = 0;
            while let Some(frame) = response.body_mut().frame().await {
                length += frame?.data_ref().map_or(0, Bytes::len);
            }
            return Ok((response.status(), length));
        }
        let status = response.status();
        Ok((status, collect(response).await?.len()))
    }

    /// Asks for what must succeed, and answers the body.
    pub async fn read(&mut self, ask: Ask<'_>) -> anyhow::Result<Bytes> {
        let what = format!("{} {}", ask.method, ask.path);
        let response = self.open(ask).await?;
        let status = response.status();
        let body = collect(response).await?;
        if !status.is_success() {
            bail!("{what}: {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(body)
    }
}

async fn collect(response: http::Response<Incoming>) -> anyhow::Result<Bytes> {
    let mut body = response.into_body();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            all.extend_from_slice(data);
        }
    }
    Ok(all.freeze())
}

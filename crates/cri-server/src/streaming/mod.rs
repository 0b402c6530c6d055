//! Exec, attach and port-forward: an HTTP server on loopback to which the kubelet passes the upgraded
//! connections of its clients, byte for byte.
//!
//! Start with [`Server`]; a call of CRI gets a URL with a [`Tickets`] token that is good for one connection.
//! `session` is what goes on in a container whatever the wire; `websocket` and `spdy` are the wires: WebSocket
//! subprotocols `v5.channel.k8s.io` and older, SPDY/3.1 with a stream per channel, and SPDY inside WebSocket as
//! `kubectl port-forward` speaks it. What always holds: every buffer and channel is bounded, so a slow reader
//! slows the writer and nobody else.

mod forward;
mod server;
mod session;
mod spdy;
mod websocket;

pub(crate) use server::{Server, Tickets, Work};

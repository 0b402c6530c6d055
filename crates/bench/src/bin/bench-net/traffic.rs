//! Servers and clients in network namespaces, with plain sockets.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use linux::netns::NetNs;

const PATIENCE: Duration = Duration::from_secs(10);
/// Clients that connect, and questions in flight.
const CLIENTS: usize = 4;
const IN_FLIGHT: usize = 32;
const BLOCK: usize = 256 << 10;

/// Says its letter to whoever connects, and then swallows what it is sent.
pub struct Server {
    pub address: SocketAddr,
}

impl Server {
    /// Starts in a namespace, at its first address that others reach. It ends with this process.
    pub fn start(namespace: &NetNs, letter: u8) -> anyhow::Result<Self> {
        let address = || {
            let probe = UdpSocket::bind("0.0.0.0:0")?;
            // No packet is sent: the kernel only looks for a route.
            probe.connect("192.0.2.1:9")?;
            let listener = TcpListener::bind((probe.local_addr()?.ip(), 0))?;
            std::io::Result::Ok((listener.local_addr()?, listener))
        };
        let (address, listener) = namespace.run(address)?.context("cannot start a server")?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || serve(stream, letter));
            }
        });
        Ok(Server { address })
    }
}

fn serve(mut stream: TcpStream, letter: u8) {
    let mut block = vec![0; BLOCK];
    // A client that goes is done.
    if stream.write_all(&[letter]).is_ok() {
        while stream.read(&mut block).is_ok_and(|read| read > 0) {}
    }
}

/// The letter of whoever answers there.
fn ask(target: SocketAddr) -> std::io::Result<(TcpStream, u8)> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut letter = [0];
    stream.read_exact(&mut letter)?;
    Ok((stream, letter[0]))
}

/// Connects until this letter answers.
pub fn until_answered(from: &NetNs, target: SocketAddr, letter: u8) -> anyhow::Result<()> {
    let begun = Instant::now();
    from.run(|| {
        while !ask(target).is_ok_and(|(_, answered)| answered == letter) {
            if begun.elapsed() > PATIENCE {
                bail!("{target} is not answered by {}", letter as char);
            }
        }
        Ok(())
    })?
}

/// Connections a second of a few clients, each opened, answered and closed.
pub fn connections(from: &NetNs, target: SocketAddr, time: Duration) -> anyhow::Result<f64> {
    let (count, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let until = Instant::now() + time;
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                from.run(|| {
                    while Instant::now() < until {
                        match ask(target) {
                            Ok(_) => count.fetch_add(1, Ordering::Relaxed),
                            Err(_) => return failed.store(true, Ordering::Relaxed),
                        };
                    }
                })
            });
        }
    });
    if failed.into_inner() {
        bail!("a connection to {target} failed");
    }
    Ok(count.into_inner() as f64 / time.as_secs_f64())
}

/// Bytes a second over one connection.
pub fn throughput(from: &NetNs, target: SocketAddr, time: Duration) -> anyhow::Result<f64> {
    from.run(|| {
        let (mut stream, _) = ask(target)?;
        let (block, begun) = (vec![0; BLOCK], Instant::now());
        let mut sent = 0;
        while begun.elapsed() < time {
            stream.write_all(&block)?;
            sent += block.len();
        }
        Ok(sent as f64 / begun.elapsed().as_secs_f64())
    })?
}

pub fn is_healthy(address: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        std::io::Result::Ok(said)
    };
    ask().is_ok_and(|said| said.contains(" 200 "))
}

/// A question for the IPv4 addresses of a name.
fn question(name: &str, id: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("labels are short"));
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

fn client(server: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Asks until the answer is this address: the last four bytes of an answer with one record.
pub fn until_named(from: &NetNs, server: SocketAddr, name: &str, ip: IpAddr) -> anyhow::Result<()> {
    let IpAddr::V4(ip) = ip else { bail!("{ip} is not of IPv4") };
    from.run(|| {
        let (socket, begun) = (client(server)?, Instant::now());
        let mut buffer = [0; 1500];
        for id in 0.. {
            socket.send(&question(name, id))?;
            let length = socket.recv(&mut buffer)?;
            if buffer[..length].ends_with(&ip.octets()) {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!("{name} does not become {ip}");
            }
        }
        Ok(())
    })?
}

/// Questions answered a second, with some in flight.
pub fn questions(from: &NetNs, server: SocketAddr, name: &str, time: Duration) -> anyhow::Result<f64> {
    from.run(|| {
        let socket = client(server)?;
        let mut buffer = [0; 1500];
        for id in 0..IN_FLIGHT {
            socket.send(&question(name, id as u16))?;
        }
        let (mut answered, begun) = (0u32, Instant::now());
        while begun.elapsed() < time {
            socket.recv(&mut buffer)?;
            answered += 1;
            socket.send(&question(name, answered as u16))?;
        }
        Ok(f64::from(answered) / begun.elapsed().as_secs_f64())
    })?
}

//! The web server that the demo image carries: answers every request with the name of the pod it runs in.
//!
//! Only the standard library, so that the binary crate's build script can compile this one file to a static
//! program of a few hundred kilobytes and embed it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// How long a client may take for its request, and how large that may be.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_REQUEST_BYTES: u64 = 16 << 10;

fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).unwrap_or_else(|| "8080".into());
    // Both families where the kernel has IPv6, IPv4 alone where it does not.
    let listener = TcpListener::bind(format!("[::]:{port}"))
        .or_else(|_| TcpListener::bind(format!("0.0.0.0:{port}")))?;
    let pod = std::env::var("HOSTNAME").unwrap_or_else(|_| "unknown".into());
    println!("{pod} serves on port {port}");
    for connection in listener.incoming() {
        let pod = pod.clone();
        std::thread::spawn(move || {
            // A client that went away needs no answer.
            let _ = connection.and_then(|connection| serve(connection, &pod));
        });
    }
    Ok(())
}

/// Answers the requests of one connection until the client closes it.
fn serve(mut connection: TcpStream, pod: &str) -> std::io::Result<()> {
    connection.set_read_timeout(Some(TIMEOUT))?;
    connection.set_write_timeout(Some(TIMEOUT))?;
    let mut reader = BufReader::new(connection.try_clone()?);
    loop {
        let mut request = String::new();
        let mut close = false;
        let mut head = reader.by_ref().take(MAX_REQUEST_BYTES);
        loop {
            let mut line = String::new();
            if head.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if request.is_empty() {
                request = line.trim_end().to_owned();
            }
            close |= line.to_ascii_lowercase().starts_with("connection: close");
            if line == "\r\n" || line == "\n" {
                break;
            }
        }
        println!("{pod} {request}");
        let body = format!("Hello from {pod}\n");
        write!(
            connection,
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        if close || request.ends_with("HTTP/1.0") {
            return Ok(());
        }
    }
}

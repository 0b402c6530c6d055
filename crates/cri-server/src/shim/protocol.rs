//! What engine and shim say to each other: frames of a length, a kind and a payload over a unix socket.
//!
//! A connection carries one request and its answer. Two requests keep it: after `Subscribe` the shim sends an
//! event for each exit, after `Attach` both sides send stream frames.

use serde::{Deserialize, Serialize};

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Message = 0,
    Stdin = 1,
    Stdout = 2,
    Stderr = 3,
    /// Rows and columns, two bytes each.
    Resize = 4,
    CloseStdin = 5,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Kind::Message,
            1 => Kind::Stdin,
            2 => Kind::Stdout,
            3 => Kind::Stderr,
            4 => Kind::Resize,
            5 => Kind::CloseStdin,
            _ => return None,
        })
    }
}

/// The largest payload: a process description may carry a whole environment (2 MiB is what execve takes).
pub(crate) const MAX_PAYLOAD: usize = 8 << 20;
pub(crate) const HEADER: usize = 5;

/// What the engine asks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Is anybody there, and who: answered with `State`.
    State,
    Create(Create),
    Start {
        id: String,
    },
    /// Sends a signal to a container's first process, or to that of an exec.
    Kill {
        id: String,
        exec: Option<String>,
        signal: i32,
    },
    /// Runs a process in a container. Its stdio came with the frame, unless it has a terminal.
    Exec(Exec),
    Attach {
        id: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    ReopenLog {
        id: String,
    },
    /// Forgets an exited container.
    Forget {
        id: String,
    },
    Subscribe,
    /// Ends the shim; refused while a container runs.
    Shutdown,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Create {
    pub id: String,
    pub terminal: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    /// Empty when nothing is logged.
    pub log_path: String,
    /// A short path for the socket over which the runtime hands back the terminal.
    pub console_socket: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Exec {
    pub id: String,
    pub exec: String,
    /// The OCI process description.
    pub process: serde_json::Value,
    /// Where the engine listens for the terminal; empty when there is none.
    pub console_socket: String,
}

/// What the shim answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Response {
    Done,
    /// The process id of what was created.
    Created {
        pid: i32,
    },
    State(State),
    Exited(Exit),
    Failed {
        message: String,
    },
}

/// Everything the shim knows.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub pid: i32,
    /// Pid 1 of the shared pid namespace, if the pod has one.
    pub pause_pid: Option<i32>,
    pub containers: Vec<ContainerState>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContainerState {
    pub id: String,
    pub pid: i32,
    pub started_nanos: i64,
    pub exit: Option<Exit>,
}

/// The end of a container or of an exec; also the content of a container's exit file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    pub id: String,
    pub exec: Option<String>,
    pub code: i32,
    pub finished_nanos: i64,
}

/// Appends one frame.
pub(crate) fn encode(kind: Kind, payload: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(payload.len()).expect("payloads are bounded by MAX_PAYLOAD");
    out.extend_from_slice(&length.to_be_bytes());
    out.push(kind as u8);
    out.extend_from_slice(payload);
}

/// Appends one message frame.
pub(crate) fn encode_message(message: &impl Serialize, out: &mut Vec<u8>) {
    let payload = serde_json::to_vec(message).expect("messages have string keys and no failing serializers");
    encode(Kind::Message, &payload, out);
}

/// The peer broke the framing; its connection ends.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame")]
pub(crate) struct Malformed;

/// Takes the first whole frame off the front of `buffer`.
pub(crate) fn decode(buffer: &mut Vec<u8>) -> Result<Option<(Kind, Vec<u8>)>, Malformed> {
    let Some(header) = buffer.get(..HEADER) else { return Ok(None) };
    let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let kind = Kind::from_byte(header[4]).ok_or(Malformed)?;
    if length > MAX_PAYLOAD {
        return Err(Malformed);
    }
    if buffer.len() < HEADER + length {
        return Ok(None);
    }
    let payload = buffer[HEADER..HEADER + length].to_vec();
    buffer.drain(..HEADER + length);
    Ok(Some((kind, payload)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let mut bytes = Vec::new();
        encode(Kind::Stdout, b"one", &mut bytes);
        encode_message(&Request::Start { id: "c".into() }, &mut bytes);
        let mut buffer = Vec::new();
        let mut seen = Vec::new();
        for byte in bytes {
            buffer.push(byte);
            if let Some(frame) = decode(&mut buffer).unwrap() {
                seen.push(frame);
            }
        }
        assert_eq!(seen[0], (Kind::Stdout, b"one".to_vec()));
        assert_eq!(seen[1].1, br#"{"Start":{"id":"c"}}"#);
        assert_eq!(decode(&mut vec![0xff, 0, 0, 0, 0]), Err(Malformed));
        assert_eq!(decode(&mut vec![0, 0, 0, 0, 99]), Err(Malformed));
    }
}

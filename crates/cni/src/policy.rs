//! What the agent of network policies is told: which pod is about to get which addresses. It writes the rules of
//! the pod before the pod can send or hear anything.
//!
//! What always holds: the files are the truth, and the agent reads them whenever it starts. So an attachment that
//! comes waits for the agent, and without one fails; an attachment that goes waits for nobody.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::Error;
use crate::config::Attachment;

/// How long a pod's start waits for its rules; the kubelet tries again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of an answer is read.
const MAX_ANSWER_BYTES: u64 = 4096;

/// The pod of an attachment, as the caller names it.
#[derive(Debug)]
pub(crate) struct PodName {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl PodName {
    /// From `CNI_ARGS`; `None` when the caller names no pod.
    pub fn read(arguments: &str) -> Option<Self> {
        let value = |wanted: &str| {
            let mut pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, value)| *key == wanted && !value.is_empty()).map(|(_, value)| value.to_owned())
        };
        Some(PodName {
            namespace: value("K8S_POD_NAMESPACE")?,
            name: value("K8S_POD_NAME")?,
            uid: value("K8S_POD_UID")?,
        })
    }
}

/// Says which addresses a pod is about to get, and returns when its rules are in force.
pub(crate) fn announce(
    dir: &Path,
    attachment: &Attachment,
    pod: &PodName,
    addresses: &[IpAddr],
) -> Result<(), Error> {
    let write = || {
        let (pods, id) = (dir.join("pods"), attachment.container_id());
        std::fs::create_dir_all(&pods)?;
        let sandbox = json!({
            "namespace": pod.namespace, "name": pod.name, "uid": pod.uid, "addresses": addresses,
        });
        // Renamed into place: the agent never reads half a file.
        let new = pods.join(format!(".{id}"));
        std::fs::write(&new, sandbox.to_string())?;
        std::fs::rename(&new, pods.join(id))
    };
    write().map_err(Error::io("announce the pod to the agent of network policies"))?;
    match ask(dir, attachment) {
        Ok(answer) if answer == "ok" => Ok(()),
        Ok(answer) if answer.is_empty() => Err(Error::Policies("the agent went away".to_owned())),
        Ok(answer) => Err(Error::Policies(answer)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            Err(Error::Policies(format!("the agent did not answer within {} s", PATIENCE.as_secs())))
        }
        Err(error) => Err(Error::Policies(format!("the agent cannot be asked: {error}"))),
    }
}

fn ask(dir: &Path, attachment: &Attachment) -> io::Result<String> {
    let mut stream = tell(dir, attachment)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    BufReader::new((&mut stream).take(MAX_ANSWER_BYTES)).read_line(&mut answer)?;
    Ok(answer.trim_end().to_owned())
}

fn tell(dir: &Path, attachment: &Attachment) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(dir.join("agent.sock"))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    writeln!(stream, "{}", attachment.container_id())?;
    Ok(stream)
}

/// Says that an attachment is gone.
pub(crate) fn withdraw(dir: &Path, attachment: &Attachment) -> Result<(), Error> {
    match std::fs::remove_file(dir.join("pods").join(attachment.container_id())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        removed => removed.map_err(Error::io("withdraw the pod from the agent of network policies"))?,
    }
    // An agent that is not there sees it when it comes.
    let _ = tell(dir, attachment);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_pod_is_named_whole_or_not_at_all() {
        let read =
            |text: &str| PodName::read(text).map(|pod| format!("{}/{}/{}", pod.namespace, pod.name, pod.uid));
        let all =
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=x;K8S_POD_NAME=a;K8S_POD_INFRA_CONTAINER_ID=1;K8S_POD_UID=u";
        assert_eq!(read(all).as_deref(), Some("x/a/u"));
        assert_eq!(read("K8S_POD_NAMESPACE=x;K8S_POD_NAME=a;K8S_POD_UID="), None);
        assert_eq!(read(""), None);
    }

    #[test]
    fn an_attachment_waits_for_the_word_and_fails_without_it() {
        let dir = tempfile::tempdir().unwrap();
        let attachment = Attachment::new("c1", "eth0").unwrap();
        let pod = PodName { namespace: "x".into(), name: "a".into(), uid: "u".into() };
        let announce = || announce(dir.path(), &attachment, &pod, &["10.0.0.2".parse().unwrap()]);
        let file = dir.path().join("pods/c1");
        assert!(announce().unwrap_err().chain().contains("cannot be asked"), "there is no agent");

        let listener = UnixListener::bind(dir.path().join("agent.sock")).unwrap();
        let heard = std::thread::scope(|scope| {
            let agent = scope.spawn(|| {
                let mut heard = Vec::new();
                for answer in ["ok\n", "the API server knows no pod x/a\n", ""] {
                    let (stream, _) = listener.accept().unwrap();
                    let mut line = String::new();
                    BufReader::new(&stream).read_line(&mut line).unwrap();
                    heard.push((line, std::fs::read_to_string(&file).unwrap_or_default()));
                    (&stream).write_all(answer.as_bytes()).unwrap();
                }
                heard
            });
            announce().unwrap();
            assert!(announce().unwrap_err().chain().contains("knows no pod x/a"));
            withdraw(dir.path(), &attachment).unwrap();
            agent.join().unwrap()
        });
        let written = r#"{"addresses":["10.0.0.2"],"name":"a","namespace":"x","uid":"u"}"#.to_owned();
        let line = "c1\n".to_owned();
        assert_eq!(heard, [(line.clone(), written.clone()), (line.clone(), written), (line, String::new())]);
        withdraw(dir.path(), &attachment).unwrap();
    }
}

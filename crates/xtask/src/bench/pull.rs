//! How long an image takes from a registry to the disk: 500 MB in 20 layers, from a registry that this program is
//! itself, to our engine and to containerd.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use super::Server;
use crate::run;

const LAYERS: usize = 20;
/// Of each layer, unpacked: half of it is noise, which no compression makes smaller.
const LAYER_MEGABYTES: usize = 25;
const FILES: usize = 50;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Pulls the image with each engine that there is.
pub fn measure(binary: &Path, folder: &Path) -> anyhow::Result<()> {
    let blobs = folder.join("registry");
    let manifest = make_image(&blobs)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let reference = format!("{}/bench/large:latest", listener.local_addr()?);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (blobs, manifest) = (blobs.clone(), manifest.clone());
            // Who hangs up has what he wanted.
            std::thread::spawn(move || drop(serve(stream, &blobs, &manifest)));
        }
    });
    let megabytes = LAYERS * LAYER_MEGABYTES;
    let ours = by_us(binary, folder, &reference)?;
    println!("pull of {megabytes} MB, {LAYERS} layers: {:>7.2} s", ours.as_secs_f64());
    match by_containerd(folder, &reference)? {
        Some(theirs) => println!("the same by containerd:      {:>8.2} s", theirs.as_secs_f64()),
        None => println!("the same by containerd:      it is not installed (apt-get install containerd)"),
    }
    Ok(())
}

fn by_us(binary: &Path, folder: &Path, reference: &str) -> anyhow::Result<Duration> {
    let data = folder.join("puller");
    let cgroup = format!("/{}-pull", folder.file_name().context("the folder has a name")?.display());
    let mut server = Server::start(binary, &data, &["--cgroup-root", &cgroup])?;
    server.wait_for(super::NODE_READY)?;
    let begun = Instant::now();
    let mut pull = Command::new(binary);
    pull.args(["image", "pull", "--plain-http", reference, "--data-dir"]).arg(&data).stdout(Stdio::null());
    run(&mut pull)?;
    let took = begun.elapsed();
    drop(server);
    let mut reset = Command::new(binary);
    run(reset.args(["reset", "--cgroup-root", &cgroup, "--data-dir"]).arg(&data))?;
    Ok(took)
}

/// With folders and a socket of its own; `None` when it is not there.
fn by_containerd(folder: &Path, reference: &str) -> anyhow::Result<Option<Duration>> {
    if !Path::new("/usr/bin/containerd").exists() {
        return Ok(None);
    }
    let home = folder.join("containerd");
    fs::create_dir(&home)?;
    let socket = home.join("c.sock");
    let config = home.join("config.toml");
    fs::write(&config, "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n")?;
    let mut daemon = Command::new("containerd")
        .arg("--config")
        .arg(&config)
        .arg("--root")
        .arg(home.join("root"))
        .arg("--state")
        .arg(home.join("state"))
        .arg("--address")
        .arg(&socket)
        .stderr(Stdio::piped())
        .spawn()?;
    let pulled = pull_with(&mut daemon, &socket, reference);
    daemon.kill()?;
    daemon.wait()?;
    pulled.map(Some)
}

fn pull_with(daemon: &mut Child, socket: &Path, reference: &str) -> anyhow::Result<Duration> {
    let mut log = BufReader::new(daemon.stderr.take().context("standard error is piped")?).lines();
    let ready = log.by_ref().any(|line| line.is_ok_and(|line| line.contains("successfully booted")));
    anyhow::ensure!(ready, "containerd ended before it was ready");
    // What it says from now on must not block it.
    std::thread::spawn(move || log.for_each(drop));
    let begun = Instant::now();
    let mut pull = Command::new("ctr");
    pull.arg("--address")
        .arg(socket)
        .args(["image", "pull", "--plain-http", reference])
        .stdout(Stdio::null());
    run(&mut pull)?;
    Ok(begun.elapsed())
}

/// Makes the image's blobs, each under its digest, and returns the manifest.
fn make_image(blobs: &Path) -> anyhow::Result<Vec<u8>> {
    fs::create_dir(blobs)?;
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    for number in 0..LAYERS {
        let content = blobs.join("content");
        let folder = content.join(format!("layer-{number}"));
        fs::create_dir_all(&folder)?;
        let half = LAYER_MEGABYTES * 1_000_000 / FILES / 2;
        let mut noise = File::open("/dev/urandom")?;
        for file in 0..FILES {
            let mut bytes = vec![0; half * 2];
            noise.read_exact(&mut bytes[..half])?;
            fs::write(folder.join(file.to_string()), bytes)?;
        }
        let archive = blobs.join("layer.tar");
        run(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&content).arg("."))?;
        diff_ids.push(digest(&archive)?);
        run(Command::new("gzip").arg("-1").arg(&archive))?;
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        layers.push(put(blobs, &blobs.join("layer.tar.gz"), media_type)?);
        fs::remove_dir_all(content)?;
    }
    let config = blobs.join("config");
    let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
    fs::write(&config, json!({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).to_string())?;
    let config = put(blobs, &config, "application/vnd.oci.image.config.v1+json")?;
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}).to_string();
    let file = blobs.join("manifest");
    fs::write(&file, &manifest)?;
    put(blobs, &file, MANIFEST)?;
    Ok(manifest.into_bytes())
}

fn digest(file: &Path) -> anyhow::Result<String> {
    let output = Command::new("sha256sum").arg(file).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(format!("sha256:{}", text.split_whitespace().next().context("sha256sum prints a sum")?))
}

/// Gives a file the name of its digest, and returns how a manifest names it.
fn put(blobs: &Path, file: &Path, media_type: &str) -> anyhow::Result<Value> {
    let digest = digest(file)?;
    let size = fs::metadata(file)?.len();
    fs::rename(file, blobs.join(&digest))?;
    Ok(json!({"mediaType": media_type, "digest": digest, "size": size}))
}

/// A registry that has one image: answers requests of one connection until it ends.
fn serve(stream: TcpStream, blobs: &Path, manifest: &[u8]) -> anyhow::Result<()> {
    let mut requests = BufReader::new(stream.try_clone()?);
    let mut answers = stream;
    loop {
        let mut first = String::new();
        if requests.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut line = String::new();
        while requests.read_line(&mut line)? > 2 {
            line.clear();
        }
        let mut words = first.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let name = path.rsplit('/').next().unwrap_or_default();
        let file: PathBuf = blobs.join(name);
        let head = |status: &str, kind: &str, length: u64| {
            format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n")
        };
        if path == "/v2/" {
            answers.write_all(head("200 OK", "application/json", 0).as_bytes())?;
        } else if path.contains("/manifests/") {
            answers.write_all(head("200 OK", MANIFEST, manifest.len() as u64).as_bytes())?;
            if method == "GET" {
                answers.write_all(manifest)?;
            }
        } else if let Ok(mut blob) = File::open(&file)
            && name.starts_with("sha256:")
        {
            let length = blob.metadata()?.len();
            answers.write_all(head("200 OK", "application/octet-stream", length).as_bytes())?;
            if method == "GET" {
                std::io::copy(&mut blob, &mut answers)?;
            }
        } else {
            answers.write_all(head("404 Not Found", "text/plain", 0).as_bytes())?;
        }
    }
}

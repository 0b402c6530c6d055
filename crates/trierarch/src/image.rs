//! `trierarch image`: images of this node.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use cri_server::cli as engine;

use crate::cli;

/// Where the engine of a data directory listens.
pub fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("cri.sock")
}

pub async fn run(args: cli::Image) -> anyhow::Result<()> {
    let socket = socket(&std::path::absolute(&args.data.data_dir)?);
    let unreachable =
        || format!("no container engine answers at {}; start one with `trierarch server`", socket.display());
    match args.command {
        cli::ImageCommand::Import { archive } => {
            let names = if archive == Path::new("-") {
                let mut bytes = Vec::new();
                std::io::stdin().read_to_end(&mut bytes)?;
                import_bytes(&socket, bytes).await?
            } else {
                import(&socket, &archive).await?
            };
            names.iter().for_each(|name| println!("imported {name}"));
        }
        cli::ImageCommand::Pull { reference, plain_http } => {
            println!("pulled {}", engine::pull(&socket, &reference, None, plain_http).await?);
        }
        cli::ImageCommand::List => {
            let mut images = engine::list(&socket).await.with_context(unreachable)?;
            images.sort_by(|a, b| (&a.tags, &a.id).cmp(&(&b.tags, &b.id)));
            print_table(&images)?;
        }
        cli::ImageCommand::Remove { reference } => {
            remove(&socket, &reference).await?;
            println!("removed {reference}");
        }
    }
    Ok(())
}

/// Imports an archive that is a file.
pub async fn import(socket: &Path, archive: &Path) -> anyhow::Result<Vec<String>> {
    let archive = std::path::absolute(archive)?;
    let file = std::fs::File::open(&archive).with_context(|| format!("cannot read {}", archive.display()))?;
    check_archive(file).with_context(|| format!("{} is no image archive", archive.display()))?;
    Ok(engine::import(socket, &archive).await?)
}

/// Archives are tar files, as they are or compressed by gzip or zstd; of anything else the engine could say only
/// that its first header makes no sense.
fn check_archive(mut file: impl Read) -> anyhow::Result<()> {
    let mut head = Vec::new();
    file.by_ref().take(512).read_to_end(&mut head)?;
    let compressed = head.starts_with(&[0x1f, 0x8b]) || head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    let tar = head.get(257..262) == Some(b"ustar");
    anyhow::ensure!(compressed || tar, "it is neither a tar file nor a compressed one");
    Ok(())
}

/// Imports an archive that is in memory.
pub async fn import_bytes(socket: &Path, archive: Vec<u8>) -> anyhow::Result<Vec<String>> {
    check_archive(archive.as_slice()).context("what was read is no image archive")?;
    let folder = socket.parent().context("a socket has a folder")?;
    let mut file = folder.join(format!("import-{}.tar", uuid::Uuid::new_v4()));
    std::fs::write(&file, archive).with_context(|| format!("cannot write {}", file.display()))?;
    let imported = engine::import(socket, &file).await;
    std::fs::remove_file(&mut file)?;
    Ok(imported?)
}

pub async fn remove(socket: &Path, reference: &str) -> anyhow::Result<()> {
    Ok(engine::remove(socket, reference).await?)
}

fn print_table(images: &[engine::Listed]) -> std::io::Result<()> {
    let rows = images.iter().flat_map(|image| {
        let id = image.id.trim_start_matches("sha256:").chars().take(12).collect::<String>();
        let names = if image.tags.is_empty() { vec!["<none>".to_owned()] } else { image.tags.clone() };
        names.into_iter().map(move |name| (name, id.clone(), format!("{:.1} MB", image.size as f64 / 1e6)))
    });
    let rows: Vec<_> = rows.collect();
    let width = rows.iter().map(|(name, _, _)| name.len()).max().unwrap_or(0).max("IMAGE".len());
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:width$}  {:12}  {:>9}", "IMAGE", "ID", "SIZE")?;
    rows.iter().try_for_each(|(name, id, size)| writeln!(out, "{name:width$}  {id:12}  {size:>9}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_archive_is_told() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (bytes, good) in [
            (tar.as_slice(), true),
            (&[0x1f, 0x8b, 8], true),
            (&[0x28, 0xb5, 0x2f, 0xfd], true),
            (b"", false),
            (b"FROM scratch\n", false),
            (&[0; 512], false),
        ] {
            assert_eq!(check_archive(bytes).is_ok(), good, "{:?}", &bytes[..bytes.len().min(8)]);
        }
    }
}

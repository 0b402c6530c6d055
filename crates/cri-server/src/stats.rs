//! What disks and network links count.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes and inodes below a directory, hard links once. What vanishes meanwhile is not counted.
pub(crate) fn disk_usage(root: &Path) -> (u64, u64) {
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    let mut pending = vec![root.to_path_buf()];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if seen.insert((meta.dev(), meta.ino())) {
                bytes += meta.blocks() * 512;
            }
            if meta.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    (bytes, seen.len() as u64)
}

/// One link's counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_errors: u64,
    pub tx_bytes: u64,
    pub tx_errors: u64,
}

/// Reads `/proc/PID/net/dev` of any process in the namespace, loopback left out.
pub(crate) fn links(table: &str) -> Vec<Link> {
    let link = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> = counters.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let name = name.trim().to_owned();
        let [rx_bytes, _, rx_errors, _, _, _, _, _, tx_bytes, _, tx_errors, ..] = counters[..] else {
            return None;
        };
        (name != "lo").then_some(Link { name, rx_bytes, rx_errors, tx_bytes, tx_errors })
    };
    table.lines().filter_map(link).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_the_kernels_table() {
        let table = "Inter-| Receive | Transmit\n face |bytes packets\n    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
                     eth0: 100 2 3 4 5 6 7 8 900 10 11 12 13 14 15 16\n";
        let expected =
            Link { name: "eth0".into(), rx_bytes: 100, rx_errors: 3, tx_bytes: 900, tx_errors: 11 };
        assert_eq!(links(table), [expected]);
    }
}

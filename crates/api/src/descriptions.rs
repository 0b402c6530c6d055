//! What upstream says about definitions and their fields: packed by `build.rs` from the sources of k8s-openapi,
//! and unpacked by whoever makes a document of them. Nothing is kept unpacked.

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;

use flate2::read::DeflateDecoder;

const PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.gz"));

/// The unpacked texts.
pub struct Descriptions {
    text: String,
    /// The part of the text that each definition has.
    definitions: HashMap<String, Range<usize>>,
}

impl Descriptions {
    pub fn unpack() -> Self {
        let mut text = String::new();
        DeflateDecoder::new(PACKED).read_to_string(&mut text).expect("build.rs packed it");
        let mut definitions = HashMap::new();
        let mut at = 0;
        let mut current: Option<(&str, usize)> = None;
        for record in text.split_terminator('\0') {
            let end = at + record.len() + 1;
            if let Some(name) = record.strip_prefix("=io.k8s.")
                && let Some((name, start)) = current.replace((name, end))
            {
                definitions.insert(format!("io.k8s.{name}"), start..at);
            }
            at = end;
        }
        if let Some((name, start)) = current {
            definitions.insert(format!("io.k8s.{name}"), start..at);
        }
        Descriptions { text, definitions }
    }

    /// The texts of a definition by the names of its fields; its own is under the empty name.
    pub fn of(&self, definition: &str) -> HashMap<&str, &str> {
        let Some(part) = self.definitions.get(definition) else { return HashMap::new() };
        let mut records = self.text[part.clone()].split_terminator('\0');
        std::iter::from_fn(|| Some((records.next()?, records.next()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_and_fields_are_described() {
        let all = Descriptions::unpack();
        let port = all.of("io.k8s.api.core.v1.ContainerPort");
        assert_eq!(port[""], "ContainerPort represents a network port in a single container.");
        assert!(port["containerPort"].ends_with("This must be a valid port number, 0 < x < 65536."));
        assert!(all.of("io.k8s.api.apps.v1.Deployment")["apiVersion"].starts_with("APIVersion defines"));
        assert!(all.of("nothing").is_empty());
    }
}

//! Gathers the descriptions of all definitions and fields from the sources of `k8s-openapi`, whose schemas carry
//! upstream's texts, and packs them for `descriptions.rs`. So the texts come with the dependency and are not part
//! of this repository.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The texts of a definition: its own under the empty name, and those of its fields.
type Texts = BTreeMap<String, String>;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let sources = sources().join("src/v1_36");
    let mut definitions: BTreeMap<String, Texts> = BTreeMap::new();
    gather(&sources, &mut definitions);
    assert!(
        definitions.len() > 400,
        "the sources of k8s-openapi are not as they were: {}",
        sources.display()
    );

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("descriptions.gz");
    let file = fs::File::create(out).expect("the output folder is writable");
    let mut packed = flate2::write::DeflateEncoder::new(file, flate2::Compression::best());
    for (name, texts) in definitions {
        write!(packed, "={name}\0").expect("the output folder is writable");
        for (field, text) in texts {
            write!(packed, "{field}\0{text}\0").expect("the output folder is writable");
        }
    }
    packed.finish().expect("the output folder is writable");
}

/// Where cargo keeps the sources of the dependency: among the registry's, or where it says itself. Asking it needs
/// every package of the workspace to be at hand, which is not so on a fresh machine.
fn sources() -> PathBuf {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let lock = fs::read_to_string(manifest.join("../../Cargo.lock")).unwrap_or_default();
    let version = lock
        .split("[[package]]")
        .find(|package| package.contains("name = \"k8s-openapi\"\n"))
        .and_then(|package| package.split("version = \"").nth(1)?.split('"').next())
        .expect("the lock file names k8s-openapi");
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cargo")));
    let registries = home.and_then(|home| fs::read_dir(home.join("registry/src")).ok());
    let mut kept = registries
        .into_iter()
        .flatten()
        .flatten()
        .map(|registry| registry.path().join(format!("k8s-openapi-{version}")));
    kept.find(|folder| folder.join("src/v1_36").is_dir()).unwrap_or_else(|| told(&manifest))
}

fn told(manifest: &Path) -> PathBuf {
    let cargo = env::var_os("CARGO").expect("cargo sets it");
    let told = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline"])
        .current_dir(manifest)
        .output()
        .expect("cargo runs");
    assert!(told.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&told.stderr));
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).expect("cargo metadata writes JSON");
    let packages = told["packages"].as_array().into_iter().flatten();
    let manifest = packages
        .filter(|package| package["name"] == "k8s-openapi")
        .find_map(|package| package["manifest_path"].as_str())
        .expect("k8s-openapi is a dependency");
    Path::new(manifest).parent().expect("a manifest stands in a folder").to_owned()
}

fn gather(folder: &Path, definitions: &mut BTreeMap<String, Texts>) {
    for entry in fs::read_dir(folder).expect("the sources can be read") {
        let path = entry.expect("the sources can be read").path();
        if path.is_dir() {
            gather(&path, definitions);
        } else if let Some((name, texts)) = texts(&fs::read_to_string(&path).expect("sources are text")) {
            definitions.insert(name, texts);
        }
    }
}

/// The name of the definition that a file is about, and its texts. The generated code is told apart by its
/// indentation: a definition's description stands 12 deep, a field 16, and the field's description 20.
fn texts(source: &str) -> Option<(String, Texts)> {
    let mut lines =
        source.lines().skip_while(|line| !line.starts_with("impl crate::schemars::JsonSchema for "));
    let name = lines.by_ref().find_map(|line| line.trim().strip_suffix(".into()"))?;
    let name: String = serde_json::from_str(name).ok()?;
    let mut texts = Texts::new();
    let mut field = String::new();
    for line in lines {
        let depth = line.len() - line.trim_start().len();
        let line = line.trim_start();
        let described = line.strip_prefix(r#""description": "#).and_then(|text| text.strip_suffix(','));
        let described = described.or_else(|| {
            let (_, text) = line.split_once(r#".insert("description".into(), "#)?;
            text.strip_suffix(".into());")
        });
        match (depth, described) {
            (12, Some(text)) => {
                texts.insert(String::new(), unquote(text));
            }
            (20, Some(text)) => {
                texts.entry(field.clone()).or_insert_with(|| unquote(text));
            }
            (16, None) if line.starts_with('"') => {
                field = line.split('"').nth(1).unwrap_or_default().to_owned();
            }
            _ => {}
        }
    }
    Some((name, texts))
}

/// A Rust string literal, of which the sources use the escapes that JSON has too, and `\'`.
fn unquote(literal: &str) -> String {
    let literal = literal.replace("\\'", "'");
    serde_json::from_str(&literal).unwrap_or_else(|error| panic!("{literal}: {error}"))
}

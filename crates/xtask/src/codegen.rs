//! `cargo xtask codegen`: turns the facts of upstream's schema into the tables of `api::tables`.
//!
//! Two inputs: `schema-facts.json`, given by flag, and `codegen/go.txt`, which adds how Go writes each field.
//! The output is committed, so that a build needs neither.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

const OUTPUT: &str = "crates/api/src/tables/generated.rs";
const GO_FACTS: &str = include_str!("codegen/go.txt");
const JSON_SCHEMA_PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// Kinds that the OpenAPI document names no definition or no group for: name, group, version.
const EXTRA_KINDS: &[(&str, &str, &str)] = &[
    ("io.k8s.api.admission.v1.AdmissionReview", "admission.k8s.io", "v1"),
    ("io.k8s.api.apidiscovery.v2.APIGroupDiscovery", "apidiscovery.k8s.io", "v2"),
    ("io.k8s.api.apidiscovery.v2.APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2"),
    ("io.k8s.api.core.v1.List", "", "v1"),
    ("io.k8s.api.core.v1.NodeProxyOptions", "", "v1"),
    ("io.k8s.api.core.v1.PodAttachOptions", "", "v1"),
    ("io.k8s.api.core.v1.PodExecOptions", "", "v1"),
    ("io.k8s.api.core.v1.PodLogOptions", "", "v1"),
    ("io.k8s.api.core.v1.PodPortForwardOptions", "", "v1"),
    ("io.k8s.api.core.v1.PodProxyOptions", "", "v1"),
    ("io.k8s.api.core.v1.PodStatusResult", "", "v1"),
    ("io.k8s.api.core.v1.RangeAllocation", "", "v1"),
    ("io.k8s.api.core.v1.SerializedReference", "", "v1"),
    ("io.k8s.api.core.v1.ServiceProxyOptions", "", "v1"),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.ConversionReview",
        "apiextensions.k8s.io",
        "v1",
    ),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.CreateOptions", "", "v1"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.GetOptions", "", "v1"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ListOptions", "", "v1"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.PatchOptions", "", "v1"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.UpdateOptions", "", "v1"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata", "meta.k8s.io", "v1"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadataList", "meta.k8s.io", "v1"),
];

/// Defaults that the facts give by the name of a Go constant.
const NAMED_DEFAULTS: &[(&str, &str)] =
    &[("AzureDataDiskCachingReadWrite", "\"ReadWrite\""), ("AzureSharedBlobDisk", "\"Shared\"")];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Facts {
    definitions: BTreeMap<String, DefinitionFacts>,
    proto_only: BTreeMap<String, DefinitionFacts>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct DefinitionFacts {
    fields: BTreeMap<String, FieldFacts>,
    gvk: Vec<String>,
    inlined: Vec<InlinedFacts>,
    #[serde(rename = "map-type")]
    map_type: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct FieldFacts {
    number: u32,
    proto: String,
    #[serde(rename = "type")]
    ty: String,
    required: bool,
    list_type: String,
    list_map_keys: Vec<String>,
    map_type: String,
    patch_strategy: String,
    patch_merge_key: String,
    default: String,
}

#[derive(Clone, Deserialize)]
struct InlinedFacts {
    name: String,
    number: u32,
    proto: String,
}

/// What `codegen/go.txt` says of one field.
#[derive(Default)]
struct GoFacts {
    flags: String,
    go_type: String,
    json_name: String,
}

/// Writes the tables, or with `check` fails when the committed ones differ.
pub fn run(facts_path: &Path, check: bool) -> Result<()> {
    let text =
        std::fs::read_to_string(facts_path).with_context(|| format!("reading {}", facts_path.display()))?;
    let facts: Facts = serde_json::from_str(&text).context("the facts are not as expected")?;
    let output = Generator::new(facts)?.generate()?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(OUTPUT);
    if !check {
        std::fs::write(&path, output).with_context(|| format!("writing {OUTPUT}"))?;
        return Ok(());
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    if committed != output {
        bail!(
            "{OUTPUT} is not what the facts give: run `cargo xtask codegen --facts {}`",
            facts_path.display()
        );
    }
    Ok(())
}

struct Generator {
    facts: BTreeMap<String, DefinitionFacts>,
    go: HashMap<&'static str, HashMap<&'static str, GoFacts>>,
    /// The reachable definitions and their places.
    places: BTreeMap<String, usize>,
}

impl Generator {
    fn new(facts: Facts) -> Result<Self> {
        let go = parse_go_facts();
        let mut all = facts.definitions;
        for (name, mut definition) in facts.proto_only {
            let renames = go.get(name.as_str());
            definition.fields = definition
                .fields
                .into_iter()
                .map(|(message_name, field)| {
                    let json_name =
                        renames.and_then(|r| r.get(message_name.as_str())).map(|g| g.json_name.clone());
                    (json_name.filter(|n| !n.is_empty()).unwrap_or(message_name), field)
                })
                .collect();
            all.entry(name).or_insert(definition);
        }
        for (name, group, version) in EXTRA_KINDS {
            let definition = all.get_mut(*name).with_context(|| format!("the facts lack {name}"))?;
            let kind = name.rsplit('.').next().unwrap_or(name);
            definition.gvk.insert(0, format!("{group}/{version}/{kind}"));
            for field in ["apiVersion", "kind"] {
                let text = FieldFacts { ty: "string".into(), ..FieldFacts::default() };
                definition.fields.entry(field.into()).or_insert(text);
            }
        }
        let mut generator = Generator { facts: all, go, places: BTreeMap::new() };
        generator.number_inlined_scalars();
        generator.reach()?;
        Ok(generator)
    }

    /// Some scalars count as inlined only because their message names differ from JSON's: they are plain
    /// fields, and matched here by their letters.
    fn number_inlined_scalars(&mut self) {
        let letters = |s: &str| s.to_lowercase().replace(['-', '$'], "");
        for definition in self.facts.values_mut() {
            let fields = &mut definition.fields;
            definition.inlined.retain(|inlined| {
                let same = |name: &&String| letters(name) == letters(&inlined.name);
                let Some(name) = fields.keys().find(same).cloned() else { return true };
                let field = fields.get_mut(&name).expect("the name was just found");
                field.number = inlined.number;
                field.proto = inlined.proto.clone();
                false
            });
        }
    }

    /// Finds what the served kinds reach, and gives each definition its place.
    fn reach(&mut self) -> Result<()> {
        let mut todo: Vec<String> = self
            .facts
            .iter()
            .filter(|(_, d)| d.gvk.first().is_some_and(|gvk| is_served(gvk)))
            .map(|(name, _)| name.clone())
            .collect();
        todo.push("io.k8s.apimachinery.pkg.version.Info".into());
        let mut reached = BTreeSet::new();
        while let Some(name) = todo.pop() {
            if !reached.insert(name.clone()) {
                continue;
            }
            let definition = self.facts.get(&name).with_context(|| format!("the facts lack {name}"))?;
            for field in definition.fields.values() {
                if let Some(next) = object_name(&self.field_type(&name, field)) {
                    todo.push(next.to_owned());
                }
            }
            todo.extend(definition.inlined.iter().map(|i| message_name(&name, &i.proto)));
        }
        self.places = reached.into_iter().enumerate().map(|(at, name)| (name, at)).collect();
        Ok(())
    }

    /// The type in the notation of the facts: `[T]` a list, `{T}` a map, else a scalar or a definition.
    fn field_type(&self, definition: &str, field: &FieldFacts) -> String {
        if field.ty.is_empty() { type_of_message(definition, &field.proto) } else { field.ty.clone() }
    }

    fn generate(&self) -> Result<String> {
        let mut out = String::from(
            "// Generated by `cargo xtask codegen`; do not edit.\n\n\
             use super::make::{d, f, i, k, o};\nuse super::{Definition, Type, Wire};\n",
        );
        out.push_str(
            "use Type::{Bool as B, Bytes, Double, FieldsV1, Int32 as I32, Int64 as I64, IntOrString, Json, List as L, Map as M};\n\
             use Type::{MicroTime, Quantity as Q, Raw, SchemaOrArray, SchemaOrBool, SchemaOrStrings, String as S, Strings, Time as T};\n\
             use Wire::Field as W;\n\n",
        );
        let _ = writeln!(out, "pub const JSON_SCHEMA_PROPS: u16 = {};\n", self.place(JSON_SCHEMA_PROPS)?);
        let _ = writeln!(out, "pub static DEFINITIONS: [Definition; {}] = [", self.places.len());
        let mut kinds = Vec::new();
        for (name, place) in &self.places {
            let definition = &self.facts[name];
            let gvk = definition.gvk.first().map(|gvk| split_gvk(gvk)).transpose()?;
            let gvk_text = match &gvk {
                Some((group, version, kind)) => {
                    kinds.push((group.clone(), version.clone(), kind.clone(), *place));
                    format!("k({group:?}, {version:?}, {kind:?})")
                }
                None => "None".to_owned(),
            };
            let atomic = definition.map_type == "atomic";
            let _ = writeln!(out, "    d({name:?}, {gvk_text}, {atomic}, &[");
            for (field_name, field) in &definition.fields {
                let _ = writeln!(out, "        {},", self.field(name, field_name, field)?);
            }
            let _ = writeln!(out, "    ], &[{}]),", self.wire(name, definition)?);
        }
        out.push_str("];\n\n");
        kinds.sort();
        let _ = writeln!(out, "pub static KINDS: [(&str, &str, &str, u16); {}] = [", kinds.len());
        for (group, version, kind, place) in kinds {
            let _ = writeln!(out, "    ({group:?}, {version:?}, {kind:?}, {place}),");
        }
        out.push_str("];\n");
        Ok(out)
    }

    fn place(&self, name: &str) -> Result<usize> {
        self.places.get(name).copied().with_context(|| format!("{name} was not reached"))
    }

    fn field(&self, definition: &str, name: &str, field: &FieldFacts) -> Result<String> {
        let ty = self.rust_type(&self.field_type(definition, field), &field.proto)?;
        let go = self.go_facts(definition, name);
        let go_flags = go.map_or("", |g| g.flags.as_str());
        let mut flags = u8::from(field.required);
        for (flag, bit) in [('p', 2), ('a', 4), ('z', 8)] {
            flags |= if go_flags.contains(flag) { bit } else { 0 };
        }
        flags |= match field.map_type.as_str() {
            "atomic" => 16,
            "granular" => 32,
            _ => 0,
        };
        let mut row = format!("f({name:?}, {}, {ty}, {flags})", field.number);
        match field.list_type.as_str() {
            "set" => row.push_str(".set()"),
            "map" => {
                let _ = write!(row, ".map(&{:?})", field.list_map_keys);
            }
            "" | "atomic" => {}
            other => bail!("{definition}.{name} has the unknown list type {other}"),
        }
        if !field.patch_strategy.is_empty() {
            let _ = write!(row, ".patch({:?}, {:?})", field.patch_strategy, field.patch_merge_key);
        }
        if !field.default.is_empty() {
            let named = field.default.strip_prefix("ref(").and_then(|d| d.strip_suffix(')'));
            let default = match named {
                Some(name) => {
                    NAMED_DEFAULTS
                        .iter()
                        .find(|(n, _)| *n == name)
                        .with_context(|| format!("no value for {name}"))?
                        .1
                }
                None => &field.default,
            };
            let _ = write!(row, ".or({default:?})");
        }
        if let Some(go) = go.filter(|g| !g.go_type.is_empty()) {
            let _ = write!(row, ".go({:?})", go.go_type);
        }
        Ok(row)
    }

    /// Of the definition, or of the embedded struct that has the field.
    fn go_facts(&self, definition: &str, field: &str) -> Option<&GoFacts> {
        if let Some(own) = self.go.get(definition).and_then(|fields| fields.get(field)) {
            return Some(own);
        }
        let inlined = &self.facts.get(definition)?.inlined;
        inlined.iter().find_map(|i| self.go_facts(&message_name(definition, &i.proto), field))
    }

    fn rust_type(&self, ty: &str, proto: &str) -> Result<String> {
        if let Some(of) = ty.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            let wrapped =
                of == "string" && !proto.is_empty() && !proto.starts_with("repeated") && proto != "string";
            if wrapped {
                return Ok("Strings".into());
            }
            return Ok(format!("L(&{})", self.rust_type(of, "")?));
        }
        if let Some(of) = ty.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
            if of == "[string]" {
                return Ok("M(&Strings)".into());
            }
            return Ok(format!("M(&{})", self.rust_type(of, "")?));
        }
        Ok(match ty {
            "string" => "S".into(),
            "string:byte" => "Bytes".into(),
            "boolean" => "B".into(),
            "integer:int32" => "I32".into(),
            "integer:int64" => "I64".into(),
            "number:double" => "Double".into(),
            "io.k8s.apimachinery.pkg.api.resource.Quantity" => "Q".into(),
            "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => "IntOrString".into(),
            "io.k8s.apimachinery.pkg.runtime.RawExtension" => "Raw".into(),
            _ => match ty
                .strip_prefix(META)
                .or(ty.strip_prefix(JSON_SCHEMA_PROPS.trim_end_matches("JSONSchemaProps")))
            {
                Some("Time") => "T".into(),
                Some("MicroTime") => "MicroTime".into(),
                Some("FieldsV1") => "FieldsV1".into(),
                Some("JSON") => "Json".into(),
                Some("JSONSchemaPropsOrArray") => "SchemaOrArray".into(),
                Some("JSONSchemaPropsOrBool") => "SchemaOrBool".into(),
                Some("JSONSchemaPropsOrStringArray") => "SchemaOrStrings".into(),
                _ => format!("o({})", self.place(ty)?),
            },
        })
    }

    /// The message's entries by number.
    fn wire(&self, name: &str, definition: &DefinitionFacts) -> Result<String> {
        let mut entries = Vec::new();
        for (at, field) in definition.fields.values().enumerate() {
            if field.number > 0 {
                entries.push((field.number, format!("W({at})")));
            }
        }
        for inlined in &definition.inlined {
            let place = self.place(&message_name(name, &inlined.proto))?;
            entries.push((inlined.number, format!("i({}, {place})", inlined.number)));
        }
        entries.sort();
        Ok(entries.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(", "))
    }
}

fn parse_go_facts() -> HashMap<&'static str, HashMap<&'static str, GoFacts>> {
    let mut all: HashMap<_, HashMap<_, GoFacts>> = HashMap::new();
    for line in GO_FACTS.lines().filter(|l| !l.starts_with('#')) {
        let mut words = line.split(' ');
        let fields = all.entry(words.next().unwrap_or_default()).or_default();
        for word in words {
            if let Some((message_name, json_name)) = word.split_once('=') {
                fields.entry(message_name).or_default().json_name = json_name.to_owned();
                continue;
            }
            let mut parts = word.split(':');
            let field = fields.entry(parts.next().unwrap_or_default()).or_default();
            field.flags = parts.next().unwrap_or_default().to_owned();
            field.go_type = parts.next().unwrap_or_default().to_owned();
        }
    }
    all
}

/// What is served only when it is switched on.
const OPTIONAL: &[&str] = &[
    "coordination.k8s.io/v1alpha2/LeaseCandidate",
    "coordination.k8s.io/v1alpha2/LeaseCandidateList",
    "coordination.k8s.io/v1beta1/LeaseCandidate",
    "coordination.k8s.io/v1beta1/LeaseCandidateList",
    "scheduling.k8s.io/v1alpha2/PodGroup",
    "scheduling.k8s.io/v1alpha2/PodGroupList",
    "scheduling.k8s.io/v1alpha2/Workload",
    "scheduling.k8s.io/v1alpha2/WorkloadList",
    "storagemigration.k8s.io/v1beta1/StorageVersionMigration",
    "storagemigration.k8s.io/v1beta1/StorageVersionMigrationList",
];

/// A default server serves no alpha or beta versions.
fn is_served(gvk: &str) -> bool {
    let version = gvk.rsplit('/').nth(1).unwrap_or_default();
    !version.contains("alpha") && !version.contains("beta") || OPTIONAL.contains(&gvk)
}

fn split_gvk(gvk: &str) -> Result<(String, String, String)> {
    match gvk.split('/').collect::<Vec<_>>()[..] {
        [group, version, kind] => Ok((group.into(), version.into(), kind.into())),
        _ => bail!("{gvk} is not group/version/kind"),
    }
}

/// The definition that a type holds, if it is not one of the types that stand for themselves.
fn object_name(ty: &str) -> Option<&str> {
    let inner = ty.trim_matches(['[', ']', '{', '}']);
    let itself = [
        "Quantity",
        "IntOrString",
        "RawExtension",
        "Time",
        "MicroTime",
        "FieldsV1",
        "JSON",
        "JSONSchemaPropsOrArray",
        "JSONSchemaPropsOrBool",
        "JSONSchemaPropsOrStringArray",
    ];
    let last = inner.rsplit('.').next().unwrap_or(inner);
    (inner.starts_with("io.k8s.") && !itself.contains(&last)).then_some(inner)
}

/// The definition that a protobuf type names, seen from another definition.
fn message_name(from: &str, proto: &str) -> String {
    match proto.strip_prefix(".k8s.io.") {
        Some(absolute) => format!("io.k8s.{absolute}"),
        None => {
            let package = from.rsplit_once('.').map_or("", |(package, _)| package);
            format!("{package}.{proto}")
        }
    }
}

/// The type of a field of which only the message is known, in the notation of the facts.
fn type_of_message(definition: &str, proto: &str) -> String {
    if let Some(of) = proto.strip_prefix("repeated ") {
        return format!("[{}]", type_of_message(definition, of));
    }
    if let Some(of) = proto.strip_prefix("map<string,").and_then(|p| p.strip_suffix('>')) {
        return format!("{{{}}}", type_of_message(definition, of));
    }
    match proto {
        "string" => "string".into(),
        "bytes" => "string:byte".into(),
        "bool" => "boolean".into(),
        "int32" => "integer:int32".into(),
        "int64" => "integer:int64".into(),
        "double" => "number:double".into(),
        other if other.ends_with("ExtraValue") || other.ends_with("Verbs") => "[string]".into(),
        other => message_name(definition, other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generate(facts: &str) -> Result<String> {
        let facts: Facts = serde_json::from_str(facts)?;
        let mut generator =
            Generator { facts: facts.definitions, go: parse_go_facts(), places: BTreeMap::new() };
        generator.number_inlined_scalars();
        generator.reach()?;
        generator.field_rows("io.k8s.api.x.v1.Thing")
    }

    impl Generator {
        fn field_rows(&self, name: &str) -> Result<String> {
            let definition = &self.facts[name];
            let rows: Result<Vec<String>> =
                definition.fields.iter().map(|(n, f)| self.field(name, n, f)).collect();
            Ok(format!("{}\n{}", rows?.join("\n"), self.wire(name, definition)?))
        }
    }

    #[test]
    fn rows_say_all_that_the_facts_say() {
        let facts = r#"{"protoOnly": {}, "definitions": {
            "io.k8s.apimachinery.pkg.version.Info": {},
            "io.k8s.api.x.v1.Source": {"fields": {"path": {"number": 1, "proto": "string", "type": "string"}}},
            "io.k8s.api.x.v1beta1.Thing": {"gvk": ["x/v1beta1/Thing"]},
            "io.k8s.api.x.v1.Thing": {"gvk": ["x/v1/Thing"],
                "inlined": [{"name": "uID", "number": 4, "proto": "string"}, {"name": "source", "number": 2, "proto": "Source"}],
                "fields": {
                    "items": {"number": 3, "proto": "repeated Source", "type": "[io.k8s.api.x.v1.Source]", "required": true,
                        "listType": "map", "listMapKeys": ["path"], "patchStrategy": "merge", "patchMergeKey": "path"},
                    "mode": {"number": 1, "proto": "string", "type": "string", "default": "\"TCP\""},
                    "path": {"type": "string"},
                    "uid": {"type": "string"}}}}}"#;
        let rows = generate(facts).unwrap();
        assert_eq!(
            rows,
            "f(\"items\", 3, L(&o(0)), 1).map(&[\"path\"]).patch(\"merge\", \"path\")\n\
             f(\"mode\", 1, S, 0).or(\"\\\"TCP\\\"\")\n\
             f(\"path\", 0, S, 0)\n\
             f(\"uid\", 4, S, 0)\n\
             W(1), i(2, 0), W(0), W(3)"
        );
    }

    #[test]
    fn messages_are_named_from_where_they_are_seen() {
        assert_eq!(message_name("io.k8s.api.core.v1.Pod", "PodSpec"), "io.k8s.api.core.v1.PodSpec");
        assert_eq!(
            message_name("io.k8s.api.core.v1.Pod", ".k8s.io.apimachinery.pkg.apis.meta.v1.ObjectMeta"),
            "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
        );
        assert_eq!(type_of_message("io.k8s.api.core.v1.Pod", "repeated int64"), "[integer:int64]");
        assert!(is_served("apps/v1/Deployment") && !is_served("x/v1beta1/Thing"));
    }
}

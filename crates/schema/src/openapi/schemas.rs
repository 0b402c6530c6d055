//! The schemas of definitions, gathered as operations refer to them.

use std::collections::BTreeMap;

use api::descriptions::Descriptions;
use api::tables::{self, Definition, Field, ListType, Type, Wire};
use serde_json::{Map, Value, json};

use super::{Dialect, Kind};
use crate::structural::publish;

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const APIEXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

/// The group versions in which `DeleteOptions` and `WatchEvent` are known: all that upstream ever compiled in,
/// whether served or not.
const KNOWN_VERSIONS: &[(&str, &[&str])] = &[
    ("", &["v1"]),
    ("admission.k8s.io", &["v1", "v1beta1"]),
    ("admissionregistration.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("apiextensions.k8s.io", &["v1", "v1beta1"]),
    ("apiregistration.k8s.io", &["v1", "v1beta1"]),
    ("apps", &["v1", "v1beta1", "v1beta2"]),
    ("authentication.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("authorization.k8s.io", &["v1", "v1beta1"]),
    ("autoscaling", &["v1", "v2"]),
    ("batch", &["v1", "v1beta1"]),
    ("certificates.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("coordination.k8s.io", &["v1", "v1alpha2", "v1beta1"]),
    ("discovery.k8s.io", &["v1", "v1beta1"]),
    ("events.k8s.io", &["v1", "v1beta1"]),
    ("extensions", &["v1beta1"]),
    ("flowcontrol.apiserver.k8s.io", &["v1", "v1beta1", "v1beta2", "v1beta3"]),
    ("imagepolicy.k8s.io", &["v1alpha1"]),
    ("internal.apiserver.k8s.io", &["v1alpha1"]),
    ("networking.k8s.io", &["v1", "v1beta1"]),
    ("node.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("policy", &["v1", "v1beta1"]),
    ("rbac.authorization.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("resource.k8s.io", &["v1", "v1alpha3", "v1beta1", "v1beta2"]),
    ("scheduling.k8s.io", &["v1", "v1alpha2", "v1beta1"]),
    ("storage.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("storagemigration.k8s.io", &["v1beta1"]),
];

/// Objects of which one field says which of the others counts: the definition, that field, and the others with
/// the names of their choices (`x-kubernetes-unions`).
type Union = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const UNIONS: &[Union] = &[
    ("io.k8s.api.core.v1.AppArmorProfile", "type", &[("localhostProfile", "LocalhostProfile")]),
    ("io.k8s.api.core.v1.PodSchedulingGroup", "", &[("podGroupName", "PodGroupName")]),
    ("io.k8s.api.core.v1.SeccompProfile", "type", &[("localhostProfile", "LocalhostProfile")]),
    ("io.k8s.api.flowcontrol.v1.LimitResponse", "type", &[("queuing", "Queuing")]),
    (
        "io.k8s.api.flowcontrol.v1.PriorityLevelConfigurationSpec",
        "type",
        &[("exempt", "Exempt"), ("limited", "Limited")],
    ),
    (
        "io.k8s.api.flowcontrol.v1.Subject",
        "kind",
        &[("group", "Group"), ("serviceAccount", "ServiceAccount"), ("user", "User")],
    ),
    ("io.k8s.api.scheduling.v1alpha2.PodGroupSchedulingPolicy", "", &[("basic", "Basic"), ("gang", "Gang")]),
    ("io.k8s.api.scheduling.v1alpha2.PodGroupTemplateReference", "", &[("workload", "Workload")]),
];

/// The fields that a custom kind can be selected by.
const SELECTABLE: &str = "x-kubernetes-selectable-fields";

pub struct Schemas {
    pub dialect: Dialect,
    /// The group version that a version 3 document is about; that of version 2 is about all.
    pub about: Option<(String, String)>,
    schemas: BTreeMap<String, Value>,
    descriptions: Descriptions,
}

impl Schemas {
    pub fn new(dialect: Dialect) -> Self {
        Schemas { dialect, about: None, schemas: BTreeMap::new(), descriptions: Descriptions::unpack() }
    }

    pub fn finish(self) -> Map<String, Value> {
        self.schemas.into_iter().collect()
    }

    /// A reference to a kind of the tables; any object when they do not know it.
    pub fn kind(&mut self, group: &str, version: &str, kind: &str) -> Value {
        match tables::kind(group, version, kind) {
            Some(definition) => self.definition(definition),
            None => json!({"type": "object"}),
        }
    }

    pub fn meta(&mut self, name: &str) -> Value {
        match tables::definition(&format!("{META}.{name}")) {
            Some(definition) => self.definition(definition),
            None if name == "Patch" => self.plain(format!("{META}.Patch"), json!({"type": "object"})),
            None => json!({"type": "object"}),
        }
    }

    /// What `/version` answers with.
    pub fn version_info(&mut self) -> Value {
        const REQUIRED: &[&str] = &[
            "major",
            "minor",
            "gitVersion",
            "gitCommit",
            "gitTreeState",
            "buildDate",
            "goVersion",
            "compiler",
            "platform",
        ];
        const OPTIONAL: &[&str] =
            &["emulationMajor", "emulationMinor", "minCompatibilityMajor", "minCompatibilityMinor"];
        let mut properties = Map::new();
        for name in REQUIRED.iter().chain(OPTIONAL) {
            let mut property = json!({"type": "string"});
            if self.dialect == Dialect::V3 && REQUIRED.contains(name) {
                property["default"] = "".into();
            }
            properties.insert((*name).to_owned(), property);
        }
        let schema = json!({"type": "object", "required": REQUIRED, "properties": properties});
        self.plain("io.k8s.apimachinery.pkg.version.Info".into(), schema)
    }

    /// References to a served kind and to its list.
    pub fn served(&mut self, kind: &Kind) -> (Value, Value) {
        let Some(schema) = &kind.schema else {
            return (
                self.kind(&kind.group, &kind.version, &kind.kind),
                self.kind(&kind.group, &kind.version, &format!("{}List", kind.kind)),
            );
        };
        let mut reversed: Vec<&str> = kind.group.split('.').collect();
        reversed.reverse();
        let of = |kind_name: &str| format!("{}.{}.{kind_name}", reversed.join("."), kind.version);
        let schema = self.custom(kind, schema);
        let selectable = schema.get(SELECTABLE).cloned();
        let item = self.plain(of(&kind.kind), schema);
        let list = self.custom_list(kind, &item, selectable);
        (item, self.plain(of(&kind.list_kind), list))
    }

    /// A field of an object of the tables, described as the kind describes it.
    fn property_of(&mut self, owner: &str, field: &str) -> Value {
        let found = tables::definition(owner).and_then(|definition| definition.field(field));
        let mut property = match found {
            Some(field) => self.property(field, true),
            None => json!({"type": "string"}),
        };
        let texts = self.descriptions.of(owner);
        if let (Some(text), Value::Object(property)) = (texts.get(field), &mut property) {
            // In version 3 a reference stands alone.
            if let (Dialect::V3, Some(reference)) = (self.dialect, property.remove("$ref")) {
                property.insert("allOf".into(), json!([{"$ref": reference}]));
            }
            property.insert("description".into(), (*text).into());
        }
        property
    }

    /// A custom resource's schema with what every object has.
    fn custom(&mut self, kind: &Kind, schema: &Value) -> Value {
        const ANY_KIND: &str = "io.k8s.api.core.v1.ConfigMap";
        let own = publish::ObjectFields {
            api_version: self.property_of(ANY_KIND, "apiVersion"),
            kind: self.property_of(ANY_KIND, "kind"),
            metadata: self.property_of(ANY_KIND, "metadata"),
        };
        let mut bare = schema.clone();
        let selectable = bare.as_object_mut().and_then(|bare| bare.remove(SELECTABLE));
        let mut shown = publish::published(&bare, self.dialect == Dialect::V2, &own);
        shown["x-kubernetes-group-version-kind"] = json!([gvk(&kind.group, &kind.version, &kind.kind)]);
        if let Some(selectable) = selectable {
            shown[SELECTABLE] = selectable;
        }
        shown
    }

    fn custom_list(&mut self, kind: &Kind, item: &Value, selectable: Option<Value>) -> Value {
        const ANY_LIST: &str = "io.k8s.api.core.v1.ConfigMapList";
        let more =
            "More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";
        let mut list = json!({
            "description": format!("{} is a list of {}", kind.list_kind, kind.kind),
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": self.property_of("io.k8s.api.core.v1.ConfigMap", "apiVersion"),
                "kind": self.property_of("io.k8s.api.core.v1.ConfigMap", "kind"),
                "metadata": self.property_of(ANY_LIST, "metadata"),
                "items": {
                    "description": format!("List of {}. {more}", kind.plural), "type": "array", "items": item,
                },
            },
            "x-kubernetes-group-version-kind": [gvk(&kind.group, &kind.version, &kind.list_kind)],
        });
        if let Some(selectable) = selectable {
            list[SELECTABLE] = selectable;
        }
        list
    }

    fn plain(&mut self, name: String, mut schema: Value) -> Value {
        let reference = self.reference(&name);
        if !self.schemas.contains_key(&name) {
            if let (Some(text), Value::Object(schema)) = (self.descriptions.of(&name).get(""), &mut schema) {
                schema.insert("description".into(), (*text).into());
            }
            self.schemas.insert(name, schema);
        }
        reference
    }

    fn reference(&self, name: &str) -> Value {
        match self.dialect {
            Dialect::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Dialect::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }

    fn definition(&mut self, definition: &'static Definition) -> Value {
        let reference = self.reference(definition.name);
        if self.schemas.contains_key(definition.name) {
            return reference;
        }
        // The place is taken before the fields are looked at: some types hold themselves.
        self.schemas.insert(definition.name.to_owned(), Value::Null);
        let mut schema = Map::new();
        schema.insert("type".into(), "object".into());
        let special = match definition.go_name() {
            "APIResource" | "APIServiceSpec" => true,
            _ => definition.gvk.is_some_and(|gvk| gvk.kind.ends_with("List")),
        };
        let mut properties = Map::new();
        for field in definition.fields {
            properties.insert(field.name.to_owned(), self.property(field, special));
        }
        if self.dialect == Dialect::V3 {
            inherit_defaults(definition, &mut properties);
        }
        self.describe(definition, &mut schema, &mut properties);
        if !properties.is_empty() {
            schema.insert("properties".into(), Value::Object(properties));
        }
        let required: Vec<&str> = definition.fields.iter().filter(|f| f.required()).map(|f| f.name).collect();
        if !required.is_empty() {
            schema.insert("required".into(), json!(required));
        }
        if let Some(k) = definition.gvk {
            let kinds = match definition.go_name() {
                "DeleteOptions" | "WatchEvent" => KNOWN_VERSIONS
                    .iter()
                    .flat_map(|(group, versions)| versions.iter().map(|version| (*group, *version)))
                    .filter(|known| self.tells(*known))
                    .map(|(group, version)| gvk(group, version, k.kind))
                    .collect(),
                _ => vec![gvk(k.group, k.version, k.kind)],
            };
            schema.insert("x-kubernetes-group-version-kind".into(), Value::Array(kinds));
        }
        if definition.atomic {
            schema.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        if let Some((_, discriminator, fields)) = UNIONS.iter().find(|(name, ..)| *name == definition.name) {
            let fields: Map<String, Value> =
                fields.iter().map(|(field, choice)| ((*field).to_owned(), (*choice).into())).collect();
            let mut union = json!({"fields-to-discriminateBy": fields});
            if !discriminator.is_empty() {
                union["discriminator"] = (*discriminator).into();
            }
            schema.insert("x-kubernetes-unions".into(), json!([union]));
        }
        self.schemas.insert(definition.name.to_owned(), Value::Object(schema));
        reference
    }

    /// Whether the document tells that a kind is known in a group version.
    fn tells(&self, (group, version): (&str, &str)) -> bool {
        let own = |about: &(String, String)| (about.0.as_str(), about.1.as_str()) == (group, version);
        self.dialect == Dialect::V2 || group.is_empty() || self.about.as_ref().is_some_and(own)
    }

    /// Adds upstream's texts. Lists have none of their own but what every kind says of `apiVersion` and `kind`.
    fn describe(
        &self,
        definition: &Definition,
        schema: &mut Map<String, Value>,
        properties: &mut Map<String, Value>,
    ) {
        let mut texts = self.descriptions.of(definition.name);
        let kind = definition.name.strip_suffix("List");
        let own = kind.filter(|_| texts.is_empty()).map(|kind| self.descriptions.of(kind));
        for name in ["apiVersion", "kind"] {
            if let Some(text) = own.as_ref().and_then(|own| own.get(name)) {
                texts.insert(name, *text);
            }
        }
        for (name, text) in texts {
            if name.is_empty() {
                schema.insert("description".into(), text.into());
                continue;
            }
            let Some(property) = properties.get_mut(name) else { continue };
            // In version 3 a reference stands alone.
            if self.dialect == Dialect::V3 && property.get("$ref").is_some() {
                *property = json!({"allOf": [property.take()]});
            }
            property["description"] = text.into();
        }
    }

    fn property(&mut self, field: &Field, special: bool) -> Value {
        let mut schema = self.of_type(field.ty);
        let mut extra = Map::new();
        if !undeclared(field, special) && matches!(field.ty, Type::List(_) | Type::Strings | Type::Bytes) {
            let list_type = match field.list_type {
                ListType::Atomic => "atomic",
                ListType::Set => "set",
                ListType::Map => "map",
            };
            extra.insert("x-kubernetes-list-type".into(), list_type.into());
            if !field.map_keys.is_empty() {
                extra.insert("x-kubernetes-list-map-keys".into(), json!(field.map_keys));
            }
        }
        if field.atomic_map() {
            extra.insert("x-kubernetes-map-type".into(), "atomic".into());
        } else if field.granular_map() {
            extra.insert("x-kubernetes-map-type".into(), "granular".into());
        }
        if !field.patch_strategy.is_empty() {
            extra.insert("x-kubernetes-patch-strategy".into(), field.patch_strategy.into());
        }
        if !field.patch_merge_key.is_empty() {
            extra.insert("x-kubernetes-patch-merge-key".into(), field.patch_merge_key.into());
        }
        // Upstream's version 2 has no defaults.
        if self.dialect == Dialect::V3 {
            if let Ok(default) = serde_json::from_str::<Value>(field.default) {
                extra.insert("default".into(), default);
            } else if let Some(zero) = zero(field) {
                extra.insert("default".into(), zero);
            }
        }
        if extra.is_empty() {
            return schema;
        }
        // In version 3 a reference stands alone.
        if self.dialect == Dialect::V3 && schema.get("$ref").is_some() {
            schema = json!({"allOf": [schema]});
        }
        if let Value::Object(schema) = &mut schema {
            schema.append(&mut extra);
        }
        schema
    }

    fn of_type(&mut self, ty: Type) -> Value {
        let v2 = self.dialect == Dialect::V2;
        match ty {
            Type::String => json!({"type": "string"}),
            Type::Bytes => json!({"type": "string", "format": "byte"}),
            Type::Bool => json!({"type": "boolean"}),
            Type::Int32 => json!({"type": "integer", "format": "int32"}),
            Type::Int64 => json!({"type": "integer", "format": "int64"}),
            Type::Double => json!({"type": "number", "format": "double"}),
            Type::List(of) => json!({"type": "array", "items": self.of_type(*of)}),
            Type::Strings => json!({"type": "array", "items": {"type": "string"}}),
            Type::Map(of) => json!({"type": "object", "additionalProperties": self.of_type(*of)}),
            Type::Object(id) => self.definition(id.get()),
            Type::Quantity if v2 => self.plain(QUANTITY.into(), json!({"type": "string"})),
            Type::Quantity => {
                self.plain(QUANTITY.into(), json!({"oneOf": [{"type": "string"}, {"type": "number"}]}))
            }
            Type::IntOrString if v2 => {
                self.plain(INT_OR_STRING.into(), json!({"type": "string", "format": "int-or-string"}))
            }
            Type::IntOrString => self.plain(
                INT_OR_STRING.into(),
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
            ),
            Type::Time => {
                self.plain(format!("{META}.Time"), json!({"type": "string", "format": "date-time"}))
            }
            Type::MicroTime => {
                self.plain(format!("{META}.MicroTime"), json!({"type": "string", "format": "date-time"}))
            }
            Type::Raw => self.plain(RAW.into(), json!({"type": "object"})),
            Type::FieldsV1 => self.plain(format!("{META}.FieldsV1"), json!({"type": "object"})),
            Type::Json => self.plain(format!("{APIEXTENSIONS}.JSON"), json!({})),
            Type::SchemaOrArray => self.plain(format!("{APIEXTENSIONS}.JSONSchemaPropsOrArray"), json!({})),
            Type::SchemaOrBool => self.plain(format!("{APIEXTENSIONS}.JSONSchemaPropsOrBool"), json!({})),
            Type::SchemaOrStrings => {
                self.plain(format!("{APIEXTENSIONS}.JSONSchemaPropsOrStringArray"), json!({}))
            }
        }
    }
}

/// Whether upstream declares no list type: for the items of lists, for the verbs that discovery lists, and for
/// bytes, of which it declares it for the certificates of an APIService only.
fn undeclared(field: &Field, special: bool) -> bool {
    match field.name {
        "items" | "verbs" => special,
        "caBundle" => !special,
        _ => field.ty == Type::Bytes,
    }
}

/// A field that comes from a message inside has its default from there.
fn inherit_defaults(definition: &Definition, properties: &mut Map<String, Value>) {
    for wire in definition.wire {
        let Wire::Inline { definition: inner, .. } = wire else { continue };
        for field in inner.get().fields {
            if let (Some(Value::Object(property)), Ok(default)) =
                (properties.get_mut(field.name), serde_json::from_str::<Value>(field.default))
            {
                property.entry("default").or_insert(default);
            }
        }
    }
}

/// What an absent field stands for, where that is told: in structs, and in scalars that are always written.
fn zero(field: &Field) -> Option<Value> {
    match field.ty {
        _ if field.pointer() => None,
        Type::Object(_) => Some(json!({})),
        Type::String if field.always() => Some("".into()),
        Type::Bool if field.always() => Some(false.into()),
        Type::Int32 | Type::Int64 | Type::Double if field.always() => Some(0.into()),
        _ => None,
    }
}

pub fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

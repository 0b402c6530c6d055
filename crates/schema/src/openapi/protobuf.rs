//! The version 2 document as protobuf: gnostic's `openapi.v2.Document`, which kubectl and client-go ask for.
//!
//! The messages are tables, as objects' are: a JSON field's name, its number, and its [`Shape`]. Words that begin
//! with `x-` travel as YAML text, of which JSON is a part.
//!
//! Upstream: github.com/google/gnostic-models/openapiv2/OpenAPIv2.proto

use serde_json::{Map, Value};

use crate::protobuf::wire::Backward;

struct Message {
    fields: &'static [(&'static str, u32, Shape)],
    /// The number of `vendor_extension`; 0 where there is none.
    extensions: u32,
}

/// How a field is written.
#[derive(Clone, Copy)]
enum Shape {
    Text,
    Texts,
    Flag,
    Int,
    Double,
    /// Any value, as text.
    Any,
    Anys,
    One(&'static Message),
    Many(&'static Message),
    /// A message around the value, which is its only field, of this number.
    Within(u32, &'static Shape),
    /// A message of repeated names (1) and values (2), of this number.
    Named(u32, &'static Shape),
    /// `string` or `["string"]`.
    TypeItem,
    /// A body, or one of the four places that take plain values.
    Parameter,
    Parameters,
    SecurityRequirements,
    AdditionalProperties,
}

use Shape::{
    AdditionalProperties, Any, Anys, Double, Flag, Int, Many, Named, One, Parameter, Parameters,
    SecurityRequirements, Text, Texts, TypeItem, Within,
};

static DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Text),
        ("info", 2, One(&INFO)),
        ("host", 3, Text),
        ("basePath", 4, Text),
        ("schemes", 5, Texts),
        ("consumes", 6, Texts),
        ("produces", 7, Texts),
        ("paths", 8, Named(2, &One(&PATH_ITEM))),
        ("definitions", 9, Named(1, &One(&SCHEMA))),
        ("parameters", 10, Named(1, &Parameter)),
        ("security", 12, SecurityRequirements),
        ("securityDefinitions", 13, Named(1, &Within(2, &One(&API_KEY)))),
    ],
    extensions: 16,
};

static INFO: Message =
    Message { fields: &[("title", 1, Text), ("version", 2, Text), ("description", 3, Text)], extensions: 7 };

static API_KEY: Message = Message {
    fields: &[("type", 1, Text), ("name", 2, Text), ("in", 3, Text), ("description", 4, Text)],
    extensions: 5,
};

static PATH_ITEM: Message = Message {
    fields: &[
        ("$ref", 1, Text),
        ("get", 2, One(&OPERATION)),
        ("put", 3, One(&OPERATION)),
        ("post", 4, One(&OPERATION)),
        ("delete", 5, One(&OPERATION)),
        ("options", 6, One(&OPERATION)),
        ("head", 7, One(&OPERATION)),
        ("patch", 8, One(&OPERATION)),
        ("parameters", 9, Parameters),
    ],
    extensions: 10,
};

static OPERATION: Message = Message {
    fields: &[
        ("tags", 1, Texts),
        ("summary", 2, Text),
        ("description", 3, Text),
        ("operationId", 5, Text),
        ("produces", 6, Texts),
        ("consumes", 7, Texts),
        ("parameters", 8, Parameters),
        ("responses", 9, Named(1, &Within(1, &One(&RESPONSE)))),
        ("schemes", 10, Texts),
        ("deprecated", 11, Flag),
        ("security", 12, SecurityRequirements),
    ],
    extensions: 13,
};

static RESPONSE: Message =
    Message { fields: &[("description", 1, Text), ("schema", 2, Within(1, &One(&SCHEMA)))], extensions: 5 };

static REFERENCE: Message = Message { fields: &[("$ref", 1, Text), ("description", 2, Text)], extensions: 0 };

static BODY_PARAMETER: Message = Message {
    fields: &[
        ("description", 1, Text),
        ("name", 2, Text),
        ("in", 3, Text),
        ("required", 4, Flag),
        ("schema", 5, One(&SCHEMA)),
    ],
    extensions: 6,
};

/// Of a query and of a form; those of headers and paths lack `allowEmptyValue`.
static QUERY_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Flag),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("allowEmptyValue", 5, Flag),
        ("type", 6, Text),
        ("format", 7, Text),
        ("uniqueItems", 20, Flag),
    ],
    extensions: 23,
};

static PATH_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Flag),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 5, Text),
        ("format", 6, Text),
        ("uniqueItems", 19, Flag),
    ],
    extensions: 22,
};

static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Text),
        ("format", 2, Text),
        ("title", 3, Text),
        ("description", 4, Text),
        ("default", 5, Any),
        ("multipleOf", 6, Double),
        ("maximum", 7, Double),
        ("exclusiveMaximum", 8, Flag),
        ("minimum", 9, Double),
        ("exclusiveMinimum", 10, Flag),
        ("maxLength", 11, Int),
        ("minLength", 12, Int),
        ("pattern", 13, Text),
        ("maxItems", 14, Int),
        ("minItems", 15, Int),
        ("uniqueItems", 16, Flag),
        ("maxProperties", 17, Int),
        ("minProperties", 18, Int),
        ("required", 19, Texts),
        ("enum", 20, Anys),
        ("additionalProperties", 21, AdditionalProperties),
        ("type", 22, TypeItem),
        ("items", 23, Within(1, &One(&SCHEMA))),
        ("allOf", 24, Many(&SCHEMA)),
        ("properties", 25, Named(1, &One(&SCHEMA))),
        ("discriminator", 26, Text),
        ("readOnly", 27, Flag),
        ("example", 30, Any),
    ],
    extensions: 31,
};

/// The bytes of a version 2 document.
pub fn v2_protobuf(document: &Value) -> Vec<u8> {
    let mut out = Backward::default();
    if let Value::Object(document) = document {
        message(&mut out, document, &DOCUMENT);
    }
    out.finish()
}

fn message(out: &mut Backward, object: &Map<String, Value>, message: &Message) {
    for (name, value) in object.iter().rev() {
        match message.fields.iter().find(|(field, ..)| field == name) {
            Some((_, number, shape)) => write(out, *number, value, *shape),
            None if name.starts_with("x-") && message.extensions != 0 => {
                named(out, message.extensions, name, value, Any);
            }
            None => {}
        }
    }
}

/// A name and a value.
fn named(out: &mut Backward, number: u32, name: &str, value: &Value, shape: Shape) {
    let start = out.len();
    write(out, 2, value, shape);
    out.string(1, name);
    out.close(number, start);
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn fields(value: &Value) -> impl DoubleEndedIterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn write(out: &mut Backward, number: u32, value: &Value, shape: Shape) {
    let each = |out: &mut Backward, shape: Shape| {
        items(value).iter().rev().for_each(|item| write(out, number, item, shape));
    };
    let start = out.len();
    match shape {
        Text => out.string(number, value.as_str().unwrap_or_default()),
        Flag => out.int(number, i64::from(value == &Value::Bool(true))),
        Int => out.int(number, value.as_i64().unwrap_or_default()),
        Double => out.double(number, value.as_f64().unwrap_or_default()),
        Texts => each(out, Text),
        Anys => each(out, Any),
        Many(message) => each(out, One(message)),
        Any => {
            out.string(2, &value.to_string());
            out.close(number, start);
        }
        One(of) => {
            if let Value::Object(object) = value {
                message(out, object, of);
            }
            out.close(number, start);
        }
        Within(inner, shape) => {
            write(out, inner, value, *shape);
            out.close(number, start);
        }
        Named(inner, shape) => {
            fields(value).rev().for_each(|(name, value)| named(out, inner, name, value, *shape));
            out.close(number, start);
        }
        TypeItem => {
            let shape = if value.is_array() { Texts } else { Text };
            write(out, 1, value, shape);
            out.close(number, start);
        }
        Parameter => write(out, number, value, parameter(value)),
        Parameters => {
            for item in items(value).iter().rev() {
                static REFERRED: Shape = Within(2, &One(&REFERENCE));
                static TOLD: Shape = Within(1, &Parameter);
                write(out, number, item, if item.get("$ref").is_some() { REFERRED } else { TOLD });
            }
        }
        SecurityRequirements => {
            for requirement in items(value).iter().rev() {
                write(out, number, requirement, Named(1, &Within(1, &Texts)));
            }
        }
        AdditionalProperties => {
            let (inner, shape) = if value.is_boolean() { (2, Flag) } else { (1, One(&SCHEMA)) };
            write(out, inner, value, shape);
            out.close(number, start);
        }
    }
}

/// A parameter by its place.
fn parameter(value: &Value) -> Shape {
    static BODY: Shape = One(&BODY_PARAMETER);
    static HEADER: Shape = Within(1, &One(&PATH_PARAMETER));
    static FORM: Shape = Within(2, &One(&QUERY_PARAMETER));
    static QUERY: Shape = Within(3, &One(&QUERY_PARAMETER));
    static PATH: Shape = Within(4, &One(&PATH_PARAMETER));
    match value["in"].as_str() {
        Some("body") => Within(1, &BODY),
        Some("header") => Within(2, &HEADER),
        Some("formData") => Within(2, &FORM),
        Some("query") => Within(2, &QUERY),
        _ => Within(2, &PATH),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(document: Value, expected: &[&[u8]]) {
        assert_eq!(v2_protobuf(&document), expected.concat(), "{document}");
    }

    #[test]
    fn messages_are_gnostics() {
        check(json!({"swagger": "2.0"}), &[b"\x0a\x032.0"]);
        // A definition: its type, a property that refers, and an extension as YAML.
        check(
            json!({"definitions": {"A": {
                "properties": {"b": {"$ref": "#/B"}}, "type": "object", "x-k": "v"
            }}}),
            &[
                b"\x4a\x30\x0a\x2e\x0a\x01A\x12\x29",
                b"\xca\x01\x0c\x0a\x0a\x0a\x01b\x12\x05\x0a\x03#/B",
                b"\xb2\x01\x08\x0a\x06object",
                b"\xfa\x01\x0c\x0a\x03x-k\x12\x05\x12\x03\"v\"",
            ],
        );
        // A parameter of a query, and one that is referred to.
        check(
            json!({"paths": {"/p": {"parameters": [{"in": "query", "name": "q"}, {"$ref": "r"}]}}}),
            &[
                b"\x42\x21\x12\x1f\x0a\x02/p\x12\x19",
                b"\x4a\x10\x0a\x0e\x12\x0c\x1a\x0a\x12\x05query\x22\x01q",
                b"\x4a\x05\x12\x03\x0a\x01r",
            ],
        );
    }
}

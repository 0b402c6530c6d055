//! [`Selectors`]: the expressions by which classes and requests choose devices, each compiled once.
//!
//! Upstream: staging/src/k8s.io/dynamic-resource-allocation/cel/compile.go

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::{LazyLock, Mutex, PoisonError};

use api::resource::v1::{Device, DeviceAttribute};
use cel::{Dynamic, Env, EvalError, Key, Map, Program, Type, Value};

/// Upstream: staging/src/k8s.io/api/resource/v1/types.go CELSelectorExpressionMaxCost
const MAX_COST: u64 = 1_000_000;
/// So many expressions are kept.
const MAX_PROGRAMS: usize = 1024;

static ENVIRONMENT: LazyLock<Env> = LazyLock::new(|| {
    let quantity = Type::Opaque("kubernetes.Quantity", Vec::new());
    let by_domain = |values: Type| Type::map(Type::String, Type::map(Type::String, values));
    let device = Type::object(
        "kubernetes.DRADevice",
        [
            ("driver", Type::String),
            ("allowMultipleAllocations", Type::Bool),
            ("attributes", by_domain(Type::Any)),
            ("capacity", by_domain(quantity)),
        ],
    );
    Env::kubernetes().variable("device", device)
});

/// Values of libraries are made by the libraries' own functions.
static QUANTITY: LazyLock<Program> = LazyLock::new(|| converter("quantity(text)"));
static SEMVER: LazyLock<Program> = LazyLock::new(|| converter("semver(text)"));

fn converter(text: &str) -> Program {
    Env::kubernetes().variable("text", Type::String).compile(text).expect("the library has this function")
}

#[derive(Default)]
pub struct Selectors {
    programs: Mutex<HashMap<String, Result<Program, String>>>,
}

impl Selectors {
    /// Whether the expression chooses the device.
    pub fn matches(&self, expression: &str, driver: &str, device: &Device) -> Result<bool, String> {
        let program = self.program(expression).map_err(|error| format!("CEL compile error: {error}"))?;
        let evaluated = value_of(driver, device).and_then(|device| {
            let result = program.eval(&[("device", device)], MAX_COST).result?;
            result.as_bool().ok_or_else(|| {
                let name = result.type_of();
                EvalError::new(format!("CEL result of type {name} could not be converted to bool"))
            })
        });
        evaluated.map_err(|error| format!("CEL runtime error: {error}"))
    }

    fn program(&self, expression: &str) -> Result<Program, String> {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = programs.get(expression) {
            return known.clone();
        }
        if programs.len() >= MAX_PROGRAMS {
            programs.clear();
        }
        let compiled = match ENVIRONMENT.compile(expression) {
            Err(errors) => Err(format!("compilation failed: {errors}")),
            Ok(program) => match program.result_type() {
                Type::Bool | Type::Any | Type::Dyn => Ok(program),
                other => Err(format!("must evaluate to bool or the unknown type, not {other}")),
            },
        };
        programs.insert(expression.to_owned(), compiled.clone());
        compiled
    }
}

/// Maps by domain; a domain that is not there is an empty one.
struct Domains<'a>(BTreeMap<String, Value<'a>>);

impl<'a> Dynamic<'a> for Domains<'a> {
    fn field(&self, name: &str) -> Option<Result<Value<'a>, EvalError>> {
        Some(Ok(self.0.get(name).cloned().unwrap_or_else(|| entries(BTreeMap::new()))))
    }
}

fn entries<'a>(of: BTreeMap<Key, Value<'a>>) -> Value<'a> {
    Value::Map(Map::Entries(Rc::new(of)))
}

fn key(name: &str) -> Key {
    Key::String(name.into())
}

/// The device as expressions see it.
fn value_of<'a>(driver: &str, device: &'a Device) -> Result<Value<'a>, EvalError> {
    let attributes = device.attributes.iter().flatten().map(|(name, value)| (name, attribute(value)));
    let capacity = device.capacity.iter().flatten().map(|(name, c)| (name, convert(&QUANTITY, &c.value.0)));
    let fields = [
        ("driver", Value::string(driver)),
        ("allowMultipleAllocations", Value::Bool(device.allow_multiple_allocations == Some(true))),
        ("attributes", domains(driver, attributes)?),
        ("capacity", domains(driver, capacity)?),
    ];
    Ok(entries(fields.into_iter().map(|(name, value)| (key(name), value)).collect()))
}

/// Names without a domain are of the driver's.
fn domains<'a, 'n>(
    driver: &str,
    values: impl Iterator<Item = (&'n String, Result<Value<'a>, EvalError>)>,
) -> Result<Value<'a>, EvalError> {
    let mut by_domain: BTreeMap<String, BTreeMap<Key, Value<'a>>> = BTreeMap::new();
    for (name, value) in values {
        let (domain, id) = name.split_once('/').unwrap_or((driver, name));
        by_domain.entry(domain.to_owned()).or_default().insert(key(id), value?);
    }
    let by_domain = by_domain.into_iter().map(|(domain, values)| (domain, entries(values))).collect();
    Ok(Value::Dynamic(Rc::new(Domains(by_domain))))
}

fn attribute(value: &DeviceAttribute) -> Result<Value<'_>, EvalError> {
    match value {
        DeviceAttribute { int: Some(number), .. } => Ok(Value::Int(*number)),
        DeviceAttribute { bool: Some(flag), .. } => Ok(Value::Bool(*flag)),
        DeviceAttribute { string: Some(text), .. } => Ok(Value::string(text.as_str())),
        DeviceAttribute { version: Some(text), .. } => convert(&SEMVER, text),
        _ => Err(EvalError::new("unsupported attribute value")),
    }
}

fn convert<'a>(program: &Program, text: &str) -> Result<Value<'a>, EvalError> {
    program.eval(&[("text", Value::string(text))], MAX_COST).result
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn expressions_see_attributes_and_capacity_by_domain() {
        let device = json!({"name": "gpu-0", "attributes": {"model": {"string": "A100"}, "index": {"int": 3},
                "driverVersion": {"version": "12.1.0"}, "other.example.com/numa": {"int": 1}},
            "capacity": {"memory": {"value": "40Gi"}}});
        let device: Device = serde_json::from_value(device).unwrap();
        let selectors = Selectors::default();
        let matches = |text: &str| selectors.matches(text, "gpu.example.com", &device);
        for (text, expected) in [
            (r#"device.driver == "gpu.example.com""#, true),
            (r#"device.attributes["gpu.example.com"].model == "A100""#, true),
            (r#"device.attributes["gpu.example.com"].index > 3"#, false),
            (r#"device.attributes["other.example.com"].numa == 1"#, true),
            (r#""numa" in device.attributes["nobody.example.com"]"#, false),
            (r#"has(device.attributes["gpu.example.com"].missing)"#, false),
            (r#"device.capacity["gpu.example.com"].memory.compareTo(quantity("20Gi")) > 0"#, true),
            (r#"device.attributes["gpu.example.com"].driverVersion.isGreaterThan(semver("11.0.0"))"#, true),
            ("device.allowMultipleAllocations", false),
        ] {
            assert_eq!(matches(text), Ok(expected), "{text}");
        }
        assert!(
            matches("device.driver").unwrap_err().starts_with("CEL compile error: must evaluate to bool")
        );
        let missing = matches(r#"device.attributes["gpu.example.com"].missing == 1"#).unwrap_err();
        assert_eq!(missing, "CEL runtime error: no such key: missing");
    }
}

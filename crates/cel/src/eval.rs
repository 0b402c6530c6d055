//! The evaluator. It walks the checked tree, counts what every step costs, and stops at the limit.
//!
//! A chain of fields and indexes is one attribute, as in cel-go, because costs and optional values belong to the
//! chain: see [`Evaluator::attribute`].
//!
//! Upstream: cel-go interpreter/interpretable.go, interpreter/attributes.go

pub mod meter;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::rc::Rc;

use regex::Regex;

use crate::ast::{ACCUMULATOR, Call, Comprehension, Expr, ExprKind, Literal};
use crate::check::{Checked, Scope};
use crate::error::EvalError;
use crate::library;
use crate::types::Type;
use crate::value::{Key, List, Map, ObjectValue, Text, Value};

use meter::Meter;

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

/// Patterns that stand in the expression, compiled.
pub type Patterns = HashMap<String, Regex>;

/// The patterns of an expression that are literals.
pub fn patterns(checked: &Checked) -> Patterns {
    let mut patterns = Patterns::new();
    checked.expr.walk(&mut |expr| {
        if let ExprKind::Call(call) = &expr.kind
            && library::regex::takes_pattern(&call.function)
        {
            for arg in &call.args {
                if let ExprKind::Literal(Literal::String(text)) = &arg.kind
                    && let Ok(regex) = library::regex::compile(text)
                {
                    patterns.insert(text.to_string(), regex);
                }
            }
        }
    });
    patterns
}

/// One evaluation.
pub struct Evaluator<'p, 'a, 'b> {
    pub checked: &'p Checked,
    pub scope: &'p Scope,
    pub patterns: &'p Patterns,
    pub bindings: &'b [(&'b str, Value<'a>)],
    pub meter: Meter,
    /// Variables of loops; an accumulator may hold what went wrong.
    locals: Vec<(&'p str, Result<'a>)>,
    compiled: Patterns,
}

/// One step of a chain.
enum Step<'p> {
    Field(&'p str),
    Index(&'p Expr),
}

/// A chain of steps: what it begins with, and each step with its place and whether it is optional.
struct Chain<'p> {
    base: &'p Expr,
    steps: Vec<(Step<'p>, bool)>,
}

fn chain(expr: &Expr) -> Chain<'_> {
    let mut steps = Vec::new();
    let mut base = expr;
    loop {
        match &base.kind {
            ExprKind::Select { operand, field, .. } => {
                steps.push((Step::Field(field), false));
                base = operand;
            }
            ExprKind::Call(call) if call.target.is_none() => {
                let step = match (&*call.function, call.args.as_slice()) {
                    ("_[_]", [_, index]) => (Step::Index(index), false),
                    ("_[?_]", [_, index]) => (Step::Index(index), true),
                    ("_?._", [_, Expr { kind: ExprKind::Literal(Literal::String(field)), .. }]) => {
                        (Step::Field(field), true)
                    }
                    _ => break,
                };
                steps.push(step);
                base = &call.args[0];
            }
            _ => break,
        }
    }
    steps.reverse();
    Chain { base, steps }
}

/// Whether an expression is evaluated as an attribute.
fn is_attribute(expr: &Expr) -> bool {
    match &expr.kind {
        ExprKind::Ident(_) | ExprKind::Select { test_only: false, .. } => true,
        ExprKind::Call(call) => matches!(&*call.function, "_[_]" | "_[?_]" | "_?._" | "_?:_" | "_?_:_"),
        _ => false,
    }
}

fn is_conditional(expr: &Expr) -> bool {
    matches!(&expr.kind, ExprKind::Call(call) if &*call.function == "_?_:_")
}

/// Whether cel-go computes an expression once, before any evaluation, so that it costs nothing.
fn is_constant(expr: &Expr) -> bool {
    match &expr.kind {
        ExprKind::Literal(_) => true,
        ExprKind::List(items) => items.iter().all(|(item, _)| is_constant(item)),
        ExprKind::Map(entries) => {
            entries.iter().all(|entry| is_constant(&entry.key) && is_constant(&entry.value))
        }
        ExprKind::Call(call) => {
            let conversion = matches!(
                &*call.function,
                "bool"
                    | "bytes"
                    | "double"
                    | "duration"
                    | "dyn"
                    | "int"
                    | "string"
                    | "timestamp"
                    | "type"
                    | "uint"
            );
            conversion && call.target.is_none() && call.args.len() == 1 && is_constant(&call.args[0])
        }
        _ => false,
    }
}

impl<'p, 'a, 'b> Evaluator<'p, 'a, 'b> {
    pub fn new(
        checked: &'p Checked,
        scope: &'p Scope,
        patterns: &'p Patterns,
        bindings: &'b [(&'b str, Value<'a>)],
        limit: u64,
    ) -> Self {
        let (locals, compiled) = (Vec::new(), Patterns::new());
        Evaluator { checked, scope, patterns, bindings, meter: Meter::new(limit), locals, compiled }
    }

    pub fn eval(&mut self, expr: &'p Expr) -> Result<'a> {
        if is_constant(expr) {
            let free = self.meter.pause();
            let value = self.compute(expr);
            self.meter.resume(free);
            return value;
        }
        self.compute(expr)
    }

    fn compute(&mut self, expr: &'p Expr) -> Result<'a> {
        match &expr.kind {
            ExprKind::Literal(literal) => Ok(literal_value(literal)),
            ExprKind::Select { operand, field, test_only: true } => self.presence(operand, field),
            ExprKind::Ident(_) | ExprKind::Select { .. } => self.attribute(expr, true),
            ExprKind::Call(call) if is_attribute(expr) && call.target.is_none() => self.attribute(expr, true),
            ExprKind::Call(call) => self.call(expr, call),
            ExprKind::List(items) => self.list(items),
            ExprKind::Map(_) => self.map(expr),
            ExprKind::Struct { .. } => self.message(expr),
            ExprKind::Comprehension(fold) => self.fold(fold),
        }
    }

    /// A chain of fields and indexes. It costs one for itself, unless it is the branch of a condition or an index
    /// (`observed` is false then) or begins with a condition, and one for each step.
    fn attribute(&mut self, expr: &'p Expr, observed: bool) -> Result<'a> {
        let Chain { base, steps } = chain(expr);
        let mut value = self.base(base)?;
        // The name of a type is a constant.
        let free = is_conditional(base) || (steps.is_empty() && matches!(value, Value::Type(_)));
        if observed && !free {
            self.meter.charge(1)?;
        }
        let mut optional = false;
        if let Value::Optional(held) = &value
            && !steps.is_empty()
        {
            let Some(held) = held else { return Ok(value) };
            value = (**held).clone();
            optional = true;
        }
        for (step, marked) in &steps {
            optional = optional || *marked;
            let found = self.step(&value, step)?;
            match found {
                Found::Present(next) => {
                    self.meter.charge(1)?;
                    value = next;
                }
                _ if optional => return Ok(Value::none()),
                Found::Absent(error) => {
                    self.meter.charge(1)?;
                    return Err(error);
                }
            }
        }
        Ok(if optional { Value::some(value) } else { value })
    }

    /// What a chain begins with.
    fn base(&mut self, base: &'p Expr) -> Result<'a> {
        match &base.kind {
            ExprKind::Ident(name) => self.resolve(name).inspect_err(|_| self.meter.note(1)),
            ExprKind::Call(call) if is_conditional(base) => {
                let [condition, truthy, falsy] = call.args.as_slice() else { return library::no_overload() };
                let branch = match self.eval(condition)? {
                    Value::Bool(true) => truthy,
                    Value::Bool(false) => falsy,
                    _ => return library::no_overload(),
                };
                if is_attribute(branch) { self.attribute(branch, false) } else { self.eval(branch) }
            }
            _ => self.eval(base),
        }
    }

    fn resolve(&self, name: &str) -> Result<'a> {
        let name = name.strip_prefix('.').unwrap_or(name);
        if let Some((_, value)) = self.locals.iter().rev().find(|(local, _)| *local == name) {
            return value.clone();
        }
        if let Some((_, value)) = self.bindings.iter().find(|(bound, _)| *bound == name) {
            return Ok(value.clone());
        }
        match self.scope.type_named(name) {
            Some(ty) => Ok(Value::Type(ty)),
            None => Err(EvalError::new(format!("no such attribute(s): {name}"))),
        }
    }

    fn step(&mut self, value: &Value<'a>, step: &Step<'p>) -> std::result::Result<Found<'a>, EvalError> {
        match step {
            Step::Field(field) => field_of(value, field),
            Step::Index(index) => {
                let key = match is_attribute(index) {
                    true => self.attribute(index, false)?,
                    false => self.eval(index)?,
                };
                index_of(value, &key)
            }
        }
    }

    /// `has(operand.field)`, which costs what its operand costs.
    fn presence(&mut self, operand: &'p Expr, field: &str) -> Result<'a> {
        let mut value = self.eval(operand)?;
        // An operand that is no chain becomes one, which costs.
        if !is_attribute(operand) {
            self.meter.charge(1)?;
        }
        if let Value::Optional(held) = value {
            match held {
                Some(held) => value = (*held).clone(),
                None => return Ok(Value::Bool(false)),
            }
        }
        let found = match &value {
            Value::Object(object) => match object.fields.get(field) {
                Some(set) => {
                    &*object.name != "JSONPatch" || !matches!(set, Value::String(text) if text.is_empty())
                }
                None => false,
            },
            value => matches!(field_of(value, field)?, Found::Present(_)),
        };
        Ok(Value::Bool(found))
    }

    fn call(&mut self, expr: &'p Expr, call: &'p Call) -> Result<'a> {
        match (&*call.function, call.args.as_slice()) {
            ("_&&_", [left, right]) => return self.logic(left, right, false),
            ("_||_", [left, right]) => return self.logic(left, right, true),
            ("or", [other]) => return self.otherwise(call, other, false),
            ("orValue", [other]) => return self.otherwise(call, other, true),
            ("@not_strictly_false", [arg]) => {
                let value = self.eval(arg);
                self.meter.charge(1)?;
                return match value {
                    Err(EvalError::CostLimitExceeded) => Err(EvalError::CostLimitExceeded),
                    Ok(Value::Bool(flag)) => Ok(Value::Bool(flag)),
                    _ => Ok(Value::Bool(true)),
                };
            }
            ("@in", [item, list]) if is_set(list) => {
                let item = self.eval(item)?;
                let list = self.eval(list)?;
                return library::apply("@in", &[item, list]);
            }
            _ => {}
        }
        let args = self.args(call)?;
        self.apply(expr, call, args)
    }

    /// The arguments, the target first. One or two are all evaluated, even when the first fails, and their call is
    /// paid for; of more, none after the first failure.
    fn args(&mut self, call: &'p Call) -> std::result::Result<Vec<Value<'a>>, EvalError> {
        let count = call.args.len() + usize::from(call.target.is_some());
        let mut values = Vec::with_capacity(count);
        let mut failed = None;
        for (index, arg) in call.target.iter().chain(&call.args).enumerate() {
            // An accumulator that is added to is moved, so that a loop does not copy it each time.
            let value = match &arg.kind {
                ExprKind::Ident(name) if index == 0 && &**name == ACCUMULATOR && grows(&call.function) => {
                    self.take_accumulator()
                }
                _ => self.eval(arg),
            };
            match value {
                Ok(value) => values.push(value),
                Err(EvalError::CostLimitExceeded) => return Err(EvalError::CostLimitExceeded),
                Err(error) if count > 2 => return Err(error),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        match failed {
            None => Ok(values),
            Some(error) => {
                self.meter.charge(1)?;
                Err(error)
            }
        }
    }

    fn take_accumulator(&mut self) -> Result<'a> {
        self.meter.charge(1)?;
        let local = self.locals.iter_mut().rev().find(|(name, _)| *name == ACCUMULATOR);
        match local {
            Some((_, value)) => std::mem::replace(value, Ok(Value::Null)),
            None => Err(EvalError::new(format!("no such attribute(s): {ACCUMULATOR}"))),
        }
    }

    fn apply(&mut self, expr: &'p Expr, call: &'p Call, args: Vec<Value<'a>>) -> Result<'a> {
        let overload = self.checked.single_overload(expr);
        let id = overload.map_or("", |overload| overload.id.as_str());
        if !grows(&call.function) {
            self.meter.work(&args)?;
        }
        // What depends on the result is charged after; all else before, so that nothing is done that is not paid.
        if let Some(cost) = meter::cost_of_args(&call.function, id, &args) {
            self.meter.charge(cost)?;
            return match &*call.function {
                // An accumulator that is owned alone grows in place.
                "_+_" => self.add(args),
                "cel.@mapInsert" => library::map_insert(args),
                _ => self.run(call, &args).map_err(|error| self.name_overload(expr, call, &args, error)),
            };
        }
        let result = self.run(call, &args);
        let size = result.as_ref().map_or(1, Value::size);
        self.meter.charge(meter::cost_of_result(&call.function, size))?;
        result
    }

    fn add(&mut self, mut args: Vec<Value<'a>>) -> Result<'a> {
        match args.as_mut_slice() {
            [Value::List(left), Value::List(right)] => {
                // Items of sets and of lists by key are looked for, one by one.
                let sought = if left.declaration().is_some() { left.len() * right.len() } else { 1 };
                self.meter.toil(sought as u64)?;
                let left = std::mem::replace(left, List::Json(&[], None));
                left.concat(right).map(Value::List)
            }
            args => {
                self.meter.work(args)?;
                library::apply("_+_", args)
            }
        }
    }

    fn run(&mut self, call: &Call, args: &[Value<'a>]) -> Result<'a> {
        if !library::regex::takes_pattern(&call.function) {
            return library::apply(&call.function, args);
        }
        let Some(Value::String(pattern)) = args.get(1) else { return library::no_overload() };
        if let Some(regex) = self.patterns.get(&**pattern) {
            return library::regex::eval(&call.function, args, regex);
        }
        if !self.compiled.contains_key(&**pattern) {
            // Compiling costs far more than the pattern's length says, so few are kept and all are counted.
            self.meter.toil(COMPILE_WORK)?;
            self.compiled.insert(pattern.to_string(), library::regex::compile(pattern)?);
        }
        library::regex::eval(&call.function, args, &self.compiled[&**pattern])
    }

    /// A call that several overloads could have taken and none took says of what.
    fn name_overload(&self, expr: &Expr, call: &Call, args: &[Value<'a>], error: EvalError) -> EvalError {
        let several = self.checked.overloads(expr).len() > 1 && !call.function.contains(['_', '@', '.']);
        if !several || error != EvalError::no_such_overload() {
            return error;
        }
        let types: Vec<String> = args.iter().map(|arg| arg.type_of().runtime_name().to_owned()).collect();
        EvalError::new(format!("no such overload: {}({})", call.function, types.join(", ")))
    }

    /// `&&` and `||`: a side that decides absorbs what went wrong on the other.
    fn logic(&mut self, left: &'p Expr, right: &'p Expr, decisive: bool) -> Result<'a> {
        let mut failed = None;
        for side in [left, right] {
            match self.eval(side) {
                Ok(Value::Bool(flag)) if flag == decisive => return Ok(Value::Bool(flag)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => {
                    failed.get_or_insert(EvalError::no_such_overload());
                }
                Err(EvalError::CostLimitExceeded) => return Err(EvalError::CostLimitExceeded),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(Value::Bool(!decisive)), Err)
    }

    /// `or` and `orValue`.
    fn otherwise(&mut self, call: &'p Call, other: &'p Expr, unwrap: bool) -> Result<'a> {
        let Some(target) = &call.target else { return library::no_overload() };
        match self.eval(target)? {
            Value::Optional(Some(held)) if unwrap => Ok((*held).clone()),
            held @ Value::Optional(Some(_)) => Ok(held),
            Value::Optional(None) => match self.eval(other)? {
                value if unwrap || matches!(value, Value::Optional(_)) => Ok(value),
                _ => library::no_overload(),
            },
            _ => library::no_overload(),
        }
    }

    /// An item that may be left out.
    fn item(&mut self, expr: &'p Expr, optional: bool) -> std::result::Result<Option<Value<'a>>, EvalError> {
        match self.eval(expr)? {
            Value::Optional(held) if optional => Ok(held.map(|held| (*held).clone())),
            _ if optional => Err(EvalError::new("cannot initialize optional entry from non-optional value")),
            value => Ok(Some(value)),
        }
    }

    fn list(&mut self, items: &'p [(Expr, bool)]) -> Result<'a> {
        let mut values = Vec::with_capacity(items.len());
        for (item, optional) in items {
            values.extend(self.item(item, *optional)?);
        }
        self.meter.charge(meter::LIST)?;
        Ok(Value::list(values))
    }

    fn map(&mut self, expr: &'p Expr) -> Result<'a> {
        let ExprKind::Map(entries) = &expr.kind else { return library::no_overload() };
        let mut values = BTreeMap::new();
        for entry in entries {
            let key = self.eval(&entry.key)?;
            let key = Key::from_value(&key).ok_or_else(|| {
                EvalError::new(format!("unsupported key type: {}", key.type_of().runtime_name()))
            })?;
            if let Some(value) = self.item(&entry.value, entry.optional)? {
                values.insert(key, value);
            }
        }
        self.meter.charge(meter::MAP)?;
        Ok(Value::Map(Map::Entries(Rc::new(values))))
    }

    fn message(&mut self, expr: &'p Expr) -> Result<'a> {
        let ExprKind::Struct { name, fields } = &expr.kind else { return library::no_overload() };
        let mut values = BTreeMap::new();
        for field in fields {
            if let Some(value) = self.item(&field.value, field.optional)? {
                values.insert(field.name.to_string(), value);
            }
        }
        self.meter.charge(meter::STRUCT)?;
        Ok(Value::Object(Rc::new(ObjectValue { name: Rc::from(&**name), fields: values })))
    }

    /// Upstream: cel-go interpreter/interpretable.go evalFold
    fn fold(&mut self, fold: &'p Comprehension) -> Result<'a> {
        let range = self.eval(&fold.range)?;
        let init = match self.eval(&fold.init) {
            Err(EvalError::CostLimitExceeded) => return Err(EvalError::CostLimitExceeded),
            init => init,
        };
        let outside = self.locals.len();
        self.locals.push((&fold.accumulator, init));
        let looped = self.iterate(fold, &range, outside);
        self.locals.truncate(outside + 1);
        let result = match looped {
            Ok(()) => self.eval(&fold.result),
            Err(error) => Err(error),
        };
        self.locals.truncate(outside);
        result
    }

    fn iterate(
        &mut self,
        fold: &'p Comprehension,
        range: &Value<'a>,
        at: usize,
    ) -> std::result::Result<(), EvalError> {
        match range {
            Value::List(list) => {
                for index in 0..list.len() {
                    let item = list.get(index).unwrap_or(Ok(Value::Null));
                    let (first, second) = match fold.second {
                        Some(_) => (Ok(Value::Int(index as i64)), Some(item)),
                        None => (item, None),
                    };
                    if !self.turn(fold, at, first, second)? {
                        return Ok(());
                    }
                }
                Ok(())
            }
            Value::Map(map) => {
                for key in map.keys() {
                    let second = fold.second.as_ref().map(|_| map.get(&key).unwrap_or(Ok(Value::Null)));
                    if !self.turn(fold, at, Ok(key.to_value()), second)? {
                        return Ok(());
                    }
                }
                Ok(())
            }
            other => {
                let name = go_type_name(other);
                Err(EvalError::new(format!("got '{name}', expected iterable type")))
            }
        }
    }

    /// One turn of a loop. Whether there may be another.
    fn turn(
        &mut self,
        fold: &'p Comprehension,
        at: usize,
        first: Result<'a>,
        second: Option<Result<'a>>,
    ) -> std::result::Result<bool, EvalError> {
        self.locals.truncate(at + 1);
        self.locals.push((&fold.variable, first));
        if let (Some(name), Some(value)) = (&fold.second, second) {
            self.locals.push((name, value));
        }
        match self.eval(&fold.condition) {
            Ok(Value::Bool(false)) => return Ok(false),
            Err(EvalError::CostLimitExceeded) => return Err(EvalError::CostLimitExceeded),
            _ => {}
        }
        match self.eval(&fold.step) {
            Err(EvalError::CostLimitExceeded) => Err(EvalError::CostLimitExceeded),
            stepped => {
                self.locals[at].1 = stepped;
                Ok(true)
            }
        }
    }
}

/// How much work compiling a pattern stands for.
const COMPILE_WORK: u64 = 100_000;

/// Functions that macros grow their accumulators with.
fn grows(function: &str) -> bool {
    matches!(function, "_+_" | "cel.@mapInsert")
}

/// A literal list of values that have no parts, in which looking something up is free.
fn is_set(expr: &Expr) -> bool {
    let plain = |literal: &Literal| !matches!(literal, Literal::Bytes(_) | Literal::Null);
    match &expr.kind {
        ExprKind::List(items) => {
            items.iter().all(|(item, _)| matches!(&item.kind, ExprKind::Literal(literal) if plain(literal)))
        }
        _ => false,
    }
}

fn literal_value<'a>(literal: &Literal) -> Value<'a> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(flag) => Value::Bool(*flag),
        Literal::Int(number) => Value::Int(*number),
        Literal::Uint(number) => Value::Uint(*number),
        Literal::Double(number) => Value::Double(*number),
        Literal::String(text) => Value::String(Text::Literal(text.clone())),
        Literal::Bytes(bytes) => Value::bytes(&**bytes),
    }
}

/// What a step of a chain finds, or why it finds nothing.
enum Found<'a> {
    Present(Value<'a>),
    Absent(EvalError),
}

fn found<'a>(
    value: Option<Result<'a>>,
    otherwise: impl FnOnce() -> EvalError,
) -> std::result::Result<Found<'a>, EvalError> {
    match value {
        Some(value) => value.map(Found::Present),
        None => Ok(Found::Absent(otherwise())),
    }
}

fn field_of<'a>(value: &Value<'a>, field: &str) -> std::result::Result<Found<'a>, EvalError> {
    let missing = || EvalError::no_such_key(field);
    match value {
        Value::Map(map) => found(map.get(&Key::String(field.into())), missing),
        Value::Dynamic(object) => found(object.field(field), missing),
        Value::Object(object) => match object.fields.get(field) {
            Some(value) => Ok(Found::Present(value.clone())),
            // A field that was not set is its type's zero.
            None if &*object.name == "JSONPatch" && field != "value" => Ok(Found::Present(Value::string(""))),
            None => Ok(Found::Present(Value::Null)),
        },
        Value::List(_) => Ok(Found::Absent(EvalError::new("unsupported index type 'string' in list"))),
        _ => Ok(Found::Absent(missing())),
    }
}

fn index_of<'a>(value: &Value<'a>, key: &Value<'a>) -> std::result::Result<Found<'a>, EvalError> {
    let Value::List(list) = value else {
        return match (value, Key::from_value(key)) {
            (Value::Map(map), Some(key)) => found(map.get(&key), || EvalError::no_such_key(&key)),
            (_, Some(Key::String(field))) => field_of(value, &field),
            (_, Some(key)) => Ok(Found::Absent(EvalError::no_such_key(key))),
            (_, None) => Ok(Found::Absent(EvalError::no_such_key(key.type_of().runtime_name()))),
        };
    };
    index_list(list, key)
}

fn index_list<'a>(list: &List<'a>, key: &Value<'a>) -> std::result::Result<Found<'a>, EvalError> {
    let index = match key {
        Value::Int(index) => *index,
        Value::Uint(index) => i64::try_from(*index).unwrap_or(i64::MAX),
        Value::Double(index) if index.fract() == 0.0 => *index as i64,
        other => {
            let message = format!("unsupported index type '{}' in list", other.type_of().runtime_name());
            return Ok(Found::Absent(EvalError::new(message)));
        }
    };
    let item = usize::try_from(index).ok().and_then(|index| list.get(index));
    found(item, || EvalError::new(format!("index out of bounds: {index}")))
}

/// The name that a type has in cel-go's code, which its messages show.
fn go_type_name(value: &Value<'_>) -> &'static str {
    match value.type_of() {
        Type::Bool => "types.Bool",
        Type::Int => "types.Int",
        Type::Uint => "types.Uint",
        Type::Double => "types.Double",
        Type::String => "types.String",
        Type::Bytes => "types.Bytes",
        Type::Duration => "types.Duration",
        Type::Timestamp => "types.Timestamp",
        Type::Null => "types.Null",
        _ => "*types.Optional",
    }
}

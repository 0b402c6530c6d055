//! The type checker: resolves names and overloads and gives every node a type, in cel-go's order and words.
//!
//! Upstream: cel-go checker/checker.go

mod unify;
mod validate;

use std::sync::Arc;

use crate::ast::{Call, Comprehension, Expr, ExprKind, Literal};
use crate::error::CompileErrors;
use crate::library::{self, Overload};
use crate::types::{ObjectType, Type};
use unify::Substitution;

/// An expression with what the checker found, by the ids of its nodes.
#[derive(Debug)]
pub struct Checked {
    pub expr: Expr,
    types: Vec<Type>,
    overloads: Vec<Vec<&'static Overload>>,
}

impl Checked {
    pub fn type_of(&self, expr: &Expr) -> &Type {
        &self.types[expr.id]
    }

    /// The overloads that a call may turn out to be.
    pub fn overloads(&self, expr: &Expr) -> &[&'static Overload] {
        &self.overloads[expr.id]
    }

    /// The only overload that a call may be, if it is one.
    pub fn single_overload(&self, expr: &Expr) -> Option<&'static Overload> {
        match self.overloads(expr) {
            [one] => Some(one),
            _ => None,
        }
    }
}

/// The names that types have in expressions.
const TYPE_NAMES: &[(&str, Type)] = &[
    ("bool", Type::Bool),
    ("bytes", Type::Bytes),
    ("double", Type::Double),
    ("google.protobuf.Duration", Type::Duration),
    ("int", Type::Int),
    ("null_type", Type::Null),
    ("string", Type::String),
    ("google.protobuf.Timestamp", Type::Timestamp),
    ("uint", Type::Uint),
];

/// What names mean.
#[derive(Clone, Debug)]
pub struct Scope {
    pub variables: Vec<(Arc<str>, Type)>,
    /// Whether `Object{…}` and `JSONPatch{…}` can be made, and `jsonpatch.escapeKey` called.
    pub patch_types: bool,
}

impl Scope {
    fn lookup(&self, name: &str) -> Option<Type> {
        let name = name.strip_prefix('.').unwrap_or(name);
        let variable = self.variables.iter().rev().find(|(declared, _)| &**declared == name);
        variable.map(|(_, ty)| ty.clone()).or_else(|| self.type_named(name).map(Type::type_of))
    }

    /// The type that a name stands for.
    pub fn type_named(&self, name: &str) -> Option<Type> {
        if let Some((_, ty)) = TYPE_NAMES.iter().find(|(known, _)| *known == name) {
            return Some(ty.clone());
        }
        match name {
            "list" => return Some(Type::list(Type::Dyn)),
            "map" => return Some(Type::map(Type::Dyn, Type::Dyn)),
            "type" => return Some(Type::Type(None)),
            _ if !self.patch_types => return None,
            _ => {}
        }
        if name == "JSONPatch" {
            return Some(Type::object(
                name,
                [("op", Type::String), ("path", Type::String), ("from", Type::String), ("value", Type::Dyn)],
            ));
        }
        let of_object = name == "Object" || name.starts_with("Object.");
        of_object.then(|| {
            Type::Object(Arc::new(ObjectType {
                name: name.to_owned(),
                fields: Default::default(),
                open: true,
            }))
        })
    }
}

/// Checks a parsed expression.
pub fn check(text: &str, expr: Expr, scope: &Scope) -> Result<Checked, CompileErrors> {
    let mut nodes = 0;
    expr.walk(&mut |node| nodes = nodes.max(node.id + 1));
    let mut checker = Checker {
        scope: scope.clone(),
        types: vec![Type::Error; nodes],
        overloads: vec![Vec::new(); nodes],
        substitution: Substitution::default(),
        free: 0,
        errors: CompileErrors::new(text),
    };
    let mut expr = expr;
    checker.check(&mut expr);
    let Checker { mut types, overloads, substitution, mut errors, .. } = checker;
    for ty in &mut types {
        *ty = substitution.apply(ty, true);
    }
    let checked = Checked { expr, types, overloads };
    if errors.is_empty() {
        validate::validate(&checked, &mut errors);
    }
    if !errors.is_empty() {
        errors.sort();
        return Err(errors);
    }
    Ok(checked)
}

struct Checker {
    scope: Scope,
    types: Vec<Type>,
    overloads: Vec<Vec<&'static Overload>>,
    substitution: Substitution,
    free: usize,
    errors: CompileErrors,
}

impl Checker {
    fn check(&mut self, expr: &mut Expr) {
        let ty = match &mut expr.kind {
            ExprKind::Literal(literal) => literal_type(literal),
            ExprKind::Ident(name) => match self.scope.lookup(name) {
                Some(ty) => ty,
                None => self.undeclared(expr.offset, &name.clone()),
            },
            ExprKind::Select { .. } => self.select(expr),
            ExprKind::Call(_) => self.call(expr),
            ExprKind::List(items) => self.list(items),
            ExprKind::Map(_) => self.map(expr),
            ExprKind::Struct { .. } => self.message(expr),
            ExprKind::Comprehension(fold) => self.comprehension(fold),
        };
        self.types[expr.id] = ty;
    }

    fn type_of(&self, expr: &Expr) -> Type {
        self.types[expr.id].clone()
    }

    fn undeclared(&mut self, offset: usize, name: &str) -> Type {
        self.errors.report(offset, format!("undeclared reference to '{name}' (in container '')"));
        Type::Error
    }

    fn mismatch(&mut self, offset: usize, expected: &Type, actual: &Type) {
        let message = format!(
            "expected type '{}' but found '{}'",
            self.substitution.apply(expected, false),
            self.substitution.apply(actual, false)
        );
        self.errors.report(offset, message);
    }

    fn fresh(&mut self) -> Type {
        self.free += 1;
        Type::Param(format!("_var{}", self.free - 1).into())
    }

    fn select(&mut self, expr: &mut Expr) -> Type {
        if let Some(name) = expr.qualified_name()
            && let Some(ty) = self.scope.lookup(&name)
        {
            expr.kind = ExprKind::Ident(name.into());
            return ty;
        }
        let ExprKind::Select { operand, field, test_only } = &mut expr.kind else { return Type::Error };
        let ty = self.field(expr.offset, operand, &field.clone(), false);
        if *test_only { Type::Bool } else { self.substitution.apply(&ty, false) }
    }

    /// The type of a field of an operand.
    fn field(&mut self, offset: usize, operand: &mut Expr, field: &str, optional: bool) -> Type {
        self.check(operand);
        let operand_type = self.substitution.apply(&self.types[operand.id], false);
        let (target, was_optional) = match operand_type.optional_item() {
            Some(item) => (item.clone(), true),
            None => (operand_type, false),
        };
        let result = match &target {
            Type::Map(entry) => entry.1.clone(),
            Type::Object(object) => self.object_field(offset, object, field),
            Type::Param(_) => {
                self.substitution.assign(&Type::Dyn, &target);
                Type::Dyn
            }
            other => {
                if !other.is_dyn_or_error() {
                    self.errors.report(offset, format!("type '{other}' does not support field selection"));
                }
                Type::Dyn
            }
        };
        if was_optional || optional { Type::optional(result) } else { result }
    }

    fn object_field(&mut self, offset: usize, object: &ObjectType, field: &str) -> Type {
        match object.fields.get(field) {
            Some(ty) => ty.clone(),
            None if object.open => Type::Dyn,
            None => {
                self.errors.report(offset, format!("undefined field '{field}'"));
                Type::Error
            }
        }
    }

    fn call(&mut self, expr: &mut Expr) -> Type {
        let ExprKind::Call(call) = &mut expr.kind else { return Type::Error };
        if &*call.function == "_?._" {
            return self.optional_select(expr);
        }
        for arg in &mut call.args {
            self.check(arg);
        }
        if let Some(target) = &mut call.target {
            let qualified = target.qualified_name().map(|prefix| format!("{prefix}.{}", call.function));
            match qualified.filter(|name| self.function(name).is_some()) {
                Some(name) => {
                    call.function = name.into();
                    call.target = None;
                }
                None => self.check(target),
            }
        }
        match self.function(&call.function) {
            Some(overloads) => self.resolve(expr, overloads),
            None => {
                let name = call.function.clone();
                self.undeclared(expr.offset, &name)
            }
        }
    }

    fn function(&self, name: &str) -> Option<&'static [Overload]> {
        let enabled = self.scope.patch_types || !name.starts_with("jsonpatch.");
        library::overloads(name).filter(|_| enabled)
    }

    fn optional_select(&mut self, expr: &mut Expr) -> Type {
        let offset = expr.offset;
        let ExprKind::Call(call) = &mut expr.kind else { return Type::Error };
        let Call { args, .. } = &mut **call;
        let [operand, field] = args.as_mut_slice() else { return Type::Error };
        let ExprKind::Literal(Literal::String(name)) = &field.kind else { return Type::Error };
        let name = name.clone();
        self.types[field.id] = Type::String;
        let ty = self.field(offset, operand, &name, true);
        self.overloads[expr.id] = library::overloads("_?._").into_iter().flatten().collect();
        self.substitution.apply(&ty, false)
    }

    fn resolve(&mut self, expr: &Expr, overloads: &'static [Overload]) -> Type {
        let ExprKind::Call(call) = &expr.kind else { return Type::Error };
        if let "_&&_" | "_||_" = &*call.function {
            return self.logic(expr, call, overloads);
        }
        let is_member = call.target.is_some();
        let args: Vec<Type> = call.target.iter().chain(&call.args).map(|arg| self.type_of(arg)).collect();
        let mut result: Option<Type> = None;
        let mut matching = Vec::new();
        for overload in overloads.iter().filter(|overload| overload.member == is_member) {
            let (params, of) = self.instantiate(overload);
            if !self.substitution.assign_all(&args, &params) {
                continue;
            }
            matching.push(overload);
            let of = self.substitution.apply(&of, false);
            result = Some(match result {
                Some(before) if !before.is_dyn() && before != of => Type::Dyn,
                Some(before) => before,
                None => of,
            });
        }
        let Some(result) = result else {
            let shown: Vec<String> =
                args.iter().map(|arg| self.substitution.apply(arg, true).to_string()).collect();
            let signature = match shown.split_first() {
                Some((target, rest)) if is_member => format!("{target}.({})", rest.join(", ")),
                _ => format!("({})", shown.join(", ")),
            };
            let message =
                format!("found no matching overload for '{}' applied to '{signature}'", call.function);
            self.errors.report(expr.offset, message);
            return Type::Error;
        };
        self.overloads[expr.id] = matching;
        result
    }

    fn logic(&mut self, expr: &Expr, call: &Call, overloads: &'static [Overload]) -> Type {
        let mut result = Type::Bool;
        for arg in &call.args {
            let ty = self.type_of(arg);
            if !self.substitution.assign(&ty, &Type::Bool) {
                self.mismatch(arg.offset, &Type::Bool, &ty);
                result = Type::Error;
            }
        }
        self.overloads[expr.id] = overloads.iter().collect();
        result
    }

    /// The parameters and the result of an overload with type variables of its own.
    fn instantiate(&mut self, overload: &Overload) -> (Vec<Type>, Type) {
        if overload.type_params.is_empty() {
            return (overload.params.clone(), overload.result.clone());
        }
        let mut fresh = Substitution::default();
        for name in &overload.type_params {
            let variable = self.fresh();
            fresh.set(name.clone(), variable);
        }
        let params = overload.params.iter().map(|param| fresh.apply(param, false)).collect();
        (params, fresh.apply(&overload.result, false))
    }

    /// The type of one of many items: what an optional holds when it is marked as one.
    fn item(&mut self, item: &Expr, optional: bool) -> Type {
        let ty = self.type_of(item);
        if !optional {
            return ty;
        }
        let resolved = self.substitution.apply(&ty, false);
        if let Some(held) = resolved.optional_item() {
            return held.clone();
        }
        if !resolved.is_dyn() {
            self.mismatch(item.offset, &Type::optional(resolved.clone()), &resolved);
        }
        ty
    }

    fn join(&mut self, before: Option<Type>, next: Type) -> Type {
        match before {
            None => next,
            Some(before) if self.substitution.assign(&before, &next) => unify::most_general(before, next),
            Some(_) => Type::Dyn,
        }
    }

    fn list(&mut self, items: &mut [(Expr, bool)]) -> Type {
        let mut of = None;
        for (item, optional) in items {
            self.check(item);
            let ty = self.item(item, *optional);
            of = Some(self.join(of, ty));
        }
        Type::list(of.unwrap_or_else(|| self.fresh()))
    }

    fn map(&mut self, expr: &mut Expr) -> Type {
        let ExprKind::Map(entries) = &mut expr.kind else { return Type::Error };
        let (mut keys, mut values) = (None, None);
        for entry in entries {
            self.check(&mut entry.key);
            let key = self.type_of(&entry.key);
            keys = Some(self.join(keys, key));
            self.check(&mut entry.value);
            let value = self.item(&entry.value, entry.optional);
            values = Some(self.join(values, value));
        }
        let keys = keys.unwrap_or_else(|| self.fresh());
        let values = values.unwrap_or_else(|| self.fresh());
        Type::map(keys, values)
    }

    fn message(&mut self, expr: &mut Expr) -> Type {
        let offset = expr.offset;
        let ExprKind::Struct { name, fields } = &mut expr.kind else { return Type::Error };
        let object = match self.scope.lookup(name) {
            None => return self.undeclared(offset, &name.clone()),
            Some(Type::Type(Some(of))) => match &*of {
                Type::Object(object) => object.clone(),
                other => {
                    let message = format!("'{}' is not a message type", other.runtime_name());
                    self.errors.report(offset, message);
                    return Type::Error;
                }
            },
            Some(other) => {
                self.errors.report(offset, format!("'{}' is not a type", other.runtime_name()));
                return Type::Error;
            }
        };
        for field in fields {
            self.check(&mut field.value);
            let actual = self.item(&field.value, field.optional);
            // The type of a field that is none has no name in upstream's message.
            let expected = match object.fields.get(&*field.name) {
                Some(ty) => Some(ty.clone()),
                None => object.open.then_some(Type::Dyn),
            };
            let fits = expected.as_ref().is_some_and(|expected| self.substitution.assign(expected, &actual));
            if !fits {
                let expected = expected.map(|ty| ty.to_string()).unwrap_or_default();
                let actual = self.substitution.apply(&actual, false);
                let message = format!(
                    "expected type of field '{}' is '{expected}' but provided type is '{actual}'",
                    field.name
                );
                self.errors.report(field.offset, message);
            }
        }
        Type::Object(object)
    }

    fn comprehension(&mut self, fold: &mut Comprehension) -> Type {
        self.check(&mut fold.range);
        self.check(&mut fold.init);
        let range = self.substitution.apply(&self.types[fold.range.id], false);
        let accumulator = self.type_of(&fold.init);
        let outside = self.scope.variables.len();
        self.scope.variables.push((fold.accumulator.clone(), accumulator.clone()));
        let (first, second) = self.loop_variables(&range, fold.second.is_some(), fold.range.offset);
        self.scope.variables.push((fold.variable.clone(), first));
        if let Some(name) = &fold.second {
            self.scope.variables.push((name.clone(), second));
        }
        self.check(&mut fold.condition);
        self.assert(&fold.condition, &Type::Bool);
        self.check(&mut fold.step);
        self.assert(&fold.step, &accumulator);
        self.scope.variables.truncate(outside + 1);
        self.check(&mut fold.result);
        self.scope.variables.truncate(outside);
        self.substitution.apply(&self.types[fold.result.id], false)
    }

    fn loop_variables(&mut self, range: &Type, two: bool, offset: usize) -> (Type, Type) {
        match range {
            Type::List(items) if two => (Type::Int, (**items).clone()),
            Type::List(items) => ((**items).clone(), Type::Error),
            Type::Map(entry) => entry.as_ref().clone(),
            Type::Dyn | Type::Any | Type::Error | Type::Param(_) => {
                self.substitution.assign(&Type::Dyn, range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.errors.report(offset, message);
                (Type::Error, Type::Error)
            }
        }
    }

    fn assert(&mut self, expr: &Expr, expected: &Type) {
        let actual = self.type_of(expr);
        if !self.substitution.assign(expected, &actual) {
            self.mismatch(expr.offset, expected, &actual);
        }
    }
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}

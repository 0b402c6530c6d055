//! What is wrong with a well-typed expression: literals that are no durations, moments or patterns, lists and maps
//! of mixed types, formats that do not fit their arguments.
//!
//! Upstream: cel-go cel/validator.go, ext/formatting.go

use super::Checked;
use crate::ast::{Expr, ExprKind, Literal};
use crate::error::CompileErrors;
use crate::library;
use crate::types::Type;

pub fn validate(checked: &Checked, errors: &mut CompileErrors) {
    checked.expr.walk(&mut |expr| {
        if let ExprKind::Call(call) = &expr.kind {
            literals(&call.function, &call.args, errors);
            if let ("format", Some(target), [args]) = (&*call.function, &call.target, call.args.as_slice()) {
                format(checked, expr, target, args, errors);
            }
        }
    });
    homogeneous(checked, &checked.expr, errors);
}

fn literals(function: &str, args: &[Expr], errors: &mut CompileErrors) {
    let Some(Expr { kind: ExprKind::Literal(literal), offset, .. }) = args.first() else { return };
    let right = match (function, literal) {
        ("duration", Literal::String(text)) => library::time::parse_duration(text).is_some(),
        ("duration", _) => false,
        ("timestamp", Literal::String(text)) => library::time::parse_moment(text).is_some(),
        ("matches", Literal::String(pattern)) => library::regex::compile(pattern).is_ok(),
        _ => true,
    };
    if !right {
        errors.report(*offset, format!("invalid {function} argument"));
    }
}

/// Literals hold values of one type, but for the arguments of `format`.
fn homogeneous(checked: &Checked, expr: &Expr, errors: &mut CompileErrors) {
    let mismatch = |errors: &mut CompileErrors, at: &Expr, expected: &Type, actual: &Type| {
        errors.report(at.offset, format!("expected type '{expected}' but found '{actual}'"));
    };
    match &expr.kind {
        ExprKind::Call(call) if &*call.function == "format" => return,
        ExprKind::List(items) => {
            let mut types =
                items.iter().map(|(item, optional)| (item, held(checked.type_of(item), *optional)));
            if let Some((_, first)) = types.next()
                && let Some((item, other)) = types.find(|(_, ty)| *ty != first)
            {
                mismatch(errors, item, first, other);
            }
        }
        ExprKind::Map(entries) => {
            if let Some((first, rest)) = entries.split_first() {
                let keys = checked.type_of(&first.key);
                let values = held(checked.type_of(&first.value), first.optional);
                for entry in rest {
                    let key = checked.type_of(&entry.key);
                    if key != keys {
                        mismatch(errors, &entry.key, keys, key);
                    }
                    let value = held(checked.type_of(&entry.value), entry.optional);
                    if value != values {
                        mismatch(errors, &entry.value, values, value);
                    }
                }
            }
        }
        _ => {}
    }
    for child in expr.children() {
        homogeneous(checked, child, errors);
    }
}

fn held(ty: &Type, optional: bool) -> &Type {
    if optional { ty.optional_item().unwrap_or(ty) } else { ty }
}

/// A literal format with literal arguments.
fn format(checked: &Checked, call: &Expr, target: &Expr, args: &Expr, errors: &mut CompileErrors) {
    let (ExprKind::Literal(Literal::String(text)), ExprKind::List(items)) = (&target.kind, &args.kind) else {
        return;
    };
    let types: Vec<&Type> = items.iter().map(|(item, _)| checked.type_of(item)).collect();
    if let Err((index, message)) = library::format::check(text, &types) {
        let at = index.and_then(|index| items.get(index)).map_or(call, |(item, _)| item);
        errors.report(at.offset, message);
    }
}

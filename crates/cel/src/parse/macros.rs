//! The macros: calls that stand for a loop.
//!
//! Upstream: cel-go parser/macro.go, ext/comprehensions.go, ext/lists.go sortByMacro, cel/library.go optMap

use std::sync::Arc;

use super::{MAX_NODES, Parsed, Parser};
use crate::ast::{ACCUMULATOR, Call, Comprehension, Entry, Expr, ExprKind, Field, Literal};

/// Names of the loop variable of a loop that never runs, and of the list that `sortBy` sorts.
const UNUSED: &str = "#unused";
const SORTED: &str = "@__sortBy_input__";

/// A call after expansion, or its parts when it is no macro.
pub enum Expanded {
    Yes(Expr),
    No(Expr, Vec<Expr>),
}

/// The parts of a loop that macros differ in.
struct Loop {
    init: Expr,
    condition: Expr,
    step: Expr,
    result: Expr,
}

/// One or two loop variables.
type Variables = (Arc<str>, Option<Arc<str>>);

impl Parser {
    pub(super) fn expand_has(&mut self, offset: usize, mut args: Vec<Expr>) -> Parsed<Expr> {
        let Some(arg) = args.pop() else { return self.too_deep() };
        match arg.kind {
            ExprKind::Select { operand, field, .. } => {
                Ok(self.node(offset, ExprKind::Select { operand, field, test_only: true }))
            }
            _ => self.refuse(arg.offset, "invalid argument to has() macro"),
        }
    }

    pub(super) fn expand_member(
        &mut self,
        offset: usize,
        name: &str,
        target: Expr,
        args: Vec<Expr>,
    ) -> Parsed<Expanded> {
        let expanded = match (name, args.len()) {
            ("all" | "exists" | "exists_one" | "existsOne", 2 | 3) => {
                let (variables, mut rest) = self.variables(args, "argument must be a simple name")?;
                let predicate = rest.remove(0);
                let parts = self.quantifier(offset, name, predicate);
                self.comprehension(offset, target, variables, parts)
            }
            ("map", 2 | 3) => self.map_macro(offset, target, args)?,
            ("filter", 2) => self.filter_macro(offset, target, args)?,
            ("transformList" | "transformMap" | "transformMapEntry", 3 | 4) => {
                self.transform(offset, name, target, args)?
            }
            ("optMap" | "optFlatMap", 2) => self.opt_map(offset, name, target, args)?,
            ("sortBy", 2) => self.sort_by(offset, target, args)?,
            _ => return Ok(Expanded::No(target, args)),
        };
        Ok(Expanded::Yes(expanded))
    }

    fn literal(&mut self, offset: usize, literal: Literal) -> Expr {
        self.node(offset, ExprKind::Literal(literal))
    }

    fn ident(&mut self, offset: usize, name: &str) -> Expr {
        self.node(offset, ExprKind::Ident(name.into()))
    }

    fn accumulator(&mut self, offset: usize) -> Expr {
        self.ident(offset, ACCUMULATOR)
    }

    fn function(&mut self, offset: usize, name: &str, args: Vec<Expr>) -> Expr {
        self.node(offset, ExprKind::Call(Box::new(Call { function: name.into(), target: None, args })))
    }

    fn method(&mut self, offset: usize, name: &str, target: Expr, args: Vec<Expr>) -> Expr {
        let call = Call { function: name.into(), target: Some(target), args };
        self.node(offset, ExprKind::Call(Box::new(call)))
    }

    /// The loop variables that an expansion begins with (one before a single body, two before more) and the rest.
    fn variables(&mut self, mut args: Vec<Expr>, otherwise: &str) -> Parsed<(Variables, Vec<Expr>)> {
        let two = args.len() > 2;
        let rest = args.split_off(if two { 2 } else { 1 });
        let mut names = Vec::new();
        for arg in &args {
            names.push((self.variable(arg, otherwise)?, arg.offset));
        }
        match names.as_slice() {
            [(first, _), (second, offset)] if first == second => {
                self.refuse(*offset, format!("duplicate variable name: {first}"))
            }
            [(first, _), (second, _)] => Ok(((first.clone(), Some(second.clone())), rest)),
            [(first, _), ..] => Ok(((first.clone(), None), rest)),
            [] => self.too_deep(),
        }
    }

    fn variable(&mut self, arg: &Expr, otherwise: &str) -> Parsed<Arc<str>> {
        match &arg.kind {
            ExprKind::Ident(name) if &**name == "__result__" => {
                self.refuse(arg.offset, "iteration variable overwrites accumulator variable")
            }
            ExprKind::Ident(name) => Ok(name.clone()),
            _ => self.refuse(arg.offset, otherwise),
        }
    }

    fn comprehension(&mut self, offset: usize, range: Expr, variables: Variables, parts: Loop) -> Expr {
        let (variable, second) = variables;
        let Loop { init, condition, step, result } = parts;
        let accumulator = ACCUMULATOR.into();
        let fold = Comprehension { range, variable, second, accumulator, init, condition, step, result };
        self.node(offset, ExprKind::Comprehension(Box::new(fold)))
    }

    fn quantifier(&mut self, offset: usize, name: &str, predicate: Expr) -> Loop {
        let accumulator = self.accumulator(offset);
        let (init, condition, step) = match name {
            "all" => {
                let condition = self.function(offset, "@not_strictly_false", vec![accumulator]);
                let accumulator = self.accumulator(offset);
                let step = self.function(offset, "_&&_", vec![accumulator, predicate]);
                (Literal::Bool(true), condition, step)
            }
            "exists" => {
                let not = self.function(offset, "!_", vec![accumulator]);
                let condition = self.function(offset, "@not_strictly_false", vec![not]);
                let accumulator = self.accumulator(offset);
                let step = self.function(offset, "_||_", vec![accumulator, predicate]);
                (Literal::Bool(false), condition, step)
            }
            _ => {
                let one = self.literal(offset, Literal::Int(1));
                let more = self.function(offset, "_+_", vec![accumulator, one]);
                let accumulator = self.accumulator(offset);
                let step = self.function(offset, "_?_:_", vec![predicate, more, accumulator]);
                (Literal::Int(0), self.literal(offset, Literal::Bool(true)), step)
            }
        };
        let init = self.literal(offset, init);
        let mut result = self.accumulator(offset);
        if name.starts_with("exists") && name.len() > "exists".len() {
            let one = self.literal(offset, Literal::Int(1));
            result = self.function(offset, "_==_", vec![result, one]);
        }
        Loop { init, condition, step, result }
    }

    /// A loop that adds to its accumulator, for every item that the filter lets through.
    fn collect(&mut self, offset: usize, init: ExprKind, add: Expr, filter: Option<Expr>) -> Loop {
        let step = match filter {
            None => add,
            Some(filter) => {
                let accumulator = self.accumulator(offset);
                self.function(offset, "_?_:_", vec![filter, add, accumulator])
            }
        };
        let init = self.node(offset, init);
        let condition = self.literal(offset, Literal::Bool(true));
        let result = self.accumulator(offset);
        Loop { init, condition, step, result }
    }

    fn append(&mut self, offset: usize, item: Expr) -> Expr {
        let accumulator = self.accumulator(offset);
        let list = self.node(offset, ExprKind::List(vec![(item, false)]));
        self.function(offset, "_+_", vec![accumulator, list])
    }

    fn map_macro(&mut self, offset: usize, target: Expr, mut args: Vec<Expr>) -> Parsed<Expr> {
        let variable = self.variable(&args[0], "argument is not an identifier")?;
        let filter = (args.len() == 3).then(|| args.remove(1));
        let transform = args.remove(1);
        let add = self.append(offset, transform);
        let parts = self.collect(offset, ExprKind::List(Vec::new()), add, filter);
        Ok(self.comprehension(offset, target, (variable, None), parts))
    }

    fn filter_macro(&mut self, offset: usize, target: Expr, mut args: Vec<Expr>) -> Parsed<Expr> {
        let variable = self.variable(&args[0], "argument is not an identifier")?;
        let filter = args.remove(1);
        let add = self.append(offset, args.remove(0));
        let parts = self.collect(offset, ExprKind::List(Vec::new()), add, Some(filter));
        Ok(self.comprehension(offset, target, (variable, None), parts))
    }

    fn transform(&mut self, offset: usize, name: &str, target: Expr, args: Vec<Expr>) -> Parsed<Expr> {
        let (variables, mut rest) = self.variables(args, "argument must be a simple name")?;
        let filter = (rest.len() == 2).then(|| rest.remove(0));
        let body = rest.remove(0);
        let (init, add) = match name {
            "transformList" => (ExprKind::List(Vec::new()), self.append(offset, body)),
            "transformMap" => {
                let accumulator = self.accumulator(offset);
                let key = self.ident(offset, &variables.0);
                let add = self.function(offset, "cel.@mapInsert", vec![accumulator, key, body]);
                (ExprKind::Map(Vec::new()), add)
            }
            _ => {
                let accumulator = self.accumulator(offset);
                (ExprKind::Map(Vec::new()), self.function(offset, "cel.@mapInsert", vec![accumulator, body]))
            }
        };
        let parts = self.collect(offset, init, add, filter);
        Ok(self.comprehension(offset, target, variables, parts))
    }

    /// A loop that never runs and whose accumulator has the name and the value that the body sees.
    fn bind(&mut self, offset: usize, name: &str, value: Expr, body: Expr) -> Expr {
        let fold = Comprehension {
            range: self.node(offset, ExprKind::List(Vec::new())),
            variable: UNUSED.into(),
            second: None,
            accumulator: name.into(),
            init: value,
            condition: self.literal(offset, Literal::Bool(false)),
            step: self.ident(offset, name),
            result: body,
        };
        self.node(offset, ExprKind::Comprehension(Box::new(fold)))
    }

    fn opt_map(&mut self, offset: usize, name: &str, target: Expr, mut args: Vec<Expr>) -> Parsed<Expr> {
        let message = format!("{name}() variable name must be a simple identifier");
        let variable = self.variable(&args[0], &message)?;
        let mut nodes = 0;
        target.walk(&mut |_| nodes += 1);
        if self.next_id + nodes > MAX_NODES {
            return self.refuse(target.offset, format!("expression node count exceeds limit: {MAX_NODES}"));
        }
        let copy = self.copy(&target);
        let has_value = self.method(offset, "hasValue", target, Vec::new());
        let value = self.method(offset, "value", copy, Vec::new());
        let mut mapped = self.bind(offset, &variable, value, args.remove(1));
        if name == "optMap" {
            mapped = self.function(offset, "optional.of", vec![mapped]);
        }
        let none = self.function(offset, "optional.none", Vec::new());
        Ok(self.function(offset, "_?_:_", vec![has_value, mapped, none]))
    }

    fn sort_by(&mut self, offset: usize, target: Expr, args: Vec<Expr>) -> Parsed<Expr> {
        if matches!(target.kind, ExprKind::Literal(_) | ExprKind::Map(_) | ExprKind::Struct { .. }) {
            let message =
                "sortBy can only be applied to a list, identifier, comprehension, call or select expression";
            return self.refuse(target.offset, message);
        }
        let input = self.ident(offset, SORTED);
        let keys = self.map_macro(offset, input, args)?;
        let input = self.ident(offset, SORTED);
        let sorted = self.method(offset, "@sortByAssociatedKeys", input, vec![keys]);
        Ok(self.bind(offset, SORTED, target, sorted))
    }

    /// The same expression with ids of its own.
    fn copy(&mut self, expr: &Expr) -> Expr {
        let kind = match &expr.kind {
            ExprKind::Literal(_) | ExprKind::Ident(_) => expr.kind.clone(),
            ExprKind::Select { operand, field, test_only } => {
                let operand = Box::new(self.copy(operand));
                ExprKind::Select { operand, field: field.clone(), test_only: *test_only }
            }
            ExprKind::Call(call) => ExprKind::Call(Box::new(Call {
                function: call.function.clone(),
                target: call.target.as_ref().map(|target| self.copy(target)),
                args: call.args.iter().map(|arg| self.copy(arg)).collect(),
            })),
            ExprKind::List(items) => {
                ExprKind::List(items.iter().map(|(item, optional)| (self.copy(item), *optional)).collect())
            }
            ExprKind::Map(entries) => ExprKind::Map(
                entries
                    .iter()
                    .map(|entry| {
                        let (key, value) = (self.copy(&entry.key), self.copy(&entry.value));
                        Entry { key, value, optional: entry.optional }
                    })
                    .collect(),
            ),
            ExprKind::Struct { name, fields } => {
                let fields = fields
                    .iter()
                    .map(|field| Field { value: self.copy(&field.value), ..field.clone() })
                    .collect();
                ExprKind::Struct { name: name.clone(), fields }
            }
            ExprKind::Comprehension(fold) => ExprKind::Comprehension(Box::new(Comprehension {
                range: self.copy(&fold.range),
                init: self.copy(&fold.init),
                condition: self.copy(&fold.condition),
                step: self.copy(&fold.step),
                result: self.copy(&fold.result),
                ..(**fold).clone()
            })),
        };
        self.node(expr.offset, kind)
    }
}

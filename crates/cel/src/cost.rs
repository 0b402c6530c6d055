//! What an expression may cost, from the sizes that a schema declares, before anything is evaluated.
//!
//! Upstream: cel-go checker/cost.go

mod functions;

use std::collections::HashMap;
use std::sync::Arc;

use crate::ast::{ACCUMULATOR, Call, Comprehension, Expr, ExprKind, Literal};
use crate::check::Checked;
use crate::decl::{DeclType, Step};
use crate::types::Type;

/// The least and the most that something costs, or its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CostEstimate {
    pub min: u64,
    pub max: u64,
}

/// The least and the most characters, items or entries.
pub(crate) type Size = CostEstimate;

const UNKNOWN: Size = Size { min: 0, max: u64::MAX };
/// What every union makes wider.
const NOTHING: Size = Size { min: u64::MAX, max: 0 };

pub(crate) const fn fixed(cost: u64) -> CostEstimate {
    CostEstimate { min: cost, max: cost }
}

impl CostEstimate {
    pub(crate) fn add(self, other: CostEstimate) -> CostEstimate {
        CostEstimate { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    pub(crate) fn times(self, other: CostEstimate) -> CostEstimate {
        CostEstimate { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    /// Rounded up.
    pub(crate) fn scaled(self, factor: f64) -> CostEstimate {
        // A conversion to a whole number saturates.
        let scale = |number: u64| (number as f64 * factor).ceil() as u64;
        CostEstimate { min: scale(self.min), max: scale(self.max) }
    }

    pub(crate) fn union(self, other: CostEstimate) -> CostEstimate {
        CostEstimate { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// The sizes of what a list or map holds.
#[derive(Clone, Copy, Debug)]
struct EntrySize {
    key: Size,
    value: Size,
}

impl EntrySize {
    fn union(self, other: EntrySize) -> EntrySize {
        EntrySize { key: self.key.union(other.key), value: self.value.union(other.value) }
    }
}

/// How data is reached from the variables: names of fields, `@items`, `@keys`, `@values`.
type Path = Vec<Arc<str>>;

struct Local {
    name: Arc<str>,
    path: Path,
    size: Option<Size>,
    entry: Option<EntrySize>,
}

/// Estimates an expression over variables that are all of the type `root`.
pub fn estimate(checked: &Checked, root: Option<&DeclType>) -> CostEstimate {
    let mut coster = Coster {
        checked,
        root,
        locals: Vec::new(),
        paths: HashMap::new(),
        sizes: HashMap::new(),
        entries: HashMap::new(),
    };
    coster.cost(&checked.expr)
}

struct Coster<'c> {
    checked: &'c Checked,
    root: Option<&'c DeclType>,
    locals: Vec<Local>,
    /// By the ids of nodes.
    paths: HashMap<usize, Path>,
    sizes: HashMap<usize, Size>,
    entries: HashMap<usize, EntrySize>,
}

/// An argument as estimators of functions see it.
pub(crate) struct Node<'n> {
    pub expr: &'n Expr,
    pub ty: Type,
    /// Nothing when it is not known.
    pub size: Option<Size>,
    /// The type and the size of what a list holds.
    pub items: Option<(Type, Size)>,
}

impl Node<'_> {
    pub fn size(&self) -> Size {
        self.size.unwrap_or(UNKNOWN)
    }
}

impl Coster<'_> {
    fn cost(&mut self, expr: &Expr) -> CostEstimate {
        match &expr.kind {
            ExprKind::Literal(_) => fixed(0),
            ExprKind::Ident(name) => {
                let path = self.local(name).map_or_else(|| vec![name.clone()], |local| local.path.clone());
                self.paths.insert(expr.id, path);
                fixed(1)
            }
            ExprKind::Select { operand, test_only: true, .. } => self.cost(operand),
            ExprKind::Select { operand, field, .. } => {
                let sum = self.cost(operand);
                let mut path = self.path(operand);
                path.push(field.clone());
                self.paths.insert(expr.id, path);
                match self.checked.type_of(operand) {
                    Type::Map(_) | Type::Object(_) | Type::Param(_) => sum.add(fixed(1)),
                    _ => sum,
                }
            }
            ExprKind::Call(call) => self.call(expr, call),
            ExprKind::List(items) => self.list(expr, items),
            ExprKind::Map(_) => self.map(expr),
            ExprKind::Struct { fields, .. } => {
                let fields = fields.iter().map(|field| self.cost(&field.value));
                fields.fold(CostEstimate::default(), CostEstimate::add).add(fixed(40))
            }
            ExprKind::Comprehension(fold) if is_bind(fold) => self.bind(expr, fold),
            ExprKind::Comprehension(fold) => self.comprehension(expr, fold),
        }
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|local| &*local.name == name)
    }

    fn path(&self, expr: &Expr) -> Path {
        if let ExprKind::Ident(name) = &expr.kind
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths.get(&expr.id).cloned().unwrap_or_default()
    }

    /// The size that the schema declares for what a path reaches.
    fn declared(&self, path: &[Arc<str>]) -> Option<Size> {
        let (_, steps) = path.split_first()?;
        let mut decl = self.root?;
        let mut steps = steps.iter();
        while let Some(step) = steps.next() {
            match decl.step(step)? {
                Step::Into(next) => decl = next,
                Step::Keys if steps.len() == 0 => return Some(fixed(0)),
                Step::Keys => return None,
            }
        }
        Some(Size { min: 0, max: decl.max_elements })
    }

    fn size(&mut self, expr: &Expr) -> Option<Size> {
        if let Some(size) = self.sizes.get(&expr.id) {
            return Some(*size);
        }
        if let Some(size) = literal_size(expr) {
            return Some(size);
        }
        if let Some(size) = self.declared(&self.path(expr)) {
            self.sizes.insert(expr.id, size);
            return Some(size);
        }
        if is_scalar(self.checked.type_of(expr)) {
            return Some(fixed(1));
        }
        match &expr.kind {
            ExprKind::Ident(name) => self.local(name).and_then(|local| local.size),
            _ => None,
        }
    }

    fn size_or_unknown(&mut self, expr: &Expr) -> Size {
        self.size(expr).unwrap_or(UNKNOWN)
    }

    fn entry(&self, expr: &Expr) -> Option<EntrySize> {
        if let Some(entry) = self.entries.get(&expr.id) {
            return Some(*entry);
        }
        match &expr.kind {
            ExprKind::Ident(name) => self.local(name).and_then(|local| local.entry),
            _ => None,
        }
    }

    fn node<'n>(&mut self, expr: &'n Expr) -> Node<'n> {
        let size = self.size(expr);
        let ty = self.checked.type_of(expr);
        let items = match ty {
            Type::List(items) => {
                let mut path = self.path(expr);
                path.push("@items".into());
                // Paths below an accumulator reach nothing that is declared.
                let rooted = path.len() > 1 && &*path[0] != ACCUMULATOR;
                Some((items.as_ref(), rooted.then(|| self.declared(&path)).flatten().unwrap_or(UNKNOWN)))
            }
            _ => None,
        };
        let items = items.map(|(ty, size)| (ty.clone(), size));
        Node { expr, ty: ty.clone(), size, items }
    }

    fn list(&mut self, expr: &Expr, items: &[(Expr, bool)]) -> CostEstimate {
        let mut sum = CostEstimate::default();
        let mut value = if items.is_empty() { fixed(0) } else { NOTHING };
        for (item, _) in items {
            sum = sum.add(self.cost(item));
            value = value.union(self.size_or_unknown(item));
        }
        self.entries.insert(expr.id, EntrySize { key: fixed(1), value });
        sum.add(fixed(10))
    }

    fn map(&mut self, expr: &Expr) -> CostEstimate {
        let ExprKind::Map(entries) = &expr.kind else { return CostEstimate::default() };
        let mut sum = CostEstimate::default();
        let none = if entries.is_empty() { fixed(0) } else { NOTHING };
        let mut sizes = EntrySize { key: none, value: none };
        for entry in entries {
            sum = sum.add(self.cost(&entry.key)).add(self.cost(&entry.value));
            sizes.key = sizes.key.union(self.size_or_unknown(&entry.key));
            sizes.value = sizes.value.union(self.size_or_unknown(&entry.value));
        }
        self.entries.insert(expr.id, sizes);
        sum.add(fixed(30))
    }

    fn call(&mut self, expr: &Expr, call: &Call) -> CostEstimate {
        if let ("dyn", [arg]) = (&*call.function, call.args.as_slice()) {
            let cost = self.cost(arg).add(fixed(1));
            self.copy_sizes(expr, arg);
            return cost;
        }
        let costs: Vec<CostEstimate> = call.args.iter().map(|arg| self.cost(arg)).collect();
        let overloads = self.checked.overloads(expr);
        if overloads.is_empty() {
            return CostEstimate::default();
        }
        let mut sum = CostEstimate::default();
        if let Some(target) = &call.target {
            sum = self.cost(target);
        }
        let mut total = NOTHING;
        let mut size: Option<Size> = None;
        for overload in overloads {
            let (cost, result) = self.overload(expr, call, &overload.id, &costs);
            total = total.union(cost);
            if let Some(result) = result {
                size = Some(size.map_or(result, |size| size.union(result)));
            }
            let step = match overload.id.as_str() {
                "index_list" => Some("@items"),
                "index_map" => Some("@values"),
                _ => None,
            };
            if let (Some(step), Some(indexed)) = (step, call.args.first()) {
                size = self.entry(indexed).map(|entry| entry.value);
                let mut path = self.path(indexed);
                path.push(step.into());
                self.paths.insert(expr.id, path);
            }
            if size.is_none() {
                size = self.size(expr);
            }
        }
        if let Some(size) = size {
            self.sizes.insert(expr.id, size);
        }
        sum.add(total)
    }

    /// What one overload costs with its arguments, and the size of its result.
    fn overload(
        &mut self,
        expr: &Expr,
        call: &Call,
        id: &str,
        costs: &[CostEstimate],
    ) -> (CostEstimate, Option<Size>) {
        let args_cost = costs.iter().copied().fold(CostEstimate::default(), CostEstimate::add);
        match (id, call.args.as_slice()) {
            ("logical_or" | "logical_and", [_, _]) => {
                let cost = CostEstimate { min: costs[0].min, max: costs[0].add(costs[1]).max };
                return (cost, None);
            }
            ("conditional", [_, truthy, falsy]) => {
                let size = self.size_or_unknown(truthy).union(self.size_or_unknown(falsy));
                self.join_entries(expr, truthy, falsy);
                return (costs[0].add(costs[1].union(costs[2])), Some(size));
            }
            ("add_list" | "add_string" | "add_bytes", [left, right]) => {
                let size = self.size_or_unknown(left).add(self.size_or_unknown(right));
                self.join_entries(expr, left, right);
                let cost = if id == "add_list" { fixed(1) } else { size.scaled(0.1) };
                return (cost.add(args_cost), Some(size));
            }
            _ => {}
        }
        let target = call.target.as_ref().map(|target| self.node(target));
        let args: Vec<Node<'_>> = call.args.iter().map(|arg| self.node(arg)).collect();
        let (cost, size) = functions::estimate(&call.function, id, target.as_ref(), &args);
        (cost.add(args_cost), size)
    }

    fn join_entries(&mut self, expr: &Expr, left: &Expr, right: &Expr) {
        if let (Some(left), Some(right)) = (self.entry(left), self.entry(right)) {
            self.entries.insert(expr.id, left.union(right));
        }
    }

    fn copy_sizes(&mut self, to: &Expr, from: &Expr) {
        if let Some(size) = self.size(from) {
            self.sizes.insert(to.id, size);
        }
        if let Some(entry) = self.entry(from) {
            self.entries.insert(to.id, entry);
        }
    }

    fn bind(&mut self, expr: &Expr, fold: &Comprehension) -> CostEstimate {
        let sum = self.cost(&fold.range).add(self.cost(&fold.init));
        self.push_accumulator(fold);
        let sum = sum.add(self.cost(&fold.result));
        self.locals.pop();
        self.copy_sizes(expr, &fold.result);
        sum
    }

    fn push_accumulator(&mut self, fold: &Comprehension) {
        let local = Local {
            name: fold.accumulator.clone(),
            path: self.path(&fold.init),
            size: self.size(&fold.init),
            entry: self.entry(&fold.init),
        };
        self.locals.push(local);
    }

    fn push_variables(&mut self, fold: &Comprehension) {
        let entry = self.entry(&fold.range);
        let is_list = matches!(self.checked.type_of(&fold.range), Type::List(_));
        let (key_step, value_step) = if is_list { ("@indices", "@items") } else { ("@keys", "@values") };
        let push = |coster: &mut Self, name: &Arc<str>, step: &str, size: Option<Size>| {
            let mut path = coster.path(&fold.range);
            path.push(step.into());
            coster.locals.push(Local { name: name.clone(), path, size, entry: None });
        };
        let (key, value) = (entry.map(|entry| entry.key), entry.map(|entry| entry.value));
        match &fold.second {
            Some(second) => {
                push(self, &fold.variable, key_step, key);
                push(self, second, value_step, value);
            }
            None if is_list => push(self, &fold.variable, value_step, value),
            None => push(self, &fold.variable, key_step, key),
        }
    }

    fn comprehension(&mut self, expr: &Expr, fold: &Comprehension) -> CostEstimate {
        let mut sum = self.cost(&fold.range).add(self.cost(&fold.init));
        let outside = self.locals.len();
        self.push_accumulator(fold);
        self.push_variables(fold);
        let turn = self.cost(&fold.condition).add(self.cost(&fold.step));
        self.locals.truncate(outside + 1);
        sum = sum.add(self.cost(&fold.result));
        self.locals.truncate(outside);
        let count = self.size_or_unknown(&fold.range);
        sum = sum.add(count.times(turn));
        match &fold.init.kind {
            ExprKind::Literal(_) => {
                if let Some(size) = self.size(&fold.init) {
                    self.sizes.insert(expr.id, size);
                }
            }
            ExprKind::List(_) | ExprKind::Map(_) => {
                self.sizes.insert(expr.id, count);
                if let Some(entry) = self.entry(&fold.step) {
                    self.entries.insert(expr.id, entry);
                }
            }
            _ => {}
        }
        sum
    }
}

/// Whether a loop never runs and only names a value.
fn is_bind(fold: &Comprehension) -> bool {
    matches!(&fold.range.kind, ExprKind::List(items) if items.is_empty())
        && matches!(fold.condition.kind, ExprKind::Literal(Literal::Bool(false)))
        && &*fold.accumulator != ACCUMULATOR
}

fn literal_size(expr: &Expr) -> Option<Size> {
    match &expr.kind {
        ExprKind::Literal(Literal::String(text)) => Some(fixed(text.chars().count() as u64)),
        ExprKind::Literal(Literal::Bytes(bytes)) => Some(fixed(bytes.len() as u64)),
        ExprKind::Literal(_) => Some(fixed(1)),
        ExprKind::List(items) => Some(fixed(items.len() as u64)),
        ExprKind::Map(entries) => Some(fixed(entries.len() as u64)),
        _ => None,
    }
}

fn is_scalar(ty: &Type) -> bool {
    match ty {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
        other => other.optional_item().is_some_and(is_scalar),
    }
}

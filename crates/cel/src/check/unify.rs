//! Which types take values of which, and what type variables turn out to be.
//!
//! Upstream: cel-go checker/types.go

use std::collections::HashMap;
use std::sync::Arc;

use crate::types::Type;

/// What type variables stand for.
#[derive(Clone, Debug, Default)]
pub struct Substitution {
    of: HashMap<Arc<str>, Type>,
    /// What variables stood for before the assignment that is being tried.
    trail: Vec<(Arc<str>, Option<Type>)>,
}

impl Substitution {
    pub fn set(&mut self, name: Arc<str>, ty: Type) {
        self.of.insert(name, ty);
    }

    fn find(&self, ty: &Type) -> Option<&Type> {
        match ty {
            Type::Param(name) => self.of.get(name),
            _ => None,
        }
    }

    /// The type with its variables replaced; those not known become dyn, if wanted.
    pub fn apply(&self, ty: &Type, unknown_to_dyn: bool) -> Type {
        if let Some(known) = self.find(ty) {
            return self.apply(known, unknown_to_dyn);
        }
        match ty {
            Type::Param(_) if unknown_to_dyn => Type::Dyn,
            Type::List(items) => Type::list(self.apply(items, unknown_to_dyn)),
            Type::Map(entry) => {
                Type::map(self.apply(&entry.0, unknown_to_dyn), self.apply(&entry.1, unknown_to_dyn))
            }
            Type::Opaque(name, items) if !items.is_empty() => {
                Type::Opaque(name, items.iter().map(|item| self.apply(item, unknown_to_dyn)).collect())
            }
            Type::Type(Some(of)) => Type::type_of(self.apply(of, unknown_to_dyn)),
            other => other.clone(),
        }
    }

    /// Whether the second type takes values of the first, or the other way round when both are open. What
    /// variables turn out to be is kept only when it does.
    pub fn assign(&mut self, from: &Type, to: &Type) -> bool {
        self.assign_all(std::slice::from_ref(from), std::slice::from_ref(to))
    }

    pub fn assign_all(&mut self, from: &[Type], to: &[Type]) -> bool {
        let fits = self.all_fit(from, to);
        // What a failed try assumed is forgotten, newest first.
        while let Some((name, before)) = self.trail.pop() {
            match before {
                _ if fits => {}
                Some(before) => drop(self.of.insert(name, before)),
                None => drop(self.of.remove(&name)),
            }
        }
        fits
    }

    fn assume(&mut self, name: &Arc<str>, ty: Type) {
        let before = self.of.insert(name.clone(), ty);
        self.trail.push((name.clone(), before));
    }

    fn all_fit(&mut self, from: &[Type], to: &[Type]) -> bool {
        from.len() == to.len() && from.iter().zip(to).all(|(from, to)| self.fits(from, to))
    }

    fn fits(&mut self, from: &Type, to: &Type) -> bool {
        if let Type::Param(name) = to {
            match self.substitutes(from, name) {
                (true, _) => return true,
                (false, true) => return false,
                (false, false) => {}
            }
        }
        if let Type::Param(name) = from {
            return self.substitutes(to, name).0;
        }
        if from.is_dyn_or_error() || to.is_dyn_or_error() {
            return true;
        }
        match (from, to) {
            (Type::Null, other) | (other, Type::Null) => takes_null(other),
            (Type::List(from), Type::List(to)) => self.fits(from, to),
            (Type::Map(from), Type::Map(to)) => self.fits(&from.0, &to.0) && self.fits(&from.1, &to.1),
            (Type::Opaque(from_name, from), Type::Opaque(to_name, to)) => {
                from_name == to_name && self.all_fit(from, to)
            }
            (Type::Type(_), Type::Type(_)) => true,
            (from, to) => from == to,
        }
    }

    /// Whether a variable may stand for a type, and whether it already stood for something.
    fn substitutes(&mut self, ty: &Type, name: &Arc<str>) -> (bool, bool) {
        if matches!(ty, Type::Param(other) if other == name) {
            return (true, true);
        }
        let Some(known) = self.of.get(name).cloned() else {
            let free = self.not_within(name, ty);
            if free {
                self.assume(name, ty.clone());
            }
            return (free, false);
        };
        if *ty == known {
            return (true, true);
        }
        if self.fits(ty, &known) {
            let general = most_general(ty.clone(), known);
            if self.not_within(name, &general) {
                self.assume(name, general);
            }
            return (true, true);
        }
        (false, true)
    }

    fn not_within(&self, name: &Arc<str>, ty: &Type) -> bool {
        match ty {
            Type::Param(other) if other == name => false,
            Type::Param(other) => self.of.get(other).is_none_or(|known| self.not_within(name, known)),
            Type::List(items) => self.not_within(name, items),
            Type::Map(entry) => self.not_within(name, &entry.0) && self.not_within(name, &entry.1),
            Type::Opaque(_, items) => items.iter().all(|item| self.not_within(name, item)),
            Type::Type(Some(of)) => self.not_within(name, of),
            _ => true,
        }
    }
}

fn takes_null(ty: &Type) -> bool {
    matches!(ty, Type::Null | Type::Opaque(..) | Type::Object(_) | Type::Duration | Type::Timestamp)
}

/// The one of two types that says less.
pub fn most_general(a: Type, b: Type) -> Type {
    if says_no_more(&a, &b) { a } else { b }
}

fn says_no_more(a: &Type, b: &Type) -> bool {
    if a.is_dyn() || matches!(a, Type::Param(_)) {
        return true;
    }
    if b.is_dyn() || matches!(b, Type::Param(_)) {
        return false;
    }
    match (a, b) {
        (Type::List(a), Type::List(b)) => says_no_more(a, b),
        (Type::Map(a), Type::Map(b)) => says_no_more(&a.0, &b.0) && says_no_more(&a.1, &b.1),
        (Type::Opaque(a, of_a), Type::Opaque(b, of_b)) => {
            a == b && of_a.len() == of_b.len() && of_a.iter().zip(of_b).all(|(a, b)| says_no_more(a, b))
        }
        (Type::Type(_), Type::Type(_)) => true,
        (a, b) => a == b,
    }
}

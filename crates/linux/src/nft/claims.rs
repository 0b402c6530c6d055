//! [`Claims`]: what a table's sets and maps hold, by who wants it; and the text of what changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write};
use std::ops::RangeBounds;

/// How many elements one command names. nft reads long lines, but a refused line is quoted whole.
const ELEMENTS_PER_COMMAND: usize = 500;

/// Elements, their values, and the owners who want them.
///
/// What always holds: an element that several owners want has the value of the first of them, and stays until
/// none wants it.
#[derive(Debug)]
pub struct Claims<O, K, V> {
    /// By element, by owner. Nearly always there is one.
    elements: BTreeMap<K, Vec<(O, V)>>,
    owners: BTreeMap<O, BTreeSet<K>>,
    /// The values before, of elements that changed since the last [`settle`](Self::settle).
    before: BTreeMap<K, Option<V>>,
}

impl<O, K, V> Default for Claims<O, K, V> {
    fn default() -> Self {
        Claims { elements: BTreeMap::new(), owners: BTreeMap::new(), before: BTreeMap::new() }
    }
}

/// What differs between two states of [`Claims`]. An element whose value changed is in both.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference<K, V> {
    pub removed: BTreeMap<K, V>,
    pub added: BTreeMap<K, V>,
}

impl<O: Ord + Clone, K: Ord + Clone, V: Ord + Clone> Claims<O, K, V> {
    /// Says what an owner wants from now on; nothing, when it is gone.
    pub fn set(&mut self, owner: &O, elements: BTreeMap<K, V>) {
        let before = self.owners.remove(owner).unwrap_or_default();
        for key in before.iter().filter(|key| !elements.contains_key(key)) {
            self.claim(owner, key, None);
        }
        if !elements.is_empty() {
            self.owners.insert(owner.clone(), elements.keys().cloned().collect());
        }
        for (key, value) in elements {
            self.claim(owner, &key, Some(value));
        }
    }

    fn claim(&mut self, owner: &O, key: &K, value: Option<V>) {
        let claims = self.elements.entry(key.clone()).or_insert_with(|| Vec::with_capacity(1));
        let before = claims.first().map(|(_, value)| value.clone());
        match (claims.binary_search_by(|(other, _)| other.cmp(owner)), value) {
            (Ok(at), Some(value)) => claims[at].1 = value,
            (Err(at), Some(value)) => claims.insert(at, (owner.clone(), value)),
            (Ok(at), None) => drop(claims.remove(at)),
            (Err(_), None) => {}
        }
        let differs = before.as_ref() != claims.first().map(|(_, value)| value);
        if claims.is_empty() {
            self.elements.remove(key);
        }
        if differs {
            self.before.entry(key.clone()).or_insert(before);
        }
    }

    /// Turns the changes since the last call into a difference.
    pub fn settle(&mut self) -> Difference<K, V> {
        let mut difference = Difference { removed: BTreeMap::new(), added: BTreeMap::new() };
        for (key, before) in std::mem::take(&mut self.before) {
            let after = self.elements.get(&key).and_then(|claims| claims.first()).map(|(_, value)| value);
            if before.as_ref() == after {
                continue;
            }
            if let Some(after) = after {
                difference.added.insert(key.clone(), after.clone());
            }
            if let Some(before) = before {
                difference.removed.insert(key, before);
            }
        }
        difference
    }

    /// Who wants anything.
    pub fn owners(&self) -> impl Iterator<Item = &O> {
        self.owners.keys()
    }

    /// Every element and its value.
    pub fn elements(&self) -> impl Iterator<Item = (&K, &V)> {
        self.elements.iter().filter_map(|(key, claims)| Some((key, &claims.first()?.1)))
    }

    /// Who wants any element of a range.
    pub fn owners_in(&self, keys: impl RangeBounds<K>) -> BTreeSet<O> {
        self.elements
            .range(keys)
            .flat_map(|(_, claims)| claims.iter().map(|(owner, _)| owner.clone()))
            .collect()
    }

    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }
}

/// Writes commands that add elements to a set or map, or delete them from it. `set` is its family, table and name.
pub fn elements_text<T: Display>(text: &mut String, verb: &str, set: &str, elements: &[T]) {
    for part in elements.chunks(ELEMENTS_PER_COMMAND) {
        let _ = write!(text, "{verb} element {set} {{ ");
        for (index, element) in part.iter().enumerate() {
            let _ = write!(text, "{}{element}", if index == 0 { "" } else { ", " });
        }
        text.push_str(" }\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(
        claims: &mut Claims<&str, u8, char>,
        owner: &'static str,
        elements: &[(u8, char)],
    ) -> String {
        claims.set(&owner, elements.iter().copied().collect());
        let Difference { removed, added } = claims.settle();
        let word = |sign: char, elements: BTreeMap<u8, char>| {
            elements.into_iter().map(|(k, v)| format!("{sign}{k}{v}")).collect::<Vec<_>>()
        };
        [word('-', removed), word('+', added)].concat().join(" ")
    }

    #[test]
    fn the_first_owner_decides_and_the_last_one_keeps() {
        let mut claims = Claims::default();
        for (owner, elements, expected) in [
            ("b", &[(1, 'x'), (2, 'x')][..], "+1x +2x"),
            ("b", &[(1, 'x'), (2, 'x')], ""),
            ("c", &[(1, 'y')], ""),
            ("a", &[(1, 'z')], "-1x +1z"),
            ("b", &[(3, 'x')], "-2x +3x"),
            ("a", &[], "-1z +1y"),
            ("c", &[], "-1y"),
            ("b", &[], "-3x"),
        ] {
            assert_eq!(difference(&mut claims, owner, elements), expected, "{owner} {elements:?}");
        }
        assert!(claims.is_empty());
    }

    #[test]
    fn what_comes_and_goes_in_between_is_no_difference() {
        let mut claims: Claims<&str, u8, char> = Claims::default();
        claims.set(&"a", [(1, 'x')].into());
        claims.set(&"a", BTreeMap::new());
        let Difference { removed, added } = claims.settle();
        assert!(removed.is_empty() && added.is_empty());
        claims.set(&"a", [(1, 'x'), (5, 'x')].into());
        claims.set(&"b", [(5, 'x'), (9, 'x')].into());
        assert_eq!(claims.owners_in(2..9), ["a", "b"].into());
        assert_eq!(claims.elements().count(), 3);
    }

    #[test]
    fn commands_are_cut_into_parts() {
        let mut text = String::new();
        elements_text(&mut text, "add", "ip t s", &(0..ELEMENTS_PER_COMMAND + 1).collect::<Vec<_>>());
        assert_eq!(text.lines().count(), 2);
        assert_eq!(text.lines().last(), Some("add element ip t s { 500 }"));
    }
}

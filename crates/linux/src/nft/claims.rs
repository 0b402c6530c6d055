//! [`Claims`]: what a table's sets and maps hold, by who wants it; and the text of what changes.

use std::cmp::Ordering;
use std::collections::btree_map::Entry;
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
    elements: BTreeMap<K, Claimed<O, V>>,
    /// What each wants, in order.
    owners: BTreeMap<O, Box<[K]>>,
    /// The values before, of elements that changed since the last [`settle`](Self::settle).
    before: BTreeMap<K, Option<V>>,
}

impl<O, K, V> Default for Claims<O, K, V> {
    fn default() -> Self {
        Claims { elements: BTreeMap::new(), owners: BTreeMap::new(), before: BTreeMap::new() }
    }
}

/// Who wants an element, in the order of owners. Nearly always there is one, which takes no room of its own.
#[derive(Debug)]
struct Claimed<O, V> {
    first: (O, V),
    others: Vec<(O, V)>,
}

impl<O: Ord + Clone, V> Claimed<O, V> {
    fn owners(&self) -> impl Iterator<Item = &O> {
        std::iter::once(&self.first).chain(&self.others).map(|(owner, _)| owner)
    }

    fn put(&mut self, owner: &O, value: V) {
        match owner.cmp(&self.first.0) {
            Ordering::Equal => self.first.1 = value,
            Ordering::Less => {
                let second = std::mem::replace(&mut self.first, (owner.clone(), value));
                self.others.insert(0, second);
            }
            Ordering::Greater => match self.others.binary_search_by(|(other, _)| other.cmp(owner)) {
                Ok(at) => self.others[at].1 = value,
                Err(at) => self.others.insert(at, (owner.clone(), value)),
            },
        }
    }

    /// Without this owner; nothing if nobody is left.
    fn without(mut self, owner: &O) -> Option<Self> {
        if self.first.0 == *owner {
            if self.others.is_empty() {
                return None;
            }
            self.first = self.others.remove(0);
        } else {
            self.others.retain(|(other, _)| other != owner);
        }
        Some(self)
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
        for key in self.owners.remove(owner).unwrap_or_default() {
            if !elements.contains_key(&key) {
                self.give_up(owner, key);
            }
        }
        if !elements.is_empty() {
            self.owners.insert(owner.clone(), elements.keys().cloned().collect());
        }
        for (key, value) in elements {
            self.claim(owner, key, value);
        }
    }

    fn claim(&mut self, owner: &O, key: K, value: V) {
        match self.elements.entry(key) {
            Entry::Vacant(vacant) => {
                self.before.entry(vacant.key().clone()).or_insert(None);
                vacant.insert(Claimed { first: (owner.clone(), value), others: Vec::new() });
            }
            Entry::Occupied(mut claimed) => {
                let before = claimed.get().first.1.clone();
                claimed.get_mut().put(owner, value);
                if before != claimed.get().first.1 {
                    self.before.entry(claimed.key().clone()).or_insert(Some(before));
                }
            }
        }
    }

    fn give_up(&mut self, owner: &O, key: K) {
        let Some(claimed) = self.elements.remove(&key) else { return };
        let before = claimed.first.1.clone();
        let left = claimed.without(owner);
        if left.as_ref().is_none_or(|left| left.first.1 != before) {
            self.before.entry(key.clone()).or_insert(Some(before));
        }
        if let Some(left) = left {
            self.elements.insert(key, left);
        }
    }

    /// Turns the changes since the last call into a difference.
    pub fn settle(&mut self) -> Difference<K, V> {
        let mut difference = Difference { removed: BTreeMap::new(), added: BTreeMap::new() };
        for (key, before) in std::mem::take(&mut self.before) {
            let after = self.elements.get(&key).map(|claimed| &claimed.first.1);
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
        self.elements.iter().map(|(key, claimed)| (key, &claimed.first.1))
    }

    /// Who wants any element of a range.
    pub fn owners_in(&self, keys: impl RangeBounds<K>) -> BTreeSet<O> {
        self.elements.range(keys).flat_map(|(_, claimed)| claimed.owners().cloned()).collect()
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

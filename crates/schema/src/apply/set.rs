//! Sets of field paths: who owns what, between two readings of managedFields.
//!
//! managedFields keeps a set as a JSON object whose keys are path elements (`f:name`, `k:{"name":"a"}`, `v:"x"`);
//! an element is a member when its value is empty or holds `"."`, and the other keys of its value are its
//! children. Here the same is a sorted tree that borrows its names from what it was made of: every write makes
//! and drops several of them.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

const SELF: &str = ".";

/// One step of a path. They sort as their texts do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element<'a> {
    Field(Cow<'a, str>),
    Index(Cow<'a, str>),
    /// The keys of an item and their values, as JSON.
    Key(Cow<'a, str>),
    /// A scalar, as JSON.
    Value(Cow<'a, str>),
}

impl<'a> Element<'a> {
    pub fn field(name: &'a str) -> Self {
        Element::Field(Cow::Borrowed(name))
    }

    pub fn into_owned(self) -> Element<'static> {
        let own = |text: Cow<'a, str>| Cow::Owned(text.into_owned());
        match self {
            Element::Field(text) => Element::Field(own(text)),
            Element::Index(text) => Element::Index(own(text)),
            Element::Key(text) => Element::Key(own(text)),
            Element::Value(text) => Element::Value(own(text)),
        }
    }

    fn parse(text: Cow<'a, str>) -> Option<Self> {
        let make = match text.get(..2)? {
            "f:" => Element::Field,
            "i:" => Element::Index,
            "k:" => Element::Key,
            "v:" => Element::Value,
            _ => return None,
        };
        Some(make(match text {
            Cow::Borrowed(text) => Cow::Borrowed(&text[2..]),
            Cow::Owned(mut text) => Cow::Owned(text.split_off(2)),
        }))
    }

    fn write(&self, out: &mut String) {
        let (kind, text) = match self {
            Element::Field(text) => ("\"f:", text),
            Element::Index(text) => ("\"i:", text),
            Element::Key(text) => ("\"k:", text),
            Element::Value(text) => ("\"v:", text),
        };
        out.push_str(kind);
        match text.bytes().any(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
            // Behind the quote that opens the text, which was written already.
            true => out.push_str(&serde_json::Value::from(&**text).to_string()[1..]),
            false => {
                out.push_str(text);
                out.push('"');
            }
        }
    }

    /// As people read it in a path.
    pub fn words(&self) -> String {
        match self {
            Element::Field(name) => format!(".{name}"),
            Element::Value(value) => format!("[={value}]"),
            Element::Index(index) => format!("[{index}]"),
            Element::Key(json) => match serde_json::from_str::<serde_json::Map<_, _>>(json) {
                Ok(keys) => {
                    let pairs: Vec<String> =
                        keys.iter().map(|(k, v): (_, &serde_json::Value)| format!("{k}={v}")).collect();
                    format!("[{}]", pairs.join(","))
                }
                Err(_) => format!("[k:{json}]"),
            },
        }
    }
}

/// A set, or what a set has under one element.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Set<'a> {
    /// Whether the element itself is a member. A whole object is no member of its own set.
    pub member: bool,
    /// Sorted, none empty.
    children: Vec<(Element<'a>, Set<'a>)>,
}

impl<'a> Set<'a> {
    pub fn leaf() -> Self {
        Set { member: true, children: Vec::new() }
    }

    pub fn into_owned(self) -> Set<'static> {
        let children = self.children.into_iter();
        let children = children.map(|(element, set)| (element.into_owned(), set.into_owned())).collect();
        Set { member: self.member, children }
    }

    /// The same set, but for whether its own element is a member.
    pub fn with_member(mut self, member: bool) -> Self {
        self.member = member;
        self
    }

    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    pub fn has_children(&self) -> bool {
        !self.children.is_empty()
    }

    /// Adds what is under an element that sorts behind all that are there.
    pub fn push(&mut self, element: Element<'a>, set: Set<'a>) {
        if !set.is_empty() {
            self.children.push((element, set));
        }
    }

    /// Sorts what was pushed out of order. What was pushed twice is one.
    pub fn sort(&mut self) {
        if self.children.is_sorted_by(|a, b| a.0 < b.0) {
            return;
        }
        self.children.sort_by(|a, b| a.0.cmp(&b.0));
        self.children.dedup_by(|later, first| {
            let same = later.0 == first.0;
            if same {
                first.1.union(&later.1);
            }
            same
        });
    }

    fn place(&self, element: &Element<'_>) -> Result<usize, usize> {
        self.children.binary_search_by(|(known, _)| known.cmp(element))
    }

    pub fn child(&self, element: &Element<'_>) -> Option<&Set<'a>> {
        self.place(element).ok().map(|at| &self.children[at].1)
    }

    pub fn has(&self, path: &[Element<'_>]) -> bool {
        match path {
            [] => self.member,
            [first, rest @ ..] => self.child(first).is_some_and(|child| child.has(rest)),
        }
    }

    /// Takes away what `take` leaves empty of the place at a path of fields.
    fn reduce(&mut self, path: &[&str], take: &impl Fn(&mut Set<'a>)) {
        let Some((first, rest)) = path.split_first() else { return take(self) };
        let Ok(at) = self.place(&Element::field(first)) else { return };
        self.children[at].1.reduce(rest, take);
        if self.children[at].1.is_empty() {
            self.children.remove(at);
        }
    }

    /// Takes a field and all below it away.
    pub fn remove_under(&mut self, path: &[&str]) {
        self.reduce(path, &|set| *set = Set::default());
    }

    /// Takes one member away, and leaves what is below it.
    pub fn remove_member(&mut self, path: &[&str]) {
        self.reduce(path, &|set| set.member = false);
    }

    pub fn union(&mut self, other: &Set<'a>) {
        self.member |= other.member;
        if self.children.is_empty() {
            self.children.clone_from(&other.children);
            return;
        }
        for (element, theirs) in &other.children {
            match self.place(element) {
                Ok(at) => self.children[at].1.union(theirs),
                Err(at) => self.children.insert(at, (element.clone(), theirs.clone())),
            }
        }
    }

    pub fn difference(&mut self, other: &Set<'_>) {
        self.member &= !other.member;
        self.each_common(other, |ours, theirs| ours.difference(theirs));
        self.children.retain(|(_, child)| !child.is_empty());
    }

    fn each_common(&mut self, other: &Set<'_>, mut visit: impl FnMut(&mut Set<'a>, &Set<'_>)) {
        let (mut at, mut there) = (0, 0);
        while at < self.children.len() && there < other.children.len() {
            match self.children[at].0.cmp(&other.children[there].0) {
                Ordering::Less => at += 1,
                Ordering::Greater => there += 1,
                Ordering::Equal => {
                    visit(&mut self.children[at].1, &other.children[there].1);
                    (at, there) = (at + 1, there + 1);
                }
            }
        }
    }

    pub fn intersection(&self, other: &Set<'_>) -> Set<'a> {
        let mut common = Set { member: self.member && other.member, children: Vec::new() };
        for (element, ours) in &self.children {
            if let Some(theirs) = other.child(element) {
                common.push(element.clone(), ours.intersection(theirs));
            }
        }
        common
    }

    /// All members as people read paths, `.spec.containers[name="a"].image`: at each level its members first.
    pub fn paths(&self) -> Vec<(Vec<Element<'a>>, String)> {
        let mut paths = Vec::new();
        self.collect(&mut Vec::new(), "", &mut paths);
        paths
    }

    fn collect(&self, path: &mut Vec<Element<'a>>, text: &str, paths: &mut Vec<(Vec<Element<'a>>, String)>) {
        for (element, _) in self.children.iter().filter(|(_, child)| child.member) {
            let mut full = path.clone();
            full.push(element.clone());
            paths.push((full, format!("{text}{}", element.words())));
        }
        for (element, child) in &self.children {
            path.push(element.clone());
            child.collect(path, &format!("{text}{}", element.words()), paths);
            path.pop();
        }
    }

    /// The set as managedFields keeps it.
    pub fn json(&self) -> String {
        let mut out = String::with_capacity(4096);
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        out.push('{');
        if self.member && self.has_children() {
            out.push_str(r#"".":{}"#);
        }
        for (element, child) in &self.children {
            if !out.ends_with('{') {
                out.push(',');
            }
            element.write(out);
            out.push(':');
            child.write(out);
        }
        out.push('}');
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Set<'a> {
    /// Refuses what managedFields may not hold.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Nodes).map(|set| set.with_member(false))
    }
}

struct Nodes;

impl<'de> Visitor<'de> for Nodes {
    type Value = Set<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a set of fields")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Set<'de>, A::Error> {
        let mut set = Set::default();
        let mut bare = true;
        while let Some(Text(key)) = access.next_key()? {
            bare = false;
            let Child(child) = access.next_value()?;
            if key == SELF {
                set.member = true;
                continue;
            }
            let element = Element::parse(key).ok_or_else(|| A::Error::custom("no path element"))?;
            set.push(element, child);
        }
        set.member |= bare;
        set.sort();
        Ok(set)
    }
}

struct Child<'a>(Set<'a>);

impl<'de> Deserialize<'de> for Child<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Nodes).map(Child)
    }
}

/// A text that is borrowed where it can be.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path element")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Texts)
    }
}

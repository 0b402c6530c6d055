//! What a scheduler plugin is: it may hold a pod back, refuse nodes, rank those that remain, and say which
//! events are worth another try.
//!
//! A plugin looks at a pod once a cycle and leaves a [`Filter`] or [`Score`] with what it worked out; a pod that
//! a plugin has nothing to say about costs nothing for each node.
//!
//! Upstream: staging/src/k8s.io/kube-scheduler/framework/interface.go

use std::borrow::Cow;
use std::time::Duration;

use api::Object;
use client::{PatchType, Resource};
use serde_json::Value;

use crate::cluster::{Change, Cluster, Kind};
use crate::node::Load;
use crate::{NodeInfo, PodInfo};

pub const MAX_SCORE: i64 = 100;

/// Why a node, or every node, will not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Beside the others, since there is mostly one, and thousands of nodes may refuse one pod.
    first: Cow<'static, str>,
    others: Vec<Cow<'static, str>>,
    /// Evicting pods of the node cannot help.
    pub unresolvable: bool,
}

impl Refusal {
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Refusal { first: reason.into(), others: Vec::new(), unresolvable: false }
    }

    pub fn unresolvable(reason: impl Into<Cow<'static, str>>) -> Self {
        Refusal { unresolvable: true, ..Refusal::new(reason) }
    }

    /// Adds a reason to those that there may be.
    pub fn add(refusal: &mut Option<Self>, reason: impl Into<Cow<'static, str>>) -> &mut Self {
        match refusal {
            Some(refusal) => {
                refusal.others.push(reason.into());
                refusal
            }
            None => refusal.insert(Refusal::new(reason)),
        }
    }

    pub fn reasons(&self) -> impl Iterator<Item = &Cow<'static, str>> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// All reasons, as they are told.
    pub fn words(&self) -> String {
        self.reasons().map(|reason| &**reason).collect::<Vec<_>>().join(", ")
    }
}

/// How far what a plugin asked for before a binding has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prepared {
    Ready,
    Waiting,
    /// It will not come; the pod is to be placed anew.
    Failed(String),
}

/// Whether a placed pod may go on to its binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permit {
    Allowed,
    /// Not yet: it is asked again when something changed, for so long.
    Wait(Duration),
    /// The pod is to be placed anew, once that may be different.
    Rejected(String),
}

/// What a write does to an object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verb {
    Create,
    Patch(PatchType),
    Delete,
}

/// Something to be written before a pod can be bound. The object's resource version goes with a patch, so that
/// a plan over what is history fails; of several writes to one object each has the version that the one before made.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    pub verb: Verb,
    pub resource: Resource,
    pub namespace: String,
    /// Empty for the object that a write before made, which the API server named.
    pub name: String,
    pub subresource: Option<&'static str>,
    /// The object to create, or the patch.
    pub body: Value,
    /// Where in the body the time of the write belongs: an object, and a key.
    pub stamp: Option<(&'static str, &'static str)>,
    /// Where the name of the object belongs that a write before made.
    pub made: Option<(&'static str, &'static str)>,
}

impl Write {
    pub fn patch<T: Object>(of: &T, subresource: Option<&'static str>, kind: PatchType, body: Value) -> Self {
        Write {
            verb: Verb::Patch(kind),
            resource: Resource::of::<T>(),
            namespace: of.namespace().to_owned(),
            name: of.name().to_owned(),
            subresource,
            body,
            stamp: None,
            made: None,
        }
    }
}

pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;

    /// Why the pod must not even be tried yet.
    fn hold_back(&self, _pod: &PodInfo, _cluster: &Cluster) -> Option<String> {
        None
    }

    /// Why no node at all will do for the pod, before any is looked at.
    fn refuse_all(&self, _pod: &PodInfo, _cluster: &Cluster) -> Option<Refusal> {
        None
    }

    /// Has the cluster count what the plugin will want to know of other pods.
    fn ask(&self, _pod: &PodInfo, _cluster: &mut Cluster) {}

    /// The only nodes that can do, by name; `None` when the pod does not name any.
    fn narrow(&self, _pod: &PodInfo) -> Option<Vec<String>> {
        None
    }

    /// What nodes must offer the pod; `None` when the plugin asks nothing.
    fn filter<'a>(&'a self, _pod: &'a PodInfo, _cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        None
    }

    /// How to rank nodes for the pod; `None` when the plugin does not mind.
    fn score<'a>(
        &'a self,
        _pod: &'a PodInfo,
        _cluster: &'a Cluster,
        _nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        None
    }

    /// How good it is that pods of a group are on these nodes, where they are already; `None` when the plugin does not
    /// mind.
    fn score_domain(&self, _nodes: &[&NodeInfo]) -> Option<i64> {
        None
    }

    /// Takes what the pod needs beside room on the chosen node, and says what is to be written for it.
    fn reserve(&self, _pod: &PodInfo, _node: &str, _cluster: &mut Cluster) -> Result<Vec<Write>, String> {
        Ok(Vec::new())
    }

    /// Gives back what [`Plugin::reserve`] took, and says what is to be written for it; also called when it took
    /// nothing.
    fn unreserve(&self, _pod: &PodInfo, _cluster: &mut Cluster) -> Vec<Write> {
        Vec::new()
    }

    /// What is to be written so that a pod that the plugin refused may fit later.
    fn relieve(&self, _pod: &PodInfo, _cluster: &Cluster) -> Vec<Write> {
        Vec::new()
    }

    /// How long that may take.
    fn preparation_timeout(&self) -> Option<Duration> {
        None
    }

    /// Whether, after its writes, the pod can be bound to the node.
    fn prepared(&self, _pod: &PodInfo, _node: &str, _cluster: &Cluster) -> Prepared {
        Prepared::Ready
    }

    /// Whether a pod may go on to its binding, whose place is taken and who has what it needs. The last word before
    /// anything is written.
    fn permit(&self, _pod: &PodInfo, _node: &str, _cluster: &Cluster) -> Permit {
        Permit::Allowed
    }

    /// The pod is bound.
    fn bound(&self, _pod: &PodInfo, _node: &str) {}

    /// The kinds of changes that may ever make a pod fit that this plugin refused.
    fn events(&self) -> &'static [Kind] {
        &[]
    }

    /// Whether a change may make a pod fit that this plugin refused.
    fn may_help(&self, _pod: &PodInfo, _change: &Change) -> bool {
        false
    }
}

/// What a filter's answer about a node depends on, and so when it must be asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LooksAt {
    /// Nothing that pods change by coming or going.
    Node,
    /// How much the node's pods ask for together.
    Load,
    /// The node's pods one by one, or pods of other nodes.
    Pods,
}

pub trait Filter {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal>;

    fn looks_at(&self) -> LooksAt {
        LooksAt::Pods
    }

    /// Whether the answer is the same for all pods that are alike to a [memo](crate::memo), and holds until something
    /// of the node changes.
    fn is_steady(&self) -> bool {
        false
    }

    /// The same, were this the load of the node. Only for filters that look at no single pods.
    fn check_loaded(&self, node: &NodeInfo, _load: &Load) -> Result<(), Refusal> {
        self.check(node)
    }

    /// What if `pod` were gone from `node` (`count` -1), or were there (1)? Asked when pods are to be evicted.
    fn assume(&mut self, _pod: &PodInfo, _node: &NodeInfo, _count: i64) {}
}

pub trait Score {
    fn score(&self, node: &NodeInfo) -> i64;

    /// Brings the scores of all nodes, in the order of `nodes`, to between 0 and [`MAX_SCORE`].
    fn normalize(&self, _nodes: &[&NodeInfo], _scores: &mut [i64]) {}
}

/// Scales so that the best has [`MAX_SCORE`], or, reversed, zero.
///
/// Upstream: pkg/scheduler/framework/plugins/helper/normalize_score.go
pub fn normalize_to_max(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if max == 0 { 0 } else { *score * MAX_SCORE / max };
        *score = if reverse { MAX_SCORE - scaled } else { scaled };
    }
}

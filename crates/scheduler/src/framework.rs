//! What a scheduler plugin is: it may hold a pod back, refuse nodes, rank those that remain, and say which
//! events are worth another try.
//!
//! A plugin looks at a pod once a cycle and leaves a [`Filter`] or [`Score`] with what it worked out; a pod that
//! a plugin has nothing to say about costs nothing for each node.
//!
//! Upstream: staging/src/k8s.io/kube-scheduler/framework/interface.go

use std::borrow::Cow;

use crate::cluster::{Change, Cluster};
use crate::{NodeInfo, PodInfo};

pub const MAX_SCORE: i64 = 100;

/// Why a node will not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Cow<'static, str>,
    /// Evicting pods of the node cannot help.
    pub unresolvable: bool,
}

impl Refusal {
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Refusal { reason: reason.into(), unresolvable: false }
    }

    pub fn unresolvable(reason: impl Into<Cow<'static, str>>) -> Self {
        Refusal { reason: reason.into(), unresolvable: true }
    }
}

pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;

    /// Why the pod must not even be tried yet.
    fn hold_back(&self, _pod: &PodInfo) -> Option<String> {
        None
    }

    /// What nodes must offer the pod; `None` when the plugin asks nothing.
    fn filter<'a>(&self, _pod: &'a PodInfo, _cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        None
    }

    /// How to rank nodes for the pod; `None` when the plugin does not mind.
    fn score<'a>(
        &self,
        _pod: &'a PodInfo,
        _cluster: &'a Cluster,
        _nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        None
    }

    /// How much the plugin's scores count.
    fn weight(&self) -> i64 {
        1
    }

    /// Whether a change may make a pod fit that this plugin refused.
    fn may_help(&self, pod: &PodInfo, change: &Change) -> bool;
}

pub trait Filter {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal>;

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

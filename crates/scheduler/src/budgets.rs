//! [`Budgets`]: which evictions are against a PodDisruptionBudget.

use std::collections::HashMap;
use std::sync::Arc;

use api::Object;
use api::policy::v1::PodDisruptionBudget;
use apimachinery::selector::LabelSelector;

use crate::{PodInfo, pod};

/// All budgets, as evictions are judged by them.
#[derive(Default)]
pub struct Budgets {
    by_namespace: HashMap<String, Vec<Budget>>,
    /// Tells these from the ones before; none where there are no budgets, which is always the same.
    identity: Option<Arc<()>>,
}

struct Budget {
    object: Arc<PodDisruptionBudget>,
    selector: LabelSelector,
}

impl Budgets {
    pub fn new(budgets: impl IntoIterator<Item = Arc<PodDisruptionBudget>>) -> Self {
        let mut by_namespace: HashMap<String, Vec<Budget>> = HashMap::new();
        for object in budgets {
            let Some(spec) = &object.spec else { continue };
            let selector = pod::selector(spec.selector.as_ref());
            // Such a one protects nothing.
            if selector.is_empty() || selector.is_nothing() {
                continue;
            }
            by_namespace.entry(object.namespace().to_owned()).or_default().push(Budget { object, selector });
        }
        let identity = (!by_namespace.is_empty()).then(Arc::default);
        Budgets { by_namespace, identity }
    }

    /// The same as long as nothing of the budgets changes.
    pub fn identity(&self) -> Option<&Arc<()>> {
        self.identity.as_ref()
    }

    /// Of which pods the eviction, one after the other, is against some budget.
    ///
    /// Upstream: plugins/defaultpreemption/default_preemption.go filterPodsWithPDBViolation
    pub fn violations(&self, pods: &[&Arc<PodInfo>]) -> Vec<bool> {
        if self.by_namespace.is_empty() {
            return vec![false; pods.len()];
        }
        let mut left: Vec<(&Budget, i32)> = Vec::new();
        let violates = |pod: &&Arc<PodInfo>| {
            let mut violates = false;
            let budgets = self.by_namespace.get(pod.pod.namespace());
            for budget in budgets.into_iter().flatten().filter(|budget| budget.protects(pod)) {
                let at = left.iter().position(|(known, _)| std::ptr::eq(*known, budget));
                let at = at.unwrap_or_else(|| {
                    left.push((budget, budget.allowed()));
                    left.len() - 1
                });
                left[at].1 -= 1;
                violates |= left[at].1 < 0;
            }
            violates
        };
        pods.iter().map(violates).collect()
    }
}

impl Budget {
    fn allowed(&self) -> i32 {
        self.object.status.as_ref().and_then(|status| status.disruptions_allowed).unwrap_or(0)
    }

    /// Whether the pod's eviction counts; one that was counted already does not.
    fn protects(&self, pod: &PodInfo) -> bool {
        let labels = pod::labels(&pod.pod);
        let disrupted = self.object.status.as_ref().and_then(|status| status.disrupted_pods.as_ref());
        !labels.is_empty()
            && self.selector.matches_map(labels)
            && disrupted.is_none_or(|disrupted| !disrupted.contains_key(pod.pod.name()))
    }
}

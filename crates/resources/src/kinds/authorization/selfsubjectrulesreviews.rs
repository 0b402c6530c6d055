//! SelfSubjectRulesReview: what may I do in a namespace?

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("authorization.k8s.io/v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews")
        .verbs(&[Verb::Create])
        .build()
}

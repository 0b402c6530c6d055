//! SelfSubjectReview: who am I?

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("authentication.k8s.io/v1", "SelfSubjectReview", "selfsubjectreviews")
        .verbs(&[Verb::Create])
        .build()
}

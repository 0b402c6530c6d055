//! SelfSubjectAccessReview: may I do this?

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("authorization.k8s.io/v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews")
        .verbs(&[Verb::Create])
        .strategy(Rules { validate: super::validate_self, ..Rules::PLAIN })
        .build()
}

//! SubjectAccessReview: may a subject do this?

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("authorization.k8s.io/v1", "SubjectAccessReview", "subjectaccessreviews")
        .verbs(&[Verb::Create])
        .strategy(Rules { validate: super::validate_subject, ..Rules::PLAIN })
        .build()
}

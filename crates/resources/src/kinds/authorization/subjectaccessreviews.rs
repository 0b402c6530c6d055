//! SubjectAccessReview: may a subject do this?

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("authorization.k8s.io/v1", "SubjectAccessReview", "subjectaccessreviews")
        .verbs(&[Verb::Create])
        .strategy(Rules { validate, ..Rules::PLAIN })
        .build()
}

fn validate(review: &Value) -> Errors {
    let mut errors = super::validate_subject(review);
    errors.extend(super::validate_metadata(review, "must be empty"));
    errors
}

//! TokenReview: whose token is this?

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("authentication.k8s.io/v1", "TokenReview", "tokenreviews").verbs(&[Verb::Create]).build()
}

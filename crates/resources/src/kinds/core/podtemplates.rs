//! PodTemplate: a template kept by itself.

use crate::podspec;
use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("v1", "PodTemplate", "podtemplates")
        .columns("Name,Containers,Images,Pod Labels", |o, _| {
            let (names, images) = print::containers(o, "template.spec");
            cells![get::name(o), names, images, print::labels(o, "template.metadata.labels")]
        })
        .strategy(Rules {
            default: |o| podspec::default_template(o, "template"),
            validate: |o| podspec::validate_template(o, "template", &path("template")),
            warnings: |o| podspec::template_warnings_at(o, "template"),
            generation: true,
            ..Rules::PLAIN
        })
        .build()
}

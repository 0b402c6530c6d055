//! VolumeAttachment: a volume that is to be attached to a node.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("storage.k8s.io/v1", "VolumeAttachment", "volumeattachments")
        .status()
        .columns("Name,Attacher,PV,Node,Attached:boolean,Age", |o, now| {
            cells![
                get::name(o),
                text(o, "spec.attacher"),
                text(o, "spec.source.persistentVolumeName"),
                text(o, "spec.nodeName"),
                is_true(o, "status.attached"),
                age(o, now),
            ]
        })
        .strategy(Rules { validate, validate_update, unconditional_update: false, ..Rules::PLAIN })
        .build()
}

fn validate(attachment: &Value) -> Errors {
    let mut errors = crate::validate::required(attachment, "spec.attacher");
    if text(attachment, "spec.nodeName").is_empty() {
        errors.push(Error::required(&path("spec.nodeName"), ""));
    }
    let name = text(attachment, "spec.source.persistentVolumeName");
    if name.is_empty() && !has(attachment, "spec.source.inlineVolumeSpec") {
        let detail = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
        errors.push(Error::required(&path("spec.source"), detail));
    }
    errors
}

fn validate_update(attachment: &Value, old: &Value) -> Errors {
    crate::validate::immutable(attachment, old, "spec")
}

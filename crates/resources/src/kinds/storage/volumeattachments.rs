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
    let attacher = text(attachment, "spec.attacher");
    let mut errors = crate::validate::csi_driver_name(attacher, &path("spec.attacher"));
    let inline = has(attachment, "spec.source.inlineVolumeSpec");
    let name = text(attachment, "spec.source.persistentVolumeName");
    let detail = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (inline, has(attachment, "spec.source.persistentVolumeName")) {
        (false, false) => errors.push(Error::required(&path("spec.source"), detail)),
        (true, true) => errors.push(Error::forbidden(&path("spec.source"), detail)),
        (true, false) => {}
        (false, true) if name.is_empty() => {
            errors.push(Error::required(
                &path("spec.source.persistentVolumeName"),
                "must specify non empty persistentVolumeName",
            ));
        }
        (false, true) => {}
    }
    let node = text(attachment, "spec.nodeName");
    let messages = names::dns1123_subdomain(node);
    errors.extend(messages.into_iter().map(|m| Error::invalid(&path("spec.nodeName"), node, m)));
    if has(attachment, "spec.source.persistentVolumeName") {
        let messages = names::dns1123_subdomain(name);
        let at = path("spec.source.persistentVolumeName");
        errors.extend(messages.into_iter().map(|m| Error::invalid(&at, name, m)));
    }
    errors
}

fn validate_update(attachment: &Value, old: &Value) -> Errors {
    crate::validate::immutable(attachment, old, "spec")
}

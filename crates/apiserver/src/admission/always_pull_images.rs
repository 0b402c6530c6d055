//! Images are pulled anew for every container, so that nobody runs what another has the right to pull.
//!
//! Upstream: plugin/pkg/admission/alwayspullimages/admission.go

use std::collections::BTreeSet;

use apimachinery::Status;
use apimachinery::field::{Error as FieldError, Path};
use serde_json::Value;

use super::tree::{items, text};
use super::{Context, Plugin, forbid, is, is_create, is_update};
use crate::seams::AdmissionRequest;

const LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
const ALWAYS: &str = "Always";

pub(super) struct AlwaysPullImages;

fn images(pod: &Value) -> BTreeSet<&str> {
    let containers = LISTS.iter().flat_map(|list| items(&pod["spec"], list));
    containers.map(|container| text(container, "image")).collect()
}

fn concerns(request: &AdmissionRequest<'_>) -> bool {
    let whole = request.subresource.is_empty() || request.subresource == "ephemeralcontainers";
    if !is(request, "", "pods") || !whole {
        return false;
    }
    match request.old_object {
        Some(old) if is_update(request) => !images(request.object).is_subset(&images(old)),
        _ => is_create(request),
    }
}

impl Plugin for AlwaysPullImages {
    fn name(&self) -> &'static str {
        "AlwaysPullImages"
    }

    fn is_default(&self) -> bool {
        false
    }

    fn mutate(&self, _context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !concerns(request) {
            return Ok(());
        }
        let Some(spec) = request.object.get_mut("spec").filter(|spec| spec.is_object()) else {
            return Ok(());
        };
        for list in LISTS {
            let containers = spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
            for container in containers.filter(|container| container.is_object()) {
                container["imagePullPolicy"] = ALWAYS.into();
            }
        }
        let volumes = spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten();
        for image in volumes.filter_map(|volume| volume.get_mut("image")).filter(|image| image.is_object()) {
            image["pullPolicy"] = ALWAYS.into();
        }
        Ok(())
    }

    fn validate(&self, _context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !concerns(request) {
            return Ok(());
        }
        let spec = Path::new("spec");
        let mut errors = Vec::new();
        let mut check = |path: Path, policy: &str| {
            if policy != ALWAYS {
                errors.push(FieldError::not_supported(&path, policy, &[ALWAYS]));
            }
        };
        for list in LISTS {
            for (at, container) in items(&request.object["spec"], list).iter().enumerate() {
                let path = spec.child(list).index(at).child("imagePullPolicy");
                check(path, text(container, "imagePullPolicy"));
            }
        }
        for (at, volume) in items(request.object, "spec.volumes").iter().enumerate() {
            if volume["image"].is_object() {
                let path = spec.child("volumes").index(at).child("image").child("pullPolicy");
                check(path, text(volume, "image.pullPolicy"));
            }
        }
        match errors.first() {
            Some(error) => Err(forbid(request, error)),
            None => Ok(()),
        }
    }
}

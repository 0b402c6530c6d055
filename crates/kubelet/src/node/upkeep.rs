//! Removes images that no container uses: when the disk is nearly full, and when nobody has used them for long.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use cri::v1 as pb;
use jiff::{SignedDuration, Timestamp};

use crate::core::Core;
use crate::runtime::describe;

/// When an image was first seen, and when a container used it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    detected: Timestamp,
    used: Option<Timestamp>,
}

/// What is known of images, by id.
#[derive(Clone, Debug, Default)]
pub struct Ages {
    images: BTreeMap<String, Seen>,
    /// Since when they are looked at.
    since: Option<Timestamp>,
}

/// How old images may, and must, be.
#[derive(Clone, Copy, Debug)]
struct Limits {
    min: SignedDuration,
    max: Option<SignedDuration>,
}

fn is_used(image: &pb::Image, used: &BTreeSet<String>) -> bool {
    used.contains(&image.id) || image.repo_digests.iter().chain(&image.repo_tags).any(|n| used.contains(n))
}

impl Ages {
    // Upstream: pkg/kubelet/images/image_gc_manager.go detectImages
    fn look(&mut self, images: &[pb::Image], used: &BTreeSet<String>, now: Timestamp) {
        // What was there before the kubelet is old, whenever it came.
        let detected = if self.since.is_none() { Timestamp::UNIX_EPOCH } else { now };
        self.since.get_or_insert(now);
        let present: BTreeSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        self.images.retain(|id, _| present.contains(id.as_str()));
        for image in images {
            let seen = self.images.entry(image.id.clone()).or_insert(Seen { detected, used: None });
            if is_used(image, used) {
                seen.used = Some(now);
            }
        }
    }

    /// Which images to remove: those that nobody has used for too long, and then, so that `excess` bytes come free,
    /// those that were used longest ago. Neither ones that are used or pinned, nor, for room, ones that were only
    /// just pulled for a container that is about to start.
    // Upstream: pkg/kubelet/images/image_gc_manager.go freeOldImages, freeSpace
    fn to_remove(
        &self,
        images: &[pb::Image],
        used: &BTreeSet<String>,
        limits: Limits,
        excess: u64,
        now: Timestamp,
    ) -> Vec<String> {
        let seen = |image: &pb::Image| {
            self.images.get(&image.id).copied().unwrap_or(Seen { detected: now, used: None })
        };
        let mut free: Vec<(Seen, &pb::Image)> = images
            .iter()
            .filter(|image| !image.pinned && !is_used(image, used))
            .map(|image| (seen(image), image))
            .collect();
        free.sort_by_key(|(seen, image)| (seen.used, seen.detected, image.id.as_str()));
        // A kubelet that has only just started does not know who used what.
        let knows = |max: &SignedDuration| self.since.is_some_and(|since| now.duration_since(since) > *max);
        let max = limits.max.filter(knows);
        let (mut left, mut removed) = (excess, Vec::new());
        for (seen, image) in free {
            let too_old = max.is_some_and(|max| seen.used.is_none_or(|used| now.duration_since(used) > max));
            let for_room = left > 0 && now.duration_since(seen.detected) >= limits.min;
            if for_room && !too_old {
                left = left.saturating_sub(image.size);
            }
            if too_old || for_room {
                removed.push(image.id.clone());
            }
        }
        removed
    }
}

// Upstream: pkg/kubelet/images/image_gc_manager.go GarbageCollect
pub async fn collect_images(core: &Core) {
    let listed = core.config.clock.now();
    if let Ok(images) = core.runtime.images().await {
        core.images.pulled.prune(&images.into_iter().map(|image| image.id).collect(), listed);
    }
    remove_unused(core, excess(core).await.unwrap_or(0)).await;
}

/// How many bytes too many are on the images' disk.
async fn excess(core: &Core) -> Option<u64> {
    let filesystem = core.runtime.image_filesystem().await.ok()??;
    let mountpoint = filesystem.fs_id.map(|f| f.mountpoint).unwrap_or_default();
    let disk = rustix::fs::statvfs(Path::new(&mountpoint)).ok()?;
    let capacity = disk.f_blocks.saturating_mul(disk.f_frsize);
    let used = capacity.saturating_sub(disk.f_bavail.saturating_mul(disk.f_frsize));
    let percent = |p: u8| capacity / 100 * u64::from(p);
    let is_full = capacity > 0 && used >= percent(core.config.image_gc_high_percent);
    is_full.then(|| used.saturating_sub(percent(core.config.image_gc_low_percent)))
}

/// Notes which images there are before the kubelet has any pulled.
pub async fn look_at_images(core: &Core) {
    if let (Ok(images), Ok(containers)) = (core.runtime.images().await, core.runtime.containers(None).await) {
        let used = used(containers);
        ages(core).look(&images, &used, core.config.clock.now());
    }
}

fn used(containers: Vec<pb::Container>) -> BTreeSet<String> {
    containers.into_iter().flat_map(|container| [container.image_ref, container.image_id]).collect()
}

fn ages(core: &Core) -> MutexGuard<'_, Ages> {
    core.images.ages.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes every image that no container uses: the disk is too full for any of them.
pub async fn free_images(core: &Core) {
    remove_unused(core, u64::MAX).await;
}

async fn remove_unused(core: &Core, excess: u64) {
    let (Ok(images), Ok(containers)) = (core.runtime.images().await, core.runtime.containers(None).await)
    else {
        return;
    };
    let in_use = used(containers);
    let now = core.config.clock.now();
    let signed = |age: Duration| SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
    let limits =
        Limits { min: signed(core.config.image_min_age), max: core.config.image_max_age.map(signed) };
    let removed = {
        let mut ages = ages(core);
        ages.look(&images, &in_use, now);
        ages.to_remove(&images, &in_use, limits, excess, now)
    };
    for image in removed {
        match core.runtime.remove_image(&image).await {
            Ok(()) => tracing::info!(image, "removed an unused image"),
            Err(error) => tracing::warn!(image, error = %describe(&error), "cannot remove an unused image"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn unused_images_go_the_longest_unused_first() {
        let image = |id: &str, size, pinned| pb::Image { id: id.into(), size, pinned, ..Default::default() };
        let images = [
            image("a", 10, false),
            image("b", 30, false),
            image("c", 50, true),
            image("d", 40, false),
            image("e", 5, false),
        ];
        let used = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
        let mut ages = Ages::default();
        ages.look(&images[..4], &used(&["a", "d"]), at(0));
        ages.look(&images[..4], &used(&["d", "b"]), at(100));
        ages.look(&images, &used(&["d"]), at(1000));
        let check = |max: Option<i64>, excess, now, want: &[&str]| {
            let limits =
                Limits { min: SignedDuration::from_secs(120), max: max.map(SignedDuration::from_secs) };
            let removed = ages.to_remove(&images, &used(&["d"]), limits, excess, at(now));
            assert_eq!(removed, want, "{max:?} {excess} {now}");
        };
        check(None, 0, 1000, &[]);
        check(None, 5, 1000, &["a"]);
        check(None, 20, 1000, &["a", "b"]);
        check(None, u64::MAX, 1000, &["a", "b"]);
        check(None, u64::MAX, 1120, &["e", "a", "b"]);
        check(Some(950), 0, 1000, &["e", "a"]);
        // It has not looked for so long yet.
        check(Some(1000), 0, 1000, &[]);
    }
}

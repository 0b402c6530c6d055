//! Removes images that no container uses, when the disk is nearly full.

use std::collections::BTreeSet;
use std::path::Path;

use cri::v1 as pb;

use crate::core::Core;
use crate::runtime::describe;

/// Which images to remove so that `excess` bytes come free: unused, not pinned, the largest first, so that few go.
pub fn to_remove(images: &[pb::Image], used: &BTreeSet<String>, excess: u64) -> Vec<String> {
    let in_use = |image: &pb::Image| {
        used.contains(&image.id)
            || image.repo_digests.iter().chain(&image.repo_tags).any(|n| used.contains(n))
    };
    let mut free: Vec<&pb::Image> = images.iter().filter(|i| !i.pinned && !in_use(i)).collect();
    free.sort_by_key(|i| std::cmp::Reverse(i.size));
    let mut left = excess;
    let mut removed = Vec::new();
    for image in free {
        if left == 0 {
            break;
        }
        left = left.saturating_sub(image.size);
        removed.push(image.id.clone());
    }
    removed
}

// Upstream: pkg/kubelet/images/image_gc_manager.go GarbageCollect
pub async fn collect_images(core: &Core) {
    let listed = core.config.clock.now();
    if let Ok(images) = core.runtime.images().await {
        core.images.pulled.prune(&images.into_iter().map(|image| image.id).collect(), listed);
    }
    let Ok(Some(filesystem)) = core.runtime.image_filesystem().await else { return };
    let mountpoint = filesystem.fs_id.map(|f| f.mountpoint).unwrap_or_default();
    let Ok(disk) = rustix::fs::statvfs(Path::new(&mountpoint)) else { return };
    let capacity = disk.f_blocks.saturating_mul(disk.f_frsize);
    let used = capacity.saturating_sub(disk.f_bavail.saturating_mul(disk.f_frsize));
    let percent = |p: u8| capacity / 100 * u64::from(p);
    if capacity == 0 || used < percent(core.config.image_gc_high_percent) {
        return;
    }
    remove_unused(core, used - percent(core.config.image_gc_low_percent)).await;
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
    let in_use = containers.into_iter().flat_map(|c| [c.image_ref, c.image_id]).collect();
    for image in to_remove(&images, &in_use, excess) {
        match core.runtime.remove_image(&image).await {
            Ok(()) => tracing::info!(image, "removed an unused image, as the disk is nearly full"),
            Err(error) => tracing::warn!(image, error = %describe(&error), "cannot remove an unused image"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unused_images_go_until_enough_is_free() {
        let image = |id: &str, size, pinned| pb::Image { id: id.into(), size, pinned, ..Default::default() };
        let images =
            [image("a", 10, false), image("b", 30, false), image("c", 50, true), image("d", 40, false)];
        let used = BTreeSet::from(["d".to_owned()]);
        assert_eq!(to_remove(&images, &used, 0), Vec::<String>::new());
        assert_eq!(to_remove(&images, &used, 20), ["b"]);
        assert_eq!(to_remove(&images, &used, 100), ["b", "a"]);
    }
}

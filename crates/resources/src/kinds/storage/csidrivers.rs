//! CSIDriver: what a storage driver can do.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("storage.k8s.io/v1", "CSIDriver", "csidrivers")
        .columns(
            "Name,AttachRequired:boolean,PodInfoOnMount:boolean,StorageCapacity:boolean,TokenRequests,\
             RequiresRepublish:boolean,Modes,Age",
            cells,
        )
        .strategy(Rules { default, generation: true, unconditional_update: false, ..Rules::PLAIN })
        .build()
}

fn cells(driver: &Value, now: i64) -> Vec<Cell> {
    let audiences: Vec<&str> =
        list(driver, "spec.tokenRequests").iter().map(|t| text(t, "audience")).collect();
    let tokens = if has(driver, "spec.tokenRequests") { audiences.join(",") } else { "<unset>".to_owned() };
    let modes = get::texts(driver, "spec.volumeLifecycleModes");
    cells![
        get::name(driver),
        get::flag(driver, "spec.attachRequired").unwrap_or(true),
        is_true(driver, "spec.podInfoOnMount"),
        is_true(driver, "spec.storageCapacity"),
        tokens,
        is_true(driver, "spec.requiresRepublish"),
        if modes.is_empty() { "<none>".to_owned() } else { modes.join(",") },
        age(driver, now),
    ]
}

/// Upstream: pkg/apis/storage/v1/defaults.go SetDefaults_CSIDriver
fn default(driver: &mut Value) {
    get::default(driver, "spec.attachRequired", true);
    for field in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
        get::default(driver, &format!("spec.{field}"), false);
    }
    get::default(driver, "spec.fsGroupPolicy", "ReadWriteOnceWithFSType");
    if list(driver, "spec.volumeLifecycleModes").is_empty() {
        set(driver, "spec.volumeLifecycleModes", json!(["Persistent"]));
    }
}

//! Sources of volumes, in pods and in PersistentVolumes: what upstream v1.36 answers, word by word.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use resources::table;
use serde_json::{Value, json};

fn errors(plural: &str, mut object: Value) -> Vec<String> {
    let def = table().iter().find(|def| def.plural == plural).unwrap();
    def.strategy.default(&mut object);
    def.strategy.validate(&object).iter().map(ToString::to_string).collect()
}

fn in_pod(mut source: Value) -> Vec<String> {
    source["name"] = json!("v");
    let container = json!({"name": "c", "image": "i"});
    let found = errors(
        "pods",
        json!({"metadata": {"name": "p"}, "spec": {"containers": [container], "volumes": [source]}}),
    );
    found.into_iter().map(|error| error.replace("spec.volumes[0]", "v")).collect()
}

fn in_volume(source: Value) -> Vec<String> {
    let mut spec = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]});
    spec.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
    errors("persistentvolumes", json!({"metadata": {"name": "p"}, "spec": spec}))
}

#[track_caller]
fn check(rows: &[(Vec<String>, &[&str])]) {
    for (found, wanted) in rows {
        assert_eq!(found, wanted);
    }
}

#[test]
fn the_first_source_counts_and_the_others_are_too_many() {
    check(&[
        (
            in_pod(json!({"configMap": {"name": "c"}, "azureDisk": {}})),
            &["v.azureDisk: Forbidden: may not specify more than 1 volume type"],
        ),
        (
            in_pod(json!({"downwardAPI": {}, "cephfs": {}, "nfs": {"server": "s", "path": "x"}})),
            &[
                "v.nfs.path: Invalid value: \"x\": must be an absolute path",
                "v.cephFS: Forbidden: may not specify more than 1 volume type",
                "v.downwarAPI: Forbidden: may not specify more than 1 volume type",
            ],
        ),
        (in_volume(json!({})), &["spec: Required value: must specify a volume type"]),
        (
            in_volume(json!({"nfs": {"server": "s", "path": "/"}, "csi": {}})),
            &["spec.csi: Forbidden: may not specify more than 1 volume type"],
        ),
    ]);
}

#[test]
fn each_source_says_what_it_needs() {
    check(&[
        (
            in_pod(json!({"gcePersistentDisk": {"partition": -1}})),
            &[
                "v.persistentDisk.pdName: Required value",
                "v.persistentDisk.partition: Invalid value: -1: must be between 1 and 255, inclusive",
            ],
        ),
        (
            in_pod(json!({"iscsi": {"targetPortal": "p", "iqn": "x", "lun": 256, "chapAuthSession": true}})),
            &[
                "v.iscsi.iqn: Invalid value: \"x\": must be valid format starting with iqn, eui, or naa",
                "v.iscsi.lun: Invalid value: 256: must be between 0 and 255, inclusive",
                "v.iscsi.secretRef: Required value",
            ],
        ),
        (in_pod(json!({"iscsi": {"targetPortal": "p", "iqn": "iqn.2001-04.com.example:a.b"}})), &[]),
        (
            in_pod(json!({"iscsi": {"targetPortal": "p", "iqn": "iqn.01-04.com.example:a"}})),
            &["v.iscsi.iqn: Invalid value: \"iqn.01-04.com.example:a\": must be valid format"],
        ),
        (
            in_pod(json!({"fc": {"targetWWNs": ["a"]}})),
            &["v.fc.lun: Required value: lun is required if targetWWNs is specified"],
        ),
        (
            in_pod(json!({"flocker": {"datasetName": "a/b", "datasetUUID": "u"}})),
            &[
                "v.flocker: Invalid value: \"resource\": datasetName and datasetUUID can not be specified simultaneously",
                "v.flocker.datasetName: Invalid value: \"a/b\": must not contain '/'",
            ],
        ),
        (
            in_pod(json!({"quobyte": {"registry": "a:1,b"}})),
            &[
                "v.quobyte.registry: Invalid value: \"a:1,b\": must be a host:port pair or multiple pairs separated by commas",
                "v.quobyte.volume: Required value",
            ],
        ),
        (
            in_pod(json!({"flexVolume": {"driver": "d", "options": {"a.kubernetes.io/x": "y"}}})),
            &[
                "v.flexVolume.options[a.kubernetes.io/x]: Invalid value: \"a.kubernetes.io/x\": kubernetes.io and k8s.io \
             namespaces are reserved",
            ],
        ),
        (
            in_pod(json!({"azureDisk": {"diskName": "n", "diskURI": "u", "kind": "Managed"}})),
            &["v.azureDisk.diskURI: Unsupported value: \"u\": supported values: \
             \"/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}\""],
        ),
        (
            in_pod(json!({"csi": {"driver": "d", "nodePublishSecretRef": {}}})),
            &["v.csi.nodePublishSecretRef.name: Required value"],
        ),
        (
            in_volume(
                json!({"csi": {"driver": "d", "volumeHandle": "h", "nodeExpandSecretRef": {"name": "n"}}}),
            ),
            &["spec.csi.nodeExpandSecretRef.namespace: Required value"],
        ),
        (
            in_volume(json!({"local": {"path": "/a/../b"}})),
            &[
                "spec.local.path: Invalid value: \"/a/../b\": must not contain '..'",
                "spec.nodeAffinity: Required value: Local volume requires node affinity",
            ],
        ),
        (
            in_volume(json!({"hostPath": {"path": "/"}, "persistentVolumeReclaimPolicy": "Recycle"})),
            &[
                "spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'",
            ],
        ),
        (
            in_volume(
                json!({"nfs": {"server": "s", "path": "/"}, "volumeAttributesClassName": "", "volumeMode": ""}),
            ),
            &[
                "spec.volumeMode: Unsupported value: \"\": supported values: \"Block\", \"Filesystem\"",
                "spec.volumeAttributesClassName: Required value: an empty string is disallowed",
                "spec.csi: Required value: has to be specified when using volumeAttributesClassName",
            ],
        ),
    ]);
}

#[test]
fn templates_of_claims_have_labels_and_nothing_else() {
    let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    let template =
        json!({"metadata": {"name": "x", "labels": {"a": "b"}, "finalizers": ["a/b"]}, "spec": spec});
    check(&[(
        in_pod(json!({"ephemeral": {"volumeClaimTemplate": template}})),
        &[
            "v.ephemeral.volumeClaimTemplate.metadata.name: Forbidden: cannot be set",
            "v.ephemeral.volumeClaimTemplate.metadata.finalizers: Forbidden: cannot be set",
        ],
    )]);
}

//! The list of all controllers.

use futures::future::BoxFuture;
use resources::features::Feature;

use crate::context::Context;

/// A controller: upstream's name for it, and what runs it until the shutdown.
pub(crate) struct Controller {
    pub name: &'static str,
    pub run: fn(Context) -> BoxFuture<'static, ()>,
}

macro_rules! controllers {
    ($($name:literal => $run:path,)+) => {
        pub(crate) static CONTROLLERS: &[Controller] =
            &[$(Controller { name: $name, run: |context| Box::pin($run(context)) }),+];
    };
}

controllers! {
    "deployment-controller" => crate::deployment::run,
    "replicaset-controller" => crate::replication::run::<api::apps::v1::ReplicaSet>,
    "replicationcontroller-controller" => crate::replication::run::<api::core::v1::ReplicationController>,
    "daemonset-controller" => crate::daemonset::run,
    "statefulset-controller" => crate::statefulset::run,
    "job-controller" => crate::job::run,
    "cronjob-controller" => crate::cron_job::run,
    "ttl-controller" => crate::ttl::run,
    "ttl-after-finished-controller" => crate::ttl_after_finished::run,
    "endpointslice-controller" => crate::endpointslice::run,
    "endpoints-controller" => crate::endpoints::run,
    "namespace-controller" => crate::namespace::run,
    "serviceaccount-controller" => crate::service_account::run,
    "root-ca-certificate-publisher-controller" => crate::root_ca::run,
    "garbage-collector-controller" => crate::garbage_collector::run,
    "clusterrole-aggregation-controller" => crate::clusterrole_aggregation::run,
    "disruption-controller" => crate::disruption::run,
    "resourcequota-controller" => crate::resource_quota::run,
    "node-ipam-controller" => crate::node_ipam::run,
    "service-lb-controller" => crate::load_balancer::run,
    "node-lifecycle-controller" => crate::node_lifecycle::run,
    "taint-eviction-controller" => crate::taint_eviction::run,
    "pod-garbage-collector-controller" => crate::pod_gc::run,
    "persistentvolumeclaim-protection-controller" => crate::storage_protection::run_claims,
    "persistentvolume-protection-controller" => crate::storage_protection::run_volumes,
    "volumeattributesclass-protection-controller" => crate::storage_protection::run_classes,
    "persistentvolume-binder-controller" => crate::volumes::binder::run,
    "persistentvolume-attach-detach-controller" => crate::volumes::attach_detach::run,
    "persistentvolume-expander-controller" => crate::volumes::expand::run,
    "ephemeral-volume-controller" => crate::volumes::ephemeral::run,
    "certificatesigningrequest-approving-controller" => crate::certificates::run_approver,
    "certificatesigningrequest-signing-controller" => crate::certificates::run_signer,
    "certificatesigningrequest-cleaner-controller" => crate::certificates::run_cleaner,
    "kubelet-serving-approver" => crate::certificates::run_serving_approver,
    "serviceaccount-token-controller" => crate::service_account_tokens::run,
    "legacy-serviceaccount-token-cleaner-controller" => crate::legacy_tokens::run,
    "bootstrap-signer-controller" => crate::bootstrap_tokens::run_signer,
    "token-cleaner-controller" => crate::bootstrap_tokens::run_cleaner,
    "endpointslice-mirroring-controller" => crate::endpointslice_mirroring::run,
    "service-cidr-controller" => crate::service_cidrs::run,
    "horizontal-pod-autoscaler-controller" => crate::autoscaler::run,
    "resourceclaim-controller" => crate::resource_claims::run,
    "device-taint-eviction-controller" => crate::device_taints::run,
    "storage-version-migrator-controller" => crate::storage_migration::run,
    "podgroup-protection-controller" => crate::group_protection::run,
}

/// What must be on for the controller to run.
pub(crate) fn feature(controller: &str) -> Option<Feature> {
    match controller {
        "storage-version-migrator-controller" => Some(Feature::StorageVersionMigrator),
        "podgroup-protection-controller" => Some(Feature::GenericWorkload),
        _ => None,
    }
}

/// The names of all controllers, as `--controllers` knows them.
pub fn names() -> impl Iterator<Item = &'static str> {
    CONTROLLERS.iter().map(|controller| controller.name)
}

/// What upstream calls a controller's queue in metrics; most are called as their controller.
pub(crate) fn queue_name(controller: &'static str) -> &'static str {
    match controller {
        "deployment-controller" => "deployment",
        "replicaset-controller" => "replicaset",
        "replicationcontroller-controller" => "replicationmanager",
        "daemonset-controller" => "daemonset",
        "statefulset-controller" => "statefulset",
        "job-controller" => "job",
        "cronjob-controller" => "cronjob",
        "ttl-after-finished-controller" => "ttl_jobs_to_delete",
        "ttl-controller" => "ttlcontroller",
        "endpointslice-controller" => "endpoint_slice",
        "endpoints-controller" => "endpoint",
        "endpointslice-mirroring-controller" => "endpoint_slice_mirroring",
        "namespace-controller" => "namespace",
        "serviceaccount-controller" => "serviceaccount",
        "root-ca-certificate-publisher-controller" => "root_ca_cert_publisher",
        "garbage-collector-controller" => "garbage_collector_attempt_to_delete",
        "clusterrole-aggregation-controller" => "ClusterRoleAggregator",
        "disruption-controller" => "disruption",
        "resourcequota-controller" => "resourcequota_primary",
        "node-lifecycle-controller" => "node_lifecycle_controller",
        "taint-eviction-controller" => "noexec_taint_pod",
        "pod-garbage-collector-controller" => "orphaned_pods_nodes",
        "persistentvolumeclaim-protection-controller" => "pvcprotection",
        "persistentvolume-protection-controller" => "pvprotection",
        "volumeattributesclass-protection-controller" => "vacprotection",
        "podgroup-protection-controller" => "podgroupprotection",
        "persistentvolume-binder-controller" => "volumes",
        "persistentvolume-expander-controller" => "volume_expand",
        "ephemeral-volume-controller" => "ephemeral_volume",
        "certificatesigningrequest-approving-controller" | "certificatesigningrequest-signing-controller" => {
            "certificate"
        }
        "serviceaccount-token-controller" => "serviceaccount_tokens_secret",
        "bootstrap-signer-controller" => "bootstrap_signer_queue",
        "token-cleaner-controller" => "token_cleaner",
        "horizontal-pod-autoscaler-controller" => "horizontalpodautoscaler",
        "resourceclaim-controller" => "resource_claim",
        "device-taint-eviction-controller" => "device_taint_eviction_controller",
        name => name,
    }
}

/// The ServiceAccount in `kube-system` that a controller acts as, and that the role `system:controller:…` of the
/// same name is bound to. Most are called as their controller. `None` for who acts as the controller manager itself.
///
/// Upstream: cmd/kube-controller-manager/app/core.go
pub(crate) fn service_account(controller: &str) -> Option<&str> {
    Some(match controller {
        "replicationcontroller-controller" => "replication-controller",
        "daemonset-controller" => "daemon-set-controller",
        "endpoints-controller" => "endpoint-controller",
        "serviceaccount-controller" => "service-account-controller",
        "root-ca-certificate-publisher-controller" => "root-ca-cert-publisher",
        "garbage-collector-controller" => "generic-garbage-collector",
        "node-ipam-controller" | "node-lifecycle-controller" | "taint-eviction-controller" => {
            "node-controller"
        }
        "service-lb-controller" => "service-controller",
        "pod-garbage-collector-controller" => "pod-garbage-collector",
        "persistentvolumeclaim-protection-controller" => "pvc-protection-controller",
        "persistentvolume-protection-controller" => "pv-protection-controller",
        "persistentvolume-binder-controller" => "persistent-volume-binder",
        "persistentvolume-attach-detach-controller" => "attachdetach-controller",
        "persistentvolume-expander-controller" => "expand-controller",
        "horizontal-pod-autoscaler-controller" => "horizontal-pod-autoscaler",
        "bootstrap-signer-controller" => "bootstrap-signer",
        "token-cleaner-controller" => "token-cleaner",
        "service-cidr-controller" => "service-cidrs-controller",
        "resourceclaim-controller" => "resource-claim-controller",
        "endpointslice-mirroring-controller" => "endpointslicemirroring-controller",
        "legacy-serviceaccount-token-cleaner-controller" => "legacy-service-account-token-cleaner",
        // It is what makes accounts usable.
        "serviceaccount-token-controller" => return None,
        name if name.starts_with("certificatesigningrequest-") => "certificate-controller",
        name => name,
    })
}

#[cfg(test)]
mod tests {
    use resources::features::Features;

    use super::*;

    #[test]
    fn every_controller_acts_as_an_account_that_has_a_role() {
        let objects = apiserver::authz::bootstrap_objects_with(Features::ALL);
        let bound: Vec<&str> = objects
            .iter()
            .flat_map(|object| object["subjects"].as_array().into_iter().flatten())
            .filter(|subject| subject["namespace"] == "kube-system")
            .filter_map(|subject| subject["name"].as_str())
            .collect();
        // Upstream knows no such controller: its role comes with the rights of nodes that join.
        let ours = "kubelet-serving-approver";
        let homeless: Vec<_> = names()
            .filter(|name| *name != ours)
            .filter(|name| service_account(name).is_some_and(|account| !bound.contains(&account)))
            .collect();
        assert_eq!(homeless, Vec::<&str>::new());
    }
}

//! The list of all controllers.

use futures::future::BoxFuture;

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
    "node-lifecycle-controller" => crate::node_lifecycle::run,
    "taint-eviction-controller" => crate::taint_eviction::run,
    "pod-garbage-collector-controller" => crate::pod_gc::run,
    "persistentvolumeclaim-protection-controller" => crate::storage_protection::run_claims,
    "persistentvolume-protection-controller" => crate::storage_protection::run_volumes,
    "volumeattributesclass-protection-controller" => crate::storage_protection::run_classes,
}

/// The names of all controllers, as `--controllers` knows them.
pub fn names() -> impl Iterator<Item = &'static str> {
    CONTROLLERS.iter().map(|controller| controller.name)
}

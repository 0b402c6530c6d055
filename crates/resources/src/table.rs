//! All kinds of a default server.

use std::sync::{Arc, LazyLock};

use crate::definition::ResourceDef;
use crate::kinds::*;

/// What makes each row. Adding a kind is adding its file and its line here.
const ROWS: &[fn() -> Arc<ResourceDef>] = &[
    core::bindings::row,
    core::componentstatuses::row,
    core::configmaps::row,
    core::endpoints::row,
    core::events::row,
    core::events::row_of_events_group,
    core::limitranges::row,
    core::namespaces::row,
    core::nodes::row,
    core::persistentvolumeclaims::row,
    core::persistentvolumes::row,
    core::pods::row,
    core::podtemplates::row,
    core::replicationcontrollers::row,
    core::resourcequotas::row,
    core::secrets::row,
    core::serviceaccounts::row,
    core::services::row,
    apps::controllerrevisions::row,
    apps::daemonsets::row,
    apps::deployments::row,
    apps::replicasets::row,
    apps::statefulsets::row,
    batch::cronjobs::row,
    batch::jobs::row,
    autoscaling::horizontalpodautoscalers::row,
    autoscaling::horizontalpodautoscalers::row_v1,
    policy::poddisruptionbudgets::row,
    networking::ingressclasses::row,
    networking::ingresses::row,
    networking::ipaddresses::row,
    networking::networkpolicies::row,
    networking::servicecidrs::row,
    rbac::clusterrolebindings::row,
    rbac::clusterroles::row,
    rbac::rolebindings::row,
    rbac::roles::row,
    storage::csidrivers::row,
    storage::csinodes::row,
    storage::csistoragecapacities::row,
    storage::storageclasses::row,
    storage::volumeattachments::row,
    storage::volumeattributesclasses::row,
    scheduling::priorityclasses::row,
    node::runtimeclasses::row,
    discovery::endpointslices::row,
    coordination::leases::row,
    certificates::certificatesigningrequests::row,
    flowcontrol::flowschemas::row,
    flowcontrol::prioritylevelconfigurations::row,
    admission::mutatingadmissionpolicies::row,
    admission::mutatingadmissionpolicybindings::row,
    admission::mutatingwebhookconfigurations::row,
    admission::validatingadmissionpolicies::row,
    admission::validatingadmissionpolicybindings::row,
    admission::validatingwebhookconfigurations::row,
    apiextensions::customresourcedefinitions::row,
    apiregistration::apiservices::row,
    authentication::selfsubjectreviews::row,
    authentication::tokenreviews::row,
    authorization::localsubjectaccessreviews::row,
    authorization::selfsubjectaccessreviews::row,
    authorization::selfsubjectrulesreviews::row,
    authorization::subjectaccessreviews::row,
    resource::deviceclasses::row,
    resource::resourceclaims::row,
    resource::resourceclaimtemplates::row,
    resource::resourceslices::row,
];

static TABLE: LazyLock<Vec<Arc<ResourceDef>>> = LazyLock::new(|| ROWS.iter().map(|row| row()).collect());

/// The rows, made once.
pub fn table() -> &'static [Arc<ResourceDef>] {
    &TABLE
}

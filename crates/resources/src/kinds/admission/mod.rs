//! Webhooks and policies that decide about requests.

pub mod expressions;
pub mod mutatingadmissionpolicies;
pub mod mutatingadmissionpolicybindings;
pub mod mutatingwebhookconfigurations;
mod policies;
mod typecheck;
pub mod validatingadmissionpolicies;
pub mod validatingadmissionpolicybindings;
pub mod validatingwebhookconfigurations;
pub(crate) mod webhooks;

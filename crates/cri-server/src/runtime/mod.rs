//! What the OCI runtime is told: the description of a container, its user, its seccomp filter, its vendors' devices.

pub(crate) mod cdi;
pub(crate) mod seccomp;
pub(crate) mod spec;
pub(crate) mod user;

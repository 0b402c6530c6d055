//! Certificates on request.

pub mod certificatesigningrequests;

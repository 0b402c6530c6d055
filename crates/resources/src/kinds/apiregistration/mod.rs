//! Group versions served elsewhere.

pub mod apiservices;

//! How what is stored comes into the version that is stored now.

pub mod storageversionmigrations;

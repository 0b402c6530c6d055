//! YAML bodies.

#![no_main]

use libfuzzer_sys::fuzz_target;
use schema::decode::Strictness;

fuzz_target!(|data: &[u8]| {
    let pod = api::tables::kind("", "v1", "Pod").expect("pods are in the tables");
    let _ = schema::decode::yaml(data, pod, Strictness::Report);
});

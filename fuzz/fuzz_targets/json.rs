//! JSON bodies of a typed kind: what is read is read the same again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use schema::decode::Strictness;

fuzz_target!(|data: &[u8]| {
    let pod = api::tables::kind("", "v1", "Pod").expect("pods are in the tables");
    let Ok(decoded) = schema::decode::json(data, pod, Strictness::Report) else { return };
    let again = schema::decode::json(decoded.object.to_string().as_bytes(), pod, Strictness::Report);
    assert_eq!(again.expect("it was read before").object, decoded.object);
});

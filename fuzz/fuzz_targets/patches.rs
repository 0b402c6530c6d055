//! All patches of one object by two halves of the input.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (original, patch) = data.split_at(data.len() / 2);
    let Ok(original) = serde_json::from_slice::<serde_json::Value>(original) else { return };
    let _ = schema::patch::json_patch(&original, patch);
    let Ok(patch) = serde_json::from_slice::<serde_json::Value>(patch) else { return };
    let pod = api::tables::kind("", "v1", "Pod").expect("pods are in the tables");
    let _ = schema::patch::merge_patch(&original, &patch);
    let _ = schema::strategic::merge(&original, &patch, pod);
});

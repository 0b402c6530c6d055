//! All patches of one object by what follows the first line.

#![no_main]

use libfuzzer_sys::fuzz_target;

/// What is before the first line's end, and what is after it.
fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    let end = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    (&data[..end], data.get(end + 1..).unwrap_or_default())
}

fuzz_target!(|data: &[u8]| {
    let (original, patch) = halves(data);
    let Ok(original) = serde_json::from_slice::<serde_json::Value>(original) else { return };
    let _ = schema::patch::json_patch(&original, patch);
    let Ok(patch) = serde_json::from_slice::<serde_json::Value>(patch) else { return };
    let pod = api::tables::kind("", "v1", "Pod").expect("pods are in the tables");
    let _ = schema::patch::merge_patch(&original, &patch);
    let _ = schema::strategic::merge(&original, &patch, pod);
});

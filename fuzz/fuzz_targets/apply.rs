//! Server-side apply of the input's second line to its first.

#![no_main]

use libfuzzer_sys::fuzz_target;

/// What is before the first line's end, and what is after it.
fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    let end = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    (&data[..end], data.get(end + 1..).unwrap_or_default())
}

fuzz_target!(|data: &[u8]| {
    let (live, applied) = halves(data);
    let (Ok(live), Ok(applied)) = (serde_json::from_slice(live), serde_json::from_slice(applied)) else {
        return;
    };
    let pod = api::tables::kind("", "v1", "Pod").expect("pods are in the tables");
    let writer =
        schema::apply::Writer { manager: "m", subresource: "", api_version: "v1", now: 0, resets: &[] };
    let typed = schema::apply::Typed::of(pod);
    let _ = schema::apply::apply(&typed, Some(&live), &applied, &writer, true);
    let _ = schema::apply::apply(&typed, Some(&live), &applied, &writer, false);
});

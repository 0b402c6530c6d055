//! Server-side apply of one half of the input to the other.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (live, applied) = data.split_at(data.len() / 2);
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

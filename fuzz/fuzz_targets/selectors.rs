//! Label and field selectors, as they stand in queries.

#![no_main]

use apimachinery::selector::{FieldSelector, LabelSelector};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(selector) = LabelSelector::parse(text) {
        let shown = selector.to_string();
        assert!(LabelSelector::parse(&shown).is_ok(), "{shown}");
    }
    let _ = FieldSelector::parse(text);
});

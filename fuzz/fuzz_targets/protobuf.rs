//! Protobuf bodies: what is read can be written.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok((gvk, object)) = schema::protobuf::decode(data) else { return };
    let Some(definition) = api::tables::kind(&gvk.group, &gvk.version, &gvk.kind) else { return };
    let _ = schema::protobuf::encode(&object, definition);
});

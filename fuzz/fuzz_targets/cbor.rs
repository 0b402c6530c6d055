//! CBOR bodies: what is read is written in one way.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(value) = schema::cbor::decode(data) else { return };
    let written = schema::cbor::encode(&value, None);
    let again = schema::cbor::decode(&written).expect("it was just written");
    assert_eq!(schema::cbor::encode(&again, None), written);
});

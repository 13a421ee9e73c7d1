#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| resumed_decoders::run("to_proxy", data));

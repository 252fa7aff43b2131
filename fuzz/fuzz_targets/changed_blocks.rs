#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| walden_fuzz::changed_blocks(data));

//! See `sterna_fuzz::TARGETS`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sterna_fuzz::run("known_pages", data);
});

//! A file: opened, and everything in it read, as before a model computes.
#![no_main]

#[path = "../../tests/suite/allocations.rs"]
mod allocations;
mod seeds;
#[path = "../../tests/suite/untrusted.rs"]
mod untrusted;

libfuzzer_sys::fuzz_target!(
    init: seeds::write(untrusted::seeds()),
    |bytes: &[u8]| {
        let (_, peak) = allocations::peak(|| untrusted::read_all(bytes.to_vec()));
        assert!(peak <= untrusted::allowed(bytes.len()), "{peak} bytes for a file of {}", bytes.len());
    }
);

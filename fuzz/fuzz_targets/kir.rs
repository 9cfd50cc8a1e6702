//! The `.kir` parser and the verifier are total, and what parses prints to a text that parses to the same.
#![no_main]

use kfc_graph::{Registry, text, verify::verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let registry = Registry::default();
    let Ok(graph) = text::parse(source, &registry) else { return };
    let _ = verify(&graph);
    let printed = text::print(&graph);
    match text::parse(&printed, &registry) {
        Ok(again) => assert_eq!(text::print(&again), printed),
        Err(e) => panic!("{e} in what was printed:\n{printed}"),
    }
});

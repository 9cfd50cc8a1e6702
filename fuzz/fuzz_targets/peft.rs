//! `adapter_config.json`: any bytes are a usable adapter configuration or an error.
#![no_main]

use kfc_runtime::hf::AdapterConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match AdapterConfig::parse(data) {
        Ok(config) => assert!(config.r > 0 && config.scale().is_finite(), "{config:?}"),
        Err(e) => assert!(!e.is_empty()),
    }
});

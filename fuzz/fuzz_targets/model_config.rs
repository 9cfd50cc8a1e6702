//! `config.json`: any JSON is a model whose shapes and rotary tables are usable, or an error.
#![no_main]

use kfc_ops::model::ModelConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(json) = serde_json::from_slice(data) else { return };
    let Ok(config) = ModelConfig::from_json(&json) else { return };
    if config.head_dim <= 4096 {
        let (cos, sin) = config.rope.tables(5);
        assert_eq!((cos.len(), sin.len()), (5 * config.head_dim / 2, 5 * config.head_dim / 2));
        assert!(cos.iter().chain(&sin).all(|v| v.is_finite()), "{:?}", config.rope);
    }
    if config.layers <= 64 {
        for parameter in config.parameters() {
            assert!(!parameter.dims.contains(&0), "{parameter:?}");
        }
    }
});

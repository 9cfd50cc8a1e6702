//! `config.json`: any JSON is a model whose shapes and rotary tables are usable, or an error.
#![no_main]

use kfc_ops::model::{EncoderConfig, ModelConfig};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(json) = serde_json::from_slice(data) else { return };
    if let Ok(encoder) = EncoderConfig::from_json(&json)
        && encoder.layers <= 64
    {
        assert!(encoder.max_tokens() > 2 && encoder.hidden_size % encoder.heads == 0, "{encoder:?}");
        assert!(encoder.parameters().iter().all(|p| !p.dims.contains(&0)), "{encoder:?}");
    }
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

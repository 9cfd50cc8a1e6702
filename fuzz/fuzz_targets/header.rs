//! The header of a safetensors file: any bytes give tensors that lie inside the file, or an error.
#![no_main]

use kfc_runtime::hf::header::Header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(header) = Header::from_file_bytes(data) else { return };
    for (name, entry) in &header.tensors {
        let end = entry.start.checked_add(entry.len);
        assert!(end.is_some_and(|end| end <= data.len()), "`{name}` ends outside the file: {entry:?}");
        let elements = entry.dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        assert_eq!(elements.map(|n| n * entry.dtype.bitsize() / 8), Some(entry.len), "`{name}`: {entry:?}");
    }
});

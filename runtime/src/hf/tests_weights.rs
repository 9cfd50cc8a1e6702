//! Safetensors files: round trips, shards, and files that are damaged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::header::Header;
use super::*;
use crate::files::tests::{TestDir, assert_says};

fn none() -> BTreeMap<String, String> {
    BTreeMap::new()
}

/// A file of a hand-made header.
fn raw(path: &Path, json: &str, data: &[u8]) {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.extend(data);
    fs::write(path, bytes).unwrap();
}

fn two_tensors<'a>(a: &'a [f32], b: &'a [f32]) -> Vec<TensorOut<'a>> {
    vec![TensorOut::f32("b.weight", &[b.len()], b), TensorOut::f32("a.weight", &[2, a.len() / 2], a)]
}

#[test]
fn a_written_file_reads_back_in_place() {
    let dir = TestDir::new("weights");
    let path = dir.path("model.safetensors");
    let half: Vec<half::bf16> = [1.5f32, -2.0, 0.25].map(half::bf16::from_f32).to_vec();
    let ids = [5i64, -100];
    let tensors = vec![
        TensorOut::typed("h", kfc_graph::DType::Bf16, &[3], bytemuck::cast_slice(&half)),
        TensorOut::f32("f", &[1, 2], &[1.0, 2.0]),
        TensorOut::bytes("ids", FileDType::I64, &[2], bytemuck::cast_slice(&ids)),
    ];
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string()), ("b\"ä".into(), "\n".into())]);
    write_safetensors(&path, tensors, &metadata).unwrap();

    let weights = Weights::open(dir.root()).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["f", "h", "ids"]);
    let f = weights.require("f", &[1, 2]).unwrap();
    assert!(f.aligned());
    assert_eq!(f.as_f32().unwrap(), [1.0, 2.0]);
    assert_eq!((f.as_bf16(), f.file), (None, path.as_path()));
    let h = weights.require("h", &[3]).unwrap();
    assert_eq!(h.as_bf16().unwrap(), half);
    assert_eq!(h.to_f32().unwrap(), [1.5, -2.0, 0.25]);
    assert_eq!(weights.get("ids").unwrap().to_i64().unwrap(), ids);
    assert_eq!(weights.total_bytes(), 8 + 6 + 16);
    assert_eq!(weights.files()[0].metadata(), &metadata);

    // The reference implementation reads it too.
    let bytes = fs::read(&path).unwrap();
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(reference.tensor("f").unwrap().data(), f.bytes);
    assert_eq!(reference.tensor("ids").unwrap().shape(), [2]);
}

#[test]
fn what_a_model_does_not_have_is_named() {
    let dir = TestDir::new("require");
    let path = dir.path("model.safetensors");
    write_safetensors(&path, two_tensors(&[0.0; 6], &[0.0; 2]), &none()).unwrap();
    let weights = Weights::open(dir.root()).unwrap();
    assert_says(
        weights.require("lm_head.weight", &[1]),
        &["no tensor `lm_head.weight`", "2 tensors", "`a.weight`"],
    );
    assert_says(
        weights.require("a.weight", &[3, 2]),
        &["model.safetensors", "`a.weight`", "[2, 3]", "[3, 2]", "belong together"],
    );
    let file = WeightFile::open(&path).unwrap();
    assert_says(file.expect("input_ids"), &["model.safetensors", "`input_ids`", "`b.weight`"]);
    assert_says(weights.require("a.weight", &[2, 3]).unwrap().to_i64(), &["`a.weight`", "F32", "integer"]);
}

#[test]
fn other_types_are_named() {
    let dir = TestDir::new("types");
    for (dtype, len) in [(FileDType::F8_E4M3, 2), (FileDType::F64, 16), (FileDType::I64, 16)] {
        let bytes = vec![0; len];
        let tensors = vec![TensorOut::bytes("x", dtype, &[2], &bytes)];
        write_safetensors(&dir.path("model.safetensors"), tensors, &none()).unwrap();
        let weights = Weights::open(dir.root()).unwrap();
        assert_eq!(weights.get("x").unwrap().dtype, dtype);
        assert_says(weights.require("x", &[2]), &["`x`", &dtype.to_string(), "BF16"]);
        assert_says(weights.get("x").unwrap().to_f32(), &["`x`", &dtype.to_string()]);
    }
}

#[test]
fn damaged_files_say_how() {
    let dir = TestDir::new("damaged");
    let path = dir.path("model.safetensors");
    assert_says(Weights::open(dir.root()), &["neither model.safetensors nor", "downloaded model"]);
    fs::write(dir.path("pytorch_model.bin"), "x").unwrap();
    assert_says(Weights::open(dir.root()), &["only PyTorch files", "safe_serialization"]);

    write_safetensors(&path, two_tensors(&[0.0; 6], &[0.0; 2]), &none()).unwrap();
    let good = fs::read(&path).unwrap();
    let cases: [(&[u8], &str); 8] = [
        (b"", "is empty"),
        (b"abc", "too few"),
        (&good[..40], "truncated: its header has"),
        (&good[..good.len() - 1], "truncated: its header describes 32 bytes of tensors, 31 are there"),
        (&[&good[..], b"!"].concat(), "1 bytes follow the last tensor"),
        (b"<!DOCTYPE html><html>not found</html>", "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (b"\x04\0\0\0\0\0\0\0nope", "header is damaged"),
    ];
    for (bytes, message) in cases {
        fs::write(&path, bytes).unwrap();
        assert_says(Weights::open(dir.root()), &["model.safetensors", message]);
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_says(Weights::open(dir.root()), &["no regular file"]);
}

#[test]
fn hostile_headers_are_refused() {
    let dir = TestDir::new("hostile");
    let path = dir.path("x.safetensors");
    let huge = u64::MAX;
    let wrap: Vec<String> = (0..8u64)
        .map(|i| {
            let (start, end) = (i * (huge / 8), (i + 1) * (huge / 8));
            format!("\"t{i}\":{{\"dtype\":\"U8\",\"shape\":[{}],\"data_offsets\":[{start},{end}]}}", huge / 8)
        })
        .collect();
    let cases = [
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#.to_string(),
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#.into(),
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#.into(),
        r#"{"a":{"dtype":"F32","shape":[18446744073709551615,16],"data_offsets":[0,4]}}"#.into(),
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#.into(),
        r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#.into(),
        r#"{"a":{"dtype":"F32","shape":[1]}}"#.into(),
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#
            .into(),
        format!("{{{}}}", wrap.join(",")),
        "[".repeat(100_000),
    ];
    for json in cases {
        raw(&path, &json, &[0; 4]);
        assert_says(WeightFile::open(&path), &["x.safetensors"]);
    }
}

fn write_index(dir: &TestDir, map: serde_json::Value) {
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    fs::write(dir.path("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn shards_are_written_found_and_checked() {
    let dir = TestDir::new("shards");
    let data: Vec<Vec<f32>> = (0..5).map(|i| vec![i as f32; 4]).collect();
    let tensors =
        || data.iter().enumerate().map(|(i, x)| TensorOut::f32(format!("layer.{i}"), &[4], x)).collect();
    write_sharded(dir.root(), tensors(), &none(), 40).unwrap();
    let index = crate::files::read_json(&dir.path("model.safetensors.index.json")).unwrap();
    assert_eq!(index["metadata"]["total_size"], 80);
    assert_eq!(index["weight_map"]["layer.4"], "model-00003-of-00003.safetensors");
    let weights = Weights::open(dir.root()).unwrap();
    assert_eq!(weights.names().count(), 5);
    for (i, x) in data.iter().enumerate() {
        assert_eq!(weights.require(&format!("layer.{i}"), &[4]).unwrap().as_f32().unwrap(), x);
    }
    drop(weights);

    let shard = dir.path("model-00002-of-00003.safetensors");
    let good = fs::read(&shard).unwrap();
    fs::write(&shard, &good[..good.len() - 3]).unwrap();
    assert_says(Weights::open(dir.root()), &["model-00002-of-00003.safetensors", "truncated"]);
    fs::remove_file(&shard).unwrap();
    assert_says(
        Weights::open(dir.root()),
        &["model-00002-of-00003", "missing: 1 of the 3 shards", "index.json"],
    );
    write_index(&dir, serde_json::json!({"layer.0": "model-00003-of-00003.safetensors"}));
    assert_says(Weights::open(dir.root()), &["index.json", "`layer.0`", "model-00003", "does not"]);
    for (map, message) in [
        (serde_json::json!({"a": "../secret.safetensors"}), "no file name"),
        (serde_json::json!({"a": 3}), "no file name"),
        (serde_json::json!({}), "empty"),
        (serde_json::json!([]), "no object `weight_map`"),
    ] {
        write_index(&dir, map);
        assert_says(Weights::open(dir.root()), &["index.json", message]);
    }
    let twice = vec![TensorOut::f32("x", &[4], &data[0]), TensorOut::f32("x", &[4], &data[1])];
    assert_says(write_sharded(dir.root(), twice, &none(), 16), &["two tensors have the name `x`"]);
}

#[test]
fn a_model_that_fits_one_shard_is_one_file() {
    let dir = TestDir::new("one-shard");
    write_sharded(dir.root(), two_tensors(&[0.0; 6], &[0.0; 2]), &none(), 32).unwrap();
    assert_eq!(dir.names(), ["model.safetensors"]);
}

#[test]
fn misaligned_data_is_reported_and_can_be_copied() {
    let dir = TestDir::new("misaligned");
    let path = dir.path("x.safetensors");
    let json = r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let odd = format!("{json}{}", " ".repeat((4 - (8 + json.len()) % 4) % 4 + 1));
    raw(&path, &odd, bytemuck::cast_slice(&[1.5f32, f32::NAN]));
    let file = WeightFile::open(&path).unwrap();
    let x = file.get("x").unwrap();
    assert!(!x.aligned());
    assert_eq!(x.as_f32(), None);
    assert_eq!(x.to_f32().unwrap()[0], 1.5);
    assert!(file.find_non_finite().unwrap().contains("at [1] (element 1)"));
}

#[test]
fn the_first_nan_is_found_whatever_the_threads() {
    let dir = TestDir::new("nan");
    let path = dir.path("model.safetensors");
    let mut big = vec![0.5f32; 3 << 20];
    let bits16 = |x: &[f32]| x.iter().map(|v| half::f16::from_f32(*v)).collect::<Vec<_>>();
    let tail = bits16(&[1.0, 65504.0, f32::INFINITY]);
    let write = |big: &[f32]| {
        let tensors = vec![
            TensorOut::f32("big", &[3, 1 << 20], big),
            TensorOut::bytes("tail", FileDType::F16, &[3], bytemuck::cast_slice(&tail)),
            TensorOut::bytes("ids", FileDType::I64, &[1], &[0xFF; 8]),
        ];
        write_safetensors(&path, tensors, &none()).unwrap();
        Weights::open(dir.root()).unwrap()
    };
    let found = write(&big).find_non_finite().unwrap();
    assert!(
        found.contains("`tail`") && found.contains("element 2") && found.contains("model.safetensors"),
        "{found}"
    );
    big[(2 << 20) + 77] = f32::NAN;
    big[(2 << 20) + 78] = f32::NEG_INFINITY;
    let weights = write(&big);
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let found = pool.install(|| weights.find_non_finite()).unwrap();
        assert!(found.contains("`big`") && found.contains("at [2, 77] (element 2097229)"), "{found}");
    }
    write_safetensors(&path, two_tensors(&[f32::MAX; 6], &[f32::MIN_POSITIVE; 2]), &none()).unwrap();
    assert_eq!(Weights::open(dir.root()).unwrap().find_non_finite(), None);
}

#[test]
fn writers_check_sizes_and_leave_nothing_behind() {
    let dir = TestDir::new("sizes");
    let path = dir.path("x.safetensors");
    let short = vec![TensorOut::bytes("x", FileDType::F32, &[2], &[0; 7])];
    assert_says(write_safetensors(&path, short, &none()), &["`x`", "has 8 bytes, 7 were written"]);
    let long = vec![TensorOut::bytes("x", FileDType::F32, &[2], &[0; 9])];
    assert_says(write_safetensors(&path, long, &none()), &["`x`", "9 were written"]);
    let twice = vec![TensorOut::f32("x", &[1], &[0.0]), TensorOut::f32("x", &[1], &[0.0])];
    assert_says(write_safetensors(&path, twice, &none()), &["two tensors have the name `x`"]);
    let huge = vec![TensorOut::f32("x", &[usize::MAX, 9], &[0.0])];
    assert_says(write_safetensors(&path, huge, &none()), &["`x`", "no size"]);
    let failing = TensorSpec::new("x", FileDType::F32, [2]);
    let failing = vec![TensorOut::new(failing, |_| Err(std::io::Error::other("device lost")))];
    assert_says(write_safetensors(&path, failing, &none()), &["x.safetensors", "device lost"]);
    assert!(dir.names().is_empty());
}

#[test]
fn logits_stream_row_by_row() {
    let dir = TestDir::new("logits");
    let path = dir.path("logits.safetensors");
    let ids = [1i64, 2, 3, 4];
    let extra = || {
        vec![
            TensorOut::bytes("mask", FileDType::U8, &[3], &[1, 0, 1]),
            TensorOut::bytes("input_ids", FileDType::I64, &[2, 2], bytemuck::cast_slice(&ids)),
        ]
    };
    let mut writer = LogitsWriter::create(&path, [2, 2, 3], extra()).unwrap();
    let rows: Vec<f32> = (0..12).map(|i| i as f32).collect();
    for row in rows.chunks(3) {
        writer.push(row).unwrap();
    }
    assert_says(writer.push(&[0.0]), &["1 logits were given where 0 are left"]);
    writer.finish().unwrap();
    let file = WeightFile::open(&path).unwrap();
    let logits = file.get("logits").unwrap();
    assert_eq!((logits.as_f32().unwrap(), logits.dims), (&rows[..], &[2, 2, 3][..]));
    assert_eq!(file.get("input_ids").unwrap().to_i64().unwrap(), ids);
    assert_eq!(file.get("mask").unwrap().to_i64().unwrap(), [1, 0, 1]);

    let mut writer = LogitsWriter::create(&dir.path("half.safetensors"), [2, 2, 3], extra()).unwrap();
    writer.push(&rows[..6]).unwrap();
    assert_says(writer.finish(), &["half.safetensors", "6 logits were never given"]);
    assert_eq!(dir.names(), ["logits.safetensors"]);
}

const TYPES: [FileDType; 6] =
    [FileDType::F32, FileDType::BF16, FileDType::F16, FileDType::I64, FileDType::U8, FileDType::F8_E4M3];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_tensors_read_back(
        tensors in proptest::collection::btree_map(
            ".{1,12}", (0..TYPES.len(), proptest::collection::vec(0usize..5, 0..4), any::<u8>()), 0..8),
        max_shard in 1u64..200,
    ) {
        let dir = TestDir::new("prop");
        let filled: Vec<_> = tensors.iter().map(|(name, (dtype, dims, fill))| {
            let len = dims.iter().product::<usize>() * TYPES[*dtype].bitsize() / 8;
            let bytes: Vec<u8> = (0..len).map(|i| fill.wrapping_add(i as u8)).collect();
            (name, TYPES[*dtype], dims, bytes)
        }).collect();
        let out = || filled.iter().map(|(n, t, d, b)| TensorOut::bytes(n.as_str(), *t, d, b)).collect::<Vec<_>>();
        write_sharded(dir.root(), out(), &none(), max_shard).unwrap();
        let weights = Weights::open(dir.root()).unwrap();
        prop_assert_eq!(weights.names().count(), filled.len());
        for (name, dtype, dims, bytes) in &filled {
            let view = weights.get(name).unwrap();
            prop_assert_eq!((view.dtype, view.dims, view.bytes), (*dtype, &dims[..], &bytes[..]));
            prop_assert!(view.aligned());
        }
        // The same content gives the same bytes, whatever the order it is handed over in.
        let (one, two) = (dir.path("one"), dir.path("two"));
        let a = write_safetensors(&one, out(), &none()).unwrap();
        let b = write_safetensors(&two, out().into_iter().rev().collect(), &none()).unwrap();
        prop_assert_eq!(a, b);
    }

    #[test]
    fn any_bytes_are_a_header_or_an_error(
        length in 0u64..64, json in proptest::collection::vec(any::<u8>(), 0..64), tail in 0usize..16,
    ) {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(&json);
        bytes.extend(vec![0; tail]);
        let _ = Header::from_file_bytes(&bytes);
    }

    #[test]
    fn a_flipped_byte_never_reaches_outside_the_file(at in 0usize..200, to in any::<u8>()) {
        let json = r#"{"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}}"#;
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.extend([0; 14]);
        let at = at % bytes.len();
        bytes[at] = to;
        if let Ok(header) = Header::from_file_bytes(&bytes) {
            for entry in header.tensors.values() {
                prop_assert!(entry.start + entry.len <= bytes.len());
            }
        }
    }
}

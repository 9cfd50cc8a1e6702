//! Units, overrides and the printed form; whole configurations with errors are in `cli/tests/config.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use kfc_graph::DType;
use kfc_runtime::config::*;
use proptest::prelude::*;
use std::path::PathBuf;

const SMALL: &str = "[model]\npath = \"m\"\n[data]\ntrain = \"a.jsonl\"\n[train]\nsteps = 10\n";

fn with(overrides: &[&str]) -> Result<JobConfig, ConfigError> {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    parse_with(SMALL, Path::new("/jobs/job.toml"), &overrides)
}

#[test]
fn sizes() {
    assert_eq!(parse_bytes("8GiB"), Ok(8 << 30));
    assert_eq!(parse_bytes("512MB"), Ok(512_000_000));
    assert_eq!(parse_bytes("1.5 gib"), Ok(3 << 29));
    assert_eq!(parse_bytes("1073741824"), Ok(1 << 30));
    for bad in ["", "GiB", "8GB8", "-1GiB", "8 parsecs", "1.2.3MB", "0", "99999999999999TiB", "1e3"] {
        assert!(parse_bytes(bad).is_err(), "{bad}");
    }
    assert_eq!(format_bytes(3 << 29), "1.50 GiB");
    assert_eq!(format_bytes(17), "17 B");
}

#[test]
fn overrides_take_toml_or_bare_strings() {
    let job =
        with(&["train.steps=7", "model.dtype=bf16", "data.train=[\"x\", \"/y\"]", "lora.r = 4"]).unwrap();
    assert_eq!(job.train.length, Length::Steps(7));
    assert_eq!(job.model.dtype, Some(DType::Bf16));
    assert_eq!(job.lora.unwrap().r, 4);
    // Paths of the file start at its folder, those of an override at the current one.
    assert_eq!(job.model.path, PathBuf::from("/jobs/m"));
    assert_eq!(job.data.train, [std::path::absolute("x").unwrap(), PathBuf::from("/y")]);
}

#[test]
fn overrides_index_and_append_to_lists() {
    let job = with(&[
        "distill.teacher=/t",
        "distill.features.0.student_layer=1",
        "distill.features.0.teacher_layer=2",
        "distill.features.0.weight=0.5",
        "data.train.1=/b",
    ]);
    // A single string is not yet a list that could be appended to.
    assert_eq!(
        job.unwrap_err().to_string(),
        "--set data.train.1=/b: data.train.1: `1` is looked up in the string \"a.jsonl\", which has no keys"
    );
    let job = with(&[
        "distill.teacher=/t",
        "distill.features.0.student_layer=1",
        "distill.features.0.teacher_layer=2",
        "distill.features.0.weight=0.5",
    ]);
    let features = job.unwrap().distill.unwrap().features;
    assert_eq!(
        features,
        [FeatureSection { student_layer: 1, teacher_layer: 2, weight: 0.5, projector: None }]
    );
}

#[test]
fn overriding_the_length_displaces_the_other_way_to_give_it() {
    assert_eq!(with(&["train.epochs=2"]).unwrap().train.length, Length::Epochs(2.0));
    let epochs = SMALL.replace("steps = 10", "epochs = 3");
    let job = parse_with(&epochs, Path::new("job.toml"), &["train.steps=5".to_owned()]).unwrap();
    assert_eq!(job.train.length, Length::Steps(5));
}

#[test]
fn ewc_mode_follows_lora() {
    let ewc = ["ewc.lambda=1", "ewc.fisher=/f"];
    assert_eq!(with(&ewc).unwrap().ewc.unwrap().mode, EwcMode::Weights);
    let with_lora = with(&["ewc.lambda=1", "ewc.fisher=/f", "lora={}"]).unwrap();
    assert_eq!(with_lora.ewc.unwrap().mode, EwcMode::Adapter);
}

#[test]
fn resolved_text() {
    let text = to_toml(&with(&["lora={}", "train.mem_budget=8GiB"]).unwrap());
    let expected = "[model]\npath = \"/jobs/m\"\ninit = \"pretrained\"\n\n\
        [lora]\nr = 16\nalpha = 32.0\ndropout = 0.1\ntargets = \"all-linear\"\nrslora = false\ninit = \"default\"\n\n\
        [data]\ntrain = [\"/jobs/a.jsonl\"]\npacking = true\nshuffle = true\non_error = \"fail\"\nlong_rows = \"split\"\n\
        streaming = \"auto\"\nworkers = 8\nprefetch = 4\nrank = 0\nworld = 1\n\n\
        [train]\nsteps = 10\nbatch = 1\naccumulation = 8\nlr = 3e-5\nschedule = \"cosine\"\nwarmup_steps = 500\n\
        weight_decay = 0.01\nbetas = [0.9, 0.999]\neps = 1e-8\nmax_grad_norm = 1.0\nseed = 0\nsave_every = 500\nkeep = 2\n\
        mem_budget = \"8GiB\"\nrecompute = \"auto\"\nembeddings = \"auto\"\n";
    assert_eq!(text, expected);
}

#[test]
fn changes_are_told_by_key() {
    let job = |overrides: &[&str]| with(overrides).unwrap();
    let before = job(&["lora={}"]);
    assert_eq!(changes(&before, &before), Vec::<String>::new());
    assert_eq!(
        changes(&before, &job(&["lora.r=8", "train.lr=1e-4", "train.mem_budget=8GiB"])),
        ["lora.r: 8, was 16", "train.lr: 0.0001, was 3e-5", "train.mem_budget: \"8GiB\", was left out"]
    );
    assert_eq!(changes(&before, &job(&[])), ["[lora] is gone"]);
    assert_eq!(changes(&job(&[]), &before), ["[lora] is new"]);
}

#[test]
fn warnings_name_what_is_hardly_meant() {
    assert_eq!(warnings(&with(&["train.warmup_steps=0"]).unwrap()), Vec::<String>::new());
    assert!(
        warnings(&with(&[]).unwrap())[0]
            .starts_with("train.warmup_steps = 500 is not below train.steps = 10")
    );
}

fn path() -> impl Strategy<Value = PathBuf> {
    // Quotes, backslashes, control characters and non-ASCII letters, but no dots, which would be normalised.
    "/[a-z\"'\\\\ \u{1}\u{7f}\u{85}\t\n\u{e9}\u{1F980}#=\\[\\]]{0,8}x".prop_map(PathBuf::from)
}

fn positive() -> impl Strategy<Value = f64> {
    prop_oneof![1e-12..1e12f64, Just(1.0), Just(256.0), Just(5e-324), Just(f64::MAX)]
}

fn unit() -> impl Strategy<Value = f64> {
    prop_oneof![0.0..1.0f64, Just(0.0)]
}

fn lora() -> impl Strategy<Value = LoraSection> {
    let targets = prop_oneof![
        Just(LoraTargets::AllLinear),
        prop::collection::vec("[a-z_.\"]{1,6}", 1..3).prop_map(LoraTargets::Names)
    ]
    // A list of the one name that stands for all is read as a name, but a lone string is not.
    .prop_filter("reserved", |targets| *targets != LoraTargets::Names(vec!["all-linear".into()]));
    let init = prop_oneof![Just(LoraInit::Default), path().prop_map(LoraInit::Path)];
    (1..=65536usize, positive(), unit(), targets, any::<bool>(), init).prop_map(
        |(r, alpha, dropout, targets, rslora, init)| LoraSection { r, alpha, dropout, targets, rslora, init },
    )
}

fn feature() -> impl Strategy<Value = FeatureSection> {
    (1..99usize, 1..99usize, unit(), prop::option::of(path())).prop_map(
        |(student_layer, teacher_layer, weight, projector)| FeatureSection {
            student_layer,
            teacher_layer,
            weight,
            projector,
        },
    )
}

fn distill() -> impl Strategy<Value = DistillSection> {
    let divergence =
        prop_oneof![Just(Divergence::ForwardKl), Just(Divergence::ReverseKl), Just(Divergence::Jsd)];
    let features = prop::collection::vec(feature(), 0..3);
    let general = (prop::collection::vec(path(), 0..3), 0.01..0.99f64);
    (path(), 0.01..=1.0f64, positive(), divergence, general, 1..1000usize, features).prop_map(
        |(teacher, alpha, temperature, divergence, (general, general_fraction), top_k, features)| {
            DistillSection {
                teacher,
                alpha,
                temperature,
                divergence,
                general,
                general_fraction,
                top_k,
                features,
            }
        },
    )
}

/// The mode and what depends on it are fitted to `lora` by [`job`].
fn ewc() -> impl Strategy<Value = EwcSection> {
    let important = prop_oneof![Just(Important::Keep), Just(Important::Slow), Just(Important::Freeze)];
    (positive(), any::<bool>(), path(), prop::option::of(path()), important, unit(), unit()).prop_map(
        |(lambda, delta, fisher, anchor, important, quantile, slow_factor)| {
            let mode = if delta { EwcMode::Delta } else { EwcMode::Adapter };
            EwcSection { lambda, mode, fisher, anchor, important, quantile, slow_factor }
        },
    )
}

fn data() -> impl Strategy<Value = DataSection> {
    let formats = [DataFormat::Jsonl, DataFormat::Text, DataFormat::Tokens, DataFormat::WebDataset];
    let format = prop::sample::select(formats.to_vec());
    let choices = (prop::option::of(format), prop_oneof![Just(OnError::Fail), Just(OnError::Skip)]);
    let long_rows = prop_oneof![Just(LongRows::Split), Just(LongRows::Truncate), Just(LongRows::Error)];
    let paths = (prop::collection::vec(path(), 1..3), prop::option::of(path()));
    let rows = (prop::option::of(2..4096usize), any::<bool>(), any::<bool>(), long_rows);
    // Streaming and a length in epochs exclude each other, which is not for here.
    let streaming = prop_oneof![Just(Streaming::Auto), Just(Streaming::Off)];
    let reading = (streaming, 1..256usize, 1..1024usize, 0..5usize, 5..9usize);
    (paths, choices, rows, reading).prop_map(
        |(
            (train, tokenizer),
            (format, on_error),
            (seq_len, packing, shuffle, long_rows),
            (streaming, workers, prefetch, rank, world),
        )| DataSection {
            train,
            format,
            seq_len,
            packing,
            shuffle,
            tokenizer,
            on_error,
            long_rows,
            streaming,
            workers,
            prefetch,
            rank,
            world,
        },
    )
}

fn train() -> impl Strategy<Value = TrainSection> {
    let length = prop_oneof![(1..usize::MAX).prop_map(Length::Steps), positive().prop_map(Length::Epochs)];
    let schedule = prop_oneof![Just(Schedule::Cosine), Just(Schedule::Linear), Just(Schedule::Constant)];
    let loss_scale =
        prop::option::of(prop_oneof![positive().prop_map(LossScale::Static), Just(LossScale::Dynamic)]);
    let sizes = (1..99usize, 1..99usize, 0..999usize, 0..999usize, 1..9usize);
    let numbers = (unit(), unit(), unit(), unit(), positive(), unit());
    let recompute = prop_oneof![
        Just(RecomputePolicy::Auto),
        Just(RecomputePolicy::Off),
        Just(RecomputePolicy::Attention),
        (1..9usize).prop_map(RecomputePolicy::EveryK)
    ];
    let embeddings = prop_oneof![Just(Embeddings::Auto), Just(Embeddings::Memory), Just(Embeddings::File)];
    let budget = prop::option::of(prop_oneof![1..u64::MAX, (1..99u64).prop_map(|n| n << 30)]);
    let places = (any::<u64>(), recompute, embeddings);
    (length, schedule, loss_scale, sizes, numbers, places, budget).prop_map(
        |(length, schedule, loss_scale, sizes, numbers, (seed, recompute, embeddings), mem_budget)| {
            TrainSection {
                length,
                batch: sizes.0,
                accumulation: sizes.1,
                lr: numbers.0,
                schedule,
                warmup_steps: sizes.2,
                weight_decay: numbers.1,
                betas: (numbers.2, numbers.3),
                eps: numbers.4,
                max_grad_norm: numbers.5,
                seed,
                loss_scale,
                save_every: sizes.3,
                keep: sizes.4,
                mem_budget,
                recompute,
                embeddings,
            }
        },
    )
}

fn report() -> impl Strategy<Value = ReportSection> {
    (prop::collection::vec("[a-z中][a-z \"\\\\中]{0,8}", 1..3), 1..99usize)
        .prop_map(|(prompts, max_new_tokens)| ReportSection { prompts, max_new_tokens })
}

fn job() -> impl Strategy<Value = JobConfig> {
    let init = prop_oneof![Just(ModelInit::Pretrained), Just(ModelInit::Random)];
    let dtype = prop::option::of(prop_oneof![Just(DType::F32), Just(DType::Bf16), Just(DType::F16)]);
    let model = (path(), init, dtype).prop_map(|(path, init, dtype)| ModelSection { path, init, dtype });
    let optional = (
        prop::option::of(lora()),
        prop::option::of(distill()),
        prop::option::of(ewc()),
        prop::option::of(report()),
        prop::option::of(prop::option::of(path()).prop_map(|python| KernelsSection { python })),
    );
    (model, optional, data(), train()).prop_map(
        |(model, (lora, distill, mut ewc, mut report, kernels), data, train)| {
            if lora.is_some() && model.init == ModelInit::Random {
                report = None;
            }
            if let Some(ewc) = &mut ewc {
                if lora.is_none() {
                    ewc.mode = EwcMode::Weights;
                }
                if ewc.mode == EwcMode::Delta {
                    ewc.anchor = None;
                    ewc.important = Important::Keep;
                }
            }
            JobConfig { model, lora, distill, ewc, data, train, report, kernels }
        },
    )
}

proptest! {
    #[test]
    fn printed_jobs_read_back_equal(job in job()) {
        let text = to_toml(&job);
        prop_assert_eq!(parse(&text, Path::new("/elsewhere/config.toml")).unwrap(), job, "{}", text);
    }

    #[test]
    fn no_text_panics(text in "[a-z=\\[\\].\"0-9\n{}, _-]{0,80}", overrides in prop::collection::vec("[a-z.=0-9\\[\\]{}\"]{0,20}", 0..3)) {
        let _ = parse_with(&text, Path::new("job.toml"), &overrides);
    }
}

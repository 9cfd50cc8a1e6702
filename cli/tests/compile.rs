//! `kfc compile` for a GPU: what it writes, the cache, and what it says without Triton. Needs no GPU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{World, command, json, names};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A job of a step over two rows of a tiny model.
fn job(world: &World) -> PathBuf {
    world.job(
        "[model]\npath = 'student'\n[lora]\nr = 4\n[data]\ntrain = 'rows.jsonl'\nseq_len = 16\n[train]\nsteps = 1\nbatch = 1\n",
    )
}

fn compile(world: &World, python: &Path, out: &str) -> Command {
    let mut c = command();
    c.args(["compile".as_ref(), job(world).as_os_str(), "--target".as_ref(), "triton:sm_90".as_ref()])
        .args(["--emit".as_ref(), world.join(out).as_os_str(), "--python".as_ref(), python.as_os_str()])
        .env("XDG_CACHE_HOME", world.join("cache"));
    c
}

#[test]
fn kernels_are_written_and_kept() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let python = root.join(".gpu-toolchain/bin/python");
    if !python.exists() {
        assert!(std::env::var_os("CI").is_none(), "tools/gpu-toolchain.sh has not been run");
        eprintln!("skipped: no Triton; tools/gpu-toolchain.sh sets it up");
        return;
    }
    let world = World::new();
    let output = compile(&world, &python, "first").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let kernels = world.join("first/kernels");
    let files = names(&kernels);
    assert!(files.len() > 30 && files.len().is_multiple_of(3), "{files:?}");
    let about = json(&kernels.join("lora_linear.json"));
    assert_eq!(about["spill_bytes"], 0);
    assert!(about["registers"].as_u64().unwrap() > 0, "{about}");
    assert_eq!(&std::fs::read(kernels.join("lora_linear.cubin")).unwrap()[1..4], b"ELF");
    let plan = json(&world.join("first/plan.json"));
    assert_eq!(plan["target"], "triton:sm_90");
    for step in plan["plans"].as_array().unwrap().iter().flat_map(|p| p["steps"].as_array().unwrap()) {
        for launch in step["launches"].as_array().unwrap() {
            let name = launch["kernel"].as_str().unwrap();
            let about = json(&kernels.join(format!("{name}.json")));
            assert_eq!(
                about["parameters"].as_array().unwrap().len(),
                launch["args"].as_array().unwrap().len()
            );
        }
    }
    // A machine that has compiled them before needs no Python.
    let output = compile(&world, Path::new("/no/python"), "second").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(names(&world.join("second/kernels")), files);
}

#[test]
fn without_triton_it_says_what_to_do() {
    let world = World::new();
    for python in ["/no/python", "/bin/false"] {
        let output = compile(&world, Path::new(python), "out").output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains("pip install triton==3.6.0") && message.contains(python), "{message}");
        assert!(!world.join("out").exists());
    }
}

/// The command line goes before the environment, and that before the job; each is called by its name when it cannot compile.
#[test]
fn a_python_is_named_in_three_places() {
    let world = World::new();
    let script = |name: &str, text: &str| {
        let path = world.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    script("old", "echo '{\"triton\": \"2.1.0\"}'; cat > /dev/null");
    script("bare", "echo '{\"error\": \"has no Triton\"}'");
    script("silent", "exit 3");
    std::fs::write(world.join("plain"), "no program").unwrap();
    let told = |job: &str, environment: Option<&str>, flag: Option<&str>| {
        let mut c = command();
        c.arg("compile")
            .arg(self::job(&world))
            .args(["--target", "triton:sm_90", "--emit"])
            .arg(world.join("out"));
        c.arg("--set").arg(format!("kernels.python={}", world.join(job).display()));
        c.env("XDG_CACHE_HOME", world.join("cache")).env_remove("KFC_PYTHON");
        environment.iter().for_each(|name| _ = c.env("KFC_PYTHON", world.join(name)));
        flag.iter().for_each(|name| _ = c.arg("--python").arg(world.join(name)));
        let output = c.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    for (named, parts) in [
        (("old", None, None), ["old (kernels.python): ", "has Triton 2.1.0"]),
        (("plain", None, None), ["plain (kernels.python): ", "cannot be started"]),
        (("old", Some("bare"), None), ["bare (KFC_PYTHON): ", "has no Triton"]),
        (("old", Some("bare"), Some("silent")), ["silent (--python): ", "ended"]),
    ] {
        let message = told(named.0, named.1, named.2);
        parts.iter().for_each(|part| assert!(message.contains(part), "{part}: {message}"));
        assert!(message.contains("kernels.python in the job"), "{message}");
    }
    // It is for Triton alone.
    let mut c = command();
    c.arg("compile").arg(self::job(&world)).args(["--python", "x", "--emit"]).arg(world.join("out"));
    assert_eq!(c.output().unwrap().status.code(), Some(2));
}

#[test]
fn cuda_kernels_are_written() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let pattern = root.join(".gpu-toolchain/lib");
    let python = std::fs::read_dir(&pattern).ok().and_then(|mut all| all.find_map(Result::ok));
    let Some(nvrtc) = python.map(|p| p.path().join("site-packages/nvidia/cu13/lib")) else {
        assert!(std::env::var_os("CI").is_none(), "tools/gpu-toolchain.sh has not been run");
        eprintln!("skipped: no NVRTC; tools/gpu-toolchain.sh sets it up");
        return;
    };
    let world = World::new();
    let compile = |out: &str, nvrtc: &Path, cache: &str| {
        let mut c = command();
        c.args(["compile".as_ref(), job(&world).as_os_str(), "--target".as_ref(), "cuda:sm_90a".as_ref()])
            .args(["--emit".as_ref(), world.join(out).as_os_str()])
            .env("KFC_NVRTC", nvrtc)
            .env("XDG_CACHE_HOME", world.join(cache));
        c.output().unwrap()
    };
    let output = compile("out", &nvrtc, "cache");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let kernels = world.join("out/kernels");
    let files = names(&kernels);
    assert!(files.len() > 30 && files.contains(&"kfc.cuh".to_string()), "{files:?}");
    assert_eq!(&std::fs::read(kernels.join("lora_linear.cubin")).unwrap()[1..4], b"ELF");
    let about = json(&kernels.join("lora_linear.json"));
    assert_eq!((&about["spill_bytes"], &about["target"]), (&0.into(), &"sm_90a".into()));

    // A machine that has compiled them before needs no compiler.
    let output = compile("again", Path::new("/no/nvrtc"), "cache");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let same = |name: &str| {
        let [a, b] =
            ["out", "again"].map(|d| std::fs::read(world.join(d).join("kernels").join(name)).unwrap());
        a == b
    };
    assert!(files.iter().filter(|n| n.ends_with(".cubin")).all(|n| same(n)));

    let output = compile("none", Path::new("/no/nvrtc"), "empty");
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("NVRTC") && message.trim_end().lines().count() == 1, "{message}");
    assert!(!world.join("none").exists());
}

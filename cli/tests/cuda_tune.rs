//! `kfc tune --device cuda` on a stand-in for the driver (kernels/tests/cuda/driver.cc) that runs kernels on the CPU. It knows
//! only kernels that it was built with: each test first lets NVRTC compile what is wanted into a cache, which fails to load
//! there, and then builds a stand-in of all that is in the cache.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::standin::{self, Standin};
use common::{World, command};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output};

const JOB: &str = "[model]\npath = 'student'\ndtype = 'f32'\n[lora]\nr = 4\n[data]\ntrain = ['rows.jsonl']\nseq_len = 16\n\
                   [train]\nsteps = 4\nbatch = 2\nlr = 0.01\n";

/// A small device: one multiprocessor, 64 MiB of memory.
const SMALL: &str = "processors=1 free=67108864";

/// A job, and a cache of kernels compiled for it.
struct Place {
    world: World,
    job: PathBuf,
}

impl Place {
    /// The job's own kernels are in the cache.
    fn new() -> Place {
        let world = World::new();
        let place = Place { job: world.job(JOB), world };
        let mut c = place.kfc("compile");
        c.arg(&place.job).args(["--target", "cuda:sm_90a", "--emit"]).arg(place.world.join("plan"));
        object(&mut c);
        place
    }

    fn kfc(&self, name: &str) -> Command {
        let mut c = command();
        c.arg(name).arg("--json").env("XDG_CACHE_HOME", self.world.join("cache")).env_remove("KFC_TUNING");
        c.env("KFC_NVRTC", standin::nvrtc().unwrap());
        c
    }

    /// A driver that knows what is in the cache.
    fn standin(&self) -> Standin {
        let [folder, emitted] = ["standin", "emitted"].map(|n| self.world.join(n));
        Standin::of_cache(folder, &self.world.join("cache"), &emitted)
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command that succeeds prints last.
fn object(c: &mut Command) -> Value {
    let output = c.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{c:?}: {}", said(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().last().map_or(Value::Null, |line| serde_json::from_str(line).unwrap())
}

#[test]
fn a_device_is_measured_and_a_jobs_kernels_are_timed() {
    if standin::missing().is_some() {
        return;
    }
    let place = Place::new();
    let calibrate = || {
        let mut c = place.kfc("tune");
        c.args(["--calibrate", "--device", "cuda", "--seconds", "1"]);
        c
    };
    // What the stand-in does not know is told by name.
    let empty =
        Standin::of_cache(place.world.join("empty"), &place.world.join("cache"), &place.world.join("none"));
    let output = empty.on(&mut calibrate(), SMALL).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("matmul of f32[") && said(&output).contains("cannot be loaded"),
        "{}",
        said(&output)
    );

    let standin = place.standin();
    let rates = object(standin.on(&mut calibrate(), SMALL));
    assert!(
        ["flops_f32", "flops_16", "bytes_per_s"].iter().all(|r| rates[r].as_f64().unwrap() > 0.0),
        "{rates}"
    );
    let timed = object(standin.on(calibrate().arg(&place.job), SMALL));
    assert!(timed["kernels"].as_u64().unwrap() > 10 && timed["steps"].as_u64().unwrap() >= 7, "{timed}");
    assert!(timed["check"]["median_error"].as_f64().unwrap() < 10.0, "{timed}");
    let explain = |settings: &str| {
        object(standin.on(place.kfc("explain").arg(&place.job).args(["--device", "cuda"]), settings))
    };
    let explained = explain(SMALL);
    assert_eq!(
        (&explained["limits"]["from"], &explained["limits"]["measured"]),
        (&"measured".into(), &true.into())
    );
    assert!(explained["limits"]["flops_16"].as_f64().unwrap() >= rates["flops_16"].as_f64().unwrap());
    let kernels = explained["kernels"].as_array().unwrap();
    assert!(kernels.iter().all(|k| k["source"] == "calibrated" && k["predicted_ms"].as_f64().unwrap() > 0.0));
    // Another device is another one.
    assert_eq!(explain("processors=2")["limits"]["from"], "stated");
    // The times of the CPU are others.
    assert_eq!(object(place.kfc("explain").arg(&place.job))["limits"]["from"], "guessed");
}

//! Products that NVIDIA's cuBLASLt does in the place of kernels, on stand-ins for it and for the driver
//! (kernels/tests/cuda/cublaslt.cc, driver.cc): found by `kfc tune`, shown, run, resumed, and done without where it is missing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::standin::{self, Standin};
use common::{World, json};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const JOB: &str = "[model]\npath = 'student'\ndtype = 'f32'\n[lora]\nr = 4\ntargets = ['q_proj']\n[data]\ntrain = ['rows.jsonl']\nseq_len = 16\n\
                   [train]\nsteps = 4\nbatch = 2\nlr = 0.01\nsave_every = 2\nkeep = 9\nrecompute = 'none'\n";

/// Kernels take 10 to 106 µs, as their binaries' hashes have it.
const DEVICE: &str = "processors=1 free=67108864 simulated=1";

struct Place {
    world: World,
    job: PathBuf,
    standin: Standin,
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A command that must succeed.
fn done(c: &mut Command) -> Output {
    let output = c.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{c:?}: {}", said(&output));
    output
}

/// What a command that succeeds prints last.
fn object(c: &mut Command) -> Value {
    let text = String::from_utf8(done(c).stdout).unwrap();
    text.lines().last().map_or(Value::Null, |line| serde_json::from_str(line).unwrap())
}

impl Place {
    /// The job, with a device that knows its own kernels and those of rates, and no others.
    fn new() -> Place {
        let world = World::new();
        let (job, plan) = (world.job(JOB), world.join("plan"));
        let mut c = Command::new(env!("CARGO_BIN_EXE_kfc"));
        c.args(["compile", "--quiet"]).arg(&job).args(["--target", "cuda:sm_90a", "--emit"]).arg(&plan);
        done(c.env("XDG_CACHE_HOME", world.join("cache")).env("KFC_NVRTC", standin::nvrtc().unwrap()));
        // The kernels that rates are measured with are compiled, too.
        let mut c = Command::new(env!("CARGO_BIN_EXE_kfc"));
        c.args(["tune", "--calibrate", "--device", "cuda", "--seconds", "1"]);
        c.env("XDG_CACHE_HOME", world.join("cache")).env("KFC_NVRTC", standin::nvrtc().unwrap());
        Standin::empty(world.join("empty")).on(&mut c, DEVICE).output().unwrap();
        let standin = Standin::of_cache(world.join("standin"), &world.join("cache"), &world.join("emitted"));
        Place { world, job, standin }
    }

    fn kfc(&self, name: &str, tuning: &Path, settings: &str) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_kfc"));
        c.arg(name).arg(&self.job).args(["--device", "cuda", "--json"]).env("KFC_TUNING", tuning);
        c.env("XDG_CACHE_HOME", self.world.join("cache")).env("KFC_PYTHON", "/nowhere");
        c.env("KFC_NVRTC", standin::nvrtc().unwrap()).env_remove("KFC_CUBLASLT");
        self.standin.on(&mut c, &format!("{DEVICE} {settings}"));
        c
    }

    fn tune(&self, tuning: &Path, settings: &str) -> Command {
        let mut c = self.kfc("tune", tuning, settings);
        c.args(["--seconds", "15", "--tilings", "2"]);
        c
    }

    fn train(&self, out: &str, tuning: &Path, settings: &str) -> Command {
        let mut c = self.kfc("train", tuning, settings);
        c.arg("--out").arg(self.world.join(out));
        c
    }

    fn adapter(&self, out: &str) -> Vec<u8> {
        std::fs::read(self.world.join(out).join("adapter/adapter_model.safetensors")).unwrap()
    }

    /// Products that were given to the library since this was asked last.
    fn products(&self) -> usize {
        self.standin.log().iter().filter(|l| *l == "library").count()
    }
}

/// Keys of kernels that a file leaves to the library.
fn chosen(file: &Path) -> Vec<String> {
    let kept = json(file);
    let kernels = kept["kernels"].as_object().unwrap().iter();
    let by_library = kernels.filter(|(_, e)| e["choice"].as_str().unwrap().starts_with("cuBLASLt "));
    by_library.map(|(key, _)| key.clone()).collect()
}

#[test]
fn plain_products_are_left_to_a_library_where_it_is_faster() {
    if standin::missing().is_some() {
        return;
    }
    let place = Place::new();
    let [file, other, none] = ["found.json", "other.json", "none.json"].map(|n| place.world.join(n));
    let off = Path::new("off");

    // Without the library nothing of it is tried, and nothing said.
    object(&mut place.tune(&none, ""));
    assert!(!std::fs::read_to_string(&none).unwrap().contains("cuBLASLt"));
    done(&mut place.train("off", off, ""));

    let library = place.standin.with_cublaslt();
    object(place.tune(&none, "lt_workspace=64").arg("--fresh"));
    assert!(!std::fs::read_to_string(&none).unwrap().contains("cuBLASLt"), "no workspace is planned");

    // With other bits it may not win, unless they are allowed.
    object(&mut place.tune(&other, "lt_nudge=1"));
    let text = std::fs::read_to_string(&other).unwrap();
    assert!(chosen(&other).is_empty() && text.contains("cuBLASLt 130100 #4242.0.7"), "{text}");
    let report = object(place.tune(&other, "lt_nudge=1").arg("--allow-other-bits"));
    let keys = chosen(&other);
    assert!(!keys.is_empty() && report["other_bits"] != 0, "{report}");
    assert!(
        keys.iter().all(|k| ["linear ", "matmul ", "head_"].iter().any(|p| k.starts_with(p))),
        "{keys:?}"
    );
    place.products();
    done(&mut place.train("other", &other, "lt_nudge=1"));
    assert!(place.products() > 0 && place.adapter("other") != place.adapter("off"));
    for made in ["adapter", "checkpoint-4"] {
        std::fs::remove_dir_all(place.world.join("other").join(made)).unwrap();
    }
    let output = place.train("other", off, "lt_nudge=1").arg("--resume").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("was cuBLASLt 130100 #4242.0.7"), "{}", said(&output));
    let before = place.adapter_of_two_runs(&other);
    assert!(before[0] == before[1]);

    // Where it leaves the built-in one's bits, it wins by itself, is shown and run: also as part of a graph.
    object(&mut place.tune(&file, ""));
    let keys = chosen(&file);
    assert!(!keys.is_empty(), "{}", std::fs::read_to_string(&file).unwrap());
    let explained = object(&mut place.kfc("explain", &file, ""));
    let kernels = explained["kernels"].as_array().unwrap();
    let shown = kernels.iter().find_map(|k| k["choices"].get(&keys[0])).unwrap();
    assert!(
        shown["choice"].as_str().unwrap().starts_with("cuBLASLt 130100")
            && shown["tried"].as_array().unwrap().len() > 1
    );
    place.standin.log();
    done(&mut place.train("found", &file, ""));
    let log = place.standin.log();
    let peak = explained["predicted_peak_bytes"].as_u64().unwrap();
    assert!(log.contains(&"library".to_string()) && log.contains(&format!("allocate {peak}")));
    assert!(place.adapter("found") == place.adapter("off"));

    // Another version, or none: kfc's own kernels, which is said.
    let own = |out: &str, settings: &str, why: &str| {
        let output = done(&mut place.train(out, &file, settings));
        for part in ["cuBLASLt", "kfc's own kernels", why] {
            assert!(said(&output).contains(part), "{part}: {}", said(&output));
        }
        assert_eq!(place.products(), 0);
        assert!(place.adapter(out) == place.adapter("off"));
    };
    own("version", "lt_version=130200", "is of version 130200, the algorithm of 130100");
    std::fs::remove_file(library).unwrap();
    own("gone", "", "cannot be used");
}

impl Place {
    /// What two runs with other bits leave.
    fn adapter_of_two_runs(&self, tuning: &Path) -> [Vec<u8>; 2] {
        ["first", "second"].map(|out| {
            done(&mut self.train(out, tuning, "lt_nudge=1"));
            self.adapter(out)
        })
    }
}

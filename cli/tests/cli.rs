//! The program from outside: exit codes, messages, help, completions, closed pipes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn kfc(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kfc")).args(arguments).output().unwrap()
}

/// Runs `arguments`, which must fail with `code` and print nothing to stdout; returns the message.
fn fails(code: i32, arguments: &[&str]) -> String {
    let output = kfc(arguments);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    assert!(message.starts_with("error: ") && !message.contains("panicked"), "{arguments:?}: {message}");
    message
}

/// A fresh folder for the test `name`.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

const COMMANDS: &[&str] = &[
    "train",
    "eval",
    "logits",
    "fisher",
    "teach",
    "merge",
    "generate",
    "inspect",
    "compile",
    "explain",
    "tune",
    "doctor",
    "report",
    "rollback",
    "bench",
    "tokenizer",
    "data",
    "data clean",
    "data augment",
    "data filter",
    "data shard",
    "completions",
];

#[test]
fn help_is_as_stored() {
    let mut text = String::new();
    for command in std::iter::once(None).chain(COMMANDS.iter().copied().map(Some)) {
        let arguments: Vec<&str> =
            command.into_iter().flat_map(str::split_whitespace).chain(["--help"]).collect();
        let output = kfc(&arguments);
        assert_eq!(output.status.code(), Some(0));
        text.push_str(&format!(
            "$ kfc {}\n{}\n",
            arguments.join(" "),
            String::from_utf8(output.stdout).unwrap()
        ));
    }
    for line in text.lines() {
        assert!(!line.starts_with("Usage") || line.starts_with("Usage: kfc"), "{line}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/help.txt");
    if std::env::var_os("KFC_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap();
    assert!(stored == text, "the help has changed; run with KFC_BLESS=1 and review:\n{text}");
}

#[test]
fn a_level_of_instructions_is_forced_or_refused() {
    let doctor = |level: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kfc"));
        command.args(["doctor", "--json"]).env("KFC_ISA", level).output().unwrap()
    };
    let output = doctor("portable");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let d: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(d["isa"], "portable");
    let levels: Vec<&str> = d["isas"].as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect();
    assert_eq!(levels[0], "portable");
    for wrong in ["fast", ""] {
        let output = doctor(wrong);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
        assert_eq!(
            message,
            format!("error: KFC_ISA={wrong}: there is no such level; this CPU has {}\n", levels.join(", "))
        );
    }
}

#[test]
fn every_command_has_an_example() {
    for command in COMMANDS {
        let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let help = String::from_utf8(kfc(&arguments).stdout).unwrap();
        assert!(help.contains(&format!("  kfc {command} ")), "{help}");
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    assert!(fails(2, &["tran"]).contains("'train'"));
    assert!(fails(2, &["train", "--step", "1"]).contains("--step"));
    assert!(fails(2, &["train", "--device", "cuda:x", "job.toml"]).contains("as in cuda:1"));
    assert!(fails(2, &["train", "job.toml", "--kernels", "d"]).contains("use --device cuda"));
    assert!(fails(2, &["train", "--device", "cuda"]).contains("the demo runs on the CPU"));
    assert!(fails(2, &["bench", "tiny", "--device", "cuda", "--generate"]).contains("on the CPU"));
    assert!(fails(2, &["train", "--device", "tpu"]).contains("no such device"));
    assert!(fails(2, &["train", "--mem-budget", "8 gigs"]).contains("8GiB"));
    assert!(fails(2, &["--threads", "0", "train"]).contains("1 to 1024"));
    assert!(
        fails(2, &["compile", "job.toml", "--target", "cuda:sm_70", "--emit", "d"]).contains("cuda:sm_90a")
    );
    assert!(
        fails(2, &["eval", "--model", "m", "--task", "pp"])
            .contains("ppl, choice, qa, entity, medqa, gsm8k, ncbi-disease, speed")
    );
    assert_eq!(
        fails(2, &["eval", "--model", "m", "--task", "ppl"]),
        "error: --task ppl needs rows; give them with --data FILE\n"
    );
    let gate = ["eval", "--model", "m", "--task", "ppl", "--data", "d", "--gate"];
    assert!(fails(2, &[&gate[..], &["ppl"]].concat()).contains("'accuracy>=0.9'"));
    assert!(fails(2, &[&gate[..], &["ppl<=low"]].concat()).contains("`low` is not a number"));
    assert!(fails(2, &["generate", "--model", "m"]).contains("--prompt"));
    assert!(fails(2, &["generate", "--model", "m", "--prompt", "p", "--top-p", "0"]).contains("above 0"));
    assert!(
        fails(2, &["generate", "--model", "m", "--prompt", "p", "--temperature", "nan"])
            .contains("at least 0")
    );
    assert!(
        fails(2, &["inspect", "--model", "m", "--prompt", "p", "--row", "1"]).contains("cannot be used with")
    );
    assert!(fails(2, &["report", "runs/job", "--max-new-tokens", "9"]).contains("--prompt"));
    assert!(fails(2, &["completions", "cmd"]).contains("bash"));
}

#[test]
fn global_options_stand_before_or_after_the_command() {
    for arguments in [["--threads", "2", "completions", "bash"], ["completions", "bash", "--threads", "2"]] {
        assert_eq!(kfc(&arguments).status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn no_arguments_print_help_and_end_with_2() {
    let output = kfc(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Usage: kfc"));
}

#[test]
fn wrong_configurations_end_with_2_before_anything_is_written() {
    let folder = folder("wrong");
    let job = folder.join("job.toml");
    let out = folder.join("run");
    let (job, out) = (job.to_str().unwrap(), out.to_str().unwrap());
    let missing = fails(2, &["train", job, "--out", out]);
    assert_eq!(
        missing,
        format!("error: {job}: there is no such file; give the path of a configuration (TOML)\n")
    );
    std::fs::write(job, "[model]\npath = 'm'\n[train]\nsteps = 0\n").unwrap();
    for command in [&["train"][..], &["fisher"], &["teach"]] {
        let message = fails(2, &[command, &[job, "--out", out]].concat());
        assert_eq!(
            message,
            format!("error: {job}:1: data: the section is missing; add [data] with `train`\n")
        );
    }
    std::fs::write(job, [0xff, 0xfe]).unwrap();
    assert!(fails(2, &["compile", job, "--emit", out]).contains("not UTF-8"));
    assert!(!Path::new(out).exists());
}

#[test]
fn an_earlier_run_is_not_overwritten() {
    let folder = folder("rerun");
    let (job, out) = (folder.join("job.toml"), folder.join("run"));
    std::fs::write(&job, "[model]\npath = 'm'\n[data]\ntrain = 'a.jsonl'\n[train]\nsteps = 1\n").unwrap();
    let (job, run) = (job.to_str().unwrap(), out.to_str().unwrap());
    assert!(fails(2, &["train", job, "--out", run, "--resume"]).contains("holds no run to resume"));
    assert!(fails(2, &["train", job, "--out", job]).contains("is a file"));
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("config.toml"), "").unwrap();
    assert!(fails(2, &["train", job, "--out", run]).contains("go on with that run with --resume"));
}

#[test]
fn rollback_copies_the_snapshot() {
    let folder = folder("rollback");
    let (run, out) = (folder.join("run"), folder.join("before"));
    let arguments = ["rollback", run.to_str().unwrap(), "--out", out.to_str().unwrap()];
    assert!(fails(2, &arguments).contains("is no run directory"));
    std::fs::create_dir_all(&run).unwrap();
    std::fs::write(run.join("config.toml"), "").unwrap();
    assert!(fails(2, &arguments).contains("no snapshot"));
    std::fs::create_dir_all(run.join("snapshot/part")).unwrap();
    std::fs::write(run.join("snapshot/adapter_config.json"), "{}").unwrap();
    std::fs::write(run.join("snapshot/part/weights"), "w").unwrap();
    let done = kfc(&arguments);
    assert_eq!(done.status.code(), Some(0));
    assert_eq!(String::from_utf8(done.stdout).unwrap(), format!("restored 2 files to {}\n", out.display()));
    assert_eq!(std::fs::read_to_string(out.join("part/weights")).unwrap(), "w");
    assert!(fails(2, &arguments).contains("exists already"));
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn completions_name_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = kfc(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let script = String::from_utf8(output.stdout).unwrap();
        for command in COMMANDS {
            let name = command.split_whitespace().last().unwrap();
            assert!(script.contains(name), "{shell}: {command}");
        }
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    for arguments in [&["train", "--help-config"][..], &["completions", "bash"], &["--help"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kfc"))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut message = String::new();
        child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
        assert_eq!((child.wait().unwrap().code(), message.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

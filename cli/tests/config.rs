//! Wrong configurations and what is said about them; the reference page.
//!
//! `snapshots/config_errors.txt` holds one case a block: a piece of a configuration and `--set` lines, then `=>` and the
//! exact message. Sections that the piece lacks are added after it. `KFC_BLESS=1 cargo nextest run -p kfc` rewrites the
//! messages, and the reference page, for review.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

const REQUIRED: [(&str, &str); 3] =
    [("model", "path = \"m\"\n"), ("data", "train = \"a.jsonl\"\n"), ("train", "steps = 10\n")];

fn bless() -> bool {
    std::env::var_os("KFC_BLESS").is_some()
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What decoding `case` says.
fn message(case: &str) -> String {
    let (overrides, lines): (Vec<&str>, Vec<&str>) =
        case.lines().filter(|line| !line.starts_with("//")).partition(|line| line.starts_with("--set "));
    let overrides: Vec<String> = overrides.iter().map(|line| line["--set ".len()..].to_owned()).collect();
    let mut text = lines.join("\n") + "\n";
    for (section, keys) in REQUIRED {
        let absent = format!("// no {section}");
        if !case.contains(&format!("[{section}]")) && !case.contains(&absent) {
            text.push_str(&format!("[{section}]\n{keys}"));
        }
    }
    match kfc::config::parse_with(&text, Path::new("job.toml"), &overrides) {
        Ok(job) => format!("accepted: {job:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn errors_say_where_what_and_what_to_do() {
    let path = here("tests/snapshots/config_errors.txt");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut blessed = String::new();
    for block in text.trim_end().split("\n\n") {
        let (case, expected) = block.split_once("\n=> ").unwrap_or((block, ""));
        let found = message(case);
        if !bless() {
            assert_eq!(found, expected, "in the case\n{case}");
        }
        assert!(!found.starts_with("accepted"), "{case}\n{found}");
        blessed.push_str(&format!("{case}\n=> {found}\n\n"));
    }
    if bless() {
        std::fs::write(&path, blessed.trim_end().to_owned() + "\n").unwrap();
    }
}

#[test]
fn reference_page_is_current() {
    let path = here("../docs/config.md");
    let page = kfc::config::reference_markdown();
    if bless() {
        std::fs::write(&path, &page).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap();
    assert!(stored == page, "docs/config.md is not what the program says; run with KFC_BLESS=1 and review");
}

#[test]
fn reference_text_names_every_key_that_is_printed() {
    let text = std::fs::read_to_string(here("../docs/config.md")).unwrap();
    let terminal = kfc::config::reference_text();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let key = line.split('`').nth(1).unwrap();
        assert!(terminal.contains(&format!("\n  {key} ")), "{key}");
    }
}

#[test]
fn the_whole_of_a_large_configuration_is_read() {
    let text = "
        model = { path = '/m', init = 'random', dtype = 'bf16' }
        [lora]
        r = 8
        targets = ['q_proj', 'v_proj']
        init = 'start'
        [distill]
        teacher = '/t'
        general = 'wiki.txt'
        divergence = 'jsd'
        [[distill.features]]
        student_layer = 12
        teacher_layer = 24
        [[distill.features]]
        student_layer = 1
        teacher_layer = 2
        weight = 2
        projector = 'p.safetensors'
        [ewc]
        lambda = 1e3
        mode = 'delta'
        fisher = '../f.safetensors'
        [data]
        train = ['a.jsonl', '/b']
        long_rows = 'truncate'
        [train]
        epochs = 3
        betas = [0.9, 0.95]
        loss_scale = 'dynamic'
        mem_budget = '1.5GiB'
        seed = 18446744073709551615
    ";
    let job = kfc::config::parse(text, Path::new("/jobs/job.toml")).unwrap();
    let printed = kfc::config::to_toml(&job);
    let expected = std::fs::read_to_string(here("tests/snapshots/resolved.toml")).unwrap_or_default();
    if bless() {
        std::fs::write(here("tests/snapshots/resolved.toml"), &printed).unwrap();
    } else {
        assert_eq!(printed, expected);
    }
    assert_eq!(kfc::config::parse(&printed, Path::new("/other/config.toml")).unwrap(), job);
}

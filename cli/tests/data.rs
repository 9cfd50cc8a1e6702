//! `kfc data clean` and `kfc data augment` from outside: pages and rows in Chinese and English, real data, kills.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Folder, command, fails, kfc, succeeds};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(path.as_ref()).unwrap()
}

fn rows(path: impl AsRef<Path>) -> Vec<Value> {
    let text = String::from_utf8(read(path)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The folder of real data, said by name if it is not there.
fn real(name: &str) -> Option<PathBuf> {
    let path =
        std::env::var_os("KFC_DATA").map(|folder| PathBuf::from(folder).join(name)).filter(|p| p.exists());
    if path.is_none() {
        eprintln!("skipped: {name} is not in KFC_DATA");
    }
    path
}

const PAGE: &str = "<!doctype html><html><head><title>缓存</title></head><body>\
<nav><a href=/>首页</a></nav><h1>缓存</h1>\
<p>缓存保存最近使用过的数据的副本，它的速度比内存快得多，但是容量要小得多，因此计算机同时使用两者。</p>\
<p>联系：zhang@example.com，电话 13812345678。</p><div class=footer>版权所有</div></body></html>";

const ENGLISH: &str =
    "A cache holds copies of the data that was used lately, and it answers faster than memory does.";

fn world(folder: &Folder) -> PathBuf {
    let path = folder.join("in");
    std::fs::create_dir_all(path.join("pages")).unwrap();
    std::fs::write(path.join("pages/cache.html"), PAGE).unwrap();
    let mut lines = vec![
        json!({"text": ENGLISH, "metadata": {"domain": "hardware"}, "url": "http://a"}).to_string().into_bytes(),
        json!({"text": format!("{ENGLISH} ")}).to_string().into_bytes(),
        json!({"text": ENGLISH.to_uppercase().replace(',', ";"), "knowledge_id": 7}).to_string().into_bytes(),
        json!({"text": "Kurz ist die Nacht, und sie vergeht, bevor man sich an sie gewöhnt hat."}).to_string().into_bytes(),
        json!({"text": "too short"}).to_string().into_bytes(),
        json!({"text": "++ -- ** // == a1 b2 c3 d4 e5 f6 g7 h8 i9 j10 k11 ++++ .. ,, ;; !! ?? <> [] {} () | & ^ % $ # @ ~ +- */ :="}).to_string().into_bytes(),
        b"{\"text\": \"bad \xff byte\"}".to_vec(),
        b"{\"text\": ".to_vec(),
        b"{\"title\": \"no text\"}".to_vec(),
        json!({"text": "x".repeat(5000)}).to_string().into_bytes(),
        json!({"text": "<div><script>x</script></div>"}).to_string().into_bytes(),
    ];
    lines.insert(0, b"\xEF\xBB\xBF".to_vec());
    std::fs::write(path.join("rows.jsonl"), lines.join(&b'\n')).unwrap();
    path
}

#[test]
fn pages_and_rows_become_knowledge() {
    let folder = Folder::new();
    let (input, out, dropped) = (world(&folder), folder.join("out.jsonl"), folder.join("dropped.jsonl"));
    let arguments = args![
        "--json",
        "data",
        "clean",
        input,
        "--out",
        out,
        "--dropped",
        dropped,
        "--lang",
        "zh",
        "--lang",
        "en",
        "--max-row-bytes",
        "4000",
        "--mask-pii",
        "all",
        "--domain",
        "computers"
    ];
    let report: Value = serde_json::from_str(&succeeds(&arguments)).unwrap();
    let kept = rows(&out);
    let page = "缓存\n\n缓存保存最近使用过的数据的副本，它的速度比内存快得多，但是容量要小得多，因此计算机同时使用两者。\n\n\
                联系：[EMAIL]，电话 [PHONE]。";
    assert_eq!(kept.iter().map(|row| row["text"].as_str().unwrap()).collect::<Vec<_>>(), [page, ENGLISH]);
    assert_eq!(
        kept[0]["metadata"],
        json!({"domain": "computers", "language": "zh", "source": "cache.html", "title": "缓存"})
    );
    assert_eq!(
        kept[1]["metadata"],
        json!({"domain": "hardware", "language": "en", "source": "rows.jsonl", "url": "http://a"})
    );
    let reasons = json!({"bad_json": 1, "duplicate": 1, "near_duplicate": 1, "no_content": 1, "no_text": 1, "not_utf8": 1,
        "other_language": 1, "too_large": 1, "too_many_symbols": 1, "too_short": 1});
    assert_eq!(report["dropped"], reasons);
    assert_eq!((&report["rows_in"], &report["rows_out"]), (&json!(12), &json!(2)));
    assert_eq!(report["counts"], json!({"masked_email": 1, "masked_phone": 1}));
    let mut stored: Value = serde_json::from_slice(&read(folder.join("out.jsonl.report.json"))).unwrap();
    assert_eq!(stored, report);
    assert_eq!(stored["settings"].take()["near_duplicates"]["bands"], 21);
    let places: Vec<String> =
        rows(&dropped).iter().map(|row| row["place"].as_str().unwrap().to_owned()).collect();
    assert_eq!(places[..2], ["rows.jsonl:3", "rows.jsonl:4"]);
    assert_eq!(rows(&dropped)[1]["detail"], "1.00 like row 2 of the output");
    assert_eq!(folder.names(), ["dropped.jsonl", "in", "out.jsonl", "out.jsonl.report.json"]);
}

#[test]
fn what_is_wrong_is_said() {
    let folder = Folder::new();
    let (input, out) = (world(&folder), folder.join("out.jsonl"));
    fails(2, &args!["data", "clean", folder.join("none"), "--out", out], &["none", "no such file"]);
    fails(2, &args!["data", "clean", input, "--out", folder.path()], &["is a folder"]);
    fails(2, &args!["data", "clean", input, "--out", out, "--resume"], &["no interrupted run"]);
    succeeds(&args!["data", "clean", input, "--out", out]);
    fails(2, &args!["data", "clean", input, "--out", out], &["exists already"]);
    let usage = |arguments: &[std::ffi::OsString], part: &str| {
        let output = kfc(arguments);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && message.contains(part), "{message}");
    };
    usage(&args!["data", "clean", input, "--out", out, "--lang", "klingon"], "no language `klingon`");
    usage(&args!["data", "clean", input, "--out", out, "--max-chars", "3"], "no row would be left");
    usage(&args!["data", "augment", input, "--out", out], "give --aliases");
    usage(&args!["data", "augment", input, "--out", out, "--graph", out], "--relation");
    usage(&args!["data", "augment", input, "--out", out, "--translate", "https://x"], "https is not spoken");
    let table = folder.join("t.tsv");
    std::fs::write(&table, "alone\n").unwrap();
    fails(2, &args!["data", "augment", input, "--out", folder.join("b"), "--aliases", table], &["t.tsv:1"]);
}

#[test]
fn empty_files_give_no_rows() {
    let folder = Folder::new();
    for name in ["a.jsonl", "b.txt", "c.html", "d.json"] {
        std::fs::write(folder.join(name), "").unwrap();
    }
    let out = folder.join("out/rows.jsonl");
    std::fs::create_dir(folder.join("out")).unwrap();
    let report: Value =
        serde_json::from_str(&succeeds(&args!["--json", "data", "clean", folder.path(), "--out", out]))
            .unwrap();
    assert_eq!(
        (&report["rows_in"], &report["rows_out"], &report["dropped"]),
        (&json!(0), &json!(0), &json!({}))
    );
    assert_eq!(read(&out), b"");
}

/// Many rows, some of them copies and near copies of others, from real text if there is any.
fn corpus(folder: &Folder, rows: usize) -> PathBuf {
    let words: Vec<String> = (0..5000u64)
        .map(|i| {
            let random =
                i.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            (0..3 + random % 6).map(|k| char::from(b'a' + (random >> (8 + 5 * k)) as u8 % 26)).collect()
        })
        .collect();
    let mut state = 1u64;
    let mut text = String::new();
    for row in 0..rows {
        // Every fifth row is an earlier one, every tenth with a word changed.
        let mut own = if row % 5 == 4 { state - 3 * 77 } else { state };
        let body: Vec<&str> = (0..120)
            .map(|i| {
                own = own.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let odd = row % 10 == 9 && i == 60;
                words[((own >> 33) as usize + usize::from(odd)) % words.len()].as_str()
            })
            .collect();
        state = state.wrapping_add(77);
        text.push_str(&json!({"text": body.join(" ")}).to_string());
        text.push('\n');
    }
    let path = folder.join("corpus.jsonl");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let folder = Folder::new();
    let input = corpus(&folder, 9000);
    let mut all = BTreeSet::new();
    for threads in ["1", "2", "5"] {
        let (out, dropped) = (folder.join(&format!("o{threads}")), folder.join(&format!("d{threads}")));
        succeeds(&args!["--threads", threads, "data", "clean", input, "--out", out, "--dropped", dropped]);
        all.insert((read(out), read(dropped)));
    }
    assert_eq!(all.len(), 1);
    let dropped = rows(folder.join("d1"));
    assert!(dropped.iter().any(|row| row["reason"] == "near_duplicate"));
    assert!(dropped.iter().any(|row| row["reason"] == "duplicate"));
}

/// Starts `arguments` and kills it without warning once it has saved a state in the middle of its work.
fn kill_in_the_middle(arguments: &[std::ffi::OsString], partial: &Path) {
    let mut child = command().args(arguments).spawn().unwrap();
    let started = Instant::now();
    loop {
        let state = std::fs::read(partial.join("state.json")).unwrap_or_default();
        let state: Value = serde_json::from_slice(&state).unwrap_or_default();
        if state["report"]["rows_in"].as_u64().is_some_and(|rows| rows > 0) {
            break;
        }
        assert!(child.try_wait().unwrap().is_none(), "it was over before it could be killed");
        assert!(started.elapsed() < Duration::from_secs(120), "no state was saved");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn killed_and_resumed_translation_has_the_same_bytes() {
    let folder = Folder::new();
    let lines: String =
        (0..300).map(|i| format!("{{\"text\":\"sentence number {i} about caches\"}}\n")).collect();
    let input = folder.join("in.jsonl");
    std::fs::write(&input, lines).unwrap();
    // An answer takes a while, so that there is time to be killed.
    let slow = "sh -c \"while read l; do sleep 0.02; echo $l again; done\"";
    let quick = "sh -c \"while read l; do sleep 0.00; echo $l again; done\"";
    let arguments =
        |out: &Path, step: &str| args!["data", "augment", input, "--out", out, "--translate", step].to_vec();
    let (whole, cut) = (folder.join("whole.jsonl"), folder.join("cut.jsonl"));
    succeeds(&arguments(&whole, quick));
    kill_in_the_middle(&arguments(&cut, slow), &folder.join("cut.jsonl.partial"));
    assert!(!cut.exists());
    fails(2, &arguments(&cut, slow), &["--resume"]);
    fails(2, &[arguments(&cut, quick), args!["--resume"].to_vec()].concat(), &["translate"]);
    succeeds(&[arguments(&cut, slow), args!["--resume"].to_vec()].concat());
    assert_eq!(rows(&cut).len(), 300);
    assert!(read(&cut) == read(&whole), "killed and resumed is not the same");
    assert!(!folder.join("cut.jsonl.partial").exists());
}

#[test]
fn entities_in_two_languages() {
    let folder = Folder::new();
    let (input, table, out) = (folder.join("in.jsonl"), folder.join("t.json"), folder.join("out.jsonl"));
    let texts = ["使用CPU的缓存。", "The CPU has a cache.", "No terms, CPUs only.", "使用CPU的缓存。"];
    let lines: Vec<String> =
        texts.iter().map(|text| json!({"text": text, "metadata": {"domain": "d"}}).to_string()).collect();
    std::fs::write(&input, lines.join("\n")).unwrap();
    std::fs::write(&table, r#"{"CPU": ["中央处理器", "processor"], "缓存": "高速缓存"}"#).unwrap();
    let report = succeeds(&args![
        "--json",
        "data",
        "augment",
        input,
        "--aliases",
        table,
        "--variants",
        "3",
        "--out",
        out
    ]);
    let report: Value = serde_json::from_str(&report).unwrap();
    let made = rows(&out);
    let texts: BTreeSet<&str> = made.iter().map(|row| row["text"].as_str().unwrap()).collect();
    assert_eq!(
        texts,
        [
            "使用中央处理器的高速缓存。",
            "使用processor的高速缓存。",
            "The 中央处理器 has a cache.",
            "The processor has a cache."
        ]
        .into()
    );
    assert_eq!(made.len(), 4);
    let augmented = &made[0]["metadata"]["augmented"];
    assert_eq!((&augmented["method"], &made[0]["metadata"]["domain"]), (&json!("entity"), &json!("d")));
    assert_eq!(augmented["parent"].as_str().unwrap().len(), 32);
    assert_eq!(
        (&augmented["changes"][0]["from"], &augmented["changes"][0]["at"]),
        (&json!("CPU"), &json!(6))
    );
    assert_eq!(report["counts"], json!({"entity": 4, "repeated_variants": 5}));
    assert_eq!(report["dropped"], json!({"unchanged": 1}));
}

#[test]
fn clauses_and_graph_and_originals() {
    let folder = Folder::new();
    let (input, parses, graph, out) =
        (folder.join("in.txt"), folder.join("p.conllu"), folder.join("g.tsv"), folder.join("out.jsonl"));
    std::fs::write(&input, "We stayed home because it rained. The rest was long.\n").unwrap();
    let words = [
        ("We", "PRON", 2, "nsubj"),
        ("stayed", "VERB", 0, "root"),
        ("home", "ADV", 2, "advmod"),
        ("because", "SCONJ", 6, "mark"),
        ("it", "PRON", 6, "nsubj"),
        ("rained", "VERB", 2, "advcl"),
        (".", "PUNCT", 2, "punct"),
    ];
    let lines: String = (1..)
        .zip(words)
        .map(|(i, (form, kind, head, relation))| {
            let misc = if form == "rained" { "SpaceAfter=No" } else { "_" };
            format!("{i}\t{form}\t_\t{kind}\t_\t_\t{head}\t{relation}\t_\t{misc}\n")
        })
        .collect();
    std::fs::write(&parses, format!("# text = We stayed home because it rained.\n{lines}\n")).unwrap();
    std::fs::write(&graph, "rest\tsynonym\tremainder\nhome\tisa\tplace\n").unwrap();
    succeeds(&args![
        "data",
        "augment",
        input,
        "--clauses",
        parses,
        "--graph",
        graph,
        "--relation",
        "synonym",
        "--keep-originals",
        "--out",
        out
    ]);
    let texts: Vec<String> =
        rows(&out).iter().map(|row| row["text"].as_str().unwrap().trim().to_owned()).collect();
    assert_eq!(
        texts,
        [
            "We stayed home because it rained. The rest was long.",
            "We stayed home because it rained. The remainder was long.",
            "Because it rained, we stayed home. The rest was long.",
        ]
    );
}

#[test]
fn real_rows() {
    let folder = Folder::new();
    let clean = |name: &str, extra: &[&str]| -> Option<(Value, Vec<Value>)> {
        let input = real(name)?;
        let out = folder.join(&format!("{}.jsonl", name.replace('/', "-")));
        let mut arguments = args!["--json", "data", "clean", input, "--out", out, "--lang", "en"].to_vec();
        arguments.extend(extra.iter().map(std::ffi::OsString::from));
        Some((serde_json::from_str(&succeeds(&arguments)).unwrap(), rows(&out)))
    };
    if let Some((report, rows)) = clean("gsm8k", &["--text-field", "question"]) {
        assert_eq!(report["rows_in"], 8792);
        assert!(rows.len() > 8500 && rows[0]["metadata"]["answer"].is_string(), "{report}");
    }
    if let Some((report, rows)) = clean("medqa/test.jsonl", &["--text-field", "question"]) {
        assert_eq!(
            (&report["rows_in"], rows.len() as u64),
            (&json!(1273), report["rows_out"].as_u64().unwrap())
        );
        assert!(rows.len() > 1200, "{report}");
    }
    if let Some((report, rows)) = clean("tinyshakespeare", &["--split", "paragraph"]) {
        assert_eq!(report["rows_in"], 7222);
        assert!(rows.len() > 5500, "{report}");
    }
    // Tables of tokens and tags are no text files: their format must be named.
    if let Some(path) = real("ncbi-disease/devel.tsv") {
        let out = folder.join("ncbi.jsonl");
        fails(2, &args!["data", "clean", path, "--out", out], &["--format"]);
        succeeds(&args!["data", "clean", path, "--out", out, "--format", "text", "--split", "paragraph"]);
        assert!(rows(&out).len() > 800, "{}", rows(&out).len());
    }
}

#[test]
fn real_graph() {
    let (Some(questions), Some(graph)) = (real("medqa/test.jsonl"), real("umls/train.txt")) else { return };
    let folder = Folder::new();
    let out = folder.join("out.jsonl");
    succeeds(&args![
        "data",
        "augment",
        questions,
        "--text-field",
        "question",
        "--graph",
        graph,
        "--relation",
        "isa",
        "--ignore-case",
        "--out",
        out
    ]);
    let made = rows(&out);
    assert!(made.len() > 50, "{}", made.len());
    for row in made {
        let change = &row["metadata"]["augmented"]["changes"][0];
        assert!(row["text"].as_str().unwrap().contains(change["to"].as_str().unwrap()));
    }
    let message = fails(
        2,
        &args![
            "data",
            "augment",
            questions,
            "--text-field",
            "question",
            "--graph",
            graph,
            "--relation",
            "same_as",
            "--out",
            folder.join("b")
        ],
        &["no relation `same_as`", "adjacent_to"],
    );
    assert!(!message.is_empty());
}

//! The page of `kfc explain RUN --html` in a browser: it runs no script, asks the network for nothing, and draws what it
//! says it draws. Needs Chromium; where that is missing the tests say so, and fail if `CI` is set.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const WIDTH: u32 = 1280;
const HEIGHT: u32 = 3000;

/// What a browser made of a page.
struct Visit {
    dom: String,
    /// Lines of its console: messages and errors of scripts.
    console: Vec<String>,
    /// Addresses that the page asked for, beside its own file.
    requests: Vec<String>,
    /// What it looks like.
    picture: Picture,
}

struct Picture {
    size: (u32, u32),
    colours: BTreeSet<[u8; 3]>,
}

/// The browser, if there is one.
fn chromium() -> Option<PathBuf> {
    let folders: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = names.iter().find_map(|name| folders.iter().map(|f| f.join(name)).find(|p| p.is_file()));
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "chromium is missing: apt-get install chromium");
        eprintln!("skipped: chromium not found");
    }
    found
}

/// Loads a page without reaching any host but this one.
fn visit(browser: &Path, folder: &Folder, page: &Path) -> Visit {
    let stem = page.file_stem().unwrap().to_str().unwrap();
    let [screenshot, log, data] =
        ["png", "net.json", "data"].map(|end| folder.join(&format!("{stem}.{end}")));
    let with = |option: &str, value: &Path| {
        let mut argument = OsString::from(option);
        argument.push(value);
        argument
    };
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-dev-shm-usage", "--hide-scrollbars", "--force-device-scale-factor=1"])
        .args(["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--dump-dom"])
        .arg(format!("--window-size={WIDTH},{HEIGHT}"))
        .arg(with("--user-data-dir=", &data))
        .arg(with("--log-net-log=", &log))
        .arg(with("--screenshot=", &screenshot))
        .arg(with("file://", page))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {messages}", output.status);
    Visit {
        dom: String::from_utf8(output.stdout).unwrap(),
        console: messages.lines().filter(|l| l.contains("CONSOLE")).map(String::from).collect(),
        requests: requests(&json(&log)),
        picture: picture(&screenshot),
    }
}

/// Requests in a network log that a page began; the browser's own have no origin.
fn requests(log: &Value) -> Vec<String> {
    let events = log["events"].as_array().unwrap().iter().map(|e| &e["params"]);
    let of_page = events.filter(|p| p["initiator"].as_str().is_some_and(|from| from != "not an origin"));
    of_page.map(|p| p["url"].to_string()).collect()
}

fn picture(path: &Path) -> Picture {
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let mut decoder = png::Decoder::new(file);
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    let colours = pixels[..info.buffer_size()]
        .chunks_exact(info.color_type.samples())
        .map(|p| [p[0], p[1 % p.len()], p[2 % p.len()]])
        .collect();
    Picture { size: (info.width, info.height), colours }
}

/// The drawing whose heading begins with `title`.
fn figure<'a>(dom: &'a str, title: &str) -> &'a str {
    let found = dom.split("<figure").skip(1).find(|f| f.contains(&format!("<h2>{title}")));
    let figure = found.unwrap_or_else(|| panic!("no drawing {title:?} in the page"));
    figure.split("</figure>").next().unwrap()
}

#[test]
fn a_browser_shows_the_drawings_and_loads_nothing() {
    let Some(browser) = chromium() else { return };
    let (folder, case) = (Folder::new(), case("llama"));
    let (run, page) = (folder.join("run"), folder.join("page.html"));
    succeeds(&args!["train", case.join("config.toml"), "--out", run]);
    succeeds(&args!["explain", run, "--html", page]);
    let explained: Value = serde_json::from_str(&succeeds(&args!["--json", "explain", run])).unwrap();
    let shown = visit(&browser, &folder, &page);
    assert!(shown.console.is_empty(), "{:?}", shown.console);
    assert!(shown.requests.is_empty(), "{:?}", shown.requests);

    let plans = explained["plans"].as_array().unwrap();
    let bytes = |plan: &Value| plan["arena_bytes"].as_u64().unwrap();
    let largest = plans.iter().map(bytes).max().unwrap();
    // An arena that is nothing beside the largest one is not drawn.
    for plan in plans.iter().filter(|p| bytes(p) >= largest / 100) {
        let (name, launches) = (plan["name"].as_str().unwrap(), plan["launches"].as_u64().unwrap() as usize);
        let timeline = figure(&shown.dom, &format!("Memory of {name} over time"));
        assert!(timeline.contains("class=\"area\"") && timeline.contains("class=\"peak\""), "{timeline}");
        assert_eq!(timeline.matches("<rect class=\"band\"").count(), launches, "{name}");
        let arena = figure(&shown.dom, &format!("Arena of {name}"));
        assert!(arena.matches("<rect class=\"block").count() > 10, "{arena}");
    }
    let roofline = figure(&shown.dom, "Roofline");
    assert_eq!(roofline.matches("<polyline class=\"roof\"").count(), 2);
    assert!(roofline.matches("<circle class=\"dot").count() > 10, "{roofline}");

    assert_eq!(shown.picture.size, (WIDTH, HEIGHT));
    // Text alone makes dozens of shades of its own; a blank page or one error message does not come near.
    assert!(shown.picture.colours.len() > 200, "{} colours", shown.picture.colours.len());
    for (part, colour) in [("attention", [0x25, 0x63, 0xeb]), ("paper", [0xf6, 0xf7, 0xf9])] {
        assert!(shown.picture.colours.contains(&colour), "no pixel has the colour of {part}");
    }
}

/// The checks above see what they look for.
#[test]
fn a_page_with_a_script_and_a_picture_from_outside_is_told() {
    let Some(browser) = chromium() else { return };
    let folder = Folder::new();
    let page = folder.join("bad.html");
    std::fs::write(&page, "<img src=\"http://127.0.0.1:9/x.png\"><script>missing();</script>").unwrap();
    let shown = visit(&browser, &folder, &page);
    assert!(shown.console.iter().any(|l| l.contains("missing is not defined")), "{:?}", shown.console);
    assert!(shown.requests.iter().any(|url| url.contains("127.0.0.1:9/x.png")), "{:?}", shown.requests);
    assert!(shown.picture.colours.len() < 200, "{} colours", shown.picture.colours.len());
}

//! A page in headless Chromium: what it shows, says on its console and asks for. Where Chromium is missing, tests say so,
//! and fail if `CI` is set.

use super::{Folder, json};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub const WIDTH: u32 = 1280;
pub const HEIGHT: u32 = 3000;

/// What a browser made of a page.
pub struct Visit {
    pub dom: String,
    /// Lines of its console: messages and errors of scripts.
    pub console: Vec<String>,
    /// Addresses that the page asked for, beside its own file.
    pub requests: Vec<String>,
    /// What it looks like.
    pub picture: Picture,
}

pub struct Picture {
    pub size: (u32, u32),
    pub colours: BTreeSet<[u8; 3]>,
}

/// The browser, if there is one.
pub fn chromium() -> Option<PathBuf> {
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
pub fn visit(browser: &Path, folder: &Folder, page: &Path) -> Visit {
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
pub fn figure<'a>(dom: &'a str, title: &str) -> &'a str {
    let found = dom.split("<figure").skip(1).find(|f| f.contains(&format!("<h2>{title}")));
    let figure = found.unwrap_or_else(|| panic!("no drawing {title:?} in the page"));
    figure.split("</figure>").next().unwrap()
}

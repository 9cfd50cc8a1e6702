//! The page of `kfc explain RUN --html` in a browser: it runs no script, asks the network for nothing, and draws what it
//! says it draws. Needs Chromium; where that is missing the tests say so, and fail if `CI` is set.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::browser::{HEIGHT, WIDTH, chromium, figure, visit};
use common::*;
use serde_json::Value;

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

//! Pages and what is content of them.
#![allow(clippy::unwrap_used)]

use super::*;

const ARTICLE: &str =
    "<!DOCTYPE html><html><head><title>The  cache\n of a CPU</title><style>p{color:red}</style>
<script>var x = '<p>not this</p>';</script></head><body class='sidebar'>
<nav><ul><li><a href=/>Home</a><li><a href=/a>About</a></ul></nav>
<div class='top-menu x'>Products, prices and opening hours of the shop that nobody wants to read here</div>
<h1>Caches</h1><h2>What they are</h2>
<p>A cache holds <b>copies</b> of data that was used
lately, &amp; it answers faster than memory does.<br>It is small.</p>
<p>Why?</p>
<ul><li>L1: 48 KiB</li><li>L2: 1 MiB</li></ul>
<p><a href=1>One link after</a> <a href=2>another that is of no use to</a> readers of text</p>
<div hidden>You cannot see this sentence, however long it is made, and so it is no text.</div>
<div style='display: none'>Nor can you see this one, which is just as long as the one before it was.</div>
<pre>
  for i in 0..n {
      a[i] += 1
  }  </pre>
<table><tr><th>Level</th><td>Latency</td></tr><tr><td>L1</td><td>4 cycles</td></tr></table>
<footer>Copyright by somebody, all rights reserved, do not copy any of this text.</footer></body></html>";

#[test]
fn an_article() {
    let page = to_text(ARTICLE, false).unwrap();
    assert_eq!(page.title, "The cache of a CPU");
    assert_eq!(
        page.text,
        "Caches\n\nWhat they are\n\nA cache holds copies of data that was used lately, & it answers faster than memory \
         does.\nIt is small.\n\nWhy?"
    );
}

#[test]
fn everything_that_can_be_seen() {
    let text = to_text(ARTICLE, true).unwrap().text;
    for part in [
        "Home\nAbout",
        "Products, prices",
        "L1: 48 KiB\nL2: 1 MiB",
        "  for i in 0..n {\n      a[i] += 1\n  }",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(text.contains("Level Latency\nL1 4 cycles") && text.contains("Copyright"), "{text}");
    for part in ["not this", "color", "You cannot", "Nor can"] {
        assert!(!text.contains(part), "{part} is in {text}");
    }
}

#[test]
fn chinese_counts_as_much() {
    let html = "<div><a href=a>首页</a> <a href=b>新闻</a></div><h1>缓存</h1>\
                <p>缓存保存最近使用过的数据的副本，它的速度比内存快得多。</p><p>容量很小。</p>\
                <div><a href=c>上一篇文章的标题</a></div><div>版权所有</div>";
    assert_eq!(
        to_text(html, false).unwrap().text,
        "缓存\n\n缓存保存最近使用过的数据的副本，它的速度比内存快得多。\n\n容量很小。"
    );
}

#[test]
fn the_main_part_is_enough() {
    let long = "A sentence that is long enough to count as content by itself, with many words.";
    let html = format!(
        "<p>{long} Outside.</p><main class=menu><p>{long} Inside.</p></main><article><p>{long}</p></article>"
    );
    assert_eq!(to_text(&html, false).unwrap().text, format!("{long} Inside."));
    let html = format!("<p>{long} Outside.</p><article><p>{long} Inside.</p></article>");
    assert_eq!(to_text(&html, false).unwrap().text, format!("{long} Inside."));
    let html = format!("<article><p>{long} One.</p></article><article><p>{long} Two.</p></article>");
    assert_eq!(to_text(&html, false).unwrap().text, format!("{long} One.\n\n{long} Two."));
}

#[test]
fn broken_markup_is_text_all_the_same() {
    let all = |html| to_text(html, true).unwrap().text;
    assert_eq!(all(""), "");
    assert_eq!(all("a < b & c"), "a < b & c");
    assert_eq!(all("<!doctype html><p>one<p>two</i><table>three<td>four"), "one\n\ntwo\n\nthree\n\nfour");
    assert_eq!(all("<b><p>bold</b> plain</p>"), "bold plain");
    assert_eq!(all("<a>x<a>y<template><p>z</template>"), "xy");
}

#[test]
fn pages_that_are_built_to_be_slow_are_refused() {
    assert_eq!(Tree::parse(&"<div>".repeat(1_000_000)).unwrap_err(), "nested too deep");
    let formatting: String = (0..100_000).map(|i| format!("<b a={i}>")).collect();
    assert!(Tree::parse(&(formatting + &"<p>".repeat(100_000))).is_err());
    assert!(Tree::parse(&"<p>x</p>".repeat(100_000)).is_ok());
}

#[test]
fn what_is_a_page() {
    for yes in [" <!DOCTYPE html><p>a</p>", "<div>x</div>", "<p>a<br/>b"] {
        assert!(looks_like_html(yes), "{yes}");
    }
    for no in ["a < b </", "<3 you </3", "<a", "", "text <p>x</p>"] {
        assert!(!looks_like_html(no), "{no}");
    }
}

//! Pages to text: a real parser, then blocks of text, then those that are content.
//!
//! What is never content goes by element and role (scripts, navigation, forms, what is hidden) and by telling class names;
//! of the blocks that are left, those that are mostly links go, and short ones that have no content beside them. The last
//! step follows Kohlschütter, Fankhauser and Nejdl, "Boilerplate Detection using Shallow Text Features" (WSDM 2010): link
//! density, length, and the blocks before and after. Lengths are in characters as [`super::text::weight`] counts them.

mod tree;

use super::text::weight;
use std::fmt::Write;
use tree::{Kind, NodeId, Tree, Visit};

/// Most of a block that may be links.
const LINK_DENSITY: f64 = 1.0 / 3.0;

/// Weight from which a block is content by itself: about ten words.
const LONG: usize = 50;

/// A page as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Blocks with a blank line between them; items of a list and rows of a table with a line break.
    pub text: String,
    /// The title, empty if there is none.
    pub title: String,
}

/// Whether a text is a page and not text that happens to have a `<` in it.
pub fn looks_like_html(text: &str) -> bool {
    let start = text.trim_start();
    let Some(tag) = start.strip_prefix('<') else { return false };
    tag.starts_with(|c: char| c.is_ascii_alphabetic() || c == '!')
        && (start.contains("</") || start.contains("/>"))
}

/// The text of a page. With `boilerplate` all blocks that a reader would see are kept.
///
/// # Errors
/// If the markup is nested beyond reason.
pub fn to_text(html: &str, boilerplate: bool) -> Result<Page, &'static str> {
    let tree = Tree::parse(html)?;
    let mut blocks = Blocks::default();
    blocks.collect(&tree, if boilerplate { tree.root() } else { main_part(&tree) }, boilerplate);
    let mut blocks = blocks.done;
    if !boilerplate {
        let keep = content(&blocks);
        let mut keep = keep.iter();
        blocks.retain(|_| keep.next() == Some(&true));
    }
    Ok(Page { text: join(&blocks), title: title(&tree) })
}

fn title(tree: &Tree) -> String {
    let Some(&node) = tree.elements("title").first() else { return String::new() };
    let mut title = String::new();
    for visit in tree.walk(node) {
        if let Visit::Enter(node) = visit
            && let Kind::Text(text) = tree.kind(node)
        {
            title.push_str(text);
        }
    }
    title.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The `<main>` of a page, or its only `<article>`, or all of it.
fn main_part(tree: &Tree) -> NodeId {
    let (mains, articles) = (tree.elements("main"), tree.elements("article"));
    match (mains.as_slice(), articles.as_slice()) {
        (&[main], _) => main,
        ([], &[article]) => article,
        _ => tree.root(),
    }
}

/// A block of text.
#[derive(Debug, Default)]
struct Block {
    text: String,
    /// Weight of the text, and of what of it is in links.
    weight: usize,
    linked: usize,
    heading: bool,
    /// An item or row: a line break joins it to one before it.
    item: bool,
    /// White space stands as it is.
    verbatim: bool,
}

/// Cuts a page into blocks.
#[derive(Default)]
struct Blocks {
    done: Vec<Block>,
    now: Block,
    links: usize,
    verbatim: usize,
    headings: usize,
    items: usize,
}

impl Blocks {
    fn collect(&mut self, tree: &Tree, from: NodeId, boilerplate: bool) {
        let mut walk = tree.walk(from);
        while let Some(visit) = walk.next() {
            match visit {
                Visit::Enter(node) => match tree.kind(node) {
                    Kind::Text(text) => self.text(text),
                    Kind::Other => {}
                    Kind::Element(..) => {
                        let unseen = never_seen(tree, node);
                        if unseen || !boilerplate && node != from && is_boilerplate(tree, node) {
                            self.end();
                            // Nothing below counts, and what follows `Leave` must not be undone for it.
                            walk.skip_below(node);
                            let _ = walk.next();
                        } else {
                            self.enter(tree.name(node));
                        }
                    }
                },
                Visit::Leave(node) => self.leave(tree.name(node)),
            }
        }
        self.end();
    }

    fn enter(&mut self, name: &str) {
        if is_block(name) {
            self.end();
        }
        match name {
            "a" => self.links += 1,
            "pre" | "textarea" => self.verbatim += 1,
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => self.headings += 1,
            "li" | "tr" | "dt" | "dd" => self.items += 1,
            "td" | "th" => self.now.text.push(' '),
            "br" => self.now.text.push('\n'),
            _ => {}
        }
    }

    fn leave(&mut self, name: &str) {
        if is_block(name) {
            self.end();
        }
        let depth = match name {
            "a" => &mut self.links,
            "pre" | "textarea" => &mut self.verbatim,
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => &mut self.headings,
            "li" | "tr" | "dt" | "dd" => &mut self.items,
            _ => return,
        };
        *depth = depth.saturating_sub(1);
    }

    fn text(&mut self, text: &str) {
        let weight = weight(text);
        self.now.weight += weight;
        if self.links > 0 {
            self.now.linked += weight;
        }
        self.now.heading |= self.headings > 0;
        self.now.item |= self.items > 0;
        if self.verbatim > 0 {
            self.now.verbatim = true;
            self.now.text.push_str(text);
            return;
        }
        // Any run of white space is a space, line breaks of the source included.
        for (index, word) in text.split(|c: char| c.is_ascii_whitespace()).enumerate() {
            if index > 0 && !self.now.text.ends_with([' ', '\n']) {
                self.now.text.push(' ');
            }
            self.now.text.push_str(word);
        }
    }

    fn end(&mut self) {
        let mut block = std::mem::take(&mut self.now);
        block.text = if block.verbatim {
            block.text.trim_matches('\n').trim_end().to_owned()
        } else {
            let lines: Vec<&str> =
                block.text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            lines.join("\n")
        };
        if !block.text.is_empty() {
            self.done.push(block);
        }
    }
}

/// Which blocks are content: long ones; short ones beside them; items of a list or table that has one or stands after one;
/// headings of any of these.
fn content(blocks: &[Block]) -> Vec<bool> {
    let linked = |b: &Block| b.linked as f64 > LINK_DENSITY * b.weight as f64;
    let long: Vec<bool> = blocks.iter().map(|b| b.weight >= LONG && !linked(b)).collect();
    let mut keep = long.clone();
    let mut start = 0;
    for list in blocks.chunk_by(|a, b| a.item == b.item) {
        let end = start + list.len();
        let led = start > 0 && long[start - 1] || long[start..end].contains(&true);
        for i in start..end {
            let beside = (i > 0 && long[i - 1]) || long.get(i + 1) == Some(&true);
            keep[i] |= !linked(&blocks[i]) && (beside || blocks[i].item && led);
        }
        start = end;
    }
    for i in (0..blocks.len().saturating_sub(1)).rev() {
        keep[i] |= blocks[i].heading && keep[i + 1];
    }
    keep
}

fn join(blocks: &[Block]) -> String {
    let mut text = String::new();
    for (index, block) in blocks.iter().enumerate() {
        let gap = match index {
            0 => "",
            _ if block.item && blocks[index - 1].item => "\n",
            _ => "\n\n",
        };
        // Writing to a string cannot fail.
        let _ = write!(text, "{gap}{}", block.text);
    }
    text
}

/// Elements whose content no reader sees as text.
fn never_seen(tree: &Tree, node: NodeId) -> bool {
    let hidden = || {
        tree.attribute(node, "hidden").is_some()
            || tree.attribute(node, "aria-hidden") == Some("true")
            || tree.attribute(node, "style").is_some_and(|style| {
                let style: String = style.chars().filter(|c| !c.is_whitespace()).collect();
                style.contains("display:none") || style.contains("visibility:hidden")
            })
    };
    matches!(
        tree.name(node),
        "script"
            | "style"
            | "template"
            | "head"
            | "iframe"
            | "svg"
            | "math"
            | "canvas"
            | "object"
            | "video"
            | "audio"
            | "datalist"
            | "noframes"
    ) || hidden()
}

/// Elements that are not part of what a page has to say.
fn is_boilerplate(tree: &Tree, node: NodeId) -> bool {
    let by_name = matches!(
        tree.name(node),
        "nav"
            | "footer"
            | "aside"
            | "form"
            | "button"
            | "select"
            | "textarea"
            | "input"
            | "dialog"
            | "menu"
            | "noscript"
    );
    let roles = ["navigation", "banner", "contentinfo", "complementary", "search", "dialog", "alert"];
    let by_role = || tree.attribute(node, "role").is_some_and(|role| roles.contains(&role));
    // A class of the whole page says nothing about the page.
    let by_class = || {
        !matches!(tree.name(node), "html" | "body" | "main" | "article")
            && ["class", "id"].iter().any(|key| tree.attribute(node, key).is_some_and(has_telling_word))
    };
    by_name || by_role() || by_class()
}

/// Words in class names that say what is not content. Whole words: `shared` is none of them.
const TELLING: [&str; 29] = [
    "nav",
    "navbar",
    "navigation",
    "menu",
    "sidebar",
    "footer",
    "breadcrumb",
    "breadcrumbs",
    "cookie",
    "cookies",
    "comments",
    "share",
    "sharing",
    "social",
    "advert",
    "advertisement",
    "ads",
    "promo",
    "related",
    "pagination",
    "pager",
    "toolbar",
    "popup",
    "modal",
    "subscribe",
    "newsletter",
    "copyright",
    "login",
    "banner",
];

fn has_telling_word(names: &str) -> bool {
    names
        .split(|c: char| !c.is_ascii_alphanumeric())
        .any(|word| TELLING.iter().any(|telling| word.eq_ignore_ascii_case(telling)))
}

fn is_block(name: &str) -> bool {
    matches!(
        name,
        "address"
            | "article"
            | "aside"
            | "blockquote"
            | "body"
            | "caption"
            | "center"
            | "dd"
            | "details"
            | "dialog"
            | "div"
            | "dl"
            | "dt"
            | "fieldset"
            | "figcaption"
            | "figure"
            | "footer"
            | "form"
            | "h1"
            | "h2"
            | "h3"
            | "h4"
            | "h5"
            | "h6"
            | "header"
            | "hgroup"
            | "hr"
            | "html"
            | "li"
            | "main"
            | "menu"
            | "nav"
            | "ol"
            | "p"
            | "pre"
            | "search"
            | "section"
            | "summary"
            | "table"
            | "tbody"
            | "tfoot"
            | "thead"
            | "tr"
            | "ul"
    )
}

#[cfg(test)]
mod tests;

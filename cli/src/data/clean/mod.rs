//! What `kfc data clean` does with rows, in this order: pages to text, Unicode, symbols, white space, personal data, then
//! the filters: symbols, length, language, copies.
//!
//! All but the last is a function of the row alone and runs on all threads; copies are looked for in order.

pub mod dedup;
pub mod html;
pub mod language;
pub mod pii;
pub mod text;

use super::input::{Format, Item};
use super::job::{Sink, Work};
use super::row::{self, Fields, Rejected, Row};
use dedup::{Bands, CopyOf, Kept, Print};
use pii::Pii;
use rayon::prelude::*;
use serde_json::{Value, json};
use text::Form;

/// Which rows are read as pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Markup {
    /// HTML files, and rows that begin with a tag.
    Auto,
    /// Every row.
    Always,
    /// None.
    Never,
}

impl Markup {
    /// Every way.
    pub const ALL: [Markup; 3] = [Markup::Auto, Markup::Always, Markup::Never];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Markup::Auto => "auto",
            Markup::Always => "always",
            Markup::Never => "never",
        }
    }
}

/// Which copies are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// The same text, or nearly.
    Near,
    /// The same text.
    Exact,
    /// None.
    Keep,
}

impl Copies {
    /// Every way.
    pub const ALL: [Copies; 3] = [Copies::Near, Copies::Exact, Copies::Keep];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Copies::Near => "near",
            Copies::Exact => "exact",
            Copies::Keep => "keep",
        }
    }
}

/// What is done and what is left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Which rows are pages.
    pub markup: Markup,
    /// Keep navigation and the like of pages.
    pub keep_boilerplate: bool,
    /// Normal form of characters.
    pub form: Form,
    /// Keep invisible characters, decoration and white space as they are.
    pub keep_symbols: bool,
    /// Languages that are kept; empty for all.
    pub languages: Vec<&'static str>,
    /// Shortest row, in characters as [`text::weight`] counts them.
    pub min_chars: usize,
    /// Longest row.
    pub max_chars: Option<usize>,
    /// Largest share of a row that is neither letters nor digits.
    pub max_symbols: f64,
    /// Which copies are left out.
    pub copies: Copies,
    /// Similarity from which a row is nearly a copy.
    pub similarity: f64,
    /// Personal data to mask.
    pub pii: Vec<Pii>,
}

impl Settings {
    /// The settings as a report has them, with what follows of them for finding near copies.
    pub fn to_json(&self) -> Value {
        let mut all = json!({
            "html": self.markup.name(),
            "keep_boilerplate": self.keep_boilerplate,
            "unicode": self.form.name(),
            "keep_symbols": self.keep_symbols,
            "lang": self.languages,
            "min_chars": self.min_chars,
            "max_chars": self.max_chars,
            "max_symbols": self.max_symbols,
            "duplicates": self.copies.name(),
            "mask_pii": self.pii.iter().map(|kind| kind.name()).collect::<Vec<_>>(),
        });
        if self.copies == Copies::Near {
            let bands = Bands::at(self.similarity);
            let error = (self.similarity * (1.0 - self.similarity) / dedup::HASHES as f64).sqrt();
            all["near_duplicates"] = json!({
                "similarity": self.similarity,
                "shingle_chars": dedup::SHINGLE,
                "hashes": dedup::HASHES,
                "bands": bands.bands,
                "band_rows": bands.rows,
                "recall_at_similarity": bands.recall(self.similarity),
                "standard_error": error,
            });
        }
        all
    }
}

/// The work of `kfc data clean`.
pub struct Clean {
    settings: Settings,
    fields: Fields,
    kept: Kept,
}

/// A row that only its copies can still keep out.
struct Cleaned {
    row: Row,
    print: Option<Print>,
    masked: [u64; 5],
}

/// A row that is left out, with what there was of its text.
struct Refused {
    rejected: Rejected,
    text: Option<String>,
}

impl From<Rejected> for Refused {
    fn from(rejected: Rejected) -> Refused {
        Refused { rejected, text: None }
    }
}

impl Clean {
    /// With these settings, for rows of these fields.
    pub fn new(settings: Settings, fields: Fields) -> Clean {
        let threshold = (settings.copies == Copies::Near).then_some(settings.similarity);
        Clean { settings, fields, kept: Kept::new(threshold) }
    }

    fn clean(&self, item: &Item) -> Result<Cleaned, Refused> {
        let mut row = row::parse(item, &self.fields)?;
        self.strip_markup(item.format, &mut row)?;
        let mut text = self.settings.form.apply(std::mem::take(&mut row.text));
        if !self.settings.keep_symbols {
            text = text::tidy_space(&text::strip_symbols(&text));
        }
        let (text, masked) =
            if self.settings.pii.is_empty() { (text, [0; 5]) } else { pii::mask(&text, &self.settings.pii) };
        if let Err(rejected) = self.filter(&text, &mut row) {
            return Err(Refused { rejected, text: Some(text) });
        }
        row.text = text;
        let print = (self.settings.copies != Copies::Keep).then(|| self.kept.print(&row.text));
        Ok(Cleaned { row, print, masked })
    }

    /// A page becomes its text; its title goes to the metadata.
    fn strip_markup(&self, format: Format, row: &mut Row) -> Result<(), Rejected> {
        let is_page = match self.settings.markup {
            Markup::Auto => format == Format::Html || html::looks_like_html(&row.text),
            Markup::Always => true,
            Markup::Never => false,
        };
        if !is_page {
            return Ok(());
        }
        let page = html::to_text(&row.text, self.settings.keep_boilerplate)
            .map_err(|why| Rejected::new("bad_html", why))?;
        row.text = page.text;
        if !page.title.is_empty() {
            row.metadata.entry("title").or_insert(page.title.into());
        }
        Ok(())
    }

    /// The filters that look at one text; a language that was asked for goes to the metadata.
    fn filter(&self, text: &str, row: &mut Row) -> Result<(), Rejected> {
        let settings = &self.settings;
        if text.trim().is_empty() {
            return Err(Rejected::new("no_content", "nothing is left of it"));
        }
        let length = text::weight(text);
        if length < settings.min_chars {
            return Err(Rejected::new(
                "too_short",
                format!("{length} characters of at least {}", settings.min_chars),
            ));
        }
        if let Some(most) = settings.max_chars.filter(|most| length > *most) {
            return Err(Rejected::new("too_long", format!("{length} characters of at most {most}")));
        }
        let symbols = text::symbol_share(text);
        if symbols > settings.max_symbols {
            let detail =
                format!("{symbols:.2} of it are no letters or digits, {} at most", settings.max_symbols);
            return Err(Rejected::new("too_many_symbols", detail));
        }
        if !settings.languages.is_empty() {
            let language = language::detect(text).unwrap_or("unknown");
            if !settings.languages.contains(&language) {
                return Err(Rejected::new("other_language", language));
            }
            row.metadata.entry("language").or_insert(language.into());
        }
        Ok(())
    }
}

impl Work for Clean {
    fn replay(&mut self, rows: Vec<Row>) -> anyhow::Result<()> {
        let prints: Vec<Print> = rows.par_iter().map(|row| self.kept.print(&row.text)).collect();
        prints.iter().for_each(|print| self.kept.insert(print));
        Ok(())
    }

    fn block(&mut self, items: Vec<Item>, sink: &mut Sink) -> anyhow::Result<()> {
        let cleaned: Vec<Result<Cleaned, Refused>> = items.par_iter().map(|item| self.clean(item)).collect();
        for (item, cleaned) in items.iter().zip(cleaned) {
            let cleaned = match cleaned {
                Ok(cleaned) => cleaned,
                Err(Refused { rejected, text: Some(text) }) => {
                    sink.drop(&item.place(), &rejected, &text);
                    continue;
                }
                Err(Refused { rejected, text: None }) => {
                    sink.drop_item(item, &rejected);
                    continue;
                }
            };
            if let Some(copy) = cleaned.print.as_ref().and_then(|print| self.kept.add(print)) {
                sink.drop(&item.place(), &rejected_copy(copy), &cleaned.row.text);
                continue;
            }
            for (kind, count) in Pii::ALL.iter().zip(cleaned.masked) {
                sink.count(&format!("masked_{}", kind.name()), count);
            }
            sink.keep(cleaned.row);
        }
        Ok(())
    }
}

fn rejected_copy(copy: CopyOf) -> Rejected {
    match copy {
        CopyOf::Exact(row) => {
            Rejected::new("duplicate", format!("the same as row {} of the output", row + 1))
        }
        CopyOf::Near(row, similar) => {
            Rejected::new("near_duplicate", format!("{similar:.2} like row {} of the output", row + 1))
        }
    }
}

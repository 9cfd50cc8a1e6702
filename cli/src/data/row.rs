//! Knowledge rows: made of what files hold, and written as lines of JSON.

use super::input::{Content, Format, Item};
use kfc_runtime::files::{Xxh64, xxh64};
use serde_json::{Map, Value};

/// Why a row was left out. The reason is a name that reports count by, the detail a sentence about this row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// A name such as `too_short`.
    pub reason: &'static str,
    /// What was found, for people; may be empty.
    pub detail: String,
}

impl Rejected {
    /// A rejection.
    pub fn new(reason: &'static str, detail: impl Into<String>) -> Rejected {
        Rejected { reason, detail: detail.into() }
    }
}

/// A knowledge row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Its name; empty until [`Row::identify`] if the input gave none.
    pub id: String,
    /// The text.
    pub text: String,
    /// What else is known of it: `source`, `domain`, fields of the input that have no other place.
    pub metadata: Map<String, Value>,
}

impl Row {
    /// Gives a row without a name the one of its text.
    pub fn identify(&mut self) {
        if self.id.is_empty() {
            self.id = content_id(&self.text);
        }
    }

    /// The row as a line of JSON with its line break.
    pub fn to_line(&self) -> String {
        // Serialising strings and maps of strings cannot fail.
        let json = |text: &str| Value::from(text).to_string();
        let metadata = serde_json::to_string(&self.metadata).unwrap_or_else(|_| "{}".into());
        format!(
            "{{\"knowledge_id\":{},\"text\":{},\"metadata\":{metadata}}}\n",
            json(&self.id),
            json(&self.text)
        )
    }

    /// Reads a line that [`Row::to_line`] wrote.
    ///
    /// # Errors
    /// If it is no such line.
    pub fn from_line(line: &[u8]) -> Result<Row, Rejected> {
        from_json(line, &Fields::default())
    }
}

/// The name of a row with this text: 128 bits of two XXH64, so that equal texts have equal names everywhere.
pub fn content_id(text: &str) -> String {
    let mut second = Xxh64::new();
    second.update(b"knowledge\0");
    second.update(text.as_bytes());
    format!("{:016x}{:016x}", xxh64(text.as_bytes()), second.finish())
}

/// Which fields of a JSON row are what, and what rows get that lack them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    /// Fields that make the text, joined by a line break.
    pub text: Vec<String>,
    /// The field of the name.
    pub id: String,
    /// `metadata.source` of rows without one; `None` is the name of the file.
    pub source: Option<String>,
    /// `metadata.domain` of rows without one.
    pub domain: Option<String>,
}

impl Default for Fields {
    fn default() -> Fields {
        Fields { text: vec!["text".into()], id: "knowledge_id".into(), source: None, domain: None }
    }
}

impl Fields {
    /// The settings as a report has them.
    pub fn to_json(&self) -> Value {
        serde_json::json!({"text": self.text, "id": self.id, "source": self.source, "domain": self.domain})
    }
}

/// Makes a row of an item. Fields of a JSON row that are neither text, name nor `metadata` are kept in the metadata.
///
/// # Errors
/// `too_large`, `not_utf8`, `bad_json`, `no_text` or `empty`.
pub fn parse(item: &Item, fields: &Fields) -> Result<Row, Rejected> {
    let bytes = match &item.content {
        Content::Bytes(bytes) => bytes,
        Content::TooLarge { limit } => {
            return Err(Rejected::new("too_large", format!("longer than {limit} bytes")));
        }
    };
    let mut row = match item.format {
        Format::Jsonl => from_json(bytes, fields)?,
        Format::Text | Format::Html => {
            let text = std::str::from_utf8(bytes)
                .map_err(|e| Rejected::new("not_utf8", format!("byte {} is not UTF-8", e.valid_up_to())))?;
            Row { text: text.to_owned(), ..Row::default() }
        }
    };
    if row.text.trim().is_empty() {
        return Err(Rejected::new("empty", ""));
    }
    let missing = |row: &Row, key: &str| row.metadata.get(key).is_none_or(Value::is_null);
    if missing(&row, "source") {
        let source = fields.source.clone().unwrap_or_else(|| item.name.to_string());
        row.metadata.insert("source".into(), source.into());
    }
    if let (true, Some(domain)) = (missing(&row, "domain"), &fields.domain) {
        row.metadata.insert("domain".into(), domain.clone().into());
    }
    Ok(row)
}

fn from_json(bytes: &[u8], fields: &Fields) -> Result<Row, Rejected> {
    let mut object: Map<String, Value> = serde_json::from_slice(bytes).map_err(|e| {
        let reason = if std::str::from_utf8(bytes).is_err() { "not_utf8" } else { "bad_json" };
        Rejected::new(reason, format!("no JSON object: {e}"))
    })?;
    let mut parts = Vec::with_capacity(fields.text.len());
    for name in &fields.text {
        match object.remove(name) {
            Some(Value::String(text)) => parts.push(text),
            Some(Value::Null) | None => {
                return Err(Rejected::new("no_text", format!("there is no field \"{name}\"")));
            }
            Some(_) => return Err(Rejected::new("no_text", format!("the field \"{name}\" is no string"))),
        }
    }
    let text = if parts.len() == 1 { parts.swap_remove(0) } else { parts.join("\n") };
    let id = match object.remove(&fields.id) {
        Some(Value::String(id)) => id,
        Some(Value::Number(id)) => id.to_string(),
        _ => String::new(),
    };
    let mut metadata = match object.remove("metadata") {
        Some(Value::Object(metadata)) => metadata,
        Some(Value::Null) | None => Map::new(),
        Some(other) => Map::from_iter([("metadata".to_owned(), other)]),
    };
    for (key, value) in object {
        metadata.entry(key).or_insert(value);
    }
    Ok(Row { id, text, metadata })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn item(format: Format, bytes: &[u8]) -> Item {
        Item { name: "a.jsonl".into(), line: 3, format, content: Content::Bytes(bytes.to_vec()) }
    }

    #[test]
    fn a_line_is_read_back() {
        let mut row = Row {
            id: String::new(),
            text: "缓存 \"cache\"\n\u{1}".into(),
            metadata: json!({"source": "s", "n": 1}).as_object().unwrap().clone(),
        };
        row.identify();
        let line = row.to_line();
        assert!(line.starts_with("{\"knowledge_id\":\"") && line.ends_with("}\n"), "{line}");
        assert_eq!(Row::from_line(line.trim_end().as_bytes()).unwrap(), row);
    }

    #[test]
    fn names_follow_the_text() {
        assert_eq!(content_id("a").len(), 32);
        assert_eq!(content_id("中文"), content_id("中文"));
        assert_ne!(content_id("a")[..16], content_id("a")[16..]);
        assert_ne!(content_id("a"), content_id("b"));
    }

    #[test]
    fn other_field_names_and_the_rest_of_a_row() {
        let fields = Fields {
            text: vec!["question".into(), "answer".into()],
            id: "nr".into(),
            source: Some("exam".into()),
            domain: Some("medicine".into()),
        };
        let line = br#"{"question":"q","answer":"a","nr":7,"level":2,"metadata":{"domain":"law"}}"#;
        let row = parse(&item(Format::Jsonl, line), &fields).unwrap();
        assert_eq!((row.id.as_str(), row.text.as_str()), ("7", "q\na"));
        assert_eq!(Value::from(row.metadata), json!({"domain": "law", "level": 2, "source": "exam"}));
    }

    #[test]
    fn a_text_file_names_its_source() {
        let row = parse(&item(Format::Text, "字".as_bytes()), &Fields::default()).unwrap();
        assert_eq!(Value::from(row.metadata), json!({"source": "a.jsonl"}));
    }

    #[test]
    fn what_is_no_row_has_a_reason() {
        let reason =
            |bytes: &[u8]| parse(&item(Format::Jsonl, bytes), &Fields::default()).unwrap_err().reason;
        assert_eq!(reason(b"{\"text\": \"\xff\"}"), "not_utf8");
        assert_eq!(reason(b"{\"text\": "), "bad_json");
        assert_eq!(reason(b"[1]"), "bad_json");
        assert_eq!(reason(b"{\"title\": \"t\"}"), "no_text");
        assert_eq!(reason(b"{\"text\": 3}"), "no_text");
        assert_eq!(reason(b"{\"text\": \" \\n\"}"), "empty");
        let text = parse(&item(Format::Text, b"ab\xff"), &Fields::default()).unwrap_err();
        assert_eq!((text.reason, text.detail.as_str()), ("not_utf8", "byte 2 is not UTF-8"));
        let large = Item { content: Content::TooLarge { limit: 9 }, ..item(Format::Text, b"") };
        assert_eq!(parse(&large, &Fields::default()).unwrap_err().reason, "too_large");
    }
}

//! Evaluation sets as typed items: multiple choice, questions with answers, and entities to recall.
//!
//! Prompts follow lm-evaluation-harness: they end without a blank, and an answer is scored as a blank and its text.
//! Every error names the file and the line. Each reader has a `…_of` twin that reads bytes.

use std::fs;
use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Value};

use super::error::{DataError, Result};
use super::rows::{kind, question_prompt, string};
use super::source::JsonRows;

/// A question with choices, of which one is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChoiceItem {
    /// What stands before the choice, without a blank at its end.
    pub context: String,
    /// Where the question itself stands in it.
    pub question: Range<usize>,
    /// What is scored after the context and a blank: letters where the context lists the options, else their texts.
    pub choices: Vec<String>,
    /// The index of the right one.
    pub gold: usize,
}

/// A question with its right answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QaItem {
    /// What the model continues, without a blank at its end.
    pub prompt: String,
    /// Where the question itself stands in it.
    pub question: Range<usize>,
    /// Any of these is right.
    pub answers: Vec<String>,
    /// The answer as the row has it, working included.
    pub full: String,
    /// The row has the working with the answer behind `####` (GSM8K), so that the model is to show its own.
    pub worked: bool,
}

/// A text and the entities that belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntityItem {
    /// What the model continues or, of annotated text, the text itself.
    pub prompt: String,
    /// The entities, each once, in the order of the file.
    pub entities: Vec<String>,
}

/// Reads multiple-choice rows (JSON lines or an array). Forms, by keys:
///
/// - `question`, `options` (texts by letter, or a list), `answer_idx` or `answer` (MedQA): the options are listed, letters are scored.
/// - `question`, `choices` (a list, or lists `text` and `label` as in ARC), `answer` or `answerKey`, `label`, `gold`: texts are scored.
/// - `ctx`, `context` or `query`, with `endings` or `choices`, and `label`, `gold` or `answer` (HellaSwag): texts.
///
/// The right choice is given as an index from 0, a letter (or a label of the row), or its text.
pub fn read_choice(path: &Path) -> Result<Vec<ChoiceItem>> {
    choice_of(&read(path)?, &path.display().to_string())
}

/// [`read_choice`] for the content of a file; `name` is what errors name.
pub fn choice_of(bytes: &[u8], name: &str) -> Result<Vec<ChoiceItem>> {
    items(bytes, name, choice_item)
}

/// Reads question rows (JSON lines or an array): `question` or `prompt`, with `answer` (a string, number or list),
/// `answers` (a list) or `completion`. Of a text with `####` the answer is what follows it (GSM8K), without the commas in
/// a number.
pub fn read_qa(path: &Path) -> Result<Vec<QaItem>> {
    qa_of(&read(path)?, &path.display().to_string())
}

/// [`read_qa`] for the content of a file; `name` is what errors name.
pub fn qa_of(bytes: &[u8], name: &str) -> Result<Vec<QaItem>> {
    items(bytes, name, qa_item)
}

/// Reads entity rows: JSON rows of `prompt` or `text` with `entities` (strings, or objects with `text` or `name`); a
/// `.tsv` file is read as token and IOB tag a line with a blank line after each sentence (ncbi-disease), where an item is
/// a sentence with a mention.
pub fn read_entities(path: &Path) -> Result<Vec<EntityItem>> {
    let (bytes, name) = (read(path)?, path.display().to_string());
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv")) {
        return iob_of(&bytes, &name);
    }
    entities_of(&bytes, &name)
}

/// [`read_entities`] for JSON rows; `name` is what errors name.
pub fn entities_of(bytes: &[u8], name: &str) -> Result<Vec<EntityItem>> {
    items(bytes, name, entity_item)
}

/// [`read_entities`] for IOB lines; `name` is what errors name.
pub fn iob_of(bytes: &[u8], name: &str) -> Result<Vec<EntityItem>> {
    let mut out = sentences_of(bytes, name)?;
    out.retain(|item| !item.entities.is_empty());
    if out.is_empty() {
        return Err(DataError::Empty { sources: name.into(), reason: "no sentence has a mention".into() });
    }
    Ok(out)
}

/// All sentences of a file of IOB lines, also those without a mention.
pub fn read_sentences(path: &Path) -> Result<Vec<EntityItem>> {
    let name = path.display().to_string();
    let out = sentences_of(&read(path)?, &name)?;
    if out.is_empty() {
        return Err(DataError::Empty {
            sources: name,
            reason: "the file has no sentences; check the path".into(),
        });
    }
    Ok(out)
}

fn sentences_of(bytes: &[u8], name: &str) -> Result<Vec<EntityItem>> {
    let mut out = Vec::new();
    let mut sentence = Sentence::default();
    for (i, line) in bytes.split(|&b| b == b'\n').enumerate() {
        let wrong =
            |reason: &str| DataError::BadRow { place: format!("{name}:{}", i + 1), reason: reason.into() };
        let line = std::str::from_utf8(line).map_err(|_| wrong("not UTF-8; save the file as UTF-8"))?;
        let line = line.trim_end();
        if line.is_empty() {
            out.extend(std::mem::take(&mut sentence).item());
            continue;
        }
        let (token, tag) =
            line.split_once('\t').ok_or_else(|| wrong("a line must be a token, a tab and its IOB tag"))?;
        if token.is_empty()
            || !(tag == "O" || tag.starts_with("B-") || tag.starts_with("I-") || tag == "B" || tag == "I")
        {
            return Err(wrong(&format!("{tag:?} is not an IOB tag (O, B-… or I-…) of a token")));
        }
        sentence.push(token, tag);
    }
    out.extend(sentence.item());
    Ok(out)
}

#[derive(Default)]
struct Sentence {
    tokens: Vec<String>,
    mentions: Vec<String>,
    inside: bool,
}

impl Sentence {
    fn push(&mut self, token: &str, tag: &str) {
        let starts = tag.starts_with('B') || (tag.starts_with('I') && !self.inside);
        self.inside = tag != "O";
        if starts {
            self.mentions.push(token.to_owned());
        } else if let (true, Some(mention)) = (self.inside, self.mentions.last_mut()) {
            mention.push(' ');
            mention.push_str(token);
        }
        self.tokens.push(token.to_owned());
    }

    fn item(self) -> Option<EntityItem> {
        let item = EntityItem { prompt: self.tokens.join(" "), entities: distinct(self.mentions) };
        (!self.tokens.is_empty()).then_some(item)
    }
}

fn distinct(list: Vec<String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for entry in list {
        if !out.contains(&entry) {
            out.push(entry);
        }
    }
    out
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(DataError::io(path))
}

type ItemResult<T> = std::result::Result<T, String>;

fn items<T>(bytes: &[u8], name: &str, item: fn(&Map<String, Value>) -> ItemResult<T>) -> Result<Vec<T>> {
    let mut out = Vec::new();
    let rows = JsonRows::new(bytes, name);
    for (place, row) in (0..rows.len()).map(|i| rows.row(i)) {
        let one = row.and_then(|value| match &value {
            Value::Object(row) => item(row),
            other => Err(format!("a row must be a JSON object, this is {}", kind(other))),
        });
        out.push(one.map_err(|reason| DataError::BadRow { place, reason })?);
    }
    if out.is_empty() {
        return Err(DataError::Empty {
            sources: name.into(),
            reason: "the file has no rows; check the path".into(),
        });
    }
    Ok(out)
}

fn choice_item(row: &Map<String, Value>) -> ItemResult<ChoiceItem> {
    let (names, texts) = options(row)?;
    if texts.len() < 2 {
        return Err("there must be two choices or more".into());
    }
    let gold_key = first_key(row, &["answer_idx", "gold", "label", "answerKey", "answer"]);
    let gold_key = gold_key
        .ok_or("no right choice: set \"answer_idx\", \"answer\", \"answerKey\", \"label\" or \"gold\"")?;
    let gold = gold(&row[gold_key], &names, &texts).map_err(|e| format!("\"{gold_key}\" {e}"))?;
    let lettered = row.contains_key("options");
    let context = match first_key(row, &["question", "ctx", "context", "query"]) {
        Some("question") if lettered => {
            let listed: Vec<String> = names.iter().zip(&texts).map(|(n, t)| format!("{n}. {t}\n")).collect();
            format!("Question: {}\n{}Answer:", string(row, "question")?.trim(), listed.concat())
        }
        Some("question") => question_prompt(string(row, "question")?),
        Some(key) => string(row, key)?.trim_end().to_owned(),
        None => return Err("no question: set \"question\", \"ctx\", \"context\" or \"query\"".into()),
    };
    let question = match first_key(row, &["question"]) {
        Some(key) => span(&context, string(row, key)?.trim()),
        None => 0..context.len(),
    };
    Ok(ChoiceItem { context, question, choices: if lettered { names } else { texts }, gold })
}

/// Names (letters) and texts of the choices.
fn options(row: &Map<String, Value>) -> ItemResult<(Vec<String>, Vec<String>)> {
    let letters = |n: usize| (0..n).map(letter).collect::<Vec<_>>();
    let key = first_key(row, &["options", "choices", "endings"]);
    let key = key.ok_or("no choices: set \"options\", \"choices\" or \"endings\"")?;
    let not_text = || format!("\"{key}\" must hold strings");
    match &row[key] {
        Value::Array(list) => {
            let texts = strings(list).ok_or_else(not_text)?;
            Ok((letters(texts.len()), texts))
        }
        Value::Object(map) if map.get("text").is_some_and(Value::is_array) => {
            let texts = map["text"].as_array().and_then(|l| strings(l)).ok_or_else(not_text)?;
            let labels = map.get("label").and_then(Value::as_array).and_then(|l| strings(l));
            Ok((labels.filter(|l| l.len() == texts.len()).unwrap_or_else(|| letters(texts.len())), texts))
        }
        Value::Object(map) => {
            let mut pairs: Vec<(&String, &Value)> = map.iter().collect();
            pairs.sort_by_key(|(name, _)| *name);
            let texts = pairs.iter().map(|(_, v)| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
            Ok((pairs.iter().map(|(name, _)| (*name).clone()).collect(), texts.ok_or_else(not_text)?))
        }
        other => Err(format!("\"{key}\" must be a list or an object of strings, it is {}", kind(other))),
    }
}

fn gold(value: &Value, names: &[String], texts: &[String]) -> ItemResult<usize> {
    let number = |n: usize| {
        if n < texts.len() {
            Ok(n)
        } else {
            Err(format!("is {n}, but the {} choices count from 0", texts.len()))
        }
    };
    match value {
        Value::Number(n) => match n.as_u64() {
            Some(n) => number(n as usize),
            None => Err(format!("is {n}, no index of a choice")),
        },
        Value::String(text) => {
            let name = names.iter().position(|n| n == text.trim());
            let found = name.or_else(|| texts.iter().position(|t| t.trim() == text.trim()));
            match (found, text.trim().parse::<usize>()) {
                (Some(index), _) => Ok(index),
                (None, Ok(n)) => number(n),
                (None, Err(_)) => {
                    Err(format!("is {text:?}, which is neither a letter, an index nor a text of the choices"))
                }
            }
        }
        other => Err(format!("must be an index, a letter or a text, it is {}", kind(other))),
    }
}

fn qa_item(row: &Map<String, Value>) -> ItemResult<QaItem> {
    let prompt = match first_key(row, &["question", "prompt"]) {
        Some("question") => question_prompt(string(row, "question")?),
        Some(key) => string(row, key)?.trim_end().to_owned(),
        None => return Err("no question: set \"question\" or \"prompt\"".into()),
    };
    let key = first_key(row, &["answers", "answer", "completion"]);
    let key = key.ok_or("no answer: set \"answer\", \"answers\" or \"completion\"")?;
    let answers = match &row[key] {
        Value::String(text) => vec![final_answer(text)],
        Value::Number(n) => vec![n.to_string()],
        Value::Array(list) => strings(list).ok_or_else(|| format!("\"{key}\" must hold strings"))?,
        other => {
            return Err(format!("\"{key}\" must be a string, a number or a list, it is {}", kind(other)));
        }
    };
    if answers.is_empty() || answers.iter().any(String::is_empty) {
        return Err(format!("\"{key}\" is empty; remove the row"));
    }
    let worked = row[key].as_str().is_some_and(|text| text.contains("####"));
    let full = row[key].as_str().map_or_else(|| answers[0].clone(), |text| text.trim().to_owned());
    let question = match first_key(row, &["question"]) {
        Some(key) => span(&prompt, string(row, key)?.trim()),
        None => 0..prompt.len(),
    };
    Ok(QaItem { prompt, question, answers, full, worked })
}

/// Where `question` first stands in `prompt`; all of it where it does not.
fn span(prompt: &str, question: &str) -> Range<usize> {
    prompt.find(question).map_or(0..prompt.len(), |at| at..at + question.len())
}

/// What follows the last `####`, with the commas of a number removed; without `####` the text.
pub fn final_answer(text: &str) -> String {
    match text.rsplit_once("####") {
        Some((_, answer)) => {
            let bare = answer.trim().replace(',', "");
            if bare.parse::<f64>().is_ok() { bare } else { answer.trim().to_owned() }
        }
        None => text.trim().to_owned(),
    }
}

fn entity_item(row: &Map<String, Value>) -> ItemResult<EntityItem> {
    let key = first_key(row, &["prompt", "text"]).ok_or("no text: set \"prompt\" or \"text\"")?;
    let list = match row.get("entities") {
        Some(Value::Array(list)) => list,
        Some(other) => return Err(format!("\"entities\" must be a list, it is {}", kind(other))),
        None => return Err("no \"entities\": set the list of what should be recalled".into()),
    };
    let name = |e: &Value| {
        e.as_str().or_else(|| e["text"].as_str()).or_else(|| e["name"].as_str()).map(str::to_owned)
    };
    let entities: Option<Vec<String>> = list.iter().map(name).collect();
    let entities = entities.ok_or("\"entities\" must hold strings, or objects with \"text\" or \"name\"")?;
    if entities.is_empty() || entities.iter().any(|e| e.trim().is_empty()) {
        return Err("\"entities\" is empty or has an empty entry; remove it".into());
    }
    Ok(EntityItem { prompt: string(row, key)?.trim_end().to_owned(), entities: distinct(entities) })
}

fn first_key<'k>(row: &Map<String, Value>, keys: &[&'k str]) -> Option<&'k str> {
    keys.iter().copied().find(|&key| row.get(key).is_some_and(|v| !v.is_null()))
}

/// The strings (or numbers, as text) of a list.
fn strings(list: &[Value]) -> Option<Vec<String>> {
    let text = |v: &Value| match v {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        _ => None,
    };
    list.iter().map(text).collect()
}

/// A, B, … Z, then 26, 27, ….
fn letter(index: usize) -> String {
    match u8::try_from(index) {
        Ok(i) if i < 26 => char::from(b'A' + i).to_string(),
        _ => index.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::real_data;
    use super::*;

    fn check_choice(row: &str, context: &str, choices: &[&str], gold: usize) {
        let item = &choice_of(row.as_bytes(), "f").unwrap()[0];
        assert_eq!((item.context.as_str(), item.gold), (context, gold));
        assert_eq!(item.choices, choices);
    }

    #[test]
    fn choices() {
        let listed = "Question: Q?\nA. x\nB. y\nAnswer:";
        check_choice(
            r#"{"question": "Q?", "options": {"B": "y", "A": "x"}, "answer": "y", "answer_idx": "B"}"#,
            listed,
            &["A", "B"],
            1,
        );
        check_choice(
            r#"{"question": "Q?", "options": {"A": "x", "B": "y"}, "answer": "x"}"#,
            listed,
            &["A", "B"],
            0,
        );
        let bare = "Question: Q?\nAnswer:";
        for answer in ["1", "\"B\"", "\"y\"", "\"1\""] {
            check_choice(
                &format!(r#"{{"question": " Q?", "choices": ["x", "y"], "answer": {answer}}}"#),
                bare,
                &["x", "y"],
                1,
            );
        }
        check_choice(
            r#"{"question": "Q?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}"#,
            bare,
            &["x", "y"],
            1,
        );
        check_choice(
            r#"{"ctx": "A man ", "endings": ["sits", "runs"], "label": "1"}"#,
            "A man",
            &["sits", "runs"],
            1,
        );
        check_choice(
            r#"{"query": "A man", "choices": ["sits", "runs"], "gold": 0}"#,
            "A man",
            &["sits", "runs"],
            0,
        );
    }

    #[test]
    fn answers() {
        let check = |row: &str, prompt: &str, answers: &[&str]| {
            let item = &qa_of(row.as_bytes(), "f").unwrap()[0];
            assert_eq!(item.prompt, prompt);
            assert_eq!(item.answers, answers);
        };
        check(r#"{"question": "Q", "answer": "so\n#### 1,234"}"#, "Question: Q\nAnswer:", &["1234"]);
        check(r#"{"prompt": "P ", "answers": ["a", "b"]}"#, "P", &["a", "b"]);
        check(r#"{"prompt": "P", "completion": " c"}"#, "P", &["c"]);
        check(r#"{"prompt": "P", "answer": 7}"#, "P", &["7"]);
        assert_eq!(final_answer("#### a, b"), "a, b");
    }

    #[test]
    fn entities() {
        let rows =
            br#"[{"prompt": "P", "entities": ["a", "b", "a"]}, {"text": "T", "entities": [{"text": "c"}]}]"#;
        let items = entities_of(rows, "f").unwrap();
        assert_eq!(
            (items[0].entities.clone(), items[1].entities.clone()),
            (vec!["a".into(), "b".into()], vec!["c".into()])
        );
        let iob = "a\tO\nbig\tB-Disease\nflu\tI-Disease\nflu\tB-Disease\n\nno\tO\n\ncold\tI-Disease\n";
        let items = iob_of(iob.as_bytes(), "f").unwrap();
        assert_eq!(items.len(), 2);
        assert_eq!(
            (items[0].prompt.as_str(), items[0].entities.join("|").as_str()),
            ("a big flu flu", "big flu|flu")
        );
        assert_eq!(items[1].entities, ["cold"]);
    }

    #[test]
    fn errors_name_file_and_line() {
        fn check<T: std::fmt::Debug>(result: Result<T>, part: &str) {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        check(choice_of(b"\n{\"question\": \"Q\"}", "f"), "f:2: no choices");
        check(
            choice_of(br#"{"question": "Q", "choices": ["a", "b"], "answer": 2}"#, "f"),
            "f:1: \"answer\" is 2, but the 2 choices",
        );
        check(
            choice_of(br#"{"question": "Q", "choices": ["a", "b"], "answer": "z"}"#, "f"),
            "neither a letter",
        );
        check(choice_of(br#"{"question": "Q", "choices": ["a", "b"]}"#, "f"), "no right choice");
        check(choice_of(br#"{"choices": ["a", "b"], "answer": 0}"#, "f"), "no question");
        check(choice_of(br#"{"question": "Q", "choices": ["a"], "answer": 0}"#, "f"), "two choices");
        check(qa_of(br#"{"question": "Q"}"#, "f"), "no answer");
        check(qa_of(br#"{"question": "Q", "answers": []}"#, "f"), "is empty");
        check(qa_of(b"[3]", "f"), "f, row 1: a row must be a JSON object");
        check(qa_of(b"", "f"), "no usable rows in f");
        check(entities_of(br#"{"prompt": "P"}"#, "f"), "no \"entities\"");
        check(entities_of(br#"{"prompt": "P", "entities": [1]}"#, "f"), "must hold strings");
        check(iob_of(b"a\tO\nb B\n", "f"), "f:2: a line must be");
        check(iob_of(b"a\tX\n", "f"), "is not an IOB tag");
        check(iob_of(b"a\tO\n", "f"), "no sentence has a mention");
        check(read_choice(Path::new("/none/x.jsonl")), "/none/x.jsonl: No such file");
    }

    #[test]
    fn medqa() {
        let Some(path) = real_data("medqa/test.jsonl") else { return };
        let items = read_choice(&path).unwrap();
        assert_eq!((items.len(), items[0].gold, items[1].gold), (1273, 1, 3));
        assert!(items[0].context.contains("\nC. Report the physician to the ethics committee\n"));
        assert!(items.iter().all(|i| i.choices == ["A", "B", "C", "D"] && i.context.ends_with("\nAnswer:")));
    }

    #[test]
    fn gsm8k() {
        let Some(path) = real_data("gsm8k/test.jsonl") else { return };
        let items = read_qa(&path).unwrap();
        assert_eq!((items.len(), items[0].answers.as_slice()), (1319, &["18".to_owned()][..]));
        assert!(items.iter().all(|i| i.answers[0].parse::<f64>().is_ok()));
    }

    #[test]
    fn ncbi_disease() {
        let Some(path) = real_data("ncbi-disease/train.tsv") else { return };
        let items = read_entities(&path).unwrap();
        assert_eq!(items[0].entities, ["adenomatous polyposis coli tumour"]);
        // 5,145 mentions in the training part, of which some stand twice in a sentence.
        let mentions: usize = items.iter().map(|i| i.entities.len()).sum();
        assert!((4500..=5145).contains(&mentions), "{mentions}");
    }
}

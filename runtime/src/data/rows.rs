//! JSON rows to pieces of text. A row's form is told by its keys, tried in this order:
//!
//! | keys                                     | text                                                 | trained            |
//! |------------------------------------------|------------------------------------------------------|--------------------|
//! | `messages` [{role, content}]             | the conversation ([`ChatStyle`])                     | assistant turns    |
//! | `conversations` [{from, value}]          | the same (ShareGPT)                                  | assistant turns    |
//! | `prompt`, `completion`                   | one after the other; lists of messages as above      | the completion     |
//! | `instruction`, `input` (may lack), `output` | a conversation of two turns (Alpaca)              | the output         |
//! | `question`, `answer`                     | `Question: …⏎Answer: …`                              | the answer         |
//! | `text` (and what else there is)          | the text; knowledge rows are of this form            | all of it          |

use serde_json::{Map, Value};

use super::chat::{ChatStyle, Message, Piece, Role};

/// The text of one row of training data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The text, in order.
    pub pieces: Vec<Piece>,
    /// Whether the end-of-text token follows (unless it is there already).
    pub eos: bool,
}

impl Row {
    /// A row of which everything is trained.
    pub fn plain(text: impl Into<String>) -> Row {
        Row { pieces: vec![Piece::new(text, true)], eos: true }
    }

    /// Whether some of the text is only context.
    pub fn is_masked(&self) -> bool {
        self.pieces.iter().any(|p| !p.train)
    }
}

/// Reads one row. `eos` is the text of the end-of-text token, empty if there is none. The error says what is wrong with
/// the row and what to do; the caller knows the place.
pub fn parse_row(value: &Value, style: ChatStyle, eos: &str) -> Result<Row, String> {
    let Value::Object(row) = value else {
        return Err(format!("a row must be a JSON object, this is {}", kind(value)));
    };
    if let Some(list) = present(row, "messages") {
        return conversation(&messages(list, "messages", "role", "content")?, style, eos);
    }
    if let Some(list) = present(row, "conversations") {
        return conversation(&messages(list, "conversations", "from", "value")?, style, eos);
    }
    if let (Some(prompt), Some(completion)) = (present(row, "prompt"), present(row, "completion")) {
        return prompt_completion(prompt, completion, style, eos);
    }
    if row.contains_key("instruction") && row.contains_key("output") {
        return alpaca(row, style, eos);
    }
    if row.contains_key("question") && row.contains_key("answer") {
        let (context, answer) = (question_prompt(string(row, "question")?), string(row, "answer")?);
        return masked(vec![Piece::new(context, false), Piece::new(format!(" {answer}"), true)], answer);
    }
    if row.contains_key("text") {
        let text = string(row, "text")?;
        return if text.is_empty() {
            Err("\"text\" is empty; remove the row".into())
        } else {
            Ok(Row::plain(text))
        };
    }
    let keys: Vec<&str> = row.keys().map(String::as_str).collect();
    Err(format!(
        "no known form among the keys [{}]; a row needs \"text\", \"messages\", \"conversations\", \"prompt\" and \
         \"completion\", \"instruction\" and \"output\", or \"question\" and \"answer\"",
        keys.join(", ")
    ))
}

/// The prompt under which questions are trained and evaluated (as in lm-evaluation-harness).
pub fn question_prompt(question: &str) -> String {
    format!("Question: {}\nAnswer:", question.trim())
}

fn conversation(messages: &[Message], style: ChatStyle, eos: &str) -> Result<Row, String> {
    if !messages.iter().any(|m| m.train) {
        return Err(
            "the conversation has no assistant turn, so there is nothing to train; remove the row".into()
        );
    }
    Ok(Row { pieces: style.render(messages, eos), eos: !style.ends_itself() })
}

fn prompt_completion(prompt: &Value, completion: &Value, style: ChatStyle, eos: &str) -> Result<Row, String> {
    if let (Value::String(prompt), Value::String(completion)) = (prompt, completion) {
        return masked(vec![Piece::new(prompt, false), Piece::new(completion, true)], completion);
    }
    let as_messages = |value: &Value, name: &str, role| match value {
        Value::String(text) => Ok(vec![Message { role, content: text.clone(), train: false }]),
        list => messages(list, name, "role", "content"),
    };
    let mut all = as_messages(prompt, "prompt", Role::User)?;
    all.iter_mut().for_each(|m| m.train = false);
    for mut message in as_messages(completion, "completion", Role::Assistant)? {
        message.train = message.role == Role::Assistant;
        all.push(message);
    }
    conversation(&all, style, eos)
}

fn alpaca(row: &Map<String, Value>, style: ChatStyle, eos: &str) -> Result<Row, String> {
    let (instruction, output) = (string(row, "instruction")?, string(row, "output")?);
    let input = if present(row, "input").is_some() { string(row, "input")? } else { "" };
    if output.is_empty() {
        return Err("\"output\" is empty, so there is nothing to train; remove the row".into());
    }
    let asked = if input.is_empty() { instruction.to_owned() } else { format!("{instruction}\n{input}") };
    let messages = [
        Message { role: Role::User, content: asked, train: false },
        Message { role: Role::Assistant, content: output.to_owned(), train: true },
    ];
    conversation(&messages, style, eos)
}

fn masked(pieces: Vec<Piece>, trained: &str) -> Result<Row, String> {
    if trained.is_empty() {
        return Err("the completion is empty, so there is nothing to train; remove the row".into());
    }
    Ok(Row { pieces, eos: true })
}

fn messages(list: &Value, name: &str, role_key: &str, text_key: &str) -> Result<Vec<Message>, String> {
    let Value::Array(list) = list else {
        return Err(format!(
            "\"{name}\" must be a list of {{\"{role_key}\", \"{text_key}\"}}, it is {}",
            kind(list)
        ));
    };
    if list.is_empty() {
        return Err(format!("\"{name}\" is empty; remove the row"));
    }
    let mut out = Vec::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        let role_name = item.get(role_key).and_then(Value::as_str);
        let role_name =
            role_name.ok_or_else(|| format!("{name}[{i}] has no \"{role_key}\" that is a string"))?;
        let role = Role::parse(role_name).ok_or_else(|| {
            format!("{name}[{i}] has the unknown {role_key} \"{role_name}\"; known are system, user, assistant, tool (and human, gpt)")
        })?;
        let content = content(item.get(text_key)).ok_or_else(|| {
            format!("{name}[{i}] has no \"{text_key}\" that is text; only text can be trained on")
        })?;
        out.push(Message { role, content, train: role == Role::Assistant });
    }
    Ok(out)
}

/// A message's content: a string, or a list of parts that are all text.
fn content(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts.iter().map(|p| p.get("text").and_then(Value::as_str)).collect(),
        _ => None,
    }
}

fn present<'a>(row: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    row.get(key).filter(|v| !v.is_null())
}

pub(crate) fn string<'a>(row: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    match row.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("\"{key}\" must be a string, it is {}", kind(other))),
        None => Err(format!("\"{key}\" is missing")),
    }
}

pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    /// `[…]` around what is trained.
    fn shown(row: &Row) -> String {
        row.pieces.iter().map(|p| if p.train { format!("[{}]", p.text) } else { p.text.clone() }).collect()
    }

    fn check(row: Value, expected: &str) {
        assert_eq!(shown(&parse_row(&row, ChatStyle::Plain, "</s>").unwrap()), expected, "{row}");
    }

    fn check_error(row: Value, part: &str) {
        let error = parse_row(&row, ChatStyle::Plain, "</s>").unwrap_err();
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn every_form() {
        check(json!({"text": "abc"}), "[abc]");
        check(
            json!({"knowledge_id": "k1", "text": "abc", "metadata": {"source": "s", "domain": "d"}}),
            "[abc]",
        );
        check(json!({"prompt": "1+1=", "completion": "2"}), "1+1=[2]");
        check(json!({"question": "1+1? ", "answer": "2"}), "Question: 1+1?\nAnswer:[ 2]");
        check(
            json!({"instruction": "Add", "input": "1 1", "output": "2"}),
            "User: Add\n1 1\n\nAssistant: [2</s>]",
        );
        check(
            json!({"instruction": "Add", "input": "", "output": "2", "text": "x"}),
            "User: Add\n\nAssistant: [2</s>]",
        );
        check(
            json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
            "User: a\n\nAssistant: [b</s>]",
        );
        check(
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]},
                                {"role": "assistant", "content": "b"}]}),
            "User: a\n\nAssistant: [b</s>]",
        );
    }

    #[test]
    fn only_the_completion_of_message_lists_is_trained() {
        let row = json!({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                                    {"role": "user", "content": "c"}],
                         "completion": [{"role": "assistant", "content": "d"}]});
        check(row, "User: a\n\nAssistant: b</s>User: c\n\nAssistant: [d</s>]");
        check(
            json!({"prompt": [{"role": "user", "content": "a"}], "completion": "d"}),
            "User: a\n\nAssistant: [d</s>]",
        );
    }

    #[test]
    fn errors_name_the_field() {
        check_error(json!([1]), "a list");
        check_error(json!({"txt": "a"}), "[txt]");
        check_error(json!({"text": 3}), "\"text\" must be a string, it is a number");
        check_error(json!({"text": ""}), "empty");
        check_error(json!({"prompt": "a", "completion": ""}), "nothing to train");
        check_error(json!({"messages": "hi"}), "must be a list");
        check_error(json!({"messages": []}), "is empty");
        check_error(json!({"messages": [{"role": "wizard", "content": "x"}]}), "messages[0]");
        check_error(json!({"messages": [{"role": "user", "content": null}]}), "only text");
        check_error(json!({"messages": [{"role": "user", "content": "x"}]}), "no assistant turn");
        check_error(json!({"question": "x", "answer": 4}), "\"answer\" must be a string");
    }
}

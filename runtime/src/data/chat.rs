//! Rendering of conversations as text.
//!
//! Chat templates (Jinja) are not interpreted. A conversation is written in one of four fixed styles, chosen by the
//! marker tokens that the vocabulary has, else in the plain style (that of the DeepSeek LLM and V2 chat models):
//!
//! | style      | chosen when the vocabulary has         | a turn                                                        |
//! |------------|----------------------------------------|---------------------------------------------------------------|
//! | `DeepSeek` | `<｜User｜>` and `<｜Assistant｜>`       | `<｜User｜>…`, `<｜Assistant｜>…EOS`, the system text bare      |
//! | `ChatMl`   | `<\|im_start\|>` and `<\|im_end\|>`    | `<\|im_start\|>role⏎…<\|im_end\|>⏎`                           |
//! | `Llama3`   | `<\|start_header_id\|>`, `<\|eot_id\|>`| `<\|start_header_id\|>role<\|end_header_id\|>⏎⏎…<\|eot_id\|>` |
//! | `Plain`    | else                                   | `User: …⏎⏎`, `Assistant: …EOS`, `system text⏎⏎`               |
//!
//! Only what the assistant says, with the marker that ends its turn, is trained.

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions that hold for the whole conversation.
    System,
    /// The person.
    User,
    /// The model: the only one whose words are trained.
    Assistant,
    /// The result of a tool.
    Tool,
}

impl Role {
    /// The role for a name as `messages` and `conversations` rows write it.
    pub fn parse(name: &str) -> Option<Role> {
        match name {
            "system" | "developer" => Some(Role::System),
            "user" | "human" => Some(Role::User),
            "assistant" | "gpt" | "chatgpt" | "model" | "bot" => Some(Role::Assistant),
            "tool" | "observation" | "function" => Some(Role::Tool),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// Whether the model learns to say it.
    pub train: bool,
}

/// A stretch of a row's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// Whether its tokens are trained.
    pub train: bool,
}

impl Piece {
    pub(crate) fn new(text: impl Into<String>, train: bool) -> Piece {
        Piece { text: text.into(), train }
    }
}

/// How a conversation is written; see the module for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatStyle {
    /// DeepSeek V3 and R1 (and the R1 distillations).
    DeepSeek,
    /// ChatML, as Qwen has it.
    ChatMl,
    /// Llama 3.
    Llama3,
    /// No marker tokens.
    Plain,
}

impl ChatStyle {
    /// The style whose markers `has` finds in the vocabulary.
    pub fn choose(has: impl Fn(&str) -> bool) -> ChatStyle {
        if has("<｜User｜>") && has("<｜Assistant｜>") {
            ChatStyle::DeepSeek
        } else if has("<|im_start|>") && has("<|im_end|>") {
            ChatStyle::ChatMl
        } else if has("<|start_header_id|>") && has("<|end_header_id|>") && has("<|eot_id|>") {
            ChatStyle::Llama3
        } else {
            ChatStyle::Plain
        }
    }

    /// Whether every turn of this style ends in its own marker, so that no EOS follows the conversation.
    pub fn ends_itself(self) -> bool {
        matches!(self, ChatStyle::ChatMl | ChatStyle::Llama3)
    }

    /// The text of a conversation. `eos` is the text of the end-of-text token, empty if there is none.
    pub fn render(self, messages: &[Message], eos: &str) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(2 * messages.len());
        for (i, message) in messages.iter().enumerate() {
            let (before, after) = self.around(message.role, eos, i == 0);
            pieces.push(Piece::new(before, false));
            pieces.push(Piece::new(format!("{}{after}", message.content), message.train));
        }
        pieces
    }

    /// The text that a generated answer follows.
    pub fn prompt(self, messages: &[Message], eos: &str) -> String {
        let mut text: String = self.render(messages, eos).into_iter().map(|p| p.text).collect();
        let opening = self.around(Role::Assistant, eos, messages.is_empty()).0;
        // The blank after "Assistant:" belongs to the first word of the answer under byte-level tokenizers.
        text.push_str(if self == ChatStyle::Plain { opening.trim_end() } else { &opening });
        text
    }

    /// What stands before and after the content of a turn.
    fn around(self, role: Role, eos: &str, first: bool) -> (String, String) {
        let name = role.name();
        match self {
            ChatStyle::DeepSeek => match role {
                Role::System => (String::new(), String::new()),
                Role::User | Role::Tool => ("<｜User｜>".into(), String::new()),
                Role::Assistant => ("<｜Assistant｜>".into(), eos.into()),
            },
            ChatStyle::ChatMl => {
                (format!("{}<|im_start|>{name}\n", if first { "" } else { "\n" }), "<|im_end|>".into())
            }
            ChatStyle::Llama3 => {
                (format!("<|start_header_id|>{name}<|end_header_id|>\n\n"), "<|eot_id|>".into())
            }
            ChatStyle::Plain => match role {
                Role::System => (String::new(), "\n\n".into()),
                Role::User => ("User: ".into(), "\n\n".into()),
                Role::Tool => ("Tool: ".into(), "\n\n".into()),
                // Without an end-of-text token only a line break can end the answer.
                Role::Assistant => {
                    ("Assistant: ".into(), if eos.is_empty() { "\n".into() } else { eos.into() })
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk() -> Vec<Message> {
        let say =
            |role, content: &str| Message { role, content: content.into(), train: role == Role::Assistant };
        vec![say(Role::System, "Be brief."), say(Role::User, "Hi"), say(Role::Assistant, "Hello")]
    }

    fn check(style: ChatStyle, all: &str, trained: &str) {
        let pieces = style.render(&talk(), "<eos>");
        assert_eq!(pieces.iter().map(|p| p.text.as_str()).collect::<String>(), all);
        assert_eq!(pieces.iter().filter(|p| p.train).map(|p| p.text.as_str()).collect::<String>(), trained);
    }

    #[test]
    fn styles() {
        check(ChatStyle::Plain, "Be brief.\n\nUser: Hi\n\nAssistant: Hello<eos>", "Hello<eos>");
        check(ChatStyle::DeepSeek, "Be brief.<｜User｜>Hi<｜Assistant｜>Hello<eos>", "Hello<eos>");
        check(
            ChatStyle::ChatMl,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>",
            "Hello<|im_end|>",
        );
        check(
            ChatStyle::Llama3,
            "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\
             \n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>",
            "Hello<|eot_id|>",
        );
    }

    #[test]
    fn a_prompt_is_the_start_of_the_trained_text() {
        for style in [ChatStyle::Plain, ChatStyle::DeepSeek, ChatStyle::ChatMl, ChatStyle::Llama3] {
            let all: String = style.render(&talk(), "<eos>").into_iter().map(|p| p.text).collect();
            let prompt = style.prompt(&talk()[..2], "<eos>");
            assert!(
                all.starts_with(&prompt) && all[prompt.len()..].trim_start().starts_with("Hello"),
                "{prompt}"
            );
        }
    }

    #[test]
    fn markers_choose_the_style() {
        assert_eq!(ChatStyle::choose(|_| false), ChatStyle::Plain);
        assert_eq!(ChatStyle::choose(|t| t.starts_with("<|im_")), ChatStyle::ChatMl);
        assert_eq!(ChatStyle::choose(|t| t.contains('｜')), ChatStyle::DeepSeek);
        assert_eq!(ChatStyle::choose(|t| t.contains("header") || t.contains("eot")), ChatStyle::Llama3);
    }
}

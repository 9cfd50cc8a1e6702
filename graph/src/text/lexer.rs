//! Text to tokens, each with its place. Total: any text gives tokens or an error.

use crate::error::{GraphError, Result};

/// A place in the text, 1-based; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Place {
    pub(super) fn error<T>(self, message: impl Into<String>) -> Result<T> {
        Err(GraphError::Parse { line: self.line, column: self.column, message: message.into() })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// Letters, digits, `_`, starting with no digit.
    Word(String),
    /// Contents of a quoted string.
    Quoted(String),
    /// `%12`
    Value(u32),
    /// The text of an integer or float; also `inf` and `-inf`.
    Number(String),
    /// One of `{ } ( ) [ ] : , = @`
    Symbol(char),
    /// After the last character.
    End,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Token::Word(w) => write!(f, "`{w}`"),
            Token::Quoted(q) => write!(f, "{q:?}"),
            Token::Value(v) => write!(f, "%{v}"),
            Token::Number(n) => write!(f, "`{n}`"),
            Token::Symbol(c) => write!(f, "`{c}`"),
            Token::End => f.write_str("the end of the text"),
        }
    }
}

/// Takes tokens from the front of a text.
pub(super) struct Lexer<'a> {
    rest: &'a str,
    place: Place,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Lexer { rest: text, place: Place { line: 1, column: 1 } }
    }

    /// The next token and where it starts.
    pub(super) fn next(&mut self) -> Result<(Token, Place)> {
        self.skip_blank();
        let place = self.place;
        let Some(c) = self.rest.chars().next() else { return Ok((Token::End, place)) };
        let token = match c {
            '{' | '}' | '(' | ')' | '[' | ']' | ':' | ',' | '=' | '@' => {
                self.advance(1);
                Token::Symbol(c)
            }
            '"' => Token::Quoted(self.quoted()?),
            '%' => {
                self.advance(1);
                let digits = self.take_while(|c| c.is_ascii_digit());
                match digits.parse() {
                    Ok(v) => Token::Value(v),
                    Err(_) => return place.error(format!("`%{}` is no value id", shorten(digits))),
                }
            }
            c if c.is_ascii_digit() || c == '-' => {
                let number = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+'));
                Token::Number(number.to_string())
            }
            c if c.is_ascii_alphabetic() || c == '_' => {
                Token::Word(self.take_while(|c| c.is_ascii_alphanumeric() || c == '_').to_string())
            }
            c => return place.error(format!("unexpected character {c:?}")),
        };
        Ok((token, place))
    }

    /// White space and comments.
    fn skip_blank(&mut self) {
        while let Some(c) = self.rest.chars().next() {
            match c {
                '#' => {
                    self.take_while(|c| c != '\n');
                }
                c if c.is_whitespace() => self.advance(1),
                _ => break,
            }
        }
    }

    fn advance(&mut self, chars: usize) {
        let mut it = self.rest.chars();
        for c in it.by_ref().take(chars) {
            if c == '\n' {
                self.place = Place { line: self.place.line + 1, column: 1 };
            } else {
                self.place.column += 1;
            }
        }
        self.rest = it.as_str();
    }

    fn take_while(&mut self, f: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !f(c)).unwrap_or(self.rest.len());
        let taken = &self.rest[..end];
        self.advance(taken.chars().count());
        taken
    }

    fn quoted(&mut self) -> Result<String> {
        let start = self.place;
        self.advance(1);
        let mut out = String::new();
        loop {
            out.push_str(self.take_while(|c| !matches!(c, '"' | '\\' | '\n')));
            match self.rest.chars().next() {
                Some('"') => {
                    self.advance(1);
                    return Ok(out);
                }
                Some('\\') => out.push(self.escape()?),
                _ => return start.error("this string does not end on its line"),
            }
        }
    }

    fn escape(&mut self) -> Result<char> {
        let place = self.place;
        self.advance(1);
        let c = self.rest.chars().next();
        self.advance(1);
        match c {
            Some(c @ ('"' | '\\')) => Ok(c),
            Some('u') => {
                let body = self.take_while(|c| c != '}' && c != '"' && c != '\n');
                let code = body.strip_prefix('{').and_then(|hex| u32::from_str_radix(hex, 16).ok());
                let closed = self.rest.starts_with('}');
                match code.and_then(char::from_u32) {
                    Some(c) if closed => {
                        self.advance(1);
                        Ok(c)
                    }
                    _ => place.error("an escape is `\\u{hex}`"),
                }
            }
            _ => place.error("an escape is `\\\"`, `\\\\` or `\\u{hex}`"),
        }
    }
}

/// At most 20 characters, for messages.
pub(super) fn shorten(s: &str) -> String {
    if s.chars().count() <= 20 { s.to_string() } else { s.chars().take(20).chain("..".chars()).collect() }
}

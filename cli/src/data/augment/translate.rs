//! Text through programs and services of the user's: there and back again, in as many steps as are given.
//!
//! | step | what happens |
//! |---|---|
//! | `PROGRAM ARGS` | started once a worker; gets a line, answers with a line |
//! | `PROGRAM {} ARGS` | started for each line, which stands for `{}`; its standard output is the answer |
//! | `http://...` | `POST {"text": "..."}` a row; the answer is JSON with `text`, `translatedText` or `translation`, or plain text |
//!
//! No shell is involved: a step is cut into words at spaces, quotes hold words together. Lines that are blank are not sent,
//! and stay.

use crate::error::input_error;
use anyhow::{Context, anyhow, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How often a service is asked again that is busy or not there.
const TRIES: u32 = 4;

/// Longest answer of a service.
const MAX_ANSWER: u64 = 64 << 20;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A program that answers line by line.
    Lines(Vec<String>),
    /// A program that is started for each line.
    Once(Vec<String>),
    /// A service.
    Http(String),
}

impl Step {
    /// Reads a step.
    ///
    /// # Errors
    /// If it is empty, a quote is open or the service is not `http`.
    pub fn parse(text: &str) -> Result<Step, String> {
        if text.starts_with("https://") {
            return Err(
                "https is not spoken here; give a program that does, as in 'my-client {}', or http://".into(),
            );
        }
        if text.starts_with("http://") {
            return Ok(Step::Http(text.to_owned()));
        }
        let words = words(text)?;
        match words.iter().any(|word| word.contains("{}")) {
            _ if words.is_empty() => Err("give a program or an http:// address".into()),
            true => Ok(Step::Once(words)),
            false => Ok(Step::Lines(words)),
        }
    }
}

/// Cuts at spaces; quotes hold together what is between them.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in text.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".into());
    }
    words.extend(word);
    Ok(words)
}

/// One worker's way through all steps.
pub struct Chain<'a> {
    steps: &'a [Step],
    timeout: Duration,
    running: Vec<Option<Running>>,
    agent: ureq::Agent,
}

impl<'a> Chain<'a> {
    /// Starts nothing yet. `timeout` is for each answer.
    pub fn new(steps: &'a [Step], timeout: Duration) -> Chain<'a> {
        let config =
            ureq::Agent::config_builder().timeout_global(Some(timeout)).http_status_as_error(false).build();
        Chain { steps, timeout, running: steps.iter().map(|_| None).collect(), agent: config.into() }
    }

    /// What the text comes back as.
    ///
    /// # Errors
    /// If a program or service fails or does not answer in time.
    pub fn apply(&mut self, text: &str) -> anyhow::Result<String> {
        let mut text = text.to_owned();
        for (index, step) in self.steps.iter().enumerate() {
            text = match step {
                Step::Http(url) => self.ask(url, &text)?,
                Step::Once(words) => by_line(&text, |line| once(words, line, self.timeout))?,
                Step::Lines(words) => {
                    let running = &mut self.running[index];
                    by_line(&text, |line| {
                        let running = match running {
                            Some(running) => running,
                            None => running.insert(Running::start(words)?),
                        };
                        running.ask(line, self.timeout)
                    })?
                }
            };
        }
        Ok(text)
    }

    /// Asks a service, again after a while if it is busy.
    fn ask(&self, url: &str, text: &str) -> anyhow::Result<String> {
        let mut wait = Duration::from_millis(250);
        for attempt in 1.. {
            let sent = self
                .agent
                .post(url)
                .header("content-type", "application/json")
                .send(json!({"text": text}).to_string());
            let trouble = match sent {
                Ok(mut answer) => {
                    let status = answer.status().as_u16();
                    let body = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_string();
                    let body = body.with_context(|| format!("{url}: the answer cannot be read"))?;
                    match status {
                        200..300 => {
                            return answer_of(&body).ok_or_else(|| {
                                input_error(format!("{url}: the answer has no text: {}", start(&body)))
                            });
                        }
                        429 | 500.. => anyhow!("{url} answered {status}: {}", start(&body)),
                        _ => return Err(input_error(format!("{url} answered {status}: {}", start(&body)))),
                    }
                }
                Err(error) => anyhow::Error::new(error).context(format!("{url} does not answer")),
            };
            if attempt >= TRIES {
                return Err(trouble.context(format!("tried {TRIES} times")));
            }
            std::thread::sleep(wait);
            wait *= 2;
        }
        bail!("{url} was not asked")
    }
}

fn start(body: &str) -> String {
    body.chars().take(200).collect()
}

/// The text of an answer: a field of a JSON object, a JSON string, or what is no JSON.
fn answer_of(body: &str) -> Option<String> {
    match serde_json::from_str::<Value>(body) {
        Ok(Value::String(text)) => Some(text),
        Ok(Value::Object(object)) => ["text", "translatedText", "translation"]
            .iter()
            .find_map(|key| object.get(*key)?.as_str().map(str::to_owned)),
        Ok(_) => None,
        Err(_) => Some(body.trim_end_matches(['\r', '\n']).to_owned()),
    }
}

/// Each line that is not blank through `each`.
fn by_line(text: &str, mut each: impl FnMut(&str) -> anyhow::Result<String>) -> anyhow::Result<String> {
    let lines: anyhow::Result<Vec<String>> = text
        .split('\n')
        .map(|line| if line.trim().is_empty() { Ok(line.to_owned()) } else { each(line) })
        .collect();
    Ok(lines?.join("\n"))
}

fn spawn(words: &[String], input: Stdio) -> anyhow::Result<Child> {
    Command::new(&words[0])
        .args(&words[1..])
        .stdin(input)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| input_error(format!("`{}` cannot be started: {e}", words[0])))
}

/// Lines of a program's standard output, read on a thread of their own.
fn lines_of(child: &mut Child) -> anyhow::Result<Receiver<std::io::Result<String>>> {
    let output = child.stdout.take().ok_or_else(|| anyhow!("a program has no standard output"))?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines() {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// A program that answers line by line; ended with its worker.
struct Running {
    name: String,
    child: Child,
    input: ChildStdin,
    lines: Receiver<std::io::Result<String>>,
}

impl Running {
    fn start(words: &[String]) -> anyhow::Result<Running> {
        let mut child = spawn(words, Stdio::piped())?;
        let lines = lines_of(&mut child)?;
        let input = child.stdin.take().ok_or_else(|| anyhow!("`{}` has no standard input", words[0]))?;
        Ok(Running { name: words[0].clone(), child, input, lines })
    }

    fn ask(&mut self, line: &str, timeout: Duration) -> anyhow::Result<String> {
        let name = &self.name;
        let sent = self.input.write_all(format!("{line}\n").as_bytes()).and_then(|()| self.input.flush());
        sent.map_err(|e| input_error(format!("`{name}` takes no more lines: {e}")))?;
        match self.lines.recv_timeout(timeout) {
            Ok(answer) => {
                answer.map_err(|e| input_error(format!("`{name}`: its answer cannot be read: {e}")))
            }
            Err(RecvTimeoutError::Disconnected) => Err(input_error(format!(
                "`{name}` ended without an answer; it must answer each line with a line"
            ))),
            Err(RecvTimeoutError::Timeout) => Err(input_error(format!(
                "`{name}` gave no answer within {} s; it must answer each line with a line and write it out at once",
                timeout.as_secs_f64()
            ))),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a program for one line.
fn once(words: &[String], line: &str, timeout: Duration) -> anyhow::Result<String> {
    let words: Vec<String> = words.iter().map(|word| word.replace("{}", line)).collect();
    let mut child = spawn(&words, Stdio::null())?;
    let (lines, deadline) = (lines_of(&mut child)?, Instant::now() + timeout);
    let mut answer = Vec::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => answer.push(
                line.map_err(|e| input_error(format!("`{}`: its answer cannot be read: {e}", words[0])))?,
            ),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(input_error(format!(
                    "`{}` did not end within {} s",
                    words[0],
                    timeout.as_secs_f64()
                )));
            }
        }
    }
    let status = child.wait().with_context(|| format!("`{}` cannot be waited for", words[0]))?;
    if !status.success() {
        return Err(input_error(format!("`{}` failed: {status}", words[0])));
    }
    // Several lines of answer are one line of text.
    Ok(answer.join(" "))
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    fn through(steps: &[&str], text: &str) -> Result<String, String> {
        let steps: Vec<Step> = steps.iter().map(|step| Step::parse(step).unwrap()).collect();
        Chain::new(&steps, Duration::from_secs(5)).apply(text).map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn steps() {
        assert_eq!(
            Step::parse("a 'b c' \"\" d\"e\"").unwrap(),
            Step::Lines(["a", "b c", "", "de"].map(String::from).into())
        );
        assert_eq!(Step::parse("a x{}y").unwrap(), Step::Once(["a", "x{}y"].map(String::from).into()));
        assert!(
            Step::parse("a 'b").is_err() && Step::parse(" ").is_err() && Step::parse("https://x").is_err()
        );
    }

    #[test]
    fn programs() {
        assert_eq!(through(&["cat"], "a\n\n字").unwrap(), "a\n\n字");
        assert_eq!(through(&["sed -u s/a/b/", "sed -u s/b/c/"], "a\na").unwrap(), "c\nc");
        assert_eq!(through(&["echo <{}>"], "it's $HOME; x").unwrap(), "<it's $HOME; x>");
        assert!(through(&["no-such-program-at-all"], "a").unwrap_err().contains("cannot be started"));
        assert!(through(&["true"], "a").unwrap_err().contains("line"));
        assert!(through(&["false {}"], "a").unwrap_err().contains("failed"));
        let slow = [Step::parse("sleep 30").unwrap()];
        let error = Chain::new(&slow, Duration::from_millis(50)).apply("a").unwrap_err().to_string();
        assert!(error.contains("no answer within 0.05 s"), "{error}");
    }

    /// A service that gives these answers, one a connection; returns its address.
    fn serve(answers: &'static [(u16, &'static str)]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/translate", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for (status, body) in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                let mut buffer = [0; 4096];
                while !request.ends_with(b"}") {
                    let read = stream.read(&mut buffer).unwrap();
                    request.extend_from_slice(&buffer[..read]);
                }
                let asked = String::from_utf8(request).unwrap();
                let asked = asked.rsplit("\"text\":").next().unwrap().trim_end_matches('}').to_owned();
                let body = body.replace("ASKED", &asked);
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all((head + &body).as_bytes()).unwrap();
            }
        });
        address
    }

    #[test]
    fn services() {
        let ask = |answers| through(&[&serve(answers)], "a \"字\"");
        assert_eq!(ask(&[(200, "{\"text\": ASKED}")]).unwrap(), "a \"字\"");
        assert_eq!(ask(&[(200, "{\"translatedText\": \"b\"}")]).unwrap(), "b");
        assert_eq!(ask(&[(503, "busy"), (200, "plain\n")]).unwrap(), "plain");
        assert!(ask(&[(404, "nothing here")]).unwrap_err().contains("answered 404: nothing here"));
        assert!(ask(&[(200, "{\"other\": 1}")]).unwrap_err().contains("has no text"));
        assert!(ask(&[(200, "[1]")]).unwrap_err().contains("has no text"));
    }

    #[test]
    fn nobody_answers() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = through(&[&format!("http://{address}/")], "a").unwrap_err();
        assert!(error.contains("tried 4 times") && error.contains("does not answer"), "{error}");
    }
}

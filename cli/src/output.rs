//! Standard output and error. A reader that has gone away (`kfc ... | head`) ends the output, never the work: later
//! lines are dropped and the exit code is that of the work.

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

static CLOSED: AtomicBool = AtomicBool::new(false);

/// Writes `text` to standard output as it is.
///
/// # Errors
/// If writing fails for another reason than a closed pipe, such as a full disk.
pub fn write_stdout(text: &str) -> io::Result<()> {
    if CLOSED.load(Ordering::Relaxed) {
        return Ok(());
    }
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            CLOSED.store(true, Ordering::Relaxed);
            Ok(())
        }
        Err(error) => {
            Err(io::Error::new(error.kind(), format!("standard output cannot be written: {error}")))
        }
        Ok(()) => Ok(()),
    }
}

/// Writes `line` and a line break to standard output.
///
/// # Errors
/// As [`write_stdout`].
pub fn stdout_line(line: &str) -> io::Result<()> {
    write_stdout(&format!("{line}\n"))
}

/// Writes `value` as one line of JSON to standard output.
///
/// # Errors
/// As [`write_stdout`].
pub fn json_line(value: &serde_json::Value) -> io::Result<()> {
    stdout_line(&value.to_string())
}

/// A path as JSON can hold it: what is no UTF-8 in it is replaced.
pub fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Writes `line` to standard error. There is nowhere to report that this failed.
pub fn stderr_line(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Lines up what belongs to names behind them, two spaces between. Texts of any length begin at the same place.
pub fn pairs(rows: &[[&str; 2]]) -> String {
    let width = rows.iter().map(|[name, _]| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|[name, text]| format!("{name:<width$}  {text}\n")).collect()
}

/// Lines up `rows` under each other, two spaces between columns; the first column is left-aligned, the others right.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            if column == 0 {
                line.push_str(&format!("{cell:<width$}"));
            } else {
                line.push_str(&format!("  {cell:>width$}"));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

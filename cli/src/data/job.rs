//! Runs a command's [`Work`] over the items of its input, in order, block by block, so that it can be interrupted at any
//! moment: `kill -9` included, `--resume` goes on and the result has the same bytes.
//!
//! While a run works, `OUT.partial/` holds the rows so far, those left out, and `state.json`: how far reading came, how
//! long the files are and the counts. The state is replaced atomically after the files are on disk; what a killed process
//! wrote beyond it is cut off. In the end the files are renamed into place and the folder goes. Blocks are cut by
//! rows and bytes alone. One thread reads ahead by two blocks.

use super::input::{Inputs, Item, Items, Position};
use super::report::Report;
use super::row::{Rejected, Row};
use crate::args::Global;
use crate::error::input_error;
use crate::output;
use crate::progress::Progress;
use crate::stop;
use anyhow::{Context, anyhow};
use kfc_runtime::files::{read_json, remove_dir, write_json};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

/// Version of the state; another one is refused.
const VERSION: u64 = 1;

/// What a command does with rows.
pub trait Work {
    /// Rows that an earlier process wrote, in order and before any block, for works that remember what they kept.
    ///
    /// # Errors
    /// Ends the run.
    fn replay(&mut self, _rows: Vec<Row>) -> anyhow::Result<()> {
        Ok(())
    }

    /// Decides on every item of a block: each is kept in some form, or dropped with a reason. The result must depend on
    /// the items and those before them alone.
    ///
    /// # Errors
    /// Ends the run; nothing of this block is written.
    fn block(&mut self, items: Vec<Item>, sink: &mut Sink) -> anyhow::Result<()>;
}

/// How a run reads and where it writes.
#[derive(Clone, Debug)]
pub struct Job {
    /// The command's name, as in `data clean`.
    pub command: &'static str,
    /// The rows.
    pub out: PathBuf,
    /// Rows left out, with their reasons.
    pub dropped: Option<PathBuf>,
    /// Go on with an interrupted run.
    pub resume: bool,
    /// Everything that the result depends on; goes to the report, and a resumed run must have the same.
    pub settings: Value,
    /// Most items of a block. Slow works take small blocks: a block is what an interruption loses.
    pub block_rows: usize,
    /// Bytes after which a block ends.
    pub block_bytes: usize,
    /// Time between two states.
    pub save_every: Duration,
}

impl Job {
    /// A job with blocks of 4096 rows or 4 MiB, saved every two seconds.
    pub fn new(command: &'static str, out: PathBuf, settings: Value) -> Job {
        Job {
            command,
            out,
            dropped: None,
            resume: false,
            settings,
            block_rows: 4096,
            block_bytes: 4 << 20,
            save_every: Duration::from_secs(2),
        }
    }

    fn partial(&self) -> PathBuf {
        with_suffix(&self.out, ".partial")
    }

    /// Where the report goes.
    pub fn report(&self) -> PathBuf {
        with_suffix(&self.out, ".report.json")
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

/// What a [`Work`] did with a block. It is written when the block is done.
#[derive(Debug, Default)]
pub struct Sink {
    rows: Vec<u8>,
    dropped: Vec<u8>,
    report: Report,
}

impl Sink {
    /// Writes a row, named by its text if it has no name.
    pub fn keep(&mut self, mut row: Row) {
        row.identify();
        self.rows.extend_from_slice(row.to_line().as_bytes());
        self.report.rows_out += 1;
    }

    /// Leaves a row out; `text` is what there is of it.
    pub fn drop(&mut self, place: &str, rejected: &Rejected, text: &str) {
        *self.report.dropped.entry(rejected.reason.to_owned()).or_default() += 1;
        let line =
            json!({"place": place, "reason": rejected.reason, "detail": rejected.detail, "text": text});
        self.dropped.extend_from_slice(line.to_string().as_bytes());
        self.dropped.push(b'\n');
    }

    /// Leaves an item out that could not be made a row.
    pub fn drop_item(&mut self, item: &Item, rejected: &Rejected) {
        let text = match &item.content {
            super::input::Content::Bytes(bytes) => String::from_utf8_lossy(bytes),
            super::input::Content::TooLarge { .. } => "".into(),
        };
        self.drop(&item.place(), rejected, &text);
    }

    /// Counts something for the report.
    pub fn count(&mut self, name: &str, by: u64) {
        if by > 0 {
            *self.report.counts.entry(name.to_owned()).or_default() += by;
        }
    }
}

/// Runs `work` over `inputs` and prints the report.
///
/// # Errors
/// If the output exists already, an interrupted run is there and `resume` does not say to go on, or the other way round,
/// its settings or files differ, a file cannot be read or written, the work fails, or Ctrl-C stopped it.
pub fn run(job: &Job, inputs: &Inputs, work: &mut dyn Work, global: &Global) -> anyhow::Result<Report> {
    let report = run_until(job, inputs, work, global, stop::flag())?;
    if global.json {
        output::json_line(&full_report(job, inputs, &report))?;
    } else {
        output::write_stdout(&report.to_text())?;
        output::stdout_line(&format!("wrote {}", job.out.display()))?;
    }
    Ok(report)
}

/// The report as its file has it.
fn full_report(job: &Job, inputs: &Inputs, report: &Report) -> Value {
    let mut all = report.to_json();
    all["command"] = job.command.into();
    all["out"] = job.out.to_string_lossy().into();
    all["inputs"] = inputs.to_json();
    all["settings"] = job.settings.clone();
    all
}

/// Runs `work` over `inputs` and prints nothing but progress.
///
/// # Errors
/// As [`run`]; `stopped` stands for Ctrl-C.
pub(super) fn run_until(
    job: &Job,
    inputs: &Inputs,
    work: &mut dyn Work,
    global: &Global,
    stopped: &AtomicBool,
) -> anyhow::Result<Report> {
    let started = Instant::now();
    let mut run = Partial::open(job, inputs, work)?;
    let before = run.report.seconds;
    if !run.finished {
        let total = inputs.bytes().div_ceil(1 << 20) as usize;
        let mut progress = Progress::new("MiB", (inputs.bytes_before(&run.at) >> 20) as usize, total, global);
        let worked = blocks(job, inputs, run.at, |block| {
            run.take(block, inputs, work)?;
            run.report.seconds = before + started.elapsed().as_secs_f64();
            if run.saved.elapsed() >= job.save_every {
                run.save(job, inputs, false)?;
            }
            let done = inputs.bytes_before(&run.at);
            progress.update((done >> 20) as usize, &rows_of(&run.report));
            if stopped.load(Ordering::Relaxed) {
                return Err(anyhow!("stopped by Ctrl-C"));
            }
            Ok(())
        });
        if worked.is_ok() {
            progress.update(total, &rows_of(&run.report));
        }
        progress.finish();
        if let Err(error) = worked {
            run.save(job, inputs, false)?;
            let rows = run.report.rows_in;
            return Err(error.context(format!("after {rows} rows; go on with --resume")));
        }
        run.report.seconds = before + started.elapsed().as_secs_f64();
        run.save(job, inputs, true)?;
    }
    run.publish(job, inputs)
}

/// How many rows were read and dropped so far.
fn rows_of(report: &Report) -> String {
    format!("{} rows, {} dropped", report.rows_in, report.dropped_total())
}

/// A block of items and where reading goes on behind it.
struct Block {
    items: Vec<Item>,
    end: Position,
}

/// Reads blocks on a thread of its own and hands them to `each`.
fn blocks(
    job: &Job,
    inputs: &Inputs,
    from: Position,
    mut each: impl FnMut(Block) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(2);
        scope.spawn(move || {
            let mut items = Items::new(inputs, from);
            loop {
                let block = next_block(job, &mut items);
                let last = !matches!(&block, Ok(Some(_)));
                // Nobody receives any more when the work has ended.
                if sender.send(block).is_err() || last {
                    return;
                }
            }
        });
        let receiver: Receiver<anyhow::Result<Option<Block>>> = receiver;
        for block in receiver {
            match block? {
                Some(block) => each(block)?,
                None => break,
            }
        }
        Ok(())
    })
}

fn next_block(job: &Job, items: &mut Items<'_>) -> anyhow::Result<Option<Block>> {
    let (mut block, mut bytes) = (Vec::new(), 0);
    while block.len() < job.block_rows && bytes < job.block_bytes {
        let Some(item) = items.next_item()? else { break };
        if let super::input::Content::Bytes(content) = &item.content {
            bytes += content.len();
        }
        block.push(item);
    }
    Ok((!block.is_empty()).then(|| Block { items: block, end: items.position() }))
}

/// The folder of a run that is not complete yet.
struct Partial {
    folder: PathBuf,
    rows: BufWriter<File>,
    dropped: BufWriter<File>,
    lengths: [u64; 2],
    at: Position,
    report: Report,
    finished: bool,
    saved: Instant,
}

const ROWS: &str = "rows.jsonl";
const DROPPED: &str = "dropped.jsonl";
const STATE: &str = "state.json";

impl Partial {
    /// A new folder, or with `resume` the one that is there, `work` brought to where it was.
    fn open(job: &Job, inputs: &Inputs, work: &mut dyn Work) -> anyhow::Result<Partial> {
        let folder = job.partial();
        let shown = folder.display();
        if job.out.file_name().is_none() || job.out.is_dir() {
            return Err(input_error(format!(
                "--out {} is a folder; give the name of a file to write",
                job.out.display()
            )));
        }
        for path in std::iter::once(&job.out).chain(&job.dropped) {
            if inputs.files.iter().any(|file| &file.path == path) {
                return Err(input_error(format!(
                    "{} would overwrite its own input; give another name",
                    path.display()
                )));
            }
        }
        match (job.resume, folder.join(STATE).is_file()) {
            (false, true) => {
                return Err(input_error(format!(
                    "{shown} holds an interrupted run; go on with it with --resume, or remove the folder to start again"
                )));
            }
            (true, false) => {
                return Err(input_error(format!(
                    "there is no interrupted run to resume ({shown} holds no {STATE}); leave out --resume"
                )));
            }
            (false, false) => {
                if let Some(there) = std::iter::once(&job.out).chain(&job.dropped).find(|path| path.exists())
                {
                    let there = there.display();
                    return Err(input_error(format!(
                        "{there} exists already; give another name, or remove it"
                    )));
                }
            }
            (true, true) => {}
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("{shown} cannot be made"))?;
        let rows = append_to(&folder.join(ROWS))?;
        let dropped = append_to(&folder.join(DROPPED))?;
        let mut run = Partial {
            folder,
            rows: BufWriter::with_capacity(1 << 20, rows),
            dropped: BufWriter::with_capacity(1 << 20, dropped),
            lengths: [0, 0],
            at: Position::default(),
            report: Report::default(),
            finished: false,
            saved: Instant::now(),
        };
        if job.resume {
            run.restore(job, inputs)?;
        }
        run.cut()?;
        if job.resume && !run.finished {
            run.replay(work)?;
        }
        if !job.resume {
            run.save(job, inputs, false)?;
        }
        Ok(run)
    }

    /// Reads the state of an earlier process, which must have had the same settings and files.
    fn restore(&mut self, job: &Job, inputs: &Inputs) -> anyhow::Result<()> {
        let path = self.folder.join(STATE);
        let state = read_json(&path)?;
        let shown = path.display();
        if state["version"] != VERSION || state["command"] != job.command {
            return Err(input_error(format!(
                "{shown} is of another command or version of kfc; remove the folder and start again"
            )));
        }
        if let Some(key) = first_difference(&state["settings"], &job.settings) {
            return Err(input_error(format!(
                "{shown}: the interrupted run had {key} = {}, this one has {}; give the same settings, or remove the \
                 folder and start again",
                state["settings"][&key], job.settings[&key]
            )));
        }
        if state["inputs"] != inputs.to_json() {
            return Err(input_error(format!(
                "{shown}: the input files are not those of the interrupted run (other names or lengths); remove the \
                 folder and start again"
            )));
        }
        let damaged = || input_error(format!("{shown} is damaged; remove the folder and start again"));
        let length = |key: &str| state[key].as_u64().ok_or_else(damaged);
        self.lengths = [length("rows_bytes")?, length("dropped_bytes")?];
        self.at = Position::from_json(&state["position"]).ok_or_else(damaged)?;
        self.report = Report::from_json(&state["report"]).ok_or_else(damaged)?;
        self.finished = state["finished"].as_bool().ok_or_else(damaged)?;
        Ok(())
    }

    /// Cuts off what was written after the state.
    fn cut(&mut self) -> anyhow::Result<()> {
        let files = [(&mut self.rows, ROWS), (&mut self.dropped, DROPPED)];
        for ((file, name), length) in files.into_iter().zip(self.lengths) {
            let there = file.get_ref().metadata()?.len();
            // A finished run may have been killed after its files were renamed.
            if there < length && !self.finished {
                return Err(input_error(format!(
                    "{}: {there} bytes are left of {length}; remove the folder and start again",
                    self.folder.join(name).display()
                )));
            }
            if !self.finished {
                file.get_ref().set_len(length)?;
            }
            file.seek(SeekFrom::End(0))?;
        }
        Ok(())
    }

    /// Shows `work` the rows that are kept already, some thousand at a time.
    fn replay(&mut self, work: &mut dyn Work) -> anyhow::Result<()> {
        let path = self.folder.join(ROWS);
        let file = File::open(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let mut lines = std::io::BufRead::split(BufReader::new(file.take(self.lengths[0])), b'\n');
        loop {
            let mut rows = Vec::new();
            for line in lines.by_ref().take(4096) {
                let line = line.with_context(|| format!("{} cannot be read", path.display()))?;
                let row = Row::from_line(&line).map_err(|e| {
                    input_error(format!(
                        "{} is damaged: {}; remove the folder and start again",
                        path.display(),
                        e.detail
                    ))
                })?;
                rows.push(row);
            }
            if rows.is_empty() {
                return Ok(());
            }
            work.replay(rows)?;
        }
    }

    /// Lets `work` decide on a block and writes what it decided.
    fn take(&mut self, block: Block, inputs: &Inputs, work: &mut dyn Work) -> anyhow::Result<()> {
        let mut sink = Sink::default();
        sink.report.rows_in = block.items.len() as u64;
        work.block(block.items, &mut sink)?;
        sink.report.bytes_in = inputs.bytes_before(&block.end) - inputs.bytes_before(&self.at);
        sink.report.bytes_out = sink.rows.len() as u64;
        self.rows
            .write_all(&sink.rows)
            .with_context(|| format!("{} cannot be written", self.folder.display()))?;
        self.dropped
            .write_all(&sink.dropped)
            .with_context(|| format!("{} cannot be written", self.folder.display()))?;
        self.lengths[0] += sink.rows.len() as u64;
        self.lengths[1] += sink.dropped.len() as u64;
        self.report.add(&sink.report);
        self.at = block.end;
        Ok(())
    }

    fn save(&mut self, job: &Job, inputs: &Inputs, finished: bool) -> anyhow::Result<()> {
        for file in [&mut self.rows, &mut self.dropped] {
            let written = file.flush().and_then(|()| file.get_ref().sync_data());
            written.with_context(|| format!("{} cannot be written", self.folder.display()))?;
        }
        let state = json!({
            "version": VERSION,
            "command": job.command,
            "settings": job.settings,
            "inputs": inputs.to_json(),
            "position": self.at.to_json(),
            "rows_bytes": self.lengths[0],
            "dropped_bytes": self.lengths[1],
            "report": self.report.to_json(),
            "finished": finished,
        });
        write_json(&self.folder.join(STATE), &state)?;
        self.finished = finished;
        self.saved = Instant::now();
        Ok(())
    }

    /// Puts the files of a finished run in place. Done twice it does the same: a kill in the middle is no harm.
    fn publish(self, job: &Job, inputs: &Inputs) -> anyhow::Result<Report> {
        let mut places = vec![(ROWS, &job.out, self.lengths[0])];
        places.extend(job.dropped.as_ref().map(|dropped| (DROPPED, dropped, self.lengths[1])));
        for (name, to, length) in places {
            let from = self.folder.join(name);
            if std::fs::metadata(&from).is_ok_and(|file| file.len() == length) && (length > 0 || !to.exists())
            {
                std::fs::rename(&from, to)
                    .with_context(|| format!("{} cannot be renamed to {}", from.display(), to.display()))?;
            }
        }
        write_json(&job.report(), &full_report(job, inputs, &self.report))?;
        remove_dir(&self.folder)?;
        Ok(self.report)
    }
}

/// Opens a file of a run, which no other process may have open.
fn append_to(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = file.with_context(|| format!("{} cannot be written", path.display()))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(input_error(format!(
            "{}: another process is at work on this run; wait for it",
            path.display()
        ))),
        // Where the file system has no locks there is nothing to hold.
        _ => Ok(file),
    }
}

/// The first key of two objects whose values differ.
fn first_difference(a: &Value, b: &Value) -> Option<String> {
    let keys = [a, b].into_iter().filter_map(Value::as_object).flat_map(|object| object.keys());
    keys.into_iter().find(|key| a[key.as_str()] != b[key.as_str()]).cloned()
}

//! The program around the commands: parsing, threads, the panic hook, errors to messages and exit codes.

use crate::args::{self, Global, Invocation};
use crate::error::{self, InputResult, Outcome};
use crate::{commands, output};
use kfc_kernels::cpu::simd;
use std::any::Any;
use std::ffi::OsString;
use std::panic::{self, PanicHookInfo};

/// Runs the command line `arguments` (the first is the program's name) and returns the exit code.
pub fn main(arguments: Vec<OsString>) -> u8 {
    panic::set_hook(Box::new(report_panic));
    kfc_runtime::files::survive_size_limit();
    match panic::catch_unwind(|| dispatch(arguments)) {
        Ok(code) => code,
        // The hook has spoken.
        Err(_) => error::FAILED,
    }
}

fn dispatch(arguments: Vec<OsString>) -> u8 {
    let parsed =
        args::command().try_get_matches_from(arguments).and_then(|matches| args::from_matches(&matches));
    let (global, invocation) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return report_usage(&error),
    };
    match run(&global, &invocation) {
        Ok(outcome) => outcome.code(),
        Err(error) => {
            output::stderr_line(&format!("error: {}", error::message(&error)));
            error::exit_code(&error)
        }
    }
}

fn run(global: &Global, invocation: &Invocation) -> anyhow::Result<Outcome> {
    simd::requested().or_bad_input()?;
    if let Some(threads) = global.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    commands::run(invocation, global)
}

/// Prints help and version to stdout (exit code 0) and usage errors to stderr (2).
fn report_usage(error: &clap::Error) -> u8 {
    let text = error.render().to_string();
    if error.use_stderr() {
        output::stderr_line(text.trim_end());
        return error::BAD_INPUT;
    }
    match output::write_stdout(&text) {
        Ok(()) => Outcome::Done.code(),
        Err(error) => {
            output::stderr_line(&format!("error: {error}"));
            error::FAILED
        }
    }
}

/// What a panic says.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "no message",
    }
}

/// One line for users; RUST_BACKTRACE adds the trace for engineers.
fn report_panic(info: &PanicHookInfo<'_>) {
    let what = panic_text(info.payload());
    let place =
        info.location().map(|place| format!(" at {}:{}", place.file(), place.line())).unwrap_or_default();
    output::stderr_line(&format!(
        "error: internal error{place}: {what}; this is a bug in kfc {}, please report it with the command line",
        env!("CARGO_PKG_VERSION")
    ));
    if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
        output::stderr_line(&std::backtrace::Backtrace::force_capture().to_string());
    }
}

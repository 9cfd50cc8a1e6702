//! Ctrl-C: the first asks the work to stop at the next safe point, the second ends the process.

use crate::output;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);
static INSTALL: Once = Once::new();

/// The flag that an interrupt sets; the handler is installed on the first call.
pub fn flag() -> &'static AtomicBool {
    INSTALL.call_once(|| {
        // Without a handler an interrupt ends the process at once, and the last checkpoint is what remains.
        let _ = ctrlc::set_handler(|| {
            if STOP.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            output::stderr_line("stopping after this step; interrupt again to quit at once");
        });
    });
    &STOP
}

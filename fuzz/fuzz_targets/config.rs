//! Any text is a job or an error that names a place, and a job survives printing and reading.
#![no_main]

use kfc::config::{parse, to_toml};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = Path::new("/jobs/job.toml");
    match parse(text, path) {
        Ok(job) => {
            let printed = to_toml(&job);
            match parse(&printed, path) {
                Ok(again) => assert_eq!(again, job, "read back from:\n{printed}"),
                Err(e) => panic!("{e} in what was printed:\n{printed}"),
            }
        }
        Err(e) => assert!(e.to_string().contains("job.toml"), "an error without a place: {e}"),
    }
});

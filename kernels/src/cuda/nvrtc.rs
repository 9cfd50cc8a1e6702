//! NVRTC, CUDA's run-time compiler: a shared library that is looked for when it is first needed.

use super::Arch;
use super::report::{self, Report, SassCounts};
use crate::tile::cuda::HEADERS;
use cudarc::nvrtc::{result, sys};
use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr, c_char};
use std::path::PathBuf;
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

/// Environment variable with the folder of `libnvrtc.so`.
const FOLDER: &str = "KFC_NVRTC";

/// Environment variable with the seconds that compiling one source may take.
const SECONDS: &str = "KFC_NVRTC_SECONDS";

/// Those seconds without it. Kernels take less than one on an idle machine.
const USUAL_SECONDS: u64 = 120;

/// Stack of a thread that compiles: as large as that of a main thread.
const STACK: usize = 8 << 20;

/// Options beside the architecture. Unused: what a program loads or computes and does not need.
pub(super) const OPTIONS: [&str; 4] =
    ["--std=c++17", "--ptxas-options=-v", "--diag-suppress=177", "--diag-suppress=550"];

/// Why nothing was compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NvrtcError {
    /// The library is not there.
    #[error(
        "NVRTC, which compiles CUDA kernels, was not found ({0}). Install a CUDA 13 toolkit, or \
         `pip install nvidia-cuda-nvrtc==13.0.88` and set {FOLDER} to the folder of its libnvrtc.so.13 (nvidia/cu13/lib); \
         in kfc's repository tools/gpu-toolchain.sh does the former"
    )]
    Missing(String),
    /// A call failed.
    #[error("NVRTC failed: {0}")]
    Failed(String),
    /// It takes longer than it may.
    #[error(
        "NVRTC has not compiled a kernel for {arch} in {seconds} s (set {SECONDS} to wait longer). Its thread cannot be ended \
         before the process is: if this comes back, another version of NVRTC may help, or smaller tiles"
    )]
    Endless {
        /// The architecture.
        arch: Arch,
        /// Seconds that it was given.
        seconds: u64,
    },
    /// The source has errors.
    #[error("a kernel does not compile for {arch}:\n{log}")]
    Rejected {
        /// The architecture.
        arch: Arch,
        /// What the compiler says.
        log: String,
    },
}

impl From<result::NvrtcError> for NvrtcError {
    fn from(e: result::NvrtcError) -> NvrtcError {
        NvrtcError::Failed(e.to_string())
    }
}

/// Compiled source.
pub struct Object {
    /// What the driver loads.
    pub cubin: Vec<u8>,
    /// What is known about each kernel.
    pub reports: Vec<Report>,
    /// Warnings.
    pub warnings: Vec<String>,
}

/// The loaded library.
#[derive(Clone, Debug)]
pub struct Nvrtc {
    folder: Option<PathBuf>,
}

impl Nvrtc {
    /// Loads the library once: from the folder that `KFC_NVRTC` names, else from where the system looks for libraries.
    ///
    /// # Errors
    /// [`NvrtcError::Missing`], which says how to get it.
    pub fn load() -> Result<Nvrtc, NvrtcError> {
        Nvrtc::load_from(std::env::var_os(FOLDER).map(PathBuf::from))
    }

    /// [`Nvrtc::load`] from this folder instead. Whichever of the two comes first decides for the whole process.
    ///
    /// # Errors
    /// As of [`Nvrtc::load`].
    pub fn load_from(folder: Option<PathBuf>) -> Result<Nvrtc, NvrtcError> {
        static LOADED: OnceLock<Result<Nvrtc, NvrtcError>> = OnceLock::new();
        LOADED.get_or_init(|| Nvrtc::open(folder)).clone()
    }

    fn open(folder: Option<PathBuf>) -> Result<Nvrtc, NvrtcError> {
        if let Some(folder) = &folder {
            // The second opens the first by its bare name when it compiles, and finds it because it is loaded.
            for name in ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"] {
                let path = folder.join(name);
                // SAFETY: NVIDIA's libraries have no initialisers that depend on this program's state.
                let library = unsafe { libloading::Library::new(&path) };
                let library = library.map_err(|e| NvrtcError::Missing(e.to_string()))?;
                // It stays loaded: its functions are called by address.
                std::mem::forget(library);
            }
        }
        // SAFETY: as above; this opens the library by its bare name.
        if unsafe { sys::is_culib_present() } {
            Ok(Nvrtc { folder })
        } else {
            Err(NvrtcError::Missing(format!("{FOLDER} is not set and the system knows no libnvrtc.so.13")))
        }
    }

    /// The compiler's version, such as `13.0`; empty if it does not say.
    pub fn version(&self) -> String {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both are places for a number.
        let outcome = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
        outcome.result().map_or(String::new(), |()| format!("{major}.{minor}"))
    }

    /// Tensor core instructions of each kernel of a cubin. `None` without `cuobjdump`, which is looked for in the folder
    /// `bin` beside that of the library and on the path.
    pub fn sass_counts(&self, cubin: &[u8]) -> Option<HashMap<String, SassCounts>> {
        report::sass_counts(cubin, self.folder.as_deref())
    }

    /// Compiles source that may include [`HEADERS`], for at most the seconds that `KFC_NVRTC_SECONDS` names, or 120.
    ///
    /// The compiler cannot be stopped: what takes longer goes on in a thread of its own until it, or the process, ends.
    ///
    /// # Errors
    /// [`NvrtcError::Rejected`] with the compiler's messages; [`NvrtcError::Endless`].
    pub fn compile(&self, source: &str, arch: Arch) -> Result<Object, NvrtcError> {
        let seconds = seconds(std::env::var_os(SECONDS).as_deref())?;
        let (own, text) = (self.clone(), source.to_string());
        within(Duration::from_secs(seconds), move || own.compile_now(&text, arch))
            .unwrap_or(Err(NvrtcError::Endless { arch, seconds }))
    }

    fn compile_now(&self, source: &str, arch: Arch) -> Result<Object, NvrtcError> {
        let program = Compilation::new(source)?;
        let arch_option = format!("--gpu-architecture={arch}");
        let options: Vec<&str> = [arch_option.as_str()].into_iter().chain(OPTIONS).collect();
        // SAFETY: the program is alive.
        let outcome = unsafe { result::compile_program(program.0, &options) };
        let log = program.log()?;
        match outcome {
            Err(e) if e.0 == sys::nvrtcResult::NVRTC_ERROR_COMPILATION => {
                return Err(NvrtcError::Rejected { arch, log });
            }
            other => other?,
        }
        let cubin = program.cubin()?;
        Ok(Object { cubin, reports: report::kernels(&log), warnings: report::warnings(&log) })
    }
}

/// The seconds that a source may take, if a user asks for so many.
fn seconds(asked: Option<&OsStr>) -> Result<u64, NvrtcError> {
    let Some(asked) = asked.filter(|s| !s.is_empty()) else { return Ok(USUAL_SECONDS) };
    let number = asked.to_str().and_then(|s| s.parse().ok()).filter(|n| *n > 0);
    number.ok_or_else(|| NvrtcError::Failed(format!("{SECONDS} is {asked:?}, which is no number of seconds")))
}

/// What `work` gives, or nothing if it takes longer; its thread then goes on.
fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (give, take) = mpsc::sync_channel(1);
    let worker = thread::Builder::new().name("nvrtc".into()).stack_size(STACK).spawn(move || {
        // Nobody listens any more if it took too long.
        let _ = give.send(work());
    });
    worker.ok().and_then(|_| take.recv_timeout(limit).ok())
}

/// A program of NVRTC, destroyed at the end.
struct Compilation(sys::nvrtcProgram);

impl Drop for Compilation {
    fn drop(&mut self) {
        // SAFETY: it was created and is destroyed once.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

impl Compilation {
    fn new(source: &str) -> Result<Compilation, NvrtcError> {
        let text = |s: &str| CString::new(s).map_err(|e| NvrtcError::Failed(e.to_string()));
        let source = text(source)?;
        let headers = HEADERS.iter().map(|(name, h)| Ok((text(name)?, text(h)?)));
        let headers = headers.collect::<Result<Vec<(CString, CString)>, NvrtcError>>()?;
        let names: Vec<_> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
        let texts: Vec<_> = headers.iter().map(|(_, text)| text.as_ptr()).collect();
        let mut program: sys::nvrtcProgram = std::ptr::null_mut();
        // SAFETY: all pointers are to strings that end with 0 and live through the call, which copies them.
        let created = unsafe {
            sys::nvrtcCreateProgram(
                &raw mut program,
                source.as_ptr(),
                c"kernel.cu".as_ptr(),
                HEADERS.len() as i32,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        created.result()?;
        Ok(Compilation(program))
    }

    fn log(&self) -> Result<String, NvrtcError> {
        // SAFETY: the program is alive.
        let log: Vec<c_char> = unsafe { result::get_program_log(self.0) }?;
        // SAFETY: NVRTC ends the log with 0.
        Ok(unsafe { CStr::from_ptr(log.as_ptr()) }.to_string_lossy().into_owned())
    }

    fn cubin(&self) -> Result<Vec<u8>, NvrtcError> {
        let mut size = 0;
        // SAFETY: the program is alive.
        unsafe { sys::nvrtcGetCUBINSize(self.0, &raw mut size) }.result()?;
        let mut cubin = vec![0u8; size];
        // SAFETY: the buffer has the size that was asked for.
        unsafe { sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()) }.result()?;
        Ok(cubin)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_is_given_up() {
        assert_eq!(within(Duration::from_secs(60), || 1), Some(1));
        let endless = || loop {
            thread::sleep(Duration::from_millis(1));
        };
        assert_eq!(within::<()>(Duration::from_millis(20), endless), None);
        let error = NvrtcError::Endless { arch: Arch::Sm90a, seconds: 120 }.to_string();
        assert!(error.contains("sm_90a in 120 s") && error.contains("KFC_NVRTC_SECONDS"), "{error}");
    }

    #[test]
    fn seconds_are_a_number() {
        assert_eq!(seconds(None).unwrap(), USUAL_SECONDS);
        assert_eq!(seconds(Some(OsStr::new("7"))).unwrap(), 7);
        for wrong in ["0", "-1", "soon", "1.5"] {
            let error = seconds(Some(OsStr::new(wrong))).unwrap_err().to_string();
            assert!(error.contains("KFC_NVRTC_SECONDS") && error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn a_missing_library_is_an_error_that_says_what_to_do() {
        let error = Nvrtc::open(Some("/nowhere".into())).unwrap_err().to_string();
        assert!(error.contains("KFC_NVRTC") && error.contains("pip install"), "{error}");
    }
}

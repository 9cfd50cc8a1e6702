//! NVIDIA's cuBLASLt, for products that are nothing else: a shared library that is looked for when it is first needed, and may
//! be missing.
//!
//! Only algorithms that sum in one order: no parts of the depth that are added up afterwards, no workspace. One is named by
//! what the library itself says of it, so that the same one runs each time.

use super::CudaError;
use super::driver::{Gpu, Stream};
use cudarc::driver::sys::CUdeviceptr;
use kfc_kernels::tile::ir::Elem;
use kfc_kernels::tile::plain::{Algorithm, Plain};
use libloading::Library;
use std::ffi::{c_int, c_void};
use std::path::PathBuf;
use std::ptr::{from_ref, null, null_mut};
use std::sync::{Arc, OnceLock};

/// Environment variable with the folder of the library.
const FOLDER: &str = "KFC_CUBLASLT";

/// Its file.
const FILE: &str = "libcublasLt.so.13";

/// Algorithms of a product that are tried at most.
const MOST: usize = 4;

/// Buffers begin at multiples of so many bytes.
const ALIGNMENT: u32 = 16;

/// Of cublasComputeType_t: products and sums in f32, also of f32 factors.
const COMPUTE_F32: c_int = 68;
/// Of cudaDataType_t.
const TYPE_F32: c_int = 0;
const TYPE_F16: c_int = 2;
const TYPE_BF16: c_int = 14;
/// Of cublasLtMatmulDescAttributes_t.
const DESC_TRANSA: c_int = 3;
const DESC_TRANSB: c_int = 4;
/// Of cublasLtMatrixLayoutAttribute_t.
const LAYOUT_BATCH_COUNT: c_int = 5;
const LAYOUT_BATCH_OFFSET: c_int = 6;
/// Of cublasLtMatmulPreferenceAttributes_t.
const PREF_WORKSPACE: c_int = 1;
const PREF_REDUCTION: c_int = 3;
const PREF_ALIGNMENTS: [c_int; 4] = [5, 6, 7, 8];
/// Of cublasOperation_t.
const TRANSPOSED: c_int = 1;

/// `cublasLtMatmulAlgo_t`
#[repr(C)]
#[derive(Clone, Copy)]
struct Words([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
#[derive(Clone, Copy)]
struct Proposal {
    words: Words,
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

const NOTHING: Proposal =
    Proposal { words: Words([0; 8]), workspace: 0, state: 0, waves: 0.0, reserved: [0; 4] };

type Handle = *mut c_void;
type Set = unsafe extern "C" fn(Handle, c_int, *const c_void, usize) -> c_int;
type Destroy = unsafe extern "C" fn(Handle) -> c_int;

/// The library's functions.
struct Functions {
    handle: Handle,
    version: usize,
    desc_create: unsafe extern "C" fn(*mut Handle, c_int, c_int) -> c_int,
    desc_set: Set,
    desc_destroy: Destroy,
    layout_create: unsafe extern "C" fn(*mut Handle, c_int, u64, u64, i64) -> c_int,
    layout_set: Set,
    layout_destroy: Destroy,
    pref_create: unsafe extern "C" fn(*mut Handle) -> c_int,
    pref_set: Set,
    pref_destroy: Destroy,
    propose: unsafe extern "C" fn(
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        c_int,
        *mut Proposal,
        *mut c_int,
    ) -> c_int,
    check: unsafe extern "C" fn(
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        *const Words,
        *mut Proposal,
    ) -> c_int,
    #[allow(clippy::type_complexity)]
    run: unsafe extern "C" fn(
        Handle,
        Handle,
        *const c_void,
        *const c_void,
        Handle,
        *const c_void,
        Handle,
        *const c_void,
        *const c_void,
        Handle,
        *mut c_void,
        Handle,
        *const Words,
        *mut c_void,
        usize,
        *mut c_void,
    ) -> c_int,
    // Its functions are called by address.
    _library: Library,
}

// SAFETY: the library's handle may be used by several threads at once.
unsafe impl Send for Functions {}
// SAFETY: as above.
unsafe impl Sync for Functions {}

impl Functions {
    /// Loads it once. Its handle belongs to the context that is current then; a process uses one device.
    fn load() -> Result<&'static Functions, String> {
        static LOADED: OnceLock<Result<Functions, String>> = OnceLock::new();
        LOADED.get_or_init(Functions::open).as_ref().map_err(String::clone)
    }

    fn open() -> Result<Functions, String> {
        let folder = std::env::var_os(FOLDER).filter(|v| !v.is_empty()).map(PathBuf::from);
        let path = folder.map_or_else(|| PathBuf::from(FILE), |f| f.join(FILE));
        let missing = |e: libloading::Error| {
            format!(
                "no cuBLASLt: {} cannot be used ({e}); {FOLDER} names the folder of another one",
                path.display()
            )
        };
        // SAFETY: NVIDIA's library has no initialisers that depend on this program's state.
        let library = unsafe { Library::new(&path) }.map_err(missing)?;
        macro_rules! get {
            ($name:literal) => {
                // SAFETY: the type is that of cublasLt.h.
                *unsafe { library.get(concat!($name, "\0").as_bytes()) }.map_err(missing)?
            };
        }
        let version: unsafe extern "C" fn() -> usize = get!("cublasLtGetVersion");
        let create: unsafe extern "C" fn(*mut Handle) -> c_int = get!("cublasLtCreate");
        let mut handle = null_mut();
        // SAFETY: the place for the handle is valid; it lives as long as the process.
        let status = unsafe { create(&raw mut handle) };
        if status != 0 {
            return Err(format!("cuBLASLt does not start (status {status})"));
        }
        Ok(Functions {
            handle,
            // SAFETY: it takes nothing.
            version: unsafe { version() },
            desc_create: get!("cublasLtMatmulDescCreate"),
            desc_set: get!("cublasLtMatmulDescSetAttribute"),
            desc_destroy: get!("cublasLtMatmulDescDestroy"),
            layout_create: get!("cublasLtMatrixLayoutCreate"),
            layout_set: get!("cublasLtMatrixLayoutSetAttribute"),
            layout_destroy: get!("cublasLtMatrixLayoutDestroy"),
            pref_create: get!("cublasLtMatmulPreferenceCreate"),
            pref_set: get!("cublasLtMatmulPreferenceSetAttribute"),
            pref_destroy: get!("cublasLtMatmulPreferenceDestroy"),
            propose: get!("cublasLtMatmulAlgoGetHeuristic"),
            check: get!("cublasLtMatmulAlgoCheck"),
            run: get!("cublasLtMatmul"),
            _library: library,
        })
    }
}

/// A descriptor of the library.
struct Object {
    at: Handle,
    set: Set,
    destroy: Destroy,
}

// SAFETY: descriptors have no thread affinity, and are only read once they are made.
unsafe impl Send for Object {}
// SAFETY: as above.
unsafe impl Sync for Object {}

impl Object {
    /// Takes over what a function made.
    fn new(make: impl FnOnce(*mut Handle) -> c_int, set: Set, destroy: Destroy) -> Result<Object, String> {
        let mut at = null_mut();
        match make(&raw mut at) {
            0 => Ok(Object { at, set, destroy }),
            status => Err(format!("cuBLASLt refuses a descriptor (status {status})")),
        }
    }

    fn with<T>(self, attribute: c_int, value: T) -> Result<Object, String> {
        // SAFETY: the value has the attribute's type, as cublasLt.h has it.
        match unsafe { (self.set)(self.at, attribute, from_ref(&value).cast(), size_of::<T>()) } {
            0 => Ok(self),
            status => Err(format!("cuBLASLt refuses attribute {attribute} (status {status})")),
        }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: made once, in `new`.
        let _ = unsafe { (self.destroy)(self.at) };
    }
}

/// A product as the library takes it: matrices lie in columns there, so that it computes `cᵀ = bᵀ·aᵀ`.
struct Described {
    functions: &'static Functions,
    desc: Object,
    /// Of b, a and c.
    layouts: [Object; 3],
}

fn data_type(e: Elem) -> c_int {
    match e {
        Elem::Bf16 => TYPE_BF16,
        Elem::F16 => TYPE_F16,
        _ => TYPE_F32,
    }
}

impl Described {
    fn new(p: &Plain) -> Result<Described, String> {
        let f = Functions::load()?;
        let ([m, n, k], [factor, result]) = (p.extents, p.elems.map(data_type));
        let layout = |ty: c_int, rows: usize, columns: usize| {
            // A matrix in rows is its transpose in columns.
            let make = |at| {
                // SAFETY: the place for the descriptor is valid.
                unsafe { (f.layout_create)(at, ty, columns as u64, rows as u64, columns as i64) }
            };
            let object = Object::new(make, f.layout_set, f.layout_destroy)?;
            match p.parts {
                1 => Ok(object),
                parts => object
                    .with(LAYOUT_BATCH_COUNT, parts as i32)?
                    .with(LAYOUT_BATCH_OFFSET, (rows * columns) as i64),
            }
        };
        // SAFETY: as above.
        let make = |at| unsafe { (f.desc_create)(at, COMPUTE_F32, TYPE_F32) };
        let mut desc = Object::new(make, f.desc_set, f.desc_destroy)?;
        let [a_turned, b_turned] = p.turned;
        if b_turned {
            desc = desc.with(DESC_TRANSA, TRANSPOSED)?;
        }
        if a_turned {
            desc = desc.with(DESC_TRANSB, TRANSPOSED)?;
        }
        let b = if b_turned { layout(factor, n, k)? } else { layout(factor, k, n)? };
        let a = if a_turned { layout(factor, k, m)? } else { layout(factor, m, k)? };
        Ok(Described { functions: f, desc, layouts: [b, a, layout(result, m, n)?] })
    }

    fn check(&self, words: &Words) -> Result<(), String> {
        let (f, [b, a, c], mut found) = (self.functions, &self.layouts, NOTHING);
        // SAFETY: all descriptors live, and the place for the result is valid.
        let status =
            unsafe { (f.check)(f.handle, self.desc.at, b.at, a.at, c.at, c.at, words, &raw mut found) };
        match (status, found.workspace) {
            (0, 0) => Ok(()),
            (0, bytes) => {
                Err(format!("cuBLASLt's algorithm takes {bytes} bytes of workspace, none are planned"))
            }
            (status, _) => {
                Err(format!("cuBLASLt does not know this algorithm for the product (status {status})"))
            }
        }
    }
}

/// Algorithms for a product, the library's favourite first.
///
/// # Errors
/// If the library is missing or has none.
pub(crate) fn algorithms(gpu: &Gpu, p: &Plain) -> Result<Vec<Algorithm>, String> {
    gpu.enter().map_err(|e| e.to_string())?;
    let d = Described::new(p)?;
    let (f, [b, a, c]) = (d.functions, &d.layouts);
    // SAFETY: the place for the descriptor is valid.
    let mut pref = Object::new(|at| unsafe { (f.pref_create)(at) }, f.pref_set, f.pref_destroy)?
        .with(PREF_WORKSPACE, 0u64)?
        .with(PREF_REDUCTION, 0u32)?;
    for attribute in PREF_ALIGNMENTS {
        pref = pref.with(attribute, ALIGNMENT)?;
    }
    let (mut found, mut count) = ([NOTHING; MOST], 0);
    // SAFETY: all descriptors live, and there is room for so many results.
    let status = unsafe {
        (f.propose)(
            f.handle,
            d.desc.at,
            b.at,
            a.at,
            c.at,
            c.at,
            pref.at,
            MOST as c_int,
            found.as_mut_ptr(),
            &raw mut count,
        )
    };
    if status != 0 {
        return Err(format!("cuBLASLt has no algorithm for the product (status {status})"));
    }
    let usable = found.iter().take(count.max(0) as usize).filter(|r| r.state == 0 && r.workspace == 0);
    Ok(usable.map(|r| Algorithm { version: f.version, words: r.words.0 }).collect())
}

/// A product that the library does.
pub(super) struct LibraryProduct {
    described: Described,
    words: Words,
    plain: Plain,
    _gpu: Arc<Gpu>,
}

impl LibraryProduct {
    /// The product, done by this algorithm.
    ///
    /// # Errors
    /// If the library is missing, is of another version, or does not know it.
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        plain: Plain,
        algorithm: Algorithm,
    ) -> Result<LibraryProduct, CudaError> {
        gpu.enter()?;
        let made = || {
            let described = Described::new(&plain)?;
            let (is, was) = (described.functions.version, algorithm.version);
            if is != was {
                return Err(format!("cuBLASLt is of version {is}, the algorithm of {was}"));
            }
            let words = Words(algorithm.words);
            described.check(&words)?;
            Ok(LibraryProduct { described, words, plain, _gpu: Arc::clone(gpu) })
        };
        made().map_err(CudaError::Source)
    }

    /// Starts it.
    ///
    /// # Errors
    /// If the library refuses.
    ///
    /// # Safety
    /// The arguments point to buffers of the program's sizes, which live until the stream has passed this.
    pub(super) unsafe fn launch(&self, stream: &Stream, args: &[CUdeviceptr]) -> Result<(), CudaError> {
        let (d, [a, b, c]) = (&self.described, self.plain.params.map(|i| args[i] as *mut c_void));
        let (one, beta) = (1.0f32, if self.plain.adds { 1.0f32 } else { 0.0 });
        let [b_layout, a_layout, c_layout] = &d.layouts;
        // SAFETY: descriptors and factors live; for the buffers see the function's own condition. No workspace is used.
        let status = unsafe {
            (d.functions.run)(
                d.functions.handle,
                d.desc.at,
                from_ref(&one).cast(),
                b,
                b_layout.at,
                a,
                a_layout.at,
                from_ref(&beta).cast(),
                c,
                c_layout.at,
                c,
                c_layout.at,
                &raw const self.words,
                null::<c_void>().cast_mut(),
                0,
                stream.raw(),
            )
        };
        match status {
            0 => Ok(()),
            status => Err(CudaError::Call {
                doing: "starting a product of cuBLASLt",
                what: format!("status {status}"),
            }),
        }
    }
}

//! NVRTC, the CUDA compiler as a library (NVIDIA, "NVRTC" documentation, version 13).
//!
//! Two files: `libnvrtc.so.13` and `libnvrtc-builtins.so.13.0`, which the first opens by bare name while it compiles;
//! it is found because it is opened here beforehand, with its symbols global. Headers are handed over in memory, so
//! that no include path is needed. The log holds the assembler's report, because `--ptxas-options=-v` asks for it.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use crate::library::Library;
use crate::source::HEADERS;
use crate::specialization::Specialization;
use crate::{CudaError, ResourceReport};

type Program = *mut c_void;
type CreateProgram = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type CompileProgram = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type GetSize = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type GetBytes = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type DestroyProgram = unsafe extern "C" fn(*mut Program) -> c_int;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;

/// The machine code of one specialization and the assembler's report on it.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// What the driver loads (`cuModuleLoadData`): an ELF image, or PTX ending in a NUL.
    pub image: Vec<u8>,
    /// Registers, shared memory and spills of each kernel in it.
    pub report: ResourceReport,
}

/// An open NVRTC.
#[derive(Debug, Clone)]
pub struct Nvrtc {
    version: (i32, i32),
    create: CreateProgram,
    compile: CompileProgram,
    log_size: GetSize,
    log: GetBytes,
    cubin_size: GetSize,
    cubin: GetBytes,
    ptx_size: GetSize,
    ptx: GetBytes,
    destroy: DestroyProgram,
}

impl Nvrtc {
    /// Opens NVRTC from `XLSTM_NVRTC`, else from `.nvrtc/lib` of the working directory or one above it, else from
    /// wherever the dynamic loader finds it (PyTorch's wheels bring it too).
    ///
    /// # Errors
    /// [`CudaError::NoNvrtc`] with every place tried, [`CudaError::NoSymbol`] if the library is not what it should be.
    pub fn open() -> Result<Self, CudaError> {
        Self::open_in(&[])
    }

    /// As [`open`](Self::open), with more folders to look in before the dynamic loader is asked.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in(folders: &[PathBuf]) -> Result<Self, CudaError> {
        let mut tried = Vec::new();
        for folder in candidate_folders(folders) {
            match open_pair(&folder) {
                Ok(library) => return Self::from_library(&library),
                Err(message) => tried.push(message),
            }
        }
        Err(CudaError::NoNvrtc { tried: tried.join("; ") })
    }

    fn from_library(library: &Library) -> Result<Self, CudaError> {
        // SAFETY: the types are those of the declarations in nvrtc.h, version 13.
        let nvrtc = unsafe {
            let version: Version = library.function(c"nvrtcVersion")?;
            let (mut major, mut minor) = (0, 0);
            check("nvrtcVersion", version(&raw mut major, &raw mut minor))?;
            Self {
                version: (major, minor),
                create: library.function(c"nvrtcCreateProgram")?,
                compile: library.function(c"nvrtcCompileProgram")?,
                log_size: library.function(c"nvrtcGetProgramLogSize")?,
                log: library.function(c"nvrtcGetProgramLog")?,
                cubin_size: library.function(c"nvrtcGetCUBINSize")?,
                cubin: library.function(c"nvrtcGetCUBIN")?,
                ptx_size: library.function(c"nvrtcGetPTXSize")?,
                ptx: library.function(c"nvrtcGetPTX")?,
                destroy: library.function(c"nvrtcDestroyProgram")?,
            }
        };
        Ok(nvrtc)
    }

    /// Major and minor version, part of every cache key.
    #[must_use]
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Compiles one specialization. May be called from several threads.
    ///
    /// # Errors
    /// [`CudaError::Compile`] with the compiler's log, [`CudaError::Nvrtc`] if the library itself fails.
    pub fn compile(&self, wanted: &Specialization) -> Result<Compiled, CudaError> {
        let source = c_string(wanted.source.text());
        let name = c_string(wanted.source.file_name());
        let headers: Vec<CString> = HEADERS.iter().map(|(_, text)| c_string(text)).collect();
        let header_names: Vec<CString> = HEADERS.iter().map(|(name, _)| c_string(name)).collect();
        let header_count = c_int::try_from(headers.len()).unwrap_or(c_int::MAX);
        let mut program = ProgramGuard { nvrtc: self, program: std::ptr::null_mut() };
        // SAFETY: all strings are NUL-terminated and outlive the call; both arrays hold `header_count` pointers.
        let code = unsafe {
            (self.create)(
                &raw mut program.program,
                source.as_ptr(),
                name.as_ptr(),
                header_count,
                pointers(&headers).as_ptr(),
                pointers(&header_names).as_ptr(),
            )
        };
        check("nvrtcCreateProgram", code)?;
        let options = wanted.options();
        let c_options: Vec<CString> = options.iter().map(|option| c_string(option)).collect();
        let count = c_int::try_from(c_options.len()).unwrap_or(c_int::MAX);
        // SAFETY: the program was created above; the array holds `count` NUL-terminated strings.
        let code = unsafe { (self.compile)(program.program, count, pointers(&c_options).as_ptr()) };
        let log = text(&program.bytes("nvrtcGetProgramLog", self.log_size, self.log)?);
        if code != 0 {
            return Err(CudaError::Compile {
                source_name: wanted.source.file_name(),
                options: options.join(" "),
                code,
                log,
            });
        }
        if wanted.architecture.is_ptx() {
            // The assembler has not run: the kernels' names are all that the report can say.
            let image = program.bytes("nvrtcGetPTX", self.ptx_size, self.ptx)?;
            return Ok(Compiled { image, report: ResourceReport::of_names(wanted.source.kernels()) });
        }
        let image = program.bytes("nvrtcGetCUBIN", self.cubin_size, self.cubin)?;
        Ok(Compiled { image, report: ResourceReport::parse(&log) })
    }
}

/// Destroys the program on every way out.
struct ProgramGuard<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl ProgramGuard<'_> {
    fn bytes(&self, call: &'static str, size: GetSize, get: GetBytes) -> Result<Vec<u8>, CudaError> {
        let mut length = 0;
        // SAFETY: the program is alive, and `length` is a valid place for a size_t.
        check(call, unsafe { size(self.program, &raw mut length) })?;
        let mut bytes = vec![0_u8; length];
        // SAFETY: NVRTC writes exactly the `length` bytes that it announced.
        check(call, unsafe { get(self.program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for ProgramGuard<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: created by nvrtcCreateProgram and destroyed once.
            unsafe { (self.nvrtc.destroy)(&raw mut self.program) };
        }
    }
}

fn check(call: &'static str, code: i32) -> Result<(), CudaError> {
    if code == 0 { Ok(()) } else { Err(CudaError::Nvrtc { call, code }) }
}

/// Sources and options hold no NUL byte; one would end the string there, and the compiler would say so.
fn c_string(text: &str) -> CString {
    let bytes: Vec<u8> = text.bytes().take_while(|byte| *byte != 0).collect();
    CString::new(bytes).unwrap_or_default()
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}

fn text(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes)
        .map_or_else(|_| String::from_utf8_lossy(bytes), CStr::to_string_lossy)
        .into_owned()
}

fn candidate_folders(more: &[PathBuf]) -> Vec<PathBuf> {
    if let Some(folder) = std::env::var_os("XLSTM_NVRTC") {
        return vec![PathBuf::from(folder)];
    }
    let mut folders: Vec<PathBuf> = std::env::current_dir()
        .map(|directory| {
            directory.ancestors().map(|above| above.join(".nvrtc/lib")).filter(|path| path.is_dir()).collect()
        })
        .unwrap_or_default();
    folders.extend_from_slice(more);
    folders.push(PathBuf::new());
    folders
}

/// The builtins first: the compiler finds them by name among the open libraries.
fn open_pair(folder: &Path) -> Result<Library, String> {
    Library::open(&folder.join("libnvrtc-builtins.so.13.0"))?;
    Library::open(&folder.join("libnvrtc.so.13"))
}

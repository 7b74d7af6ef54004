//! Machine code on disk, found by what decides it.
//!
//! The key is a SHA-256 over the source, all headers, the options (sizes, architecture) and NVRTC's version. An
//! entry is two files: `<key>.cubin` (an ELF image, or PTX) and `<key>.txt`, the resource report. Each is written under a temporary name,
//! synced and renamed, the report last: an entry without a report does not exist. Two processes that compile the same
//! kernel at once write the same bytes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::source::HEADERS;
use crate::specialization::Specialization;
use crate::{Compiled, CudaError, Nvrtc, ResourceReport};

/// A folder of compiled kernels.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// A cache in `folder`, which is made when something is first stored.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The user's cache: `XLSTM_KERNEL_CACHE`, else `xlstm-kernels` in `XDG_CACHE_HOME` or `~/.cache`, else in the
    /// folder for temporary files.
    #[must_use]
    pub fn of_user() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = set("XLSTM_KERNEL_CACHE").unwrap_or_else(|| {
            set("XDG_CACHE_HOME")
                .or_else(|| set("HOME").map(|home| home.join(".cache")))
                .unwrap_or_else(std::env::temp_dir)
                .join("xlstm-kernels")
        });
        Self::new(folder)
    }

    /// The key of a specialization under this NVRTC: 64 hex digits.
    #[must_use]
    pub fn key(nvrtc_version: (i32, i32), wanted: &Specialization) -> String {
        let mut digest = Sha256::new();
        let mut part = |bytes: &[u8]| {
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(bytes);
        };
        part(format!("{nvrtc_version:?}").as_bytes());
        part(wanted.source.text().as_bytes());
        for (name, text) in HEADERS {
            part(name.as_bytes());
            part(text.as_bytes());
        }
        for option in wanted.options() {
            part(option.as_bytes());
        }
        digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The machine code of `wanted`: from the cache, or compiled now and stored.
    ///
    /// # Errors
    /// Those of [`Nvrtc::compile`], and [`CudaError::Cache`] if the folder cannot be read or written.
    pub fn get(&self, nvrtc: &Nvrtc, wanted: &Specialization) -> Result<Compiled, CudaError> {
        let key = Self::key(nvrtc.version(), wanted);
        let (code, report) =
            (self.folder.join(format!("{key}.cubin")), self.folder.join(format!("{key}.txt")));
        if let Some(text) = read_if_there(&report)?
            && let Some(report) = ResourceReport::from_text(&String::from_utf8_lossy(&text))
            && let Some(image) = read_if_there(&code)?
        {
            return Ok(Compiled { image, report });
        }
        let compiled = nvrtc.compile(wanted)?;
        std::fs::create_dir_all(&self.folder)
            .map_err(|cause| CudaError::Cache { path: self.folder.clone(), cause })?;
        self.store(&code, &compiled.image)?;
        self.store(&report, compiled.report.to_text().as_bytes())?;
        Ok(compiled)
    }

    fn store(&self, path: &Path, bytes: &[u8]) -> Result<(), CudaError> {
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(())
        };
        write().map_err(|cause| CudaError::Cache { path: path.to_owned(), cause })
    }
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, CudaError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(CudaError::Cache { path: path.to_owned(), cause }),
    }
}

//! safetensors files, written as a whole and read in place.
//!
//! ```text
//! u64 LE header length │ JSON {"name": {"dtype", "shape", "data_offsets"}, "__metadata__": {…}} │ tensors, row by row
//! ```
//! The header is padded with spaces to a multiple of 8, tensors follow in the order of their names. Files are read
//! through a map: the crate's parser checks offsets, sizes and overlaps before any tensor is touched.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use tch::{Device, Kind, Tensor};
use xlstm_manifests::atomic::{AtomicFile, Written};
use xlstm_manifests::mapped::Mapped;

use crate::error::{Result, TrainError};

/// Writes tensors and metadata to `path`, whole or not at all.
///
/// # Errors
/// When a tensor has a type that the format does not know here, or writing fails (a full disk, say).
pub fn write(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[(String, Tensor)],
) -> Result<Written> {
    let mut sorted: Vec<&(String, Tensor)> = tensors.iter().collect();
    sorted.sort_by(|left, right| left.0.cmp(&right.0));
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut offset = 0;
    for (name, tensor) in &sorted {
        let end = offset + tensor.numel() * tensor.kind().elt_size_in_bytes();
        let dtype = dtype_name(path, name, tensor.kind())?;
        let entry =
            serde_json::json!({"dtype": dtype, "shape": tensor.size(), "data_offsets": [offset, end]});
        header.insert(name.clone(), entry);
        offset = end;
    }
    let mut text = serde_json::to_vec(&header).map_err(std::io::Error::other)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let failed = |error: std::io::Error| {
        std::io::Error::new(error.kind(), format!("cannot write `{}`: {error}", path.display()))
    };
    let mut file = AtomicFile::create(path)?;
    file.write_all(&(text.len() as u64).to_le_bytes()).map_err(failed)?;
    file.write_all(&text).map_err(failed)?;
    for (_, tensor) in &sorted {
        let tensor = tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
        file.write_all(bytes(&tensor)).map_err(failed)?;
    }
    Ok(file.commit()?)
}

/// The bytes of a contiguous tensor in memory.
fn bytes(tensor: &Tensor) -> &[u8] {
    debug_assert!(tensor.is_contiguous() && tensor.device() == Device::Cpu);
    let length = tensor.numel() * tensor.kind().elt_size_in_bytes();
    if length == 0 {
        return &[];
    }
    // SAFETY: a contiguous CPU tensor owns `length` initialized bytes at `data_ptr`, and the borrow keeps it alive.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<u8>().cast_const(), length) }
}

fn dtype_name(path: &Path, name: &str, kind: Kind) -> Result<&'static str> {
    Ok(match kind {
        Kind::Float => "F32",
        Kind::Double => "F64",
        Kind::BFloat16 => "BF16",
        Kind::Half => "F16",
        Kind::Int64 => "I64",
        other => {
            let hint = "convert it before saving";
            return Err(TrainError::file(
                path,
                format!("a known type for `{name}`"),
                format!("{other:?}"),
                hint,
            ));
        }
    })
}

/// Longest header that is read: its names and shapes take a few times as much memory.
const MAX_HEADER: u64 = 32 << 20;

struct Entry {
    name: String,
    kind: Kind,
    shape: Vec<i64>,
    range: std::ops::Range<usize>,
}

/// An opened safetensors file.
pub struct TensorFile {
    path: PathBuf,
    map: Mapped,
    metadata: BTreeMap<String, String>,
    entries: Vec<Entry>,
}

impl TensorFile {
    /// Maps `path` and checks its header against its size.
    ///
    /// # Errors
    /// When it is missing, is no safetensors file, was cut short, or holds types that are not used here.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Mapped::open(path)?;
        if map.starts_with(b"PK\x03\x04") || map.starts_with(b"\x80\x02") {
            let hint = "load it with PyTorch and write it with safetensors.torch.save_file(model.state_dict(), FILE, \
                        metadata={\"config\": json.dumps(config)})";
            return Err(TrainError::file(path, "a safetensors file", "a file of torch.save", hint));
        }
        let damaged = |found: String| {
            let hint = "it was cut short or altered, or is none: use another checkpoint or fetch it again";
            TrainError::file(path, "a readable safetensors file", found, hint)
        };
        let length = map.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
        if length > MAX_HEADER {
            return Err(damaged(format!("a header of {length} bytes, of at most {MAX_HEADER}")));
        }
        let (_, header) = SafeTensors::read_metadata(&map).map_err(|error| damaged(error.to_string()))?;
        let content = SafeTensors::deserialize(&map).map_err(|error| damaged(error.to_string()))?;
        let start = map.as_ptr() as usize;
        let mut entries = Vec::new();
        for (name, view) in content.iter() {
            let kind = match view.dtype() {
                Dtype::F32 => Kind::Float,
                Dtype::F64 => Kind::Double,
                Dtype::BF16 => Kind::BFloat16,
                Dtype::F16 => Kind::Half,
                Dtype::I64 => Kind::Int64,
                other => return Err(damaged(format!("`{name}` of type {other:?}"))),
            };
            let shape = view.shape().iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect();
            let first = view.data().as_ptr() as usize - start;
            entries.push(Entry {
                name: name.to_owned(),
                kind,
                shape,
                range: first..first + view.data().len(),
            });
        }
        entries.sort_by(|left, right| left.name.cmp(&right.name));
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { path: path.into(), map, metadata, entries })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The free-text metadata.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        let index = self.entries.binary_search_by(|entry| entry.name.as_str().cmp(name)).ok()?;
        self.entries.get(index)
    }

    /// A tensor's shape; `None` when the file has no such name.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.entry(name).map(|entry| entry.shape.as_slice())
    }

    /// Numbers in all tensors together: the header was compared with the file's size, so they are there.
    #[must_use]
    pub fn numbers(&self) -> u64 {
        self.entries.iter().map(|entry| (entry.range.len() / entry.kind.elt_size_in_bytes()) as u64).sum()
    }

    /// A copy of a tensor on the CPU; `None` when the file has no such name.
    ///
    /// # Errors
    /// When libtorch cannot make it.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(entry) = self.entry(name) else { return Ok(None) };
        Ok(Some(Tensor::f_from_data_size(&self.map[entry.range.clone()], &entry.shape, entry.kind)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_round_trip_and_a_cut_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let values = Tensor::from_slice(&[1.0_f32, -2.0, 3.0, 0.5, 0.0, 7.0]).view([2, 3]);
        let metadata = BTreeMap::from([("k".to_owned(), "v\n".to_owned())]);
        let tensors = [("b".to_owned(), values.tr()), ("a".to_owned(), values.to_kind(Kind::Int64))];
        write(&path, &metadata, &tensors).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.metadata(), &metadata);
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b"]);
        let back = file.tensor("b").unwrap().unwrap();
        assert_eq!(back.size(), [3, 2]);
        assert!(back.equal(&values.tr()));
        assert!(file.tensor("c").unwrap().is_none());
        let content = fs_err::read(&path).unwrap();
        for length in [0, 5, 40, content.len() - 1] {
            fs_err::write(&path, &content[..length]).unwrap();
            assert!(TensorFile::open(&path).is_err(), "{length} bytes");
        }
    }
}

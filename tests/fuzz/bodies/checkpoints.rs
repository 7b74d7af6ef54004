//! A safetensors file: a model, or an error.

use xlstm_manifests::recipe::Precision;
use xlstm_trainer::model::{Placement, import};
use xlstm_trainer::tensor_file::TensorFile;

pub(crate) fn run(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    fs_err::write(&path, data).expect("written");
    if let Ok(file) = TensorFile::open(&path) {
        for name in file.names() {
            let _ = file.tensor(name);
        }
    }
    let placement = Placement::new(tch::Device::Cpu, Precision::Float32, false);
    let Ok(model) = import(&path, placement) else { return };
    // A model that was taken can be computed with.
    let tokens = tch::Tensor::from_slice(&[0_i64, 1]).unsqueeze(0);
    let computed =
        tch::no_grad(|| model.forward(&tokens, None, None).and_then(|(hidden, _)| model.logits(&hidden)));
    assert!(computed.is_ok(), "{:?}", computed.err());
}

//! A configuration or the parameters of a model of transformers (the first byte says which) beside a sound other half: a model,
//! or an error.

use xlstm_manifests::recipe::Precision;
use xlstm_trainer::hugging_face;
use xlstm_trainer::model::{Placement, import};

/// Sound folders: configuration, parameters.
pub(crate) const SOUND: [[&[u8]; 2]; 4] = [
    [
        include_bytes!("../../golden/transformers/llama/config.json"),
        include_bytes!("../../golden/transformers/llama/model.safetensors"),
    ],
    [
        include_bytes!("../../golden/transformers/gpt2/config.json"),
        include_bytes!("../../golden/transformers/gpt2/model.safetensors"),
    ],
    [
        include_bytes!("../../golden/transformers/mamba/config.json"),
        include_bytes!("../../golden/transformers/mamba/model.safetensors"),
    ],
    [
        include_bytes!("../../golden/transformers/rwkv4/config.json"),
        include_bytes!("../../golden/transformers/rwkv4/model.safetensors"),
    ],
];

pub(crate) fn run(data: &[u8]) {
    let Some((&which, content)) = data.split_first() else { return };
    let which = usize::from(which) % (2 * SOUND.len());
    let mut halves = SOUND[which / 2];
    halves[which % 2] = content;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("imported");
    for (name, content) in ["config.json", "model.safetensors"].iter().zip(halves) {
        fs_err::write(folder.path().join(name), content).expect("written");
    }
    if hugging_face::import(folder.path(), None, &output).is_err() {
        assert!(!output.exists(), "a refused model leaves no file");
        return;
    }
    // A model that was taken can be computed with.
    let placement = Placement::new(tch::Device::Cpu, Precision::Float32, false);
    let model = import(&output, placement).expect("what was written is read");
    let tokens = tch::Tensor::from_slice(&[0_i64, 1]).unsqueeze(0);
    let computed =
        tch::no_grad(|| model.forward(&tokens, None, None).and_then(|(hidden, _)| model.logits(&hidden)));
    assert!(computed.is_ok(), "{:?}", computed.err());
}

//! Dropout of every form of block: by its seed alone, and about the loss without.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use tch::{Device, Kind, Tensor};
use xlstm_manifests::order::StepRow;
use xlstm_manifests::recipe::{BlockKind, ModelConfig, Precision, RecurrentInit, Training, XlstmConfig};
use xlstm_trainer::model::{Dropout, Model, Placement, TargetCount, TrainingCall};

fn config() -> XlstmConfig {
    let mut config = XlstmConfig {
        vocabulary_size: 40,
        embedding_dim: 16,
        blocks: 3,
        slstm_at: vec![1],
        ..XlstmConfig::default()
    };
    config.slstm.recurrent_init = RecurrentInit::Standard;
    config
}

fn placement() -> Placement {
    xlstm_bridge::runtime::initialize(Some(1)).unwrap();
    Placement { kind: Kind::Double, ..Placement::new(Device::Cpu, Precision::Float32, false) }
}

fn tokens(batch: i64, time: i64) -> Tensor {
    let ids: Vec<i64> = (0..batch * time).map(|i| (i * 7 + i / 5) % 40).collect();
    Tensor::from_slice(&ids).view([batch, time])
}

/// What is dropped out is a share of what blocks add, drawn by the seed, and nothing outside of training.
#[test]
fn dropout_is_drawn_by_its_seed_and_changes_nothing_else() {
    let mut every: Vec<ModelConfig> = vec![config().into()];
    let mut post = config();
    post.slstm_at = vec![];
    post.mlstm.block = BlockKind::PostUpProjection;
    every.push(post.into());
    every.extend(["architecture = \"lstm\"\nform = \"block\"", "architecture = \"llama\"\nheads = 2"].map(
        |text| {
            toml::from_str(&format!("{text}\nvocabulary_size = 40\nembedding_dim = 16\nblocks = 2")).unwrap()
        },
    ));
    for config in every {
        let model = Model::new(&config, placement(), 3).unwrap();
        let (inputs, targets) = (tokens(4, 12), tokens(4, 12));
        let loss = |dropout| {
            let count = TargetCount::Known(48);
            let call = TrainingCall { resets_BT: None, count, dropout, z_loss: 0.0 };
            let output = model.training_loss(&inputs, &targets, &call).unwrap();
            f64::try_from(output.minimized.detach()).unwrap()
        };
        let rows: Vec<StepRow> = (0..4).map(|row| StepRow { epoch: 0, row }).collect();
        let drawn = |dropout, dropout_seed| {
            let training = Training { dropout, dropout_seed, ..Training::default() };
            loss(Dropout::of_step(&training, 1, &rows, 4, Device::Cpu).unwrap())
        };
        let name = config.architecture_name();
        assert_eq!(drawn(0.3, 1), drawn(0.3, 1), "{name}");
        assert_ne!(drawn(0.3, 1), drawn(0.3, 2), "{name}");
        assert_ne!(drawn(0.3, 1), loss(None), "{name}");
        assert_eq!(drawn(0.0, 1), loss(None), "{name}");
        // The rest is scaled up: the mean of a first-order effect stays, so many draws lie around the loss without.
        let draws: Vec<f64> = (0..40).map(|seed| drawn(0.02, seed)).collect();
        let mean = draws.iter().sum::<f64>() / 40.0;
        let spread = (draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / 39.0).sqrt();
        assert!((mean - loss(None)).abs() < spread, "{name}: {mean} around {} ± {spread}", loss(None));
    }
}

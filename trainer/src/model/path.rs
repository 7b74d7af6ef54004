//! Who computes: the one place that decides.
//!
//! Loss, validation, evaluation, the plan of memory and the first lines of a run all ask here, so that they cannot
//! disagree. The answer is a query of what the fused kernels can do (`xlstm_kernels::cuda::supports`, and each
//! network's sizes): it changes when they learn more.
//!
//! | path | device | asked for |
//! |---|---|---|
//! | fused GPU kernels | CUDA | bf16 products, and nothing that these kernels lack |
//! | kernels between libtorch's products | CUDA | bf16 products of the other methods, and a kernel for their recurrence |
//! | CPU kernels | CPU | float32 |
//! | libtorch's operations | any | everything else; on a GPU recurrences may have kernels between them |

use std::fmt;

use tch::{Device, Kind};
use xlstm_kernels::cuda::{self, RecurrenceBy};
use xlstm_manifests::recipe::{ComputePath, ModelConfig};

use super::Placement;
use super::network::network;
use crate::error::Result;

/// What a forward pass asks for besides its result.
#[derive(Debug, Clone, Copy, Default)]
pub struct Need {
    /// Documents are told apart: states are cleared where one begins.
    pub resets: bool,
    /// Something is added to the loss (`training.z_loss`).
    pub z_loss: bool,
}

/// The decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Who computes.
    pub path: ComputePath,
    /// On a GPU, why it is not the fused kernels.
    pub obstacle: Option<String>,
    /// On a GPU beside libtorch's operations: who computes the recurrence, or why it goes step by step; `None` where there is
    /// none.
    pub recurrence: Option<std::result::Result<RecurrenceBy, String>>,
    /// Why the loss is computed by libtorch's operations where the blocks are not.
    pub loss_obstacle: Option<&'static str>,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.path, &self.obstacle) {
            (ComputePath::FusedGpu, _) => write!(f, "fused GPU kernels"),
            (ComputePath::GpuKernels, None) => write!(f, "libtorch's products, kernels between them"),
            (ComputePath::GpuKernels, Some(obstacle)) => {
                write!(f, "libtorch's products, kernels between them but for {obstacle}")
            }
            (ComputePath::CpuKernels, _) => write!(f, "CPU kernels"),
            (ComputePath::Operations, Some(obstacle)) => write!(f, "libtorch's operations ({obstacle})"),
            (ComputePath::Operations, None) => write!(f, "libtorch's operations"),
        }?;
        match &self.recurrence {
            Some(Ok(RecurrenceBy::Kernel)) => write!(f, "; its recurrence by a kernel"),
            Some(Ok(RecurrenceBy::LibraryLstm)) => write!(f, "; its recurrence by libtorch's LSTM (cuDNN)"),
            Some(Err(obstacle)) => write!(f, "; its recurrence by libtorch's operations too ({obstacle})"),
            None => Ok(()),
        }?;
        match self.loss_obstacle {
            Some(obstacle) => write!(f, "; the loss by libtorch's operations ({obstacle})"),
            None => Ok(()),
        }
    }
}

/// Who computes this model here.
///
/// # Errors
/// When a GPU cannot be opened.
pub fn choose(config: &ModelConfig, placement: Placement, need: Need) -> Result<Decision> {
    let Placement { device, kind, products, .. } = placement;
    let loss_obstacle = need.z_loss.then_some("training.z_loss has no kernel");
    let decided = |path| Decision { path, obstacle: None, recurrence: None, loss_obstacle };
    let recurrence = match device {
        Device::Cuda(_) => network(config).recurrence(need.resets),
        _ => None,
    };
    let recurrence = recurrence.map(|recurrence| cuda::supports_recurrence(device, kind, recurrence));
    let between = between_products(config, placement, recurrence.as_ref());
    let operations =
        |obstacle| Decision { path: ComputePath::Operations, obstacle, recurrence, loss_obstacle: None };
    Ok(match device {
        Device::Cpu if kind == Kind::Float && products.is_none() => decided(ComputePath::CpuKernels),
        Device::Cuda(_) if let Some(between) = between => match between.supports_width() {
            Ok(()) => Decision {
                path: ComputePath::GpuKernels,
                loss_obstacle,
                ..operations(between.supports_heads().err())
            },
            obstacle => operations(obstacle.err()),
        },
        Device::Cuda(_) => match fused_obstacle(config, placement, need)? {
            None => decided(ComputePath::FusedGpu),
            obstacle => operations(obstacle),
        },
        _ => operations(None),
    })
}

/// What kernels compute between libtorch's products, where they do, the recurrence included where there is one.
fn between_products(
    config: &ModelConfig,
    placement: Placement,
    recurrence: Option<&std::result::Result<RecurrenceBy, String>>,
) -> Option<cuda::BetweenProducts> {
    let half = placement.kind == Kind::Float && placement.products == Some(Kind::BFloat16);
    let recurrent = recurrence.is_none_or(std::result::Result::is_ok);
    let asked = half && recurrent && cuda::enabled(placement.device);
    if asked { network(config).between_products() } else { None }
}

fn fused_obstacle(config: &ModelConfig, placement: Placement, need: Need) -> Result<Option<String>> {
    let request =
        cuda::Request { parameters: placement.kind, products: placement.products, resets: need.resets };
    network(config).fused_obstacle(placement.device, &request)
}

#[cfg(test)]
mod tests {
    use xlstm_kernels::cuda::FusedCell;
    use xlstm_manifests::recipe::{Precision, XlstmConfig};

    use super::*;

    fn decide(model: &ModelConfig, device: Device, precision: Precision, need: Need) -> Decision {
        choose(model, Placement::new(device, precision, false), need).unwrap()
    }

    #[test]
    fn on_a_cpu_the_type_decides() {
        let model = ModelConfig::default();
        let need = Need { resets: true, ..Need::default() };
        let path = |precision| decide(&model, Device::Cpu, precision, need).path;
        assert_eq!(path(Precision::Float32), ComputePath::CpuKernels);
        assert_eq!(path(Precision::Bfloat16), ComputePath::Operations);
    }

    /// What was asked for decides before the GPU is opened, so there need not be one.
    #[test]
    fn what_the_fused_kernels_lack_is_computed_by_libtorch_and_said() {
        let scalar = XlstmConfig { blocks: 2, slstm_at: vec![0, 1], ..XlstmConfig::default() };
        let matrix = XlstmConfig { blocks: 2, slstm_at: vec![], ..XlstmConfig::default() };
        for (model, cell) in [(scalar, FusedCell::Slstm), (matrix, FusedCell::Mlstm)] {
            let model = ModelConfig::from(model);
            for (precision, resets) in [(Precision::Bfloat16, true), (Precision::Float32, false)] {
                let placement = Placement::new(Device::Cuda(0), precision, false);
                let Placement { kind: parameters, products, .. } = placement;
                let request = cuda::Request { parameters, products, resets };
                let Err(obstacle) = cuda::supports(placement.device, cell, &request) else { continue };
                let found = decide(&model, Device::Cuda(0), precision, Need { resets, ..Need::default() });
                assert_eq!(found.path, ComputePath::Operations);
                assert_eq!(found.to_string(), format!("libtorch's operations ({obstacle})"));
            }
        }
    }

    #[test]
    fn the_other_methods_have_kernels_between_products_in_bf16() {
        for name in
            ["gpt3", "llama", "mamba", "rwkv4", "rwkv6", "retnet", "gla", "hgrn", "hgrn2", "h3", "hyena"]
        {
            let model = xlstm_manifests::recipe::load(&format!("table1-small/{name}"), &[]).unwrap().model;
            let decide = |precision| decide(&model, Device::Cuda(0), precision, Need::default());
            let found = decide(Precision::Bfloat16);
            assert_eq!(found.path, ComputePath::GpuKernels, "{name}: {found}");
            assert!(found.to_string().starts_with("libtorch's products, kernels between them"), "{found}");
            assert_eq!(decide(Precision::Float32).path, ComputePath::Operations, "{name}");
        }
    }

    #[test]
    fn a_wide_lstm_is_left_to_cudnn_unless_documents_begin_within() {
        // The plan of memory and the layers have the same border.
        let border = xlstm_manifests::recipe::architecture::LstmConfig::KERNEL_UNITS;
        assert_eq!(i64::try_from(border), Ok(xlstm_kernels::lstm::KERNEL_UNITS));
        let said = |name: &str, precision, resets| {
            let model = xlstm_manifests::recipe::load(name, &[]).unwrap().model;
            let need = Need { resets, ..Need::default() };
            let found = decide(&model, Device::Cuda(0), precision, need);
            (found.path, found.to_string())
        };
        let between = "libtorch's products, kernels between them; its recurrence by libtorch's LSTM (cuDNN)";
        for name in [
            "table2-lstm-to-xlstm/lstm",
            "table2-lstm-to-xlstm/lstm-residual",
            "table2-small/lstm-up-projection",
        ] {
            let found = said(name, Precision::Bfloat16, false);
            assert_eq!(found, (ComputePath::GpuKernels, between.to_owned()), "{name}");
        }
        let (path, single) = said("table2-small/lstm", Precision::Float32, false);
        assert_eq!(path, ComputePath::Operations);
        assert!(single.ends_with("; its recurrence by libtorch's LSTM (cuDNN)"), "{single}");
        let (path, bounded) = said("table2-small/lstm", Precision::Bfloat16, true);
        assert_eq!(path, ComputePath::GpuKernels);
        assert!(bounded.ends_with("; its recurrence by a kernel"), "{bounded}");
        let (path, wide) = said("table2-lstm-to-xlstm/lstm", Precision::Bfloat16, true);
        assert_eq!(path, ComputePath::Operations);
        assert!(
            wide.contains("by libtorch's operations too (documents that begin within sequences"),
            "{wide}"
        );
    }

    #[test]
    fn sizes_that_kernels_between_products_lack_are_named() {
        let said = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
            let recipe = xlstm_manifests::recipe::load("table1-small/hgrn", &overrides).unwrap();
            decide(&recipe.model, Device::Cuda(0), Precision::Bfloat16, Need::default()).to_string()
        };
        let wide = said(&["model.embedding_dim=768"]);
        let expected = "libtorch's products, kernels between them but for norms of heads of 768; kernels take powers of two \
                        from 16 to 1024; its recurrence by a kernel";
        assert_eq!(wide, expected);
        let odd = said(&["model.embedding_dim=516"]);
        assert!(odd.starts_with("libtorch's operations (a width of 516;"), "{odd}");
    }

    #[test]
    fn options_without_a_kernel_are_named() {
        let model = ModelConfig::from(XlstmConfig { slstm_at: vec![], ..XlstmConfig::default() });
        let z_loss = Need { z_loss: true, ..Need::default() };
        let said = choose(&model, Placement::new(Device::Cpu, Precision::Float32, false), z_loss).unwrap();
        let expected = "CPU kernels; the loss by libtorch's operations (training.z_loss has no kernel)";
        assert_eq!(said.to_string(), expected);
    }

    #[test]
    fn blocks_without_a_convolution_are_computed_by_the_fused_kernels() {
        let said = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
            let recipe = xlstm_manifests::recipe::load("table2-small/no-convolution", &overrides).unwrap();
            decide(&recipe.model, Device::Cuda(0), Precision::Bfloat16, Need::default())
        };
        assert_eq!(said(&[]).path, ComputePath::FusedGpu);
        let other = said(&["model.mlstm.convolution=3"]);
        assert_eq!(other.path, ComputePath::Operations, "{other}");
    }

    #[test]
    fn models_of_numbers_are_computed_by_the_fused_kernels() {
        let recipe = xlstm_manifests::recipe::load("figure2-nearest/1to0", &[]).unwrap();
        let said = decide(&recipe.model, Device::Cuda(0), Precision::Bfloat16, Need::default());
        assert_eq!(said.path, ComputePath::FusedGpu, "{said}");
    }

    /// Sizes of the sLSTM are asked of the GPU, which need not be there; what its blocks can is known without.
    #[test]
    fn document_boundaries_are_computed_by_the_fused_kernels() {
        let need = Need { resets: true, ..Need::default() };
        let model = ModelConfig::from(XlstmConfig { slstm_at: vec![], ..XlstmConfig::default() });
        assert_eq!(decide(&model, Device::Cuda(0), Precision::Bfloat16, need).path, ComputePath::FusedGpu);
        let (parameters, products) = (Kind::Float, Some(Kind::BFloat16));
        let request = cuda::Request { parameters, products, resets: true };
        assert_eq!(cuda::supports(Device::Cuda(0), FusedCell::Slstm, &request), Ok(()));
    }
}

//! Datasets of the catalog, on the Hub.
use super::request::{Common, PalomaRequest, SlimPajamaRequest};
use super::Context;
use crate::plan::Plan;
use xlstm_manifests::manifest::Tokenizer;
pub(super) fn slimpajama(_: &SlimPajamaRequest, _: &Common, _: &Context, _: &Tokenizer) -> anyhow::Result<Vec<Plan>> { anyhow::bail!("x") }
pub(super) fn paloma(_: &PalomaRequest, _: &Common, _: &Context, _: &Tokenizer) -> anyhow::Result<Vec<Plan>> { anyhow::bail!("x") }

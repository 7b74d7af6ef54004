//! What a run needs: parameters, memory by part, tokens, time, and who computes. `--dry-run` prints it.

use xlstm_manifests::mixed_rows::{Mixture, Part};
use xlstm_manifests::printable;
use xlstm_manifests::recipe::{ComputePath, MemoryEstimate, ModelSize, Recipe};
use xlstm_manifests::rows::Readable as _;

use crate::device::{DeviceInfo, measured_rate};
use crate::error::{Result, TrainError};
use crate::metrics::peak_operations;
use crate::model::{Decision, Need, Placement, choose};

/// Share of a device's memory that is planned with.
pub(super) const USABLE: f64 = 0.8;

/// Rows that one rank computes at a time: the recipe's, or as many of `rows` as fit on the device by estimate.
///
/// # Errors
/// When parameters, gradients and moments alone do not fit.
pub fn micro_batch_rows(recipe: &Recipe, rows: u64, row_length: u64, device: &DeviceInfo) -> Result<u64> {
    rows_that_fit(recipe, rows, row_length, device, compute_path(recipe, device)?.path)
}

/// As [`micro_batch_rows`], where it is known who computes.
pub(super) fn rows_that_fit(
    recipe: &Recipe,
    rows: u64,
    row_length: u64,
    device: &DeviceInfo,
    path: ComputePath,
) -> Result<u64> {
    let estimate = |rows: u64| MemoryEstimate::of(recipe, rows * row_length, path);
    let budget = device.memory.map_or(u64::MAX, |memory| (memory as f64 * USABLE) as u64);
    let least = estimate(1);
    let fixed = least.parameters + least.gradients + least.optimizer;
    if fixed > budget {
        return Err(TrainError::Usage(format!(
            "the model needs {} for parameters, gradients and moments, `{}` has {} to use: choose a smaller recipe or \
             a larger device",
            gibibytes(fixed),
            device.name,
            gibibytes(budget),
        )));
    }
    if recipe.training.micro_batch_rows > 0 {
        return Ok(recipe.training.micro_batch_rows.min(rows.max(1)));
    }
    // More tokens do not speed up a CPU, and large buffers cost page faults.
    let max_tokens = if matches!(device.device, tch::Device::Cpu) { 2 * 2048 } else { 64 * 2048 };
    let max_rows = (max_tokens / row_length.max(1)).max(1);
    let fits = (1..=rows.clamp(1, max_rows)).rev().find(|&rows| estimate(rows).total() <= budget);
    // The fewest micro-batches that fit, of about equal size.
    let count = rows.max(1).div_ceil(fits.unwrap_or(1));
    Ok(rows.max(1).div_ceil(count))
}

/// Who computes the steps of this recipe on this device.
///
/// # Errors
/// When a GPU cannot be opened.
pub fn compute_path(recipe: &Recipe, device: &DeviceInfo) -> Result<Decision> {
    let training = &recipe.training;
    let need = Need { resets: training.reset_at_document_boundaries, z_loss: training.z_loss > 0.0 };
    choose(&recipe.model, Placement::of(recipe, device.device), need)
}

/// The memory of a micro-batch of `tokens` tokens on this device.
///
/// # Errors
/// When a GPU cannot be opened.
pub fn memory_estimate(recipe: &Recipe, tokens: u64, device: &DeviceInfo) -> Result<MemoryEstimate> {
    Ok(MemoryEstimate::of(recipe, tokens, compute_path(recipe, device)?.path))
}

/// Bytes as GiB.
fn gibibytes(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

/// What computes, how it is cut, and how long it takes.
pub(super) struct Plan {
    /// Name of the device, for people.
    pub(super) device: String,
    /// Who computes.
    pub(super) decision: Decision,
    /// Rows that a rank computes at a time.
    pub(super) micro: u64,
    /// Ranks that share a step.
    pub(super) ranks: u64,
    /// How long all steps take.
    pub(super) time: Time,
}

/// How long a run takes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Time {
    /// At this rate of its tokens.
    Of { tokens_per_second: f64, source: String },
    /// At this rate of its operations.
    About { operations_per_second: f64, source: String },
    /// No less than at this rate of its operations.
    AtLeast { operations_per_second: f64, source: String },
    /// Nothing tells.
    Unknown(String),
}

impl Time {
    fn text(&self, tokens: u64, operations: f64) -> String {
        match self {
            Self::Of { tokens_per_second, source } => {
                format!("{} at {source}", duration(tokens as f64 / tokens_per_second))
            }
            Self::About { operations_per_second, source } => {
                format!("{} at {source}", duration(operations / operations_per_second))
            }
            Self::AtLeast { operations_per_second, source } => {
                format!("at least {} at {source}", duration(operations / operations_per_second))
            }
            Self::Unknown(why) => format!("not known: {why}"),
        }
    }
}

/// The plan as text.
///
/// # Errors
/// When the recipe does not fit the dataset or the device.
pub fn describe(recipe: &Recipe, train: &Mixture, device: &DeviceInfo) -> Result<String> {
    let row_length = u64::from(train.packing().row_length);
    let rows = recipe.rows_per_step(row_length)?;
    let micro = micro_batch_rows(recipe, rows, row_length, device)?;
    let decision = compute_path(recipe, device)?;
    let (operations_per_second, source) = match peak_operations(&device.name) {
        Some(peak) => (peak * 0.4, "40 % of the device's bf16 peak".to_owned()),
        None => {
            let rate = measured_rate(device.device)?;
            (rate, format!("the device's float32 matrix rate now, {:.0} GFLOP/s: a lower bound", rate / 1e9))
        }
    };
    let time = Time::About { operations_per_second, source };
    written(recipe, train, &Plan { device: device.name.clone(), decision, micro, ranks: 1, time })
}

/// A plan as text.
///
/// # Errors
/// When the recipe does not fit the dataset.
pub(super) fn written(recipe: &Recipe, train: &Mixture, plan: &Plan) -> Result<String> {
    let row_length = u64::from(train.packing().row_length);
    let Plan { device, decision, micro, ranks, time } = plan;
    let size = ModelSize::of(&recipe.model);
    let rows = recipe.rows_per_step(row_length)?;
    let memory = MemoryEstimate::of(recipe, micro * row_length, decision.path);
    let tokens = recipe.training.tokens_per_step * recipe.training.steps;
    let operations = recipe.operations_per_token() as f64 * tokens as f64;
    let of_a_rank = if *ranks > 1 { format!(" on each of {ranks} ranks") } else { String::new() };
    let clipping = match recipe.optimizer.clip_norm {
        0.0 => "none: gradients are taken as they are (optimizer.clip_norm = 0)".to_owned(),
        norm => format!("gradients of a larger norm than {norm}"),
    };
    let mut lines = vec![
        format!("recipe           {}", recipe.name),
        format!("model            {}", recipe.model.label()),
        format!("device           {device}"),
        format!("kernels          {decision}"),
    ];
    lines.extend(data(train));
    lines.extend([
        format!("parameters       {} ({} in matrix products)", size.parameters, size.product_parameters),
        format!(
            "tokens           {tokens} in {} steps of {rows} rows ({} tokens)",
            recipe.training.steps, recipe.training.tokens_per_step
        ),
        format!("passes           {}", passes(train, tokens)),
        format!("schedule         {}", recipe.schedule_label()),
        format!("clipping         {clipping}"),
        format!(
            "micro-batch      {micro} rows, {} a step{of_a_rank}",
            rows.div_ceil(*ranks).div_ceil(*micro)
        ),
        format!("memory           {} by estimate{of_a_rank}", gibibytes(memory.total())),
        format!("  parameters     {}", gibibytes(memory.parameters)),
        format!("  gradients      {}", gibibytes(memory.gradients)),
        format!("  moments        {}", gibibytes(memory.optimizer)),
        format!("  activations    {}", gibibytes(memory.activations)),
        format!("  logits         {}", gibibytes(memory.logits)),
        format!("operations       {operations:.3e} ({})", recipe.model.formula()),
        format!("time             {}", time.text(tokens, operations)),
    ]);
    lines.extend(options(recipe));
    // Names of recipes and datasets are anything.
    Ok(lines.iter().map(|line| printable::text(line)).collect::<Vec<_>>().join("\n"))
}

/// The datasets; those of a mixture with their shares.
fn data(train: &Mixture) -> Vec<String> {
    let text = |part: &Part| {
        let manifest = part.data.manifest();
        let (profile, split, tokens) = (&manifest.source.profile, &manifest.split, manifest.totals.tokens);
        format!("{profile} ({split}), {tokens} tokens, root {}", manifest.root)
    };
    if let [only] = train.parts() {
        return vec![format!("data             {}", text(only))];
    }
    let (count, epoch) = (train.parts().len(), train.epoch());
    let first = format!(
        "data             mixture of {count} datasets, {} tokens, root {}; shares are exact in every {epoch} rows",
        train.tokens(),
        train.root()
    );
    let each = train.parts().iter();
    let each = each.map(|part| format!("  {:<14} {}", format!("{} of {epoch}", part.weight), text(part)));
    std::iter::once(first).chain(each).collect()
}

/// How often a run over so many tokens goes through each dataset.
fn passes(train: &Mixture, tokens: u64) -> String {
    let passes = |part: &Part| match part.data.manifest().totals.tokens {
        0 => "none: the split has no token".to_owned(),
        all => format!("{:.2}", tokens as f64 * part.weight as f64 / train.epoch() as f64 / all as f64),
    };
    let each: Vec<String> = train.parts().iter().map(passes).collect();
    match (each.as_slice(), train.tokens()) {
        ([only], 0) => only.clone(),
        ([only], _) => format!("{only} over the data"),
        (each, _) => format!("{} over the datasets in turn", each.join(", ")),
    }
}

/// What a recipe adds to the paper's training, where it adds something.
fn options(recipe: &Recipe) -> Vec<String> {
    let (training, checkpoint) = (&recipe.training, &recipe.checkpoint);
    let mut lines = Vec::new();
    if training.has_dropout() {
        let (embedding, residual) = (training.embedding_dropout, training.dropout);
        lines.push(format!("dropout          {embedding} of the embedding, {residual} of each branch"));
    }
    if training.z_loss > 0.0 {
        lines.push(format!("z-loss           {}; logged losses are without it", training.z_loss));
    }
    if recipe.model.tied_embedding() {
        lines.push("output           the token embedding (model.tied_embedding)".into());
    }
    if checkpoint.every_minutes > 0.0 {
        lines.push(format!("checkpoints      every {} minutes too", checkpoint.every_minutes));
    }
    if checkpoint.keep_best {
        lines.push("best             the checkpoint of the lowest validation loss is kept".into());
    }
    lines
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

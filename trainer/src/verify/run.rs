//! The links of a run: its manifest, recipe, metrics, checkpoints, datasets.

use std::path::Path;

use xlstm_manifests::canonical;
use xlstm_manifests::order::Order;
use xlstm_manifests::recipe::{self, ModelSize, Recipe};

use super::figures::contradictions;
use super::{Chain, Depth, differ};
use crate::checkpoint::MODEL_NAME;
use crate::error::Result;
use crate::provenance::{CheckpointLink, RunLinks};

/// Follows all links of the run in `folder`.
///
/// # Errors
/// When there is no run manifest to begin with, or a folder cannot be listed. What does not hold is a failed link.
pub fn verify_run(folder: &Path, depth: &Depth) -> Result<Chain> {
    let mut chain = Chain::default();
    chain.run_links(&RunLinks::read(folder, &depth.data)?, depth)?;
    Ok(chain)
}

/// The most rows of a run whose steps are counted: a trillion tokens in rows of 2048. What a file says of itself beyond them
/// would decide memory and time.
const MAX_ROWS: u64 = 1 << 29;

/// Tokens after each step up to the last one that left anything: a step with a dataset's last row may have fewer. Where that
/// would be more rows than any run has, what is wrong.
fn tokens_so_far(run: &RunLinks) -> std::result::Result<Vec<u64>, String> {
    let logged = run.lines.iter().flatten().map(|line| line.step);
    let saved = run.checkpoints.iter().map(|checkpoint| checkpoint.step);
    let last = logged.chain(saved).max().unwrap_or(0);
    let most = MAX_ROWS / run.manifest.order.rows_per_step.max(1);
    if last > most {
        let rows = run.manifest.order.rows_per_step;
        return Err(format!("expected at most {most} steps of {rows} rows, found step {last}"));
    }
    let mut sum = 0;
    let steps = (1..=last).map(|step| {
        sum += run.manifest.order.tokens_of_step(step);
        sum
    });
    Ok(std::iter::once(0).chain(steps).collect())
}

impl Chain {
    /// Follows the links of a run that was read.
    pub(super) fn run_links(&mut self, run: &RunLinks, depth: &Depth) -> Result<()> {
        let recipe = recipe::load(&run.recipe.path.display().to_string(), &[]).ok();
        self.run_manifest(run, recipe.as_ref());
        self.file("recipe", &run.recipe);
        let so_far = tokens_so_far(run).unwrap_or_else(|wrong| {
            self.failed("steps", &run.manifest_file(), wrong);
            Vec::new()
        });
        self.checkpoints(run, &so_far);
        if let Some(recipe) = &recipe {
            self.metrics(run, recipe, &so_far);
            if depth.deep {
                self.figure(run, recipe)?;
            }
        }
        for data in run.train.iter().chain(&run.validation) {
            self.dataset(data, depth);
        }
        run.initial.as_ref().map_or(Ok(()), |initial| self.initial(initial, depth))
    }

    fn run_manifest(&mut self, links: &RunLinks, recipe: Option<&Recipe>) {
        let (path, run) = (links.manifest_file(), &links.manifest);
        let mut wrong = Vec::new();
        // It is written in one form only: a reader that accepts another one could be shown two.
        match (fs_err::read(&path), canonical::to_canonical_file(run)) {
            (Ok(found), Ok(expected)) if found == expected => {}
            (Ok(_), Ok(_)) => wrong.push("expected canonical JSON, found another spelling".to_owned()),
            (Err(error), _) => wrong.push(error.to_string()),
            (_, Err(error)) => wrong.push(error.to_string()),
        }
        let order = &run.order;
        differ(&mut wrong, "version", &run.version_needed(), &run.version);
        differ(&mut wrong, "order.root, the training root,", &run.train.root, &order.root);
        differ(&mut wrong, "order.rows", &run.train.rows, &order.rows);
        differ(&mut wrong, "order.tokens", &run.train.tokens, &order.tokens);
        let whole = Order::of(&order.datasets(), order.row_length, order.seed, order.rows_per_step);
        differ(&mut wrong, "order.root, of datasets and weights,", &whole.root, &order.root);
        differ(&mut wrong, "order.rows, of all datasets,", &whole.rows, &order.rows);
        differ(&mut wrong, "order.tokens, of all datasets,", &whole.tokens, &order.tokens);
        for (data, recorded) in order.datasets.iter().zip(&run.mixture) {
            differ(&mut wrong, "mixture: rows", &recorded.rows, &data.rows);
            differ(&mut wrong, "mixture: tokens", &recorded.tokens, &data.tokens);
        }
        if let Some(recipe) = recipe {
            let training = &recipe.training;
            differ(&mut wrong, "recipe.name", &recipe.name, &run.recipe.name);
            differ(&mut wrong, "order.seed", &training.order_seed(), &order.seed);
            let initialization = training.initialization_seed();
            differ(&mut wrong, "initialization_seed", &initialization, &run.initialization_seed);
            let tokens = order.rows_per_step * order.row_length;
            differ(&mut wrong, "tokens of a step", &training.tokens_per_step, &tokens);
            differ(&mut wrong, "parameters", &ModelSize::of(&recipe.model).parameters, &run.parameters);
        }
        let starts: Vec<u64> = run.sessions.iter().map(|session| session.first_step).collect();
        if starts.first() != Some(&1) || !run.sessions.iter().is_sorted_by_key(|session| session.started_at) {
            wrong.push(format!(
                "sessions: expected the first at step 1 and none before another, found {starts:?}"
            ));
        }
        self.list(
            "run manifest",
            &path,
            "canonical; order, seeds and sizes follow from recipe and data",
            &wrong,
        );
    }

    fn checkpoints(&mut self, run: &RunLinks, so_far: &[u64]) {
        if run.checkpoints.is_empty() {
            let folder = run.folder.join(xlstm_manifests::run_manifest::CHECKPOINTS_NAME);
            self.not_at_hand("checkpoint", &folder, "no checkpoint was kept");
        }
        for checkpoint in &run.checkpoints {
            self.checkpoint(checkpoint, run, so_far);
        }
    }

    fn checkpoint(&mut self, checkpoint: &CheckpointLink, run: &RunLinks, so_far: &[u64]) {
        let (link, step) = (format!("checkpoint {}", checkpoint.step), checkpoint.step);
        let state = match &checkpoint.state {
            Ok(state) => state,
            Err(error) => return self.failed(&link, &checkpoint.folder, error.to_string()),
        };
        let mut wrong = Vec::new();
        differ(&mut wrong, "step", &step, &state.step);
        differ(&mut wrong, "training root", &run.manifest.train.root, &state.train_root);
        if let Some(expected) = usize::try_from(step).ok().and_then(|step| so_far.get(step)) {
            differ(&mut wrong, "tokens", expected, &state.tokens);
        }
        if !state.files.contains_key(MODEL_NAME) {
            wrong.push(format!("expected the digest of {MODEL_NAME}, found none"));
        }
        let checked = format!("training root {}", state.train_root);
        self.list(&format!("{link}: state"), &checkpoint.folder, checked, &wrong);
        for file in checkpoint.files() {
            self.file(&format!("{link}: {}", file.name), &file);
        }
    }

    fn metrics(&mut self, run: &RunLinks, recipe: &Recipe, so_far: &[u64]) {
        let path = run.metrics_file();
        let Some(lines) = &run.lines else { return self.not_at_hand("metrics", &path, "no such file") };
        let order = &run.manifest.order;
        let wrong: Vec<String> =
            lines.iter().flat_map(|line| contradictions(line, recipe, order, so_far)).collect();
        let checked = format!("{} lines agree with themselves and the recipe", lines.len());
        self.list("metrics", &path, checked, &wrong);
    }
}

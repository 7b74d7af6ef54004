//! The links of a run: its manifest, recipe, metrics, checkpoints, datasets.

use std::path::Path;

use xlstm_manifests::canonical;
use xlstm_manifests::recipe::{self, ModelSize, Recipe};
use xlstm_manifests::run_manifest::{
    CHECKPOINTS_NAME, DatasetRef, METRICS_NAME, RECIPE_NAME, RUN_NAME, RunManifest,
};

use super::dataset::Expected;
use super::figures::contradictions;
use super::{Chain, Depth, differ};
use crate::checkpoint::{self, MODEL_NAME, State};
use crate::error::Result;
use crate::metrics::read_lines;

/// Follows all links of the run in `folder`.
///
/// # Errors
/// When there is no run manifest to begin with, or a folder cannot be listed. What does not hold is a failed link.
pub fn verify_run(folder: &Path, depth: &Depth) -> Result<Chain> {
    let mut chain = Chain::default();
    let manifest = RunManifest::load(folder)?;
    let recipe_file = folder.join(RECIPE_NAME);
    let recipe = recipe::load(&recipe_file.display().to_string(), &[]).ok();
    chain.run_manifest(folder, &manifest, recipe.as_ref());
    chain.file("recipe", &recipe_file, manifest.recipe.sha256);
    let so_far = tokens_so_far(folder, &manifest)?;
    chain.checkpoints(folder, &manifest, &so_far)?;
    if let Some(recipe) = &recipe {
        chain.metrics(folder, recipe, &so_far)?;
        if depth.deep {
            chain.figure(folder, &manifest.located(folder, &depth.data), recipe)?;
        }
    }
    chain.dataset_of_run("training split", &manifest.train, folder, depth);
    if let Some(validation) = &manifest.validation {
        chain.dataset_of_run("validation split", validation, folder, depth);
    }
    Ok(chain)
}

/// Tokens after each step up to the last one that left anything: a step with a dataset's last row may have fewer.
fn tokens_so_far(folder: &Path, run: &RunManifest) -> Result<Vec<u64>> {
    let path = folder.join(METRICS_NAME);
    let lines = if path.is_file() { read_lines(&path)? } else { Vec::new() };
    let saved = checkpoint::list(&folder.join(CHECKPOINTS_NAME))?;
    let last = lines.iter().map(|line| line.step).chain(saved).max().unwrap_or(0);
    let mut sum = 0;
    let steps = (1..=last).map(|step| {
        sum += run.order.tokens_of_step(step);
        sum
    });
    Ok(std::iter::once(0).chain(steps).collect())
}

impl Chain {
    fn run_manifest(&mut self, folder: &Path, run: &RunManifest, recipe: Option<&Recipe>) {
        let path = folder.join(RUN_NAME);
        let mut wrong = Vec::new();
        // It is written in one form only: a reader that accepts another one could be shown two.
        match (fs_err::read(&path), canonical::to_canonical_file(run)) {
            (Ok(found), Ok(expected)) if found == expected => {}
            (Ok(_), Ok(_)) => wrong.push("expected canonical JSON, found another spelling".to_owned()),
            (Err(error), _) => wrong.push(error.to_string()),
            (_, Err(error)) => wrong.push(error.to_string()),
        }
        let order = &run.order;
        differ(&mut wrong, "order.root, the training root,", &run.train.root, &order.root);
        differ(&mut wrong, "order.rows", &run.train.rows, &order.rows);
        differ(&mut wrong, "order.tokens", &run.train.tokens, &order.tokens);
        if let Some(recipe) = recipe {
            let training = &recipe.training;
            differ(&mut wrong, "recipe.name", &recipe.name, &run.recipe.name);
            differ(&mut wrong, "order.seed", &training.seed, &order.seed);
            differ(&mut wrong, "initialization_seed", &training.seed, &run.initialization_seed);
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

    fn checkpoints(&mut self, folder: &Path, run: &RunManifest, so_far: &[u64]) -> Result<()> {
        let checkpoints = folder.join(CHECKPOINTS_NAME);
        let steps = checkpoint::list(&checkpoints)?;
        if steps.is_empty() {
            self.not_at_hand("checkpoint", &checkpoints, "no checkpoint was kept");
        }
        for step in steps {
            let folder = checkpoint::folder_of(&checkpoints, step);
            let link = format!("checkpoint {step}");
            match checkpoint::open(&folder) {
                Ok(state) => self.checkpoint(&link, &folder, step, &state, run, so_far),
                Err(error) => self.failed(&link, &folder, error.to_string()),
            }
        }
        Ok(())
    }

    fn checkpoint(
        &mut self,
        link: &str,
        folder: &Path,
        step: u64,
        state: &State,
        run: &RunManifest,
        so_far: &[u64],
    ) {
        let mut wrong = Vec::new();
        differ(&mut wrong, "step", &step, &state.step);
        differ(&mut wrong, "training root", &run.train.root, &state.train_root);
        if let Some(expected) = usize::try_from(step).ok().and_then(|step| so_far.get(step)) {
            differ(&mut wrong, "tokens", expected, &state.tokens);
        }
        if !state.files.contains_key(MODEL_NAME) {
            wrong.push(format!("expected the digest of {MODEL_NAME}, found none"));
        }
        self.list(&format!("{link}: state"), folder, format!("training root {}", state.train_root), &wrong);
        for (name, file) in &state.files {
            self.file(&format!("{link}: {name}"), &folder.join(name), file.sha256);
        }
    }

    fn metrics(&mut self, folder: &Path, recipe: &Recipe, so_far: &[u64]) -> Result<()> {
        let path = folder.join(METRICS_NAME);
        if !path.is_file() {
            self.not_at_hand("metrics", &path, "no such file");
            return Ok(());
        }
        let lines = read_lines(&path)?;
        let wrong: Vec<String> = lines.iter().flat_map(|line| contradictions(line, recipe, so_far)).collect();
        let checked = format!("{} lines agree with themselves and the recipe", lines.len());
        self.list("metrics", &path, checked, &wrong);
        Ok(())
    }

    pub(super) fn dataset_of_run(&mut self, name: &str, data: &DatasetRef, from: &Path, depth: &Depth) {
        let facts = (data.split.as_str(), data.profile.as_str(), data.tokens, Some(data.rows));
        let expected = Expected { name, path: &data.path, from, root: data.root, manifest: None, facts };
        self.dataset(&expected, depth);
    }
}

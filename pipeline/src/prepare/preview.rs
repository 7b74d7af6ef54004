//! What a plan will take, before anything is done: files, bytes, requests, the Hub's rate limit, disk, tokens.

use serde::Serialize;

use super::estimate::{Estimate, Estimator, Sample};
use super::request::Common;
use super::{Context, here, split_folder};
use crate::hub::plan_seconds;
use crate::plan::Plan;
use crate::report::{bytes, count};

/// Bytes stored for a token: its id, and its share of row lengths and spans.
const STORED_BYTES_PER_TOKEN: f64 = 2.1;

/// One split's preview.
#[derive(Debug, Clone, Serialize)]
pub struct Preview {
    /// The split.
    pub split: String,
    /// Where it will be.
    pub folder: String,
    /// The commit that the requested revision stands for.
    pub revision: Option<String>,
    /// Files that will be read.
    pub files: u64,
    /// Their bytes.
    pub input_bytes: u64,
    /// Files that are still to be downloaded.
    pub files_to_download: u64,
    /// Their bytes.
    pub download_bytes: u64,
    /// Requests that takes.
    pub requests: u64,
    /// Seconds that those requests take at the Hub's rate limit, whatever the line's speed.
    pub rate_limit_seconds: u64,
    /// Tokens, by the catalog or estimated from the bytes.
    pub expected_tokens: u64,
    /// Whether `expected_tokens` is only an estimate.
    pub estimated: bool,
    /// What of the files that are here was read for it; no file where none is here.
    pub sample: Sample,
    /// Bytes of shards and spans that come of it, about.
    pub output_bytes: u64,
    /// Digest of the plan: equal plans give equal datasets.
    pub plan: String,
    /// What of the sample could not be used.
    pub notes: Vec<String>,
}

/// The previews of a request's plans. Looks at which files are there already, and reads samples of them.
#[must_use]
pub fn previews(plans: &[Plan], common: &Common, context: &Context) -> Vec<Preview> {
    let estimator = Estimator::new(common, context);
    plans.iter().map(|plan| preview(plan, common, context, &estimator)).collect()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)]
fn preview(plan: &Plan, common: &Common, context: &Context, estimator: &Estimator<'_>) -> Preview {
    let folders = here::folders(common);
    let absent = plan.inputs.iter().filter(|input| here::place_of(plan, input, &folders, context).is_none());
    let to_download =
        absent.fold((0, 0), |(files, bytes), input| (files + 1, bytes + input.size.unwrap_or(0)));
    let authenticated = context.hub.as_ref().is_some_and(|hub| hub.authenticated());
    let known = plan.expected_tokens.filter(|_| plan.spec.part.is_none());
    let selection = &plan.spec.selection;
    // A holdout whose fraction is none is refused before there is a plan.
    let fraction = selection.holdout.as_ref().and_then(|holdout| {
        let fraction = holdout.fraction.parse::<f64>().ok()?;
        Some(if holdout.held_out { fraction } else { 1.0 - fraction })
    });
    let estimate = if known.is_none() { estimator.estimate(plan) } else { Estimate::default() };
    let expected = known.unwrap_or((estimate.tokens * fraction.unwrap_or(1.0)) as u64);
    let expected = selection.max_tokens.map_or(expected, |most| expected.min(most));
    Preview {
        split: plan.spec.split.clone(),
        folder: split_folder(&common.out, plan).display().to_string(),
        revision: plan.spec.source.resolved_revision.clone(),
        files: plan.inputs.len() as u64,
        input_bytes: plan.input_bytes(),
        files_to_download: to_download.0,
        download_bytes: to_download.1,
        requests: to_download.0,
        rate_limit_seconds: plan_seconds(to_download.0, authenticated).ceil() as u64,
        expected_tokens: expected,
        estimated: known.is_none(),
        sample: estimate.sample,
        output_bytes: (expected as f64 * STORED_BYTES_PER_TOKEN) as u64,
        plan: plan.spec.plan.to_string(),
        notes: estimate.notes,
    }
}

impl Preview {
    /// The preview as lines for a person.
    #[must_use]
    pub fn to_text(&self) -> String {
        let Self { split, folder, files, input_bytes, files_to_download, download_bytes, .. } = self;
        let about = if self.estimated { "about " } else { "" };
        let revision = self.revision.as_deref().unwrap_or("-");
        let Sample { files: read, file_bytes, documents, text_bytes } = self.sample;
        let sample = match (self.estimated, read) {
            (false, _) => String::new(),
            (true, 0) => "  estimated by the size of the files, as English web text: none of them is here to be sampled\n".into(),
            (true, _) => format!(
                "  estimated from a sample: {} of text tokenized, from {} documents in {} of {read} of {files} files\n",
                bytes(text_bytes),
                count(documents),
                bytes(file_bytes)
            ),
        };
        format!(
            "{split}: {files} files, {input_bytes} bytes, revision {revision}\n  \
             to download: {files_to_download} files, {download_bytes} bytes, {} requests, at least {} s at the Hub's \
             rate limit\n  \
             expected: {about}{} tokens, about {} bytes in `{folder}`\n\
             {sample}  plan {}\n",
            self.requests, self.rate_limit_seconds, self.expected_tokens, self.output_bytes, self.plan
        )
    }
}

//! `--list`: the training documents with a hit, one JSON object a line, in stream order.

use std::io::Write as _;
use std::path::Path;

use serde::Serialize;
use xlstm_manifests::atomic::AtomicFile;

use super::scan::{Document, Side};
use crate::report::CommandError;

/// One training document and what it shares.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    train: String,
    input: String,
    record: u64,
    set: Option<String>,
    id: Option<String>,
    sha256: String,
    /// Evaluation split and set of a document with the same text.
    identical_to: Option<EvaluationSet>,
    paragraphs: Vec<Paragraph>,
}

#[derive(Debug, Serialize)]
struct EvaluationSet {
    eval: String,
    set: String,
}

#[derive(Debug, Serialize)]
struct Paragraph {
    /// Its beginning.
    text: String,
    bytes: usize,
    #[serde(flatten)]
    first_seen: EvaluationSet,
}

/// Characters of a paragraph that are shown.
const SHOWN: usize = 160;

impl Line {
    pub(super) fn new(
        train: &Side,
        eval: &Side,
        document: &Document<'_>,
        identical: Option<&(usize, String)>,
        paragraphs: &[(&str, &(usize, String))],
    ) -> Self {
        let place = |(split, set): &(usize, String)| EvaluationSet {
            eval: eval.folders[*split].display().to_string(),
            set: set.clone(),
        };
        let meta = document.meta;
        let inputs = &train.splits[document.split].manifest().inputs;
        Self {
            train: train.folders[document.split].display().to_string(),
            input: inputs.get(meta.input as usize).map_or("?".into(), |input| input.path.to_string()),
            record: meta.record,
            set: meta.set.clone(),
            id: meta.id.clone(),
            sha256: meta.digest.to_string(),
            identical_to: identical.map(place),
            paragraphs: paragraphs
                .iter()
                .map(|(text, seen)| Paragraph {
                    text: text.chars().take(SHOWN).collect(),
                    bytes: text.len(),
                    first_seen: place(seen),
                })
                .collect(),
        }
    }
}

/// The file under construction.
pub(super) struct HitList {
    file: AtomicFile,
}

impl HitList {
    pub(super) fn create(path: &Path) -> Result<Self, CommandError> {
        Ok(Self { file: AtomicFile::create(path)? })
    }

    pub(super) fn write(&mut self, lines: &[Line]) -> Result<(), CommandError> {
        for line in lines {
            let text =
                serde_json::to_string(line).map_err(|error| CommandError::Internal(error.to_string()))?;
            writeln!(self.file, "{text}")?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<(), CommandError> {
        self.file.commit()?;
        Ok(())
    }
}

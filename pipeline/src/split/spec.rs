//! What a split is before its first document, and the digest that binds its runs and parts together.

use serde::{Deserialize, Serialize};
use xlstm_manifests::manifest::{Layout, Packing, Part, Selection, Source, Tokenizer};
use xlstm_manifests::{Error as ContractError, Sha256Digest, canonical};

use super::SplitError;

/// Everything about a split that is known before its first document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitSpec {
    /// `train`, `validation`, `test`, `val`.
    pub split: String,
    /// Packed rows, documents or examples.
    pub layout: Layout,
    /// Where documents come from.
    pub source: Source,
    /// Which documents are asked for.
    pub selection: Selection,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// How tokens become rows.
    pub packing: Packing,
    /// This task's part of the whole, if it is one.
    pub part: Option<Part>,
    /// Digest of all of the above and the input list.
    pub plan: Sha256Digest,
    /// Digest of the same plan with `--on-bad-record fail`, where this one skips: an unfinished run of that one has met
    /// no bad record in what it stored, so this one may resume from it.
    pub plan_without_skip: Option<Sha256Digest>,
}

impl SplitSpec {
    /// The digest that binds parts and resumed runs together: settings and input list, not the part.
    ///
    /// # Errors
    /// When a number has no canonical form.
    pub fn plan_digest(&self, inputs: &impl Serialize) -> Result<Sha256Digest, SplitError> {
        self.digest_with(&self.selection, inputs)
    }

    /// Sets `plan` and `plan_without_skip`.
    ///
    /// # Errors
    /// As [`Self::plan_digest`].
    pub fn seal(&mut self, inputs: &impl Serialize) -> Result<(), SplitError> {
        self.plan = self.plan_digest(inputs)?;
        let failing = Selection { on_bad_record: "fail".into(), ..self.selection.clone() };
        let skips = self.selection != failing;
        self.plan_without_skip = if skips { Some(self.digest_with(&failing, inputs)?) } else { None };
        Ok(())
    }

    fn digest_with(
        &self,
        selection: &Selection,
        inputs: &impl Serialize,
    ) -> Result<Sha256Digest, SplitError> {
        let plan = serde_json::json!({
            "split": self.split, "layout": self.layout, "source": self.source, "selection": selection,
            "tokenizer": self.tokenizer, "packing": self.packing, "inputs": inputs,
        });
        let bytes = canonical::to_canonical_bytes(&plan).map_err(ContractError::internal)?;
        Ok(Sha256Digest::of(&bytes))
    }
}

//! `--deep` for generated splits: samples made again and compared with the rows that are stored.

use rayon::prelude::*;
use xlstm_manifests::Dataset;
use xlstm_manifests::manifest::MANIFEST_NAME;

use super::DeepReport;
use super::corpus::Corpus;
use super::finding::{Check, Findings};
use super::sample::{Amount, Chosen};
use crate::tasks::Example;
use crate::tasks::written::{Generated, generated};

/// Makes documents of the split again; what differs is a finding.
pub(super) fn check(corpus: &Corpus, amount: Amount, seed: u64, findings: &mut Findings) -> DeepReport {
    let mut report = DeepReport { of: corpus.documents(), ..DeepReport::default() };
    let made = match generated(corpus.manifest()) {
        Ok(made) => made,
        Err(problem) => {
            findings.add(MANIFEST_NAME, Check::Deep, problem.to_string());
            return report;
        }
    };
    let Some(dataset) = corpus.rows() else {
        findings.add(MANIFEST_NAME, Check::Deep, "a generated split without rows".to_owned());
        return report;
    };
    let chosen = Chosen::new(amount, corpus.documents(), seed).within(0..corpus.documents());
    let problems: Vec<String> = chosen
        .par_iter()
        .map_init(Example::default, |example, &number| compare(corpus, dataset, &made, number, example).err())
        .flatten()
        .collect();
    for problem in problems {
        findings.add(MANIFEST_NAME, Check::Deep, problem);
    }
    report.documents = chosen.len() as u64;
    report.inputs = corpus.manifest().inputs.len() as u64;
    report
}

/// One row beside the sample that it should be.
fn compare(
    corpus: &Corpus,
    dataset: &Dataset,
    made: &Generated,
    number: u64,
    example: &mut Example,
) -> Result<(), String> {
    let missing = || format!("document {number} is not in the split");
    let (shard, place) = corpus.place_of(number).ok_or_else(missing)?;
    let documents = corpus.shard(shard).map_err(|error| error.to_string())?;
    let meta = documents.meta(place).ok_or_else(missing)?;
    let stored = dataset.example(number).map_err(|error| error.to_string())?.ok_or_else(missing)?;
    made.example(meta.input, meta.record, example).map_err(|error| error.to_string())?;
    let same = stored.input_ids == example.input_ids
        && stored.targets().eq(example.targets.iter().copied())
        && usize::from(stored.length) == example.length;
    if same {
        return Ok(());
    }
    let ids = || example.input_ids.iter().copied().map(Some).zip(stored.input_ids.iter().copied().map(Some));
    let at = ids().take_while(|(made, stored)| made == stored).count();
    Err(format!(
        "row {number} (record {} of input {}): expected the sample that the generator makes, of {} positions, found \
         another of {}: ids agree up to position {at}",
        meta.record, meta.input, example.length, stored.length
    ))
}

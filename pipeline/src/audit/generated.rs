//! `--deep` for generated splits: samples made again and compared with the rows that are stored.

use rayon::prelude::*;
use xlstm_manifests::Dataset;
use xlstm_manifests::manifest::MANIFEST_NAME;
use xlstm_manifests::stored::StoredRow;

use super::DeepReport;
use super::corpus::Corpus;
use super::finding::{Check, Findings};
use super::sample::{Amount, Chosen};
use crate::tasks::Sample;
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
    let problems: Vec<String> =
        chosen.par_iter().filter_map(|&number| compare(corpus, dataset, &made, number).err()).collect();
    for problem in problems {
        findings.add(MANIFEST_NAME, Check::Deep, problem);
    }
    report.documents = chosen.len() as u64;
    report.inputs = corpus.manifest().inputs.len() as u64;
    report
}

/// One row beside the sample that it should be.
fn compare(corpus: &Corpus, dataset: &Dataset, made: &Generated, number: u64) -> Result<(), String> {
    let missing = || format!("document {number} is not in the split");
    let (shard, place) = corpus.place_of(number).ok_or_else(missing)?;
    let documents = corpus.shard(shard).map_err(|error| error.to_string())?;
    let meta = documents.meta(place).ok_or_else(missing)?;
    let stored = dataset.stored(number).map_err(|error| error.to_string())?.ok_or_else(missing)?;
    let sample = made.sample(meta.input, meta.record).map_err(|error| error.to_string())?;
    if stored.digest() == sample.stored().digest() {
        return Ok(());
    }
    let agree = match (&sample, stored) {
        (Sample::Tokens(made), StoredRow::Tokens(row)) => {
            let at =
                made.input_ids.iter().zip(row.input_ids).take_while(|(made, stored)| made == stored).count();
            format!("ids agree up to position {at}")
        }
        (Sample::Numbers(made), StoredRow::Numbers(row)) => {
            let same = |(made, stored): &(&f32, &f32)| made.to_bits() == stored.to_bits();
            let at = made.inputs.iter().zip(row.inputs).take_while(same).count();
            format!("inputs agree up to number {at}")
        }
        _ => "of another kind".into(),
    };
    Err(format!(
        "row {number} (record {} of input {}): expected the sample that the generator makes, of {} positions, found \
         another of {}: {agree}",
        meta.record,
        meta.input,
        sample.length(),
        stored.length()
    ))
}

//! `--deep` over a split of examples: each is read again from its source file, padded, and compared with what is stored.

use rayon::prelude::*;
use xlstm_manifests::manifest::Input;

use super::corpus::{Corpus, Meta};
use super::deep::DeepReport;
use super::finding::{Check, Findings};
use super::locate::Locator;
use super::sample::Chosen;
use crate::sources::examples::Examples;

/// Reads the chosen examples again.
pub(super) fn check(
    corpus: &Corpus,
    chosen: &Chosen,
    locator: &Locator,
    findings: &mut Findings,
) -> DeepReport {
    let mut next = 0;
    let work: Vec<(&Input, Vec<u64>)> = corpus
        .manifest()
        .inputs
        .iter()
        .map(|input| {
            let start = next;
            next += input.counts.documents;
            (input, chosen.within(start..next))
        })
        .filter(|(_, numbers)| !numbers.is_empty())
        .collect();
    let looked: Vec<(&Input, u64, Vec<String>)> = work
        .into_par_iter()
        .map(|(input, numbers)| match compare(corpus, input, &numbers, locator) {
            Ok(problems) => (input, numbers.len() as u64, problems),
            Err(problem) => (input, 0, vec![problem]),
        })
        .collect();
    let mut report = DeepReport { of: corpus.documents(), ..DeepReport::default() };
    for (input, documents, problems) in looked {
        report.inputs += 1;
        report.documents += documents;
        for problem in problems {
            findings.add(input.path.as_str(), Check::Deep, problem);
        }
    }
    report
}

fn compare(
    corpus: &Corpus,
    input: &Input,
    numbers: &[u64],
    locator: &Locator,
) -> Result<Vec<String>, String> {
    let path = locator.verified(input)?;
    let mut reader = Examples::open(&path).map_err(|error| error.to_string())?;
    let row_length = corpus.manifest().packing.row_length as usize;
    let mut problems = Vec::new();
    for &number in numbers {
        let meta = meta(corpus, number)?;
        let mut source = reader.seek(meta.record).map_err(|error| error.to_string())?;
        source.pad(row_length);
        let (record, digest) = (meta.record, source.stored().digest());
        let mut differ = |what: &str, expected: String, found: String| {
            problems.push(format!(
                "example {number} (record {record}), {what}: expected {expected} from the source, found {found}"
            ));
        };
        if digest != meta.digest {
            differ("digest of inputs and targets", digest.to_string(), meta.digest.to_string());
        }
        if source.set != meta.set {
            differ("set", format!("{:?}", source.set), format!("{:?}", meta.set));
        }
        if source.id != meta.id {
            differ("id", format!("{:?}", source.id), format!("{:?}", meta.id));
        }
    }
    Ok(problems)
}

fn meta(corpus: &Corpus, number: u64) -> Result<Meta, String> {
    let missing = || format!("example {number} is not in the split");
    let (shard, place) = corpus.place_of(number).ok_or_else(missing)?;
    let documents = corpus.shard(shard).map_err(|error| error.to_string())?;
    documents.meta(place).ok_or_else(missing)
}

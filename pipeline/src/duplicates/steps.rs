//! From documents to copies.

use std::collections::{BTreeMap, HashMap};

use xlstm_manifests::Sha256Digest;

use super::again::{are_again, input_numbers};
use super::list::{self, Line, Named};
use super::minhash::{BANDS, bands, shingles, similarity};
use super::{DuplicatesArgs, DuplicatesReport, SetCopies};
use crate::audit::corpus::Meta;
use crate::audit::progress::ByteProgress;
use crate::overlap::scan::{Document, Side};
use crate::report::CommandError;
use crate::tokenizer::Gpt2Tokenizer;

/// What is kept of a document.
pub(super) struct Seen {
    /// Split, shard, number in the shard.
    place: (usize, usize, usize),
    /// Number of its input over all splits, and of its record in it.
    pub(super) record: (u32, u64),
    pub(super) digest: Sha256Digest,
    tokens: u64,
    set: u32,
    bands: Option<[u64; BANDS]>,
}

/// A document and the earlier one that it is a copy of.
pub(super) struct Copy {
    pub(super) document: usize,
    pub(super) of: usize,
    /// 1 where the texts are the same.
    similarity: f64,
    exact: bool,
}

pub(super) fn duplicates(args: &DuplicatesArgs) -> Result<DuplicatesReport, CommandError> {
    let side = Side::open(&args.paths)?;
    let tokenizer = Gpt2Tokenizer::new()?;
    let progress = ByteProgress::over_bytes("duplicates", side.text_bytes());
    let (documents, names) = read(&side, &tokenizer, &progress)?;
    let mut copies = exact(&documents);
    let mut search = Search { side: &side, tokenizer: &tokenizer, args, compared: 0, near: 0 };
    let found = search.near(&documents, &copies)?;
    let (pairs_compared, pairs_near) = (search.compared, search.near);
    copies.extend(found);
    copies.sort_by_key(|copy| copy.document);
    let again = are_again(&documents, &copies);
    if let Some(path) = &args.list {
        let listed = copies.iter().zip(&again).filter(|(_, again)| !**again).map(|(copy, _)| copy);
        write_list(path, &side, &documents, listed)?;
    }
    let (sets, total) = count(&documents, &names, &copies);
    Ok(DuplicatesReport {
        roots: side.splits.iter().map(|split| split.manifest().root).collect(),
        splits: side.folders.clone(),
        threshold: args.threshold,
        sets,
        total,
        again: again.iter().filter(|again| **again).count() as u64,
        pairs_compared,
        pairs_near,
    })
}

/// All documents in stream order, and the names of their sets.
fn read(
    side: &Side,
    tokenizer: &Gpt2Tokenizer,
    progress: &ByteProgress,
) -> Result<(Vec<Seen>, Vec<String>), CommandError> {
    type Found = Vec<(Seen, String)>;
    let inputs = input_numbers(side);
    let visit = |found: &mut Found, document: &Document<'_>| {
        let Meta { input, record, digest, tokens, .. } = document.meta;
        let place = (document.split, document.shard, document.index);
        // Where an input is missing, the list says so.
        let input = inputs[document.split].get(*input as usize).copied().unwrap_or(u32::MAX);
        let bands = bands(&shingles(document.text));
        let record = (input, *record);
        let seen = Seen { place, record, digest: *digest, tokens: *tokens, set: 0, bands };
        found.push((seen, side.set_of(document).to_owned()));
    };
    let merge = |mut a: Found, b: Found| {
        a.extend(b);
        a
    };
    let (mut documents, mut names): (Vec<Seen>, Vec<String>) = (Vec::new(), Vec::new());
    let mut numbers: HashMap<String, u32> = HashMap::new();
    // Names are numbered shard by shard, so that they are not held for each document.
    for place in side.shards() {
        for (seen, name) in side.visit_shard(place, tokenizer, progress, &|_, _, _| true, &visit, &merge)? {
            let next = u32::try_from(names.len()).map_err(|_| CommandError::Usage("too many sets".into()))?;
            let set = *numbers.entry(name).or_insert_with_key(|name| {
                names.push(name.clone());
                next
            });
            documents.push(Seen { set, ..seen });
        }
    }
    documents.sort_by_key(|seen| seen.place);
    Ok((documents, names))
}

/// Documents whose digest an earlier one has.
fn exact(documents: &[Seen]) -> Vec<Copy> {
    let mut first: HashMap<Sha256Digest, usize> = HashMap::new();
    let of = |(document, seen): (usize, &Seen)| {
        let of = *first.entry(seen.digest).or_insert(document);
        (of != document).then_some(Copy { document, of, similarity: 1.0, exact: true })
    };
    documents.iter().enumerate().filter_map(of).collect()
}

struct Search<'a> {
    side: &'a Side,
    tokenizer: &'a Gpt2Tokenizer,
    args: &'a DuplicatesArgs,
    compared: u64,
    near: u64,
}

impl Search<'_> {
    /// Documents that are near an earlier one, each with the first of its kind. Pairs are looked at in stream order, and a
    /// document that was found to be a copy stands for nothing itself: a kind is what is near its first document.
    fn near(&mut self, documents: &[Seen], exact: &[Copy]) -> Result<Vec<Copy>, CommandError> {
        let mut is_copy = vec![false; documents.len()];
        exact.iter().for_each(|copy| is_copy[copy.document] = true);
        // Earlier documents by band, of those that are no copies.
        let mut buckets: Vec<HashMap<u64, Vec<u32>>> = (0..BANDS).map(|_| HashMap::new()).collect();
        let mut copies = Vec::new();
        for (document, seen) in documents.iter().enumerate() {
            let Some(bands) = seen.bands.filter(|_| !is_copy[document]) else { continue };
            let shared = bands.iter().zip(&buckets).filter_map(|(band, bucket)| bucket.get(band)).flatten();
            let mut candidates: Vec<u32> = shared.copied().collect();
            candidates.sort_unstable();
            candidates.dedup();
            if let Some(copy) = self.first_near(documents, document, &candidates)? {
                copies.push(copy);
                continue;
            }
            let number = u32::try_from(document).map_err(|_| {
                CommandError::Usage(format!(
                    "expected at most {} documents, found more: look at fewer splits",
                    u32::MAX
                ))
            })?;
            for (band, bucket) in bands.iter().zip(&mut buckets) {
                bucket.entry(*band).or_default().push(number);
            }
        }
        Ok(copies)
    }

    fn first_near(
        &mut self,
        documents: &[Seen],
        document: usize,
        candidates: &[u32],
    ) -> Result<Option<Copy>, CommandError> {
        if candidates.is_empty() {
            return Ok(None);
        }
        let own = self.shingles(&documents[document])?;
        for &candidate in candidates {
            let of = candidate as usize;
            self.compared += 1;
            let similarity = similarity(&own, &self.shingles(&documents[of])?);
            if similarity >= self.args.threshold {
                self.near += 1;
                return Ok(Some(Copy { document, of, similarity, exact: false }));
            }
        }
        Ok(None)
    }

    fn shingles(&self, seen: &Seen) -> Result<Vec<u64>, CommandError> {
        let (split, shard, index) = seen.place;
        let mut ids = Vec::new();
        self.side.splits[split].shard(shard)?.read(index, &mut ids)?;
        Ok(shingles(&String::from_utf8_lossy(&self.tokenizer.decode(&ids))))
    }
}

fn count(documents: &[Seen], names: &[String], copies: &[Copy]) -> (Vec<SetCopies>, SetCopies) {
    let mut sets: Vec<SetCopies> =
        names.iter().map(|name| SetCopies { name: name.clone(), ..SetCopies::default() }).collect();
    let mut total = SetCopies { name: "all".into(), ..SetCopies::default() };
    for seen in documents {
        for counted in [&mut sets[seen.set as usize], &mut total] {
            counted.documents += 1;
            counted.tokens += seen.tokens;
        }
    }
    for copy in copies {
        let seen = &documents[copy.document];
        for counted in [&mut sets[seen.set as usize], &mut total] {
            let (number, tokens) = match copy.exact {
                true => (&mut counted.exact, &mut counted.exact_tokens),
                false => (&mut counted.near, &mut counted.near_tokens),
            };
            *number += 1;
            *tokens += seen.tokens;
        }
    }
    let by_name: BTreeMap<_, _> = sets.into_iter().map(|set| (set.name.clone(), set)).collect();
    (by_name.into_values().collect(), total)
}

fn write_list<'a>(
    path: &std::path::Path,
    side: &Side,
    documents: &[Seen],
    copies: impl Iterator<Item = &'a Copy>,
) -> Result<(), CommandError> {
    let named = |seen: &Seen| -> Result<Named, CommandError> {
        let (split, shard, index) = seen.place;
        let corpus = &side.splits[split];
        let meta = corpus.shard(shard)?.meta(index);
        let meta = meta.ok_or_else(|| CommandError::Internal("a document that is gone".into()))?;
        let input = corpus.input_of(meta.input)?;
        Ok(Named {
            split: corpus.manifest().split.clone(),
            root: corpus.manifest().root,
            input: input.path.to_string(),
            input_sha256: input.sha256,
            record: meta.record,
            set: meta.set,
            id: meta.id,
            sha256: meta.digest,
        })
    };
    let line = |copy: &Copy| {
        Ok(Line {
            document: named(&documents[copy.document])?,
            exact: copy.exact,
            similarity: copy.similarity,
            copy_of: named(&documents[copy.of])?,
        })
    };
    list::write(path, copies.map(line))
}

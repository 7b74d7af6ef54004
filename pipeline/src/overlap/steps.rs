//! The five passes of an overlap report (see the module above).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use xlstm_manifests::Error;
use xlstm_manifests::run_manifest::{DatasetRef, RUN_NAME, RunManifest};

use super::bloom::Bloom;
use super::list::{HitList, Line};
use super::paragraphs::{candidates, document_key, has_words, paragraph_key};
use super::scan::{Document, Side, merge_by_name};
use super::{EvalSet, Filter, OverlapArgs, OverlapReport, TrainSet};
use crate::audit::progress::ByteProgress;
use crate::report::{CommandError, bytes};
use crate::tokenizer::Gpt2Tokenizer;

/// A filter larger than this is refused, with what to do instead.
const MAX_FILTER_BYTES: f64 = 64.0 * 1024.0 * 1024.0 * 1024.0;

/// Where a confirmed key was first seen: evaluation split and set.
pub(super) type Confirmed = HashMap<u128, (usize, String)>;

type EvalSets = BTreeMap<String, EvalSet>;
type TrainSets = BTreeMap<String, TrainSet>;

/// The training splits that a path names: itself, or those of a run, found by their roots.
fn trained_on(path: &Path) -> Result<Vec<PathBuf>, CommandError> {
    if !path.join(RUN_NAME).is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let run = RunManifest::load(path)?;
    let find = |(_, data): (u64, &DatasetRef)| {
        data.find(path, &[]).ok_or_else(|| {
            let expected = format!("the split with root {} that the run was trained on", data.root);
            let hint = "put it back beside the run, or name the folders of the training splits themselves";
            Error::mismatch(&data.path, expected, "no such split", hint).into()
        })
    };
    run.trained_on().into_iter().map(find).collect()
}

struct Pass<'a> {
    tokenizer: &'a Gpt2Tokenizer,
    progress: &'a ByteProgress,
}

pub(super) fn overlap(args: &OverlapArgs) -> Result<OverlapReport, CommandError> {
    let eval = Side::open(&args.eval)?;
    let train = Side::open(&trained_on(&args.train)?)?;
    let tokenizer = Gpt2Tokenizer::new()?;
    let progress = ByteProgress::over_bytes("overlap", 3 * eval.text_bytes() + train.text_bytes());
    let pass = Pass { tokenizer: &tokenizer, progress: &progress };
    let (bloom, members) = pass.filter(&eval, args.false_positive_rate)?;
    let suspects = pass.suspects(&train, &bloom)?;
    let (eval_sets, confirmed) = pass.confirm(&eval, &suspects.keys)?;
    let filter = Filter {
        members,
        bytes: bloom.bytes(),
        places: bloom.places(),
        false_positive_rate: args.false_positive_rate,
        asked: suspects.asked,
        confirmed: confirmed.len() as u64,
        false_positives: (suspects.keys.len() - confirmed.len()) as u64,
    };
    drop(bloom);
    let mut list = args.list.as_deref().map(HitList::create).transpose()?;
    let hits = pass.hits(&train, &suspects, &confirmed, &eval, list.as_mut())?;
    list.map(HitList::finish).transpose()?;
    let train_sets = merge_by_name(suspects.sets, hits, |total, hit| {
        total.documents_identical += hit.documents_identical;
        total.documents_hit += hit.documents_hit;
        total.tokens_hit += hit.tokens_hit;
        total.paragraphs_hit += hit.paragraphs_hit;
    });
    Ok(report(&train, &eval, train_sets, eval_sets, filter))
}

fn report(
    train: &Side,
    eval: &Side,
    train_sets: TrainSets,
    eval_sets: EvalSets,
    filter: Filter,
) -> OverlapReport {
    let mut eval_total = EvalSet { name: "all".into(), ..EvalSet::default() };
    eval_sets.values().for_each(|set| add_eval(&mut eval_total, set));
    let mut train_total = TrainSet { name: "all".into(), ..TrainSet::default() };
    train_sets.values().for_each(|set| add_train(&mut train_total, set));
    OverlapReport {
        train: train.folders.clone(),
        eval: eval.folders.clone(),
        eval_sets: eval_sets.into_iter().map(|(name, set)| EvalSet { name, ..set }).collect(),
        eval_total,
        train_sets: train_sets.into_iter().map(|(name, set)| TrainSet { name, ..set }).collect(),
        train_total,
        filter,
    }
}

fn add_eval(total: &mut EvalSet, set: &EvalSet) {
    total.documents += set.documents;
    total.documents_identical += set.documents_identical;
    total.documents_hit += set.documents_hit;
    total.paragraphs += set.paragraphs;
    total.paragraphs_hit += set.paragraphs_hit;
}

fn add_train(total: &mut TrainSet, set: &TrainSet) {
    total.documents += set.documents;
    total.tokens += set.tokens;
    total.documents_identical += set.documents_identical;
    total.documents_hit += set.documents_hit;
    total.tokens_hit += set.tokens_hit;
    total.paragraphs_hit += set.paragraphs_hit;
}

/// The entry of `name`, without making a new string where there is one.
fn entry<'a, V: Default>(map: &'a mut BTreeMap<String, V>, name: &str) -> &'a mut V {
    if !map.contains_key(name) {
        map.insert(name.to_owned(), V::default());
    }
    map.entry(name.to_owned()).or_default()
}

/// What the filter thinks it knows of the training set.
#[derive(Default)]
struct Suspects {
    keys: HashSet<u128>,
    /// Documents with a suspect: split, shard, and a bit for each document.
    documents: HashMap<(usize, usize), Vec<u64>>,
    asked: u64,
    sets: TrainSets,
}

impl Suspects {
    fn mark(&mut self, document: &Document<'_>) {
        let bits = self.documents.entry((document.split, document.shard)).or_default();
        let word = document.index / 64;
        if bits.len() <= word {
            bits.resize(word + 1, 0);
        }
        bits[word] |= 1 << (document.index % 64);
    }

    fn is_marked(&self, split: usize, shard: usize, index: usize) -> bool {
        let bits = self.documents.get(&(split, shard));
        bits.and_then(|bits| bits.get(index / 64)).is_some_and(|word| word & (1 << (index % 64)) != 0)
    }

    fn merge(mut self, other: Self) -> Self {
        // The larger set takes in the smaller one.
        let (mut keys, fewer) = if self.keys.len() >= other.keys.len() {
            (self.keys, other.keys)
        } else {
            (other.keys, self.keys)
        };
        keys.extend(fewer);
        for (place, bits) in other.documents {
            let ours = self.documents.entry(place).or_default();
            if ours.len() < bits.len() {
                ours.resize(bits.len(), 0);
            }
            ours.iter_mut().zip(bits).for_each(|(ours, theirs)| *ours |= theirs);
        }
        let sets = merge_by_name(self.sets, other.sets, |total, set| add_train(total, &set));
        Self { keys, documents: self.documents, asked: self.asked + other.asked, sets }
    }
}

impl Pass<'_> {
    /// Passes 1 and 2: how many keys there are, then a filter of the right size with all of them.
    fn filter(&self, eval: &Side, rate: f64) -> Result<(Bloom, u64), CommandError> {
        let count = |members: &mut u64, document: &Document<'_>| {
            *members += 1 + candidates(document.text).filter(|paragraph| has_words(paragraph)).count() as u64;
        };
        let members = eval.visit(self.tokenizer, self.progress, &|_, _, _| true, &count, &|a, b| a + b)?;
        let size = Bloom::bytes_for(members, rate);
        if size > MAX_FILTER_BYTES {
            return Err(CommandError::Usage(format!(
                "expected a Bloom filter of at most {}, found {} for {members} paragraphs: pass a larger \
                 --false-positive-rate, or the evaluation sets one at a time",
                bytes(MAX_FILTER_BYTES as u64),
                bytes(size as u64)
            )));
        }
        let bloom = Bloom::new(members, rate);
        let insert = |(): &mut (), document: &Document<'_>| {
            bloom.insert(document_key(&document.meta.digest));
            let paragraphs = candidates(document.text).filter(|paragraph| has_words(paragraph));
            paragraphs.for_each(|paragraph| bloom.insert(paragraph_key(paragraph)));
        };
        eval.visit(self.tokenizer, self.progress, &|_, _, _| true, &insert, &|(), ()| ())?;
        Ok((bloom, members))
    }

    /// Pass 3. Words need not be counted: a paragraph that is in the filter has enough of them.
    fn suspects(&self, train: &Side, bloom: &Bloom) -> Result<Suspects, CommandError> {
        let visit = |found: &mut Suspects, document: &Document<'_>| {
            let set = entry(&mut found.sets, train.set_of(document));
            set.documents += 1;
            set.tokens += document.meta.tokens;
            let keys = candidates(document.text).map(paragraph_key);
            let mut known = false;
            for key in keys.chain([document_key(&document.meta.digest)]) {
                found.asked += 1;
                if bloom.may_contain(key) {
                    known = true;
                    found.keys.insert(key);
                }
            }
            if known {
                found.mark(document);
            }
        };
        train.visit(self.tokenizer, self.progress, &|_, _, _| true, &visit, &Suspects::merge)
    }

    /// Pass 4: which suspects are in EVAL, and what that means for each evaluation set.
    fn confirm(&self, eval: &Side, suspects: &HashSet<u128>) -> Result<(EvalSets, Confirmed), CommandError> {
        type Found = (EvalSets, Confirmed);
        let visit = |(sets, confirmed): &mut Found, document: &Document<'_>| {
            let name = eval.set_of(document);
            let set = entry(sets, name);
            let mut confirm = |key: u128| {
                let known = suspects.contains(&key);
                if known && !confirmed.contains_key(&key) {
                    confirmed.insert(key, (document.split, name.to_owned()));
                }
                known
            };
            let identical = confirm(document_key(&document.meta.digest));
            let mut hits = 0;
            for paragraph in candidates(document.text).filter(|paragraph| has_words(paragraph)) {
                set.paragraphs += 1;
                hits += u64::from(confirm(paragraph_key(paragraph)));
            }
            set.documents += 1;
            set.documents_identical += u64::from(identical);
            set.documents_hit += u64::from(identical || hits > 0);
            set.paragraphs_hit += hits;
        };
        let merge = |a: Found, b: Found| {
            let sets = merge_by_name(a.0, b.0, |total, set| add_eval(total, &set));
            let mut confirmed = a.1;
            // The first place stays, so that the report does not depend on which thread was faster.
            b.1.into_iter().for_each(|(key, place)| {
                confirmed.entry(key).or_insert(place);
            });
            (sets, confirmed)
        };
        eval.visit(self.tokenizer, self.progress, &|_, _, _| true, &visit, &merge)
    }

    /// Pass 5: the training documents that really have something of an evaluation set.
    fn hits(
        &self,
        train: &Side,
        suspects: &Suspects,
        confirmed: &Confirmed,
        eval: &Side,
        mut list: Option<&mut HitList>,
    ) -> Result<TrainSets, CommandError> {
        type Found = (TrainSets, Vec<Line>);
        let listed = list.is_some();
        let visit = |(sets, lines): &mut Found, document: &Document<'_>| {
            let identical = confirmed.get(&document_key(&document.meta.digest));
            let paragraphs: Vec<_> = candidates(document.text)
                .filter_map(|paragraph| Some((paragraph, confirmed.get(&paragraph_key(paragraph))?)))
                .collect();
            if identical.is_none() && paragraphs.is_empty() {
                return;
            }
            let set = entry(sets, train.set_of(document));
            set.documents_hit += 1;
            set.documents_identical += u64::from(identical.is_some());
            set.tokens_hit += document.meta.tokens;
            set.paragraphs_hit += paragraphs.len() as u64;
            if listed {
                lines.push(Line::new(train, eval, document, identical, &paragraphs));
            }
        };
        let merge = |a: Found, b: Found| {
            let mut lines = a.1;
            lines.extend(b.1);
            (merge_by_name(a.0, b.0, |total, set| add_train(total, &set)), lines)
        };
        let wanted = |split, shard, index| suspects.is_marked(split, shard, index);
        let mut sets = TrainSets::new();
        for place in train.shards().filter(|place| suspects.documents.contains_key(place)) {
            let (found, lines) =
                train.visit_shard(place, self.tokenizer, self.progress, &wanted, &visit, &merge)?;
            sets = merge_by_name(sets, found, |total, set| add_train(total, &set));
            if let Some(list) = &mut list {
                list.write(&lines)?;
            }
        }
        Ok(sets)
    }
}

//! Which documents are shown, in one pass over what is known of them; texts are not read.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{LengthBin, Lengths, ShowArgs, set_named};
use crate::audit::corpus::Corpus;
use crate::audit::progress::ByteProgress;
use crate::report::CommandError;

/// Numbers of the documents, ascending (of the longest, longest first), and how long all are.
pub(super) fn choose(corpus: &Corpus, args: &ShowArgs) -> Result<(Vec<u64>, Option<Lengths>), CommandError> {
    let manifest = corpus.manifest();
    let matching = match &args.set {
        Some(name) => set_named(manifest, name)?.documents,
        None => corpus.documents(),
    };
    let mut wanted = spread(args.count, matching, args.first).into_iter().peekable();
    let mut longest = Longest { count: if args.longest { args.count } else { 0 }, heap: BinaryHeap::new() };
    let (mut numbers, mut lengths, mut seen) = (Vec::new(), Counted::default(), 0);
    let size = manifest.shards.iter().map(|shard| shard.companion.size).sum();
    let progress = ByteProgress::over_bytes("show", size);
    let mut number = 0;
    'all: for (shard, record) in manifest.shards.iter().enumerate() {
        let documents = corpus.shard(shard)?;
        for index in 0..documents.len() {
            if args.first && wanted.peek().is_none() {
                break 'all;
            }
            let meta = documents.meta(index);
            let own = meta.filter(|meta| args.set.is_none() || meta.set == args.set);
            if let Some(meta) = own {
                lengths.add(meta.tokens);
                longest.offer(meta.tokens, number);
                numbers.extend(wanted.next_if_eq(&seen).map(|_| number));
                seen += 1;
            }
            number += 1;
        }
        progress.advance(record.companion.size);
    }
    let numbers = if args.longest { longest.numbers() } else { numbers };
    Ok((numbers, (!args.first).then(|| lengths.finish())))
}

/// `count` of `of` numbers, evenly spread, or the first ones; all where there are no more.
pub(super) fn spread(count: usize, of: u64, first: bool) -> Vec<u64> {
    let count = of.min(count as u64);
    let place = |index: u64| (u128::from(index) * u128::from(of) / u128::from(count.max(1))) as u64;
    (0..count).map(|index| if first { index } else { place(index) }).collect()
}

/// The longest documents so far; of two equally long ones the earlier counts as longer.
struct Longest {
    count: usize,
    heap: BinaryHeap<Reverse<(u64, Reverse<u64>)>>,
}

impl Longest {
    fn offer(&mut self, tokens: u64, number: u64) {
        if self.count == 0 {
            return;
        }
        self.heap.push(Reverse((tokens, Reverse(number))));
        if self.heap.len() > self.count {
            self.heap.pop();
        }
    }

    fn numbers(self) -> Vec<u64> {
        self.heap.into_sorted_vec().into_iter().map(|Reverse((_, Reverse(number)))| number).collect()
    }
}

/// Documents and tokens by power of two.
#[derive(Default)]
struct Counted {
    lengths: Lengths,
    bins: Vec<(u64, u64)>,
}

impl Counted {
    fn add(&mut self, tokens: u64) {
        let bin = (u64::BITS - tokens.leading_zeros()) as usize;
        if self.bins.len() <= bin {
            self.bins.resize(bin + 1, (0, 0));
        }
        self.bins[bin].0 += 1;
        self.bins[bin].1 += tokens;
        self.lengths.documents += 1;
        self.lengths.tokens += tokens;
        self.lengths.longest = self.lengths.longest.max(tokens);
    }

    fn finish(self) -> Lengths {
        let bin = |(bin, &(documents, tokens)): (usize, &(u64, u64))| {
            let (first, last) = if bin == 0 { (0, 0) } else { (1 << (bin - 1), u64::MAX >> (64 - bin)) };
            LengthBin { first, last, documents, tokens }
        };
        Lengths { bins: self.bins.iter().enumerate().map(bin).collect(), ..self.lengths }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spread_and_lengths_fall_into_their_bins() {
        assert_eq!(spread(3, 10, false), [0, 3, 6]);
        assert_eq!(spread(3, 10, true), [0, 1, 2]);
        assert_eq!(spread(9, 2, false), [0, 1]);
        assert!(spread(3, 0, false).is_empty() && spread(0, 3, false).is_empty());
        let mut counted = Counted::default();
        [0, 1, 2, 3, 4, 7, 8].into_iter().for_each(|tokens| counted.add(tokens));
        let lengths = counted.finish();
        let bins: Vec<_> =
            lengths.bins.iter().map(|bin| (bin.first, bin.last, bin.documents, bin.tokens)).collect();
        assert_eq!(bins, [(0, 0, 1, 0), (1, 1, 1, 1), (2, 3, 2, 5), (4, 7, 2, 11), (8, 15, 1, 8)]);
        assert_eq!((lengths.documents, lengths.tokens, lengths.longest), (7, 25, 8));
    }

    #[test]
    fn the_longest_come_first_and_ties_in_stream_order() {
        let mut longest = Longest { count: 3, heap: BinaryHeap::new() };
        [5, 9, 5, 7, 9].into_iter().zip(0..).for_each(|(tokens, number)| longest.offer(tokens, number));
        assert_eq!(longest.numbers(), [1, 4, 3]);
    }
}

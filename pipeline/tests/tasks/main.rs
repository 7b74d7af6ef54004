//! Generated tasks: an independent checker solves every sample; wrong rules are caught; distributions are as published.

#![expect(clippy::unwrap_used, reason = "a test ends with the first value that is missing")]

mod checker;
mod distributions;
mod vectors;
mod written;

use std::collections::HashSet;

use xlstm_manifests::Sha256Digest;
use xlstm_pipeline::tasks::{self, Example, Parameters, Range, Sample, Split, Task, VectorExample};

const RECALL_SIZES: [(u32, u32); 15] = [
    (64, 4),
    (128, 8),
    (256, 16),
    (756, 48),
    (756, 96),
    (756, 256),
    (1024, 48),
    (1024, 96),
    (1024, 256),
    (2048, 48),
    (2048, 96),
    (2048, 256),
    (4096, 256),
    (6144, 256),
    (8192, 256),
];

fn recall(context_length: u32, pairs: u32) -> Box<dyn Task> {
    let parameters =
        Parameters { context_length: Some(context_length), pairs: Some(pairs), ..Parameters::default() };
    tasks::by_name("mqar", 0, &parameters).unwrap()
}

fn task(name: &str) -> Box<dyn Task> {
    tasks::by_name(name, 0, &Parameters::default()).unwrap()
}

fn formal() -> impl Iterator<Item = &'static str> {
    tasks::names().filter(|name| !["mqar", "listops", NEAREST].contains(name))
}

/// The task whose rows are made of numbers.
const NEAREST: &str = "nearest-neighbor-search";

fn vectors(task: &dyn Task, split: Split, count: u64) -> impl Iterator<Item = VectorExample> {
    (0..count).map(move |number| {
        let mut out = VectorExample::default();
        task.vectors(split, number, &mut out).unwrap();
        out
    })
}

fn samples(task: &dyn Task, split: Split, count: u64) -> impl Iterator<Item = Example> {
    (0..count).map(move |number| {
        let mut out = Example::default();
        task.example(split, number, &mut out).unwrap();
        out
    })
}

/// A row as the specification writes it: a prompt and its answer.
fn row(prompt: &[u16], answer: &[u16]) -> Example {
    let mut row = Example::empty(256);
    row.input_ids[..prompt.len()].copy_from_slice(prompt);
    for (target, &id) in row.targets[prompt.len() - 1..].iter_mut().zip(answer) {
        *target = Some(id);
    }
    row.length = prompt.len() + answer.len() - 1;
    row
}

#[test]
fn the_checker_agrees_with_the_papers_examples() {
    let examples: [(&str, &[u16], &[u16]); 14] = [
        ("bucket_sort", &[1, 4, 8, 6, 1], &[1, 1, 4, 6, 8]),
        ("cycle_nav", &[1, 2, 3, 2, 1, 2, 2, 2, 3], &[7]),
        ("even_pairs", &[1, 2, 2, 1, 1, 2, 1, 1], &[1]),
        ("majority", &[1, 7, 6, 4, 3, 8, 1, 7, 2], &[1]),
        ("majority_count", &[1, 7, 6, 4, 4, 8, 1, 7, 2], &[2]),
        ("missing_duplicate", &[5, 9, 7, 3, 6, 5, 9, 7, 3, 1], &[6]),
        ("mod_arithmetic", &[5, 2, 9, 1, 5, 2, 7, 4], &[9]),
        ("mod_arithmetic_brackets", &[5, 5, 5, 9, 6, 3, 2, 9, 6, 2, 5, 2, 11, 2, 9, 6, 6, 4], &[9]),
        ("odds_first", &[4, 9, 5, 4, 8, 11, 1], &[4, 5, 8, 9, 4, 11]),
        ("parity", &[1, 2, 2, 1, 1, 2, 1], &[2]),
        ("repetition", &[4, 6, 10, 8, 4, 1], &[4, 6, 10, 8, 4]),
        ("reverse_string", &[4, 6, 10, 8, 4, 1], &[4, 8, 10, 6, 4]),
        ("stack_manipulation", &[3, 3, 5, 2, 2, 9, 9, 1], &[3, 5, 5]),
        ("solve_equation", &[5, 5, 11, 1, 9, 6, 2, 5, 2, 7, 6, 6, 4, 13, 8], &[11]),
    ];
    for (name, prompt, answer) in examples {
        assert_eq!(checker::check(name, &row(prompt, answer)), Ok(()), "{name}");
    }
    assert_eq!(checker::check("set", &row(&[9, 7, 7, 4, 6, 5, 6, 4, 1], &[9, 7, 4, 6, 5])), Ok(()));
    // [MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]
    let list = [12, 5, 4, 11, 3, 4, 15, 2, 1, 13, 2, 6, 9, 10, 3, 15, 15];
    assert_eq!(checker::list_value(&list), Ok(5));
    assert_eq!(checker::list_value(&[13, 2, 3, 15]), Ok(1), "[MED 1 2 ] is 1.5, cut to 1");
}

#[test]
fn every_sample_of_every_formal_language_is_right() {
    for name in formal() {
        let task = task(name);
        for split in Split::ALL {
            for (number, sample) in samples(&*task, split, 2000).enumerate() {
                assert_eq!(checker::check(name, &sample), Ok(()), "{name} {split} {number}");
                let ids = sample.input_ids.iter().copied().chain(sample.targets.iter().flatten().copied());
                assert!(ids.max().unwrap() < task.vocabulary_size() as u16, "{name}");
                assert_eq!(sample.input_ids.len(), task.row_length() as usize);
            }
        }
    }
}

#[test]
fn every_sample_of_recall_is_right_at_every_size_of_the_paper() {
    for (context, pairs) in RECALL_SIZES {
        let task = recall(context, pairs);
        for split in [Split::Train, Split::Test] {
            for sample in samples(&*task, split, 20) {
                assert_eq!(checker::check("mqar", &sample), Ok(()), "({context}, {pairs})");
                let asked = sample.targets.iter().flatten().count();
                assert_eq!(asked, if (context, pairs) == (756, 256) { 122 } else { pairs as usize });
            }
        }
    }
}

#[test]
fn every_list_is_right() {
    let task = task("listops");
    for sample in samples(&*task, Split::Train, 300) {
        assert_eq!(checker::check("listops", &sample), Ok(()));
        assert!(sample.length > 500 && sample.length < 2000);
    }
}

/// The targets of a sequence from its definition alone: of all candidates up to a position the one at the smallest distance
/// from the key's feature, and its value. `None`: two are so near to each other that rounding decides.
fn solve_nearest(prompt: &[[f64; 3]], nearest: impl Fn(f64, f64) -> bool) -> Vec<Option<f64>> {
    let distance = |at: usize| (prompt[at][0] - prompt[0][0]).hypot(prompt[at][1] - prompt[0][1]);
    let mut targets = vec![None];
    for t in 1..prompt.len() {
        let mut best = 1;
        for candidate in 2..=t {
            if nearest(distance(candidate), distance(best)) {
                best = candidate;
            }
        }
        let unclear = |other: usize| other != best && (distance(other) - distance(best)).abs() < 1e-7;
        targets.push((!(1..=t).any(unclear)).then_some(prompt[best][2]));
    }
    targets
}

fn prompt_of(sample: &VectorExample) -> Vec<[f64; 3]> {
    let vectors = sample.inputs.chunks(3).map(|v| [v[0], v[1], v[2]].map(f64::from));
    vectors.take(sample.length).collect()
}

#[test]
fn every_nearest_neighbor_is_found_again_from_the_definition() {
    let task = task(NEAREST);
    let (mut agree, mut unclear) = (0, 0);
    for split in Split::ALL {
        for sample in vectors(&*task, split, 2000) {
            let prompt = prompt_of(&sample);
            assert!((2..=64).contains(&sample.length) && sample.targets.len() == 64);
            assert_eq!(sample.inputs.len(), 3 * 64);
            for vector in &prompt {
                assert!((vector[0].hypot(vector[1]) - 1.0).abs() < 1e-6 && (0.0..1.0).contains(&vector[2]));
                // A value is a multiple of 2^-24, exactly.
                assert_eq!((vector[2] * 2f64.powi(24)).fract(), 0.0);
            }
            for (t, expected) in solve_nearest(&prompt, |one, other| one < other).into_iter().enumerate() {
                let found = sample.targets[t].map(f64::from);
                match expected {
                    Some(expected) => {
                        agree += 1;
                        assert_eq!(found, Some(expected), "{split}, position {t}");
                    }
                    None if t == 0 => assert_eq!(found, None, "the key is no candidate"),
                    None => {
                        unclear += 1;
                        assert!(prompt[1..=t].iter().any(|vector| Some(vector[2]) == found));
                    }
                }
            }
            assert!(sample.targets[sample.length..].iter().all(Option::is_none));
            assert!(sample.inputs[3 * sample.length..].iter().all(|&number| number == 0.0));
        }
    }
    // Six thousand sequences of 33 vectors on average, but for the first.
    assert!(agree > 180_000 && unclear < 20, "{agree} and {unclear}");
}

/// A rule that is wrong in one plausible way is not taken for the right one.
#[test]
fn the_farthest_neighbor_is_not_taken_for_the_nearest() {
    let task = task(NEAREST);
    let wrong = vectors(&*task, Split::Train, 200).filter(|sample| {
        let solved = solve_nearest(&prompt_of(sample), |one, other| one > other);
        solved
            .iter()
            .zip(&sample.targets)
            .any(|(solved, target)| solved.is_some() && *solved != target.map(f64::from))
    });
    // Of sequences of two vectors there is one candidate.
    assert!(wrong.count() > 180);
}

/// Where two candidates are equally near, the earlier one counts: its value stays when an equal one comes.
#[test]
fn a_nearest_neighbor_changes_only_when_a_nearer_one_comes() {
    let task = task(NEAREST);
    for sample in vectors(&*task, Split::Test, 500) {
        let prompt = prompt_of(&sample);
        let product = |t: usize| prompt[0][0] * prompt[t][0] + prompt[0][1] * prompt[t][1];
        for (t, vector) in prompt.iter().enumerate().skip(2) {
            let before = (1..t).map(product).fold(f64::NEG_INFINITY, f64::max);
            let expected =
                if product(t) > before { Some(vector[2]) } else { sample.targets[t - 1].map(f64::from) };
            assert_eq!(sample.targets[t].map(f64::from), expected);
        }
    }
}

/// A plausible mistake in each task's rule.
fn wrong_answer(name: &str, prompt: &[u16], answer: &[u16]) -> Vec<u16> {
    let string = &prompt[..prompt.len() - 1];
    match name {
        // Duplicates dropped.
        "bucket_sort" => answer.chunk_by(|a, b| a == b).map(|run| run[0]).collect(),
        // −1 as a machine's remainder would have it: not on the cycle.
        "cycle_nav" => vec![4 + prompt.iter().map(|&id| [0, 1, 0][usize::from(id) - 1]).sum::<u16>() % 5],
        "even_pairs" => vec![if prompt[0] == prompt[1] { 1 } else { 2 }],
        "parity" => vec![if prompt.iter().filter(|&&id| id == 1).count() % 2 == 1 { 2 } else { 1 }],
        "majority" => {
            let most = checker::solve("majority_count", prompt).unwrap()[0];
            let first =
                prompt.iter().find(|id| prompt.iter().filter(|other| other == id).count() == most as usize);
            vec![*first.unwrap()]
        }
        "majority_count" => vec![answer[0] + 1],
        "missing_duplicate" => vec![prompt[0]],
        // Operators from the left, without precedence.
        "mod_arithmetic" => {
            let mut value = u32::from(prompt[0] - 5);
            for pair in prompt[1..prompt.len() - 1].chunks(2) {
                let number = u32::from(pair[1] - 5);
                value = [value + number, value + 5 - number, value * number][usize::from(pair[0]) - 1] % 5;
            }
            vec![5 + value as u16]
        }
        // Unary minus ignored.
        "mod_arithmetic_brackets" | "mod_arithmetic_brackets_nomult" | "solve_equation" => {
            let unary = |at: usize| prompt[at] == 2 && (at == 0 || [1, 2, 3, 5].contains(&prompt[at - 1]));
            let plain: Vec<u16> = (0..prompt.len()).filter(|&at| !unary(at)).map(|at| prompt[at]).collect();
            checker::solve(name, &plain).unwrap()
        }
        // Places counted from 0.
        "odds_first" => string.iter().skip(1).step_by(2).chain(string.iter().step_by(2)).copied().collect(),
        "repetition" => string.iter().rev().copied().collect(),
        "reverse_string" => string.to_vec(),
        // Top to bottom.
        "stack_manipulation" => answer.iter().rev().copied().collect(),
        "set" => {
            let mut sorted = answer.to_vec();
            sorted.sort_unstable();
            sorted
        }
        _ => unreachable!("{name} has no wrong rule"),
    }
}

#[test]
fn a_wrong_rule_is_caught_in_every_task() {
    for name in formal() {
        let task = task(name);
        let caught = samples(&*task, Split::Train, 200).filter(|sample| {
            let (prompt, answer) = checker::prompt_and_answer(sample).unwrap();
            checker::check(name, &row(prompt, &wrong_answer(name, prompt, &answer))).is_err()
        });
        assert!(caught.count() > 20, "{name}");
    }
    let mut sample = samples(&*recall(64, 4), Split::Train, 1).next().unwrap();
    // Another pair's value.
    let scored = sample.targets.iter().position(Option::is_some).unwrap();
    let other =
        (1..8).step_by(2).map(|at| sample.input_ids[at]).find(|&id| Some(id) != sample.targets[scored]);
    sample.targets[scored] = other;
    assert!(checker::check("mqar", &sample).is_err());
    // The value one position late, as an unshifted label would stand.
    let mut sample = samples(&*recall(64, 4), Split::Train, 1).next().unwrap();
    sample.targets.rotate_right(1);
    assert!(checker::check("mqar", &sample).is_err());
    let mut sample = samples(&*task("listops"), Split::Train, 1).next().unwrap();
    let last = sample.length - 1;
    sample.targets[last] = sample.targets[last].map(|class| (class + 1) % 10);
    assert!(checker::check("listops", &sample).is_err());
}

#[test]
fn splits_cannot_meet() {
    let every = formal().map(task).chain([recall(64, 4), task("listops")]);
    for task in every {
        let count = if task.spec()["task"] == "listops" { 100 } else { 1500 };
        let prompts = |split| -> HashSet<Vec<u16>> {
            samples(&*task, split, count).map(|sample| sample.input_ids).collect()
        };
        let [train, validation, test] = Split::ALL.map(prompts);
        assert!(train.is_disjoint(&validation) && train.is_disjoint(&test) && validation.is_disjoint(&test));
        assert!(validation.len() as u64 > count * 9 / 10, "{}: prompts repeat", task.spec());
    }
    // Where training lengths reach into the evaluated ones, prompts are shared out from there on.
    let parameters = Parameters {
        train_length: Some(Range { min: 3, max: 16 }),
        evaluation_length: Some(Range { min: 13, max: 16 }),
        ..Parameters::default()
    };
    let parity = tasks::by_name("parity", 1, &parameters).unwrap();
    let train: HashSet<_> = samples(&*parity, Split::Train, 20_000).map(|s| s.input_ids).collect();
    assert!(samples(&*parity, Split::Test, 20_000).all(|sample| !train.contains(&sample.input_ids)));
}

#[test]
fn a_sample_depends_on_seed_split_and_number_and_on_nothing_else() {
    for name in tasks::names() {
        let [zero, one] = [0, 1].map(|seed| tasks::by_name(name, seed, &Parameters::default()).unwrap());
        let make = |task: &dyn Task, split, number| Sample::make(task, split, number).unwrap();
        let out = make(&*zero, Split::Train, 5);
        let again = tasks::from_spec(&zero.spec()).unwrap();
        make(&*again, Split::Train, 6);
        assert_eq!(out, make(&*again, Split::Train, 5), "{name}: not a function of its number");
        let ten = |task: &dyn Task, split| {
            (0..10).map(|number| make(task, split, number).stored().digest()).collect::<Vec<_>>()
        };
        assert_ne!(ten(&*zero, Split::Train), ten(&*one, Split::Train), "{name}: the seed changes nothing");
        assert_ne!(ten(&*zero, Split::Train), ten(&*zero, Split::Validation), "{name}");
    }
    // What was in the vectors before does not matter.
    let parity = task("parity");
    let (mut fresh, mut used) = (Example::default(), Example::empty(7));
    parity.example(Split::Train, 5, &mut fresh).unwrap();
    parity.example(Split::Train, 5, &mut used).unwrap();
    assert_eq!(fresh, used);
}

/// Digests over ids, targets and lengths of the first 50 training and 20 test samples with seed 0: a change of them is
/// another version of the generator.
#[test]
fn samples_are_pinned() {
    let pinned: [(&str, u32); 19] = [
        ("bucket_sort", 0x63c26f62),
        ("majority", 0x2e569b0d),
        ("majority_count", 0x131e8a0c),
        ("missing_duplicate", 0xa030bc3c),
        ("odds_first", 0x86daf1f5),
        ("repetition", 0x2ff9e007),
        ("reverse_string", 0x3d714e6f),
        ("set", 0x05899399),
        ("cycle_nav", 0x75770bdc),
        ("even_pairs", 0xa4f85e09),
        ("parity", 0xab05e828),
        ("stack_manipulation", 0x82b7ff59),
        ("mod_arithmetic", 0xa3c76241),
        ("mod_arithmetic_brackets", 0xd4c81aee),
        ("mod_arithmetic_brackets_nomult", 0x5e662a72),
        ("solve_equation", 0x111974c0),
        ("mqar", 0x4bf79051),
        ("listops", 0x85f08331),
        ("mqar (756, 256)", 0xee5cb8d3),
    ];
    let digest = |task: &dyn Task| {
        let rows = samples(task, Split::Train, 50).chain(samples(task, Split::Test, 20));
        let bytes: Vec<u8> = rows
            .flat_map(|row| {
                let targets = row.targets.iter().map(|target| target.unwrap_or(u16::MAX));
                row.input_ids.iter().copied().chain(targets).chain([row.length as u16]).collect::<Vec<_>>()
            })
            .flat_map(u16::to_le_bytes)
            .collect();
        let digest = Sha256Digest::of(&bytes).0;
        u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
    };
    let found: Vec<(String, u32)> = tasks::names()
        .filter(|name| *name != NEAREST)
        .map(|name| (name.to_owned(), digest(&*task(name))))
        .chain([("mqar (756, 256)".to_owned(), digest(&*recall(756, 256)))])
        .collect();
    let pinned: Vec<_> = pinned.iter().map(|(name, digest)| ((*name).to_owned(), *digest)).collect();
    assert_eq!(
        found,
        pinned,
        "{}",
        found.iter().map(|(n, d)| format!("(\"{n}\", {d:#010x}),\n")).collect::<String>()
    );
}

fn refusal(name: &str, parameters: Parameters) -> String {
    match tasks::by_name(name, 0, &parameters) {
        Ok(task) => panic!("{} was accepted", task.spec()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_a_task_cannot_have_is_refused_by_name() {
    let default = Parameters::default;
    let length = |min, max| Some(Range { min, max });
    let cases = [
        ("no_such_task", default(), "there are bucket_sort"),
        ("parity", Parameters { pairs: Some(4), ..default() }, "parity has no parameter `pairs`"),
        ("mod_arithmetic", Parameters { train_length: length(4, 4), ..default() }, "no sample with a length"),
        (
            "bucket_sort",
            Parameters { evaluation_length: length(41, 41), ..default() },
            "no sample with a length",
        ),
        ("parity", Parameters { train_length: length(9, 3), ..default() }, "MIN ≤ MAX"),
        ("parity", Parameters { evaluation_length: length(3, 9), ..default() }, "only 4 different prompts"),
        ("parity", Parameters { row_length: Some(100), ..default() }, "a row of at least 255"),
        ("mqar", Parameters { pairs: Some(32), ..default() }, "more than context_length 64"),
        ("mqar", Parameters { pairs: Some(0), ..default() }, "at least one pair"),
        ("mqar", Parameters { context_length: Some(65), ..default() }, "even context_length"),
        ("mqar", Parameters { vocabulary: Some(8), ..default() }, "a vocabulary of at least 10"),
        ("listops", Parameters { length: length(1, 3), ..default() }, "lengths of 4"),
        ("listops", Parameters { length: length(500, 510), ..default() }, "so narrow"),
        (NEAREST, Parameters { length: length(1, 9), ..default() }, "a key and a candidate"),
        (NEAREST, Parameters { row_length: Some(64), ..default() }, "has no parameter `row_length`"),
    ];
    for (name, parameters, expected) in cases {
        let error = refusal(name, parameters);
        assert!(error.contains(expected), "{name}: {error}");
    }
    assert!(tasks::by_name("parity", 1 << 60, &default()).is_err(), "a seed without canonical form");
    let short = Parameters { train_length: length(3, 4), ..default() };
    let parity = tasks::by_name("parity", 0, &short).unwrap();
    assert!(tasks::check_examples(&*parity, Split::Train, 12).is_ok());
    let error = tasks::check_examples(&*parity, Split::Train, 13).unwrap_err().to_string();
    assert!(error.contains("only 12 different"), "{error}");
    assert!(tasks::check_examples(&*parity, Split::Train, 0).is_err());
    let mut newer = parity.spec();
    newer["version"] = 2.into();
    assert!(tasks::from_spec(&newer).err().unwrap().to_string().contains("version"));
}

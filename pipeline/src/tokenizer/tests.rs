use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// One tokenizer for all tests of this process.
fn tokenizer() -> &'static Gpt2Tokenizer {
    static TOKENIZER: OnceLock<Gpt2Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Gpt2Tokenizer::new().unwrap())
}

/// The definition of byte-pair encoding, word by word.
fn by_definition(text: &str) -> Vec<u16> {
    let inner = &tokenizer().inner;
    let mut words = Vec::new();
    inner.split.pre_tokenize(text, &mut PreTokenizerScratch::default(), &mut words).unwrap();
    words.into_iter().flat_map(|word| merge(&text.as_bytes()[word.range()])).collect()
}

fn merge(word: &[u8]) -> Vec<u16> {
    type Tables = (HashMap<(u16, u16), u16>, HashMap<u8, u16>);
    static TABLES: OnceLock<Tables> = OnceLock::new();
    let vocabulary = &tokenizer().inner.vocabulary;
    let (merges, bytes) = TABLES.get_or_init(|| {
        let merges = vocabulary.merges.iter().copied().zip(256..).collect();
        (merges, (0..256).map(|id| (vocabulary.token(id).unwrap()[0], id)).collect())
    });
    let mut ids: Vec<u16> = word.iter().map(|byte| bytes[byte]).collect();
    loop {
        // The smallest merged id is the first merge; of equal ones `min` takes the leftmost.
        let pairs = (1..ids.len()).filter_map(|at| Some((*merges.get(&(ids[at - 1], ids[at]))?, at)));
        let Some((merged, at)) = pairs.min() else { return ids };
        ids[at - 1] = merged;
        ids.remove(at);
    }
}

/// Text that puts every class of character next to every other.
fn awkward_text() -> impl Strategy<Value = String> {
    let character = prop_oneof![
        4 => prop::sample::select("aZé'std 19 \n\t.,!-日本、。한я\u{301}\u{200b}\u{3000}\u{a0}½😀".chars().collect::<Vec<_>>()),
        1 => any::<char>(),
    ];
    prop::collection::vec(character, 0..200).prop_map(|characters| characters.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn windows_give_the_ids_of_the_whole(text in awkward_text(), window_bytes in 1usize..40) {
        let mut scratch = EncodeScratch::default();
        let (mut whole, mut parts) = (Vec::new(), Vec::new());
        tokenizer().encode_in_windows(&mut scratch, &text, 1 << 20, &mut whole).unwrap();
        tokenizer().encode_in_windows(&mut scratch, &text, window_bytes, &mut parts).unwrap();
        prop_assert_eq!(whole, parts);
    }

    #[test]
    fn the_library_agrees_with_the_definition(text in awkward_text()) {
        prop_assert_eq!(tokenizer().encode(&text).unwrap(), by_definition(&text));
    }

    /// Words of few letters, in which merges overlap and compete, settled as often as possible.
    #[test]
    fn the_exact_path_is_the_definition(
        word in prop_oneof!["[ab]{0,400}", "[eraint]{0,400}", "[ =\\-*]{0,400}", "[a-z]{0,200}", "[а-я日本語é]{0,100}", "[a-zA-Z' ]{0,200}"],
        window in 1usize..300,
    ) {
        let inner = &tokenizer().inner;
        let mut ids = Vec::new();
        inner.exact().encode_in_windows(&inner.vocabulary, word.as_bytes(), window, &mut ids);
        prop_assert_eq!(ids, merge(word.as_bytes()));
    }

    /// Long runs of one class, where a window holds no whole word.
    #[test]
    fn long_words_are_found_whole(
        runs in prop::collection::vec(("a|b|'|!|1| |\n|é|日|\u{301}", 1usize..120), 1..8),
        window_bytes in 1usize..24,
    ) {
        let text: String = runs.iter().map(|(unit, count)| unit.repeat(*count)).collect();
        let mut ids = Vec::new();
        tokenizer().encode_in_windows(&mut EncodeScratch::default(), &text, window_bytes, &mut ids).unwrap();
        prop_assert_eq!(ids, by_definition(&text));
    }

    #[test]
    fn ids_decode_to_the_text(text in any::<String>()) {
        let ids = tokenizer().encode(&text).unwrap();
        prop_assert!(!ids.contains(&EOS));
        prop_assert_eq!(tokenizer().decode(&ids), text.as_bytes());
    }
}

#[test]
fn ids_that_do_not_decode_to_the_text_are_refused() {
    let vocabulary = &tokenizer().inner.vocabulary;
    assert!(vocabulary.spells(&[15496, 995], b"Hello world"));
    for wrong in [&[15496][..], &[15496, 995, 0], &[15496, 996], &[50_256], &[70_000], &[]] {
        assert!(!vocabulary.spells(wrong, b"Hello world"), "{wrong:?}");
    }
}

#[test]
fn a_word_longer_than_every_window_is_encoded() {
    let mut scratch = EncodeScratch::default();
    for unit in ["a", "ab", "=", "9", " ", "日", "abcdefgh", "'"] {
        for tail in ["", "!", " x", "'s"] {
            let text = format!("x {}{tail}", unit.repeat(1500));
            let mut ids = Vec::new();
            tokenizer().encode_in_windows(&mut scratch, &text, 8, &mut ids).unwrap();
            assert_eq!(ids, by_definition(&text), "{unit:?} {tail:?}");
        }
    }
    let text = "x".repeat(3 << 20);
    assert_eq!(tokenizer().decode(&tokenizer().encode(&text).unwrap()), text.as_bytes());
}

#[test]
fn out_keeps_what_it_had() {
    let mut out = vec![EOS];
    tokenizer().encode_into(&mut EncodeScratch::default(), "Hello world", &mut out).unwrap();
    assert_eq!(out, [EOS, 15496, 995]);
}

#[test]
fn the_identity_names_openais_file() {
    let identity = tokenizer().identity().unwrap();
    assert_eq!(
        identity.files["vocab.bpe"].to_string(),
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
    );
    let lock = include_str!("../../../Cargo.lock");
    let entry = format!("name = \"{}\"\nversion = \"{}\"\n", identity.engine, identity.engine_version);
    assert!(lock.contains(&entry), "ENGINE_VERSION is not the version in Cargo.lock");
}

/// A change of this digest means other ids for somebody's text: a new version of the manifest, never a fix
/// of the test. `tokenizers` 0.23.3 and `tiktoken` 0.14.0 (Python) give the same digest.
#[test]
fn the_probe_gives_the_recorded_digest() {
    assert_eq!(
        tokenizer().identity().unwrap().probe_sha256.to_string(),
        "e835c85d62f9d97cbcd24c1357145d6bd592e62b65ecd42b5e26f0ca167ffa08"
    );
}

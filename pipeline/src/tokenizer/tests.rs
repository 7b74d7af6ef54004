use proptest::prelude::*;

use super::*;

/// One tokenizer for all tests of this process.
fn tokenizer() -> &'static Gpt2Tokenizer {
    static TOKENIZER: OnceLock<Gpt2Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Gpt2Tokenizer::new().unwrap())
}

fn exactly(text: &str) -> Vec<u16> {
    let tokenizer = tokenizer();
    let merges = tokenizer.inner.merges.get_or_init(|| Merges::new(&tokenizer.inner.vocabulary));
    let mut words = Vec::new();
    tokenizer.inner.split.pre_tokenize(text, &mut PreTokenizerScratch::default(), &mut words).unwrap();
    let mut ids = Vec::new();
    for word in words {
        merges.encode(&tokenizer.inner.vocabulary, &text.as_bytes()[word.range()], &mut ids);
    }
    ids
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
    fn pieces_give_the_ids_of_the_whole(text in awkward_text(), piece_bytes in 1usize..40) {
        let mut scratch = EncodeScratch::default();
        let (mut whole, mut parts) = (Vec::new(), Vec::new());
        tokenizer().encode_in_pieces(&mut scratch, &text, usize::MAX, &mut whole).unwrap();
        tokenizer().encode_in_pieces(&mut scratch, &text, piece_bytes, &mut parts).unwrap();
        prop_assert_eq!(whole, parts);
    }

    #[test]
    fn the_library_agrees_with_the_definition(text in awkward_text()) {
        prop_assert_eq!(tokenizer().encode(&text).unwrap(), exactly(&text));
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
    let inner = &tokenizer().inner;
    let mut out = Vec::new();
    assert!(inner.append_if_true(b"Hello world", &[15496, 995], &mut out));
    for wrong in [&[15496u32][..], &[15496, 995, 0], &[15496, 996], &[50_256], &[70_000]] {
        assert!(!inner.append_if_true(b"Hello world", wrong, &mut Vec::new()), "{wrong:?}");
    }
    assert_eq!(out, [15496, 995]);
}

#[test]
fn the_definition_encodes_a_long_word_in_time() {
    let word = "abcdefgh".repeat(50_000);
    assert_eq!(exactly(&word), tokenizer().encode(&word).unwrap());
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

//! Files that are not what their names say, and what other programs write.

use xlstm_tests::corpus;

use super::*;

#[test]
fn files_that_only_look_like_text_are_called_what_they_are() {
    let utf16: Vec<u8> =
        "\u{feff}{\"text\": \"Boat number 0\"}\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n";
    for (name, content, parts) in [
        ("a.txt", &pointer[..], &["Git LFS pointer", "git lfs pull"][..]),
        ("b.md", pointer, &["Git LFS pointer", "git lfs pull"]),
        ("a.jsonl", &utf16, &["UTF-16", "iconv"]),
        ("a.jsonl", &utf16[2..], &["UTF-16", "iconv"]),
        ("a.txt", &utf16, &["UTF-16", "iconv"]),
        ("a.jsonl.gz", &corpus::gzip_members(&utf16, 1), &["UTF-16", "iconv"]),
        ("a.txt.zst", &corpus::zstd_frames(&utf16, 1), &["UTF-16", "iconv"]),
        (
            "a.parquet",
            include_bytes!("../../files/encrypted_footer.parquet"),
            &["an encrypted Parquet file", "decrypt"],
        ),
        (
            "a.parquet",
            include_bytes!("../../files/encrypted_text.parquet"),
            &["encrypted columns", "decrypt"],
        ),
        (
            "a.jsonl.zst",
            include_bytes!("../../files/dictionary.jsonl.zst"),
            &["compressed with a dictionary", "zstd -d -D"],
        ),
        (
            "a.jsonl.gz",
            &[&corpus::gzip_members(b"{\"text\":\"a\"}\n", 1)[..], b"xx"].concat(),
            &["behind the last member"],
        ),
    ] {
        let error = Folders::new(&[(name, content)]).prepare(&[]).failure(1);
        assert_says(&error, parts);
        assert_says(&error, &[name]);
        assert!(!error.contains("damaged") || name.ends_with(".gz"), "{error}");
    }
}

#[test]
fn what_others_read_is_read_here() {
    let padded =
        [&corpus::gzip_members(b"{\"text\":\"one\"}\n{\"text\":\"two\"}\n", 2)[..], &[0; 700]].concat();
    let newline = [&corpus::gzip_members(b"{\"text\":\"three\"}\n", 1)[..], b"\n"].concat();
    let folders = Folders::new(&[
        ("a.jsonl.gz", include_bytes!("../../files/zero_padding.jsonl.gz")),
        ("b.jsonl.gz", &padded),
        ("c.jsonl.gz", &newline),
        (
            "d.jsonl",
            b"{\"text\":\"scored\", \"score\": NaN}\n{\"text\":\"also\", \"score\": [-Infinity, Infinity]}\n",
        ),
        ("e.jsonl", b"{\"\\ud800\": 1, \"text\":\"a key of half a pair\", \"\\udc00x\": {\"\\ud800\": 2}}\n"),
        ("f.txt", b"\xef\xbb\xbfmarked"),
        ("g.md", b"\xef\xbb\xbfmarked too"),
        ("h.parquet", include_bytes!("../../files/encrypted_other.parquet")),
    ]);
    folders.prepare(&[]).success();
    let texts = folders.texts();
    let tail = [
        "one",
        "two",
        "three",
        "scored",
        "also",
        "a key of half a pair",
        "marked",
        "marked too",
        "one",
        "two",
    ];
    assert_eq!(texts[texts.len() - tail.len()..], tail);
    assert!(folders.manifest().totals.left_out.is_empty());
    data(["audit", text(&folders.path("out")), "--deep", "all"]).success();
}

/// A frame that holds no data: RFC 8878, section 3.1.2.
const SKIPPABLE: &[u8] = b"\x50\x2a\x4d\x18\x05\0\0\0abcde";

/// A member and a frame of no bytes (RFC 1952, section 2.3; RFC 8878, section 3.1.1).
const EMPTY_MEMBER: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x03\0\0\0\0\0\0\0\0\0";
const EMPTY_FRAME: &[u8] = b"\x28\xb5\x2f\xfd\x20\0\x01\0\0";

#[test]
fn frames_and_members_are_read_to_the_end() {
    let (one, two) = (b"{\"text\":\"one\"}\r\n", b"{\"text\":\"two\\r\\n\"}\r\n\r\n");
    let zstd = |bytes: &[u8]| corpus::zstd_frames(bytes, 1);
    let gzip = |bytes: &[u8]| corpus::gzip_members(bytes, 1);
    let folders = Folders::new(&[
        ("a.jsonl", &[&one[..], two].concat()),
        ("b.jsonl.gz", &[&gzip(one)[..], EMPTY_MEMBER, &gzip(two)].concat()),
        ("c.jsonl.zst", &[SKIPPABLE, &zstd(one), SKIPPABLE, EMPTY_FRAME, &zstd(two), SKIPPABLE].concat()),
        ("d.jsonl.zst", SKIPPABLE),
        ("e.txt.zst", &[SKIPPABLE, &zstd(b"whole "), &zstd(b"text")].concat()),
        ("f.jsonl", b""),
        ("g.jsonl.gz", EMPTY_MEMBER),
        ("h.jsonl.zst", &zstd(b"\n \n")),
    ]);
    folders.prepare(&[]).success();
    assert_eq!(folders.texts(), ["one", "two\r\n", "one", "two\r\n", "one", "two\r\n", "whole text"]);
    assert_eq!(folders.names().len(), 8, "files without records are inputs too");
    data(["audit", text(&folders.path("out")), "--deep", "all"]).success();
}

#[test]
fn json_that_is_not_one_object_a_line_is_called_so() {
    let array = b"[{\"text\":\"one\"},{\"text\":\"two\"}]";
    for (name, content) in [
        ("a.jsonl", &array[..]),
        ("a.json.gz", &corpus::gzip_members(array, 1)),
        ("a.jsonl", b"[\n{\"text\":\"one\"},\n{\"text\":\"two\"}\n]\n"),
        ("a.jsonl", b"{\r\n \"text\": \"one\"\r\n}\r\n"),
    ] {
        let error = Folders::new(&[(name, content)]).prepare(&[]).failure(1);
        assert_says(&error, &["record 0", "write one object a line", "jq -c"]);
        assert!(!error.contains("--text-field") && !error.contains("mend"), "{error}");
    }
    let folders = Folders::new(&[("a.json", array)]);
    assert_says(&folders.prepare(&[]).failure(1), &["no input", ".json 1"]);
    let error = folders.prepare_from(&folders.input().join("a.json"), &[]).failure(1);
    assert_says(&error, &["a.json", "rename it to .jsonl"]);
}

#[test]
fn the_same_bytes_twice_are_said_and_the_same_file_twice_is_refused() {
    let line = b"{\"text\":\"a\"}\n";
    let folders = Folders::new(&[("A.jsonl", line), ("a.jsonl", line)]);
    let said = folders.prepare(&[]).success();
    assert_says(&said, &["2 documents", "`a.jsonl` has the same bytes as `A.jsonl`"]);
    let (input, file) = (folders.input(), folders.input().join("a.jsonl"));
    for twice in [[&file, &file], [&input, &file], [&input, &input.join(".")]] {
        let out = folders.path("twice");
        let error =
            data(["prepare", "local", text(twice[0]), text(twice[1]), "--out", text(&out)]).failure(1);
        assert_says(&error, &["is given twice", "name each file once"]);
    }
}

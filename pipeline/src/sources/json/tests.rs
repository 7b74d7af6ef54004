use proptest::prelude::*;
use serde_json::json;

use super::*;

fn one(line: &str, path: &str) -> Result<Value, Flaw> {
    extract(line.as_bytes(), &Paths::new([Some(path)])).map(|mut values| values.remove(0))
}

fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

#[test]
fn fields_are_found_wherever_they_stand() {
    let line = r#" {"a":[1,{"text":"no"}],"meta":{"set":"C4","x":{}},"text":"yes","n":1e400} "#;
    let values = extract(
        line.as_bytes(),
        &Paths::new([Some("text"), Some("meta.set"), Some("meta.none"), Some("n"), Some("a"), Some("meta")]),
    );
    let expected = vec![
        text("yes"),
        text("C4"),
        Value::Absent,
        Value::Number("1e400".into()),
        Value::Array(6..23),
        Value::Object(31..50),
    ];
    let values = values.unwrap();
    assert_eq!(values, expected);
    let names: Vec<_> = values.into_iter().map(|value| value.into_name(line.as_bytes())).collect();
    assert_eq!(names[4].as_deref(), Some(r#"[1,{"text":"no"}]"#));
    assert_eq!(names[5].as_deref(), Some(r#"{"set":"C4","x":{}}"#));
    assert_eq!(one(line, "meta.set").unwrap(), text("C4"));
    assert_eq!(one(line, "meta.x.y").unwrap(), Value::Absent);
    assert_eq!(one(line, "text.inner").unwrap(), Value::Absent);
}

#[test]
fn a_key_may_hold_dots_itself() {
    assert_eq!(one(r#"{"meta.set":"a"}"#, "meta.set").unwrap(), text("a"));
    assert_eq!(one(r#"{"a":{"b.c":"x"}}"#, "a.b.c").unwrap(), text("x"));
    assert_eq!(one(r#"{"a.b":{"c":"x"}}"#, "a.b.c").unwrap(), Value::Absent, "only a path's rest is one key");
    assert_eq!(one(r#"{"meta":{"set":"a"},"meta.set":"b"}"#, "meta.set").unwrap(), text("b"), "the last one");
    assert_eq!(one(r#"{"meta.set":"b","meta":{"x":1}}"#, "meta.set").unwrap(), Value::Absent);
    assert_eq!(one(r#"{".":"x","":{"":"y"}}"#, ".").unwrap(), text("y"));
}

#[test]
fn the_last_of_equal_keys_counts() {
    assert_eq!(one(r#"{"text":"a","text":"b"}"#, "text").unwrap(), text("b"));
    assert_eq!(one(r#"{"text":"a","text":null}"#, "text").unwrap(), Value::Null);
    assert_eq!(one(r#"{"m":{"s":"a"},"m":{"t":1}}"#, "m.s").unwrap(), Value::Absent);
    assert_eq!(one(r#"{"\u0074ext":"spelled"}"#, "text").unwrap(), text("spelled"));
}

#[test]
fn numbers_keep_their_digits() {
    let line = r#"{"id":123456789012345678901234567890}"#;
    assert_eq!(one(line, "id").unwrap(), Value::Number("123456789012345678901234567890".into()));
    assert_eq!(one(r#"{"id": -0.5E+10 }"#, "id").unwrap(), Value::Number("-0.5E+10".into()));
}

#[test]
fn strings_are_unescaped() {
    let line = r#"{"text":"a\"\\\/\b\f\n\r\té\u00e9\u20ac\ud83d\ude00 end"}"#;
    assert_eq!(one(line, "text").unwrap(), text("a\"\\/\u{8}\u{c}\n\r\té\u{e9}€😀 end"));
}

#[test]
fn lone_surrogates_are_refused_in_what_is_wanted() {
    for broken in [r"\ud800", r"\ud800x", r"\ud800\n", r"\ud800\u0041", r"\udc00", r"\ud800\ud800"] {
        let flaw = one(&format!("{{\"text\":\"ab{broken}\"}}"), "text").unwrap_err();
        assert!(matches!(flaw, Flaw::Syntax { at: 11, .. }), "{broken}: {flaw}");
    }
    assert_eq!(one(r#"{"text":"a","other":"\ud800"}"#, "text").unwrap(), text("a"));
}

#[test]
fn bytes_that_are_no_utf8_are_found_anywhere() {
    for (line, at) in [
        (&b"{\"text\":\"ab\xff\"}"[..], 11),
        (b"{\"\xff\":1,\"text\":\"ab\"}", 2),
        (b"{\"text\":\"ab\",\"x\":\"\xc3\"}", 18),
        (b"\xff", 0),
    ] {
        let flaw = extract(line, &Paths::new([Some("text")])).unwrap_err();
        assert_eq!(flaw, Flaw::NotUtf8 { at }, "{}", String::from_utf8_lossy(line));
    }
}

#[test]
fn what_is_no_object_is_named() {
    for (line, name) in
        [("[1]", "an array"), ("12", "the number 12"), ("null", "null"), ("\"x\"", "a string")]
    {
        assert_eq!(one(line, "text").unwrap_err(), Flaw::NotAnObject { found: name.into() });
    }
}

#[test]
fn depth_has_no_limit() {
    let deep = format!("{{\"x\":{}{},\"text\":\"t\"}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(one(&deep, "text").unwrap(), text("t"));
}

/// A JSON value as serde_json writes it.
fn value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|value| json!(value)),
        any::<i64>().prop_map(|value| json!(value)),
        any::<f32>().prop_map(|value| json!(value)),
        any::<String>().prop_map(|value| json!(value)),
        "[ -~\n\"\\\\]{0,40}".prop_map(|value| json!(value)),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        let key = prop_oneof![Just("text".to_owned()), Just("meta".to_owned()), any::<String>()];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|values| json!(values)),
            prop::collection::btree_map(key, inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn values_are_those_of_serde_json(text in any::<String>(), meta in value(), pretty: bool) {
        let whole = json!({"a": meta, "text": text, "meta": {"text": meta}});
        let line = if pretty { serde_json::to_string_pretty(&whole) } else { serde_json::to_string(&whole) }.unwrap();
        let values = extract(line.as_bytes(), &Paths::new([Some("text"), Some("a"), Some("meta.text")])).unwrap();
        prop_assert_eq!(&values[0], &Value::String(text));
        prop_assert_eq!(std::mem::discriminant(&values[1]), std::mem::discriminant(&values[2]));
        let same = match (&values[1], &meta) {
            (Value::Null, serde_json::Value::Null) => true,
            (Value::Bool(a), serde_json::Value::Bool(b)) => a == b,
            (Value::Number(a), serde_json::Value::Number(b)) => *a == b.to_string(),
            (Value::String(a), serde_json::Value::String(b)) => a == b,
            (Value::Array(place), serde_json::Value::Array(_)) | (Value::Object(place), serde_json::Value::Object(_)) => {
                // Read twice, since a number with many digits is not read back as it was.
                let read = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
                read(&line[place.clone()]) == read(&line)["a"]
            }
            _ => false,
        };
        prop_assert!(same, "{:?} for {}", values[1], meta);
    }

    /// Damaged lines: accepted exactly when serde_json accepts them.
    #[test]
    fn validity_is_that_of_serde_json(
        meta in value(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(
            b"\"\\{}[],:0-.eE+ tfnu\x01\x80".to_vec())), 0..3),
    ) {
        let mut line = serde_json::to_vec(&json!({"a": meta, "text": "some text", "z": [meta]})).unwrap();
        for (index, byte) in damage {
            let at = index.index(line.len());
            line[at] = byte;
        }
        let ours = extract(&line, &Paths::new([Some("none")]));
        let theirs = std::str::from_utf8(&line).is_ok_and(|line| serde_json::from_str::<serde::de::IgnoredAny>(line).is_ok());
        let not_an_object = matches!(ours, Err(Flaw::NotAnObject { .. }));
        prop_assert_eq!(ours.is_ok() || not_an_object, theirs, "{}", String::from_utf8_lossy(&line));
    }
}

//! Bodies of every kind: answered as they say, or refused.

use std::cell::{Cell, RefCell};

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::server::{Connection, setup};

/// Values of every kind, most of them wrong somewhere.
fn any_value() -> impl Strategy<Value = Value> + Clone {
    let number = prop_oneof![
        (-3_i64..4).prop_map(|n| json!(n)),
        Just(json!(100)),
        Just(json!(101)),
        Just(json!(131_073)),
        Just(json!(u64::MAX)),
        Just(json!(i64::MIN)),
        Just(json!(0.5)),
        Just(json!(1.0)),
        Just(json!(-0.0)),
        Just(json!(1e300)),
    ];
    let text = prop_oneof![
        Just(json!("")),
        Just(json!("a")),
        Just(json!(" b\n")),
        Just(json!("2")),
        Just(json!("naïve 日本 😀")),
        Just(json!("\u{0}\u{1b}[2J\u{202e}")),
        Just(json!("<|endoftext|>")),
    ];
    let flat = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), number, text];
    let list = prop::collection::vec(flat.clone(), 0..4).prop_map(Value::from);
    let lists = prop::collection::vec(list.clone(), 0..3).prop_map(Value::from);
    let ids = prop::collection::vec(prop_oneof![0_i64..50_257, Just(50_303), Just(50_304)], 0..4);
    prop_oneof![5 => flat, 1 => list, 1 => lists, 2 => ids.prop_map(|ids| json!(ids)), 1 => Just(json!({})), 1 => Just(json!({"a": 1}))]
}

const KEYS: [&str; 36] = [
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "logprobs",
    "echo",
    "stop",
    "seed",
    "model",
    "user",
    "n",
    "best_of",
    "stream",
    "stream_options",
    "suffix",
    "logit_bias",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "length_penalty",
    "min_p",
    "min_tokens",
    "max_completion_tokens",
    "ignore_eos",
    "include_stop_str_in_output",
    "stop_token_ids",
    "truncate_prompt_tokens",
    "prompt_logprobs",
    "use_beam_search",
    "add_special_tokens",
    "tokens",
    "messages",
    "typical_p",
    "Prompt",
    "",
];

/// Whether a completion's body says only what is done: the rules once more, written apart from the server's.
fn may_be_answered(body: &Value) -> bool {
    let Some(body) = body.as_object() else { return false };
    let whole =
        |value: &Value, low: i64, high: i64| value.as_i64().is_some_and(|n| (low..=high).contains(&n));
    let number = |value: &Value, neutral: f64| value.is_number() && value.as_f64() == Some(neutral);
    let texts = |value: &Value| value.as_array().is_some_and(|items| items.iter().all(Value::is_string));
    let ids = |value: &Value| {
        value.as_array().is_some_and(|ids| !ids.is_empty() && ids.iter().all(|id| whole(id, 0, 50_303)))
    };
    let empty = |value: &Value| [json!(""), json!([]), json!({})].contains(value);
    let prompt = body.get("prompt").unwrap_or(&Value::Null);
    let filled = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let several = prompt
        .as_array()
        .is_some_and(|items| !items.is_empty() && (items.iter().all(filled) || items.iter().all(ids)));
    (filled(prompt) || ids(prompt) || several)
        && body.iter().filter(|(_, value)| !value.is_null()).all(|(key, value)| match key.as_str() {
            "prompt" => true,
            "max_tokens" => whole(value, 0, 131_000),
            "temperature" => value.as_f64().is_some_and(|number| number >= 0.0),
            "top_p" => value.as_f64().is_some_and(|number| number > 0.0 && number <= 1.0),
            "top_k" => whole(value, -1, i64::MAX),
            "logprobs" => whole(value, 0, 100),
            "echo" | "add_special_tokens" => value.is_boolean(),
            "stop" => value.is_string() || texts(value),
            "seed" => value.is_i64() || value.is_u64(),
            "model" | "user" => value.is_string(),
            "n" | "best_of" | "repetition_penalty" | "length_penalty" => number(value, 1.0),
            "frequency_penalty" | "presence_penalty" | "min_p" | "min_tokens" => number(value, 0.0),
            "ignore_eos" | "include_stop_str_in_output" | "use_beam_search" => *value == json!(false),
            "stream" => {
                let scored = body.get("logprobs").is_some_and(|value| !value.is_null());
                *value == json!(false) || (*value == json!(true) && !scored)
            }
            "stream_options" => *value == json!({}),
            "suffix" | "logit_bias" | "stop_token_ids" => empty(value),
            _ => false,
        })
}

/// JSON of a body, and for some of them bytes that are none.
fn bodies() -> impl Strategy<Value = (Vec<u8>, Option<Value>)> {
    let prompt = prop_oneof![4 => Just(json!("a b")), 1 => any_value()];
    let tokens = prop_oneof![3 => (0_i64..3).prop_map(|n| json!(n)), 1 => any_value()];
    let temperature = prop_oneof![9 => Just(json!(0)), 1 => any_value()];
    let others = prop::collection::vec((prop::sample::select(&KEYS[3..]), any_value()), 0..3);
    let object = (prompt, tokens, temperature, others).prop_map(|(prompt, tokens, temperature, others)| {
        let mut object = serde_json::Map::new();
        object.insert("temperature".to_owned(), temperature);
        object.insert("prompt".to_owned(), prompt);
        object.insert("max_tokens".to_owned(), tokens);
        object.extend(others.into_iter().map(|(key, value)| (key.to_owned(), value)));
        Value::from(object)
    });
    let whole = object.clone().prop_map(|body| (body.to_string().into_bytes(), Some(body)));
    let damaged =
        (object, any::<prop::sample::Index>(), any::<u8>(), 0..4_u8).prop_map(|(body, place, byte, how)| {
            let mut bytes = body.to_string().into_bytes();
            let place = place.index(bytes.len());
            match how {
                0 => bytes.truncate(place),
                1 => bytes[place] = byte,
                2 => bytes.insert(place, byte),
                _ => bytes.extend_from_slice(b", {}"),
            }
            let body = serde_json::from_slice(&bytes).ok();
            (bytes, body)
        });
    prop_oneof![8 => whole, 2 => damaged]
}

#[test]
fn ten_thousand_bodies_are_answered_as_they_say_or_refused() {
    // Nested strategies take more stack than a test's thread has in a build without optimization.
    let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(ten_thousand_bodies).unwrap();
    thread.join().unwrap();
}

fn ten_thousand_bodies() {
    let (_folder, _model, server) = setup();
    let connection = RefCell::new(Connection::new(&server));
    let config = ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() };
    let (answered, refused) = (Cell::new(0), Cell::new(0));
    proptest::test_runner::TestRunner::new(config)
        .run(&bodies(), |(bytes, body)| {
            let (status, answer) = connection.borrow_mut().post("/v1/completions", &bytes);
            let message = answer["error"]["message"].as_str();
            if message.is_some_and(|message| message.contains("found twice")) {
                // A damaged key may be that of another; a parsed object no longer shows it.
                return Ok(());
            }
            let expected = if body.as_ref().is_some_and(may_be_answered) { 200 } else { 400 };
            prop_assert_eq!(status, expected, "{}", answer);
            let counter = if status == 200 { &answered } else { &refused };
            counter.set(counter.get() + 1);
            prop_assert_eq!(message.is_none_or(str::is_empty), status == 200);
            prop_assert_eq!(answer["choices"].is_array(), status == 200);
            // The tokenizer's endpoints stand the same bodies.
            let path = if bytes.len().is_multiple_of(2) { "/tokenize" } else { "/detokenize" };
            let (status, answer) = connection.borrow_mut().post(path, &bytes);
            prop_assert!([200, 400].contains(&status), "{}: {}", status, answer);
            Ok(())
        })
        .unwrap();
    // Both kinds were there.
    assert!(answered.get() > 1000 && refused.get() > 1000, "{answered:?} answered, {refused:?} refused");
    assert_eq!(server.get("/health").0, 200);
}

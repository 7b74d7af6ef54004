//! The completions protocol over HTTP, as lm-evaluation-harness speaks it, against log-likelihoods computed here.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bodies;
mod server;
mod together;

use std::process::Command;

use serde_json::{Value, json};
use tch::{Kind, Tensor};
use xlstm_manifests::recipe::{Precision, XlstmConfig};
use xlstm_trainer::model::{Model, Placement, export};

use server::{Connection, case, setup, with};

/// Log-probabilities of every token of the vocabulary after each token, in float64.
fn logs(model: &Model, ids: &[i64]) -> Vec<Vec<f64>> {
    tch::no_grad(|| {
        let (hidden, _) = model.forward(&Tensor::from_slice(ids).unsqueeze(0), None, None).unwrap();
        let logs = model.logits(&hidden).unwrap().to_kind(Kind::Double).log_softmax(-1, Kind::Double);
        (0..ids.len() as i64).map(|t| Vec::<f64>::try_from(logs.get(0).get(t)).unwrap()).collect()
    })
}

fn best(logs: &[f64]) -> usize {
    (0..logs.len()).max_by(|&a, &b| logs[a].total_cmp(&logs[b])).unwrap()
}

#[test]
fn log_likelihoods_are_those_of_the_model() {
    let (_folder, model, server) = setup();
    // Lengths differ: the shorter one is padded, and one is longer than a piece of logits.
    let long: Vec<i64> = (0..700).map(|i| (i * 97 + 5) % 50_257).collect();
    let prompts = [vec![464_i64, 2068, 7586, 21_831, 50_256, 318], long, vec![50_256]];
    // What the harness sends for log-likelihoods.
    let answer = server.complete(&json!({
        "model": "any", "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": true,
    }));
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for (ids, choice) in prompts.iter().zip(choices) {
        let expected = logs(&model, ids);
        let given = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        let tops = choice["logprobs"]["top_logprobs"].as_array().unwrap();
        assert_eq!((given.len(), tops.len()), (ids.len() + 1, ids.len() + 1));
        assert!(given[0].is_null() && tops[0].is_null());
        for place in 1..=ids.len() {
            let best = best(&expected[place - 1]);
            // The last one is the token that was generated: the most likely.
            let token = ids.get(place).map_or(best, |&id| usize::try_from(id).unwrap());
            let (log, top) = (given[place].as_f64().unwrap(), tops[place].as_object().unwrap());
            assert!((log - expected[place - 1][token]).abs() < 2e-5, "place {place}: {log}");
            let highest = top.values().next().unwrap().as_f64().unwrap();
            assert!((highest - expected[place - 1][best]).abs() < 2e-5 && top.len() == 1);
            // The harness takes a token for the most likely one when the two numbers are equal.
            assert_eq!(log == highest, token == best, "place {place}");
        }
    }
    assert_eq!(answer["usage"], json!({"prompt_tokens": 707, "completion_tokens": 3, "total_tokens": 710}));
}

#[test]
fn text_and_ids_are_one_prompt_and_greedy_text_is_the_most_likely() {
    let (_folder, model, server) = setup();
    let text = "The quick brown fox — naïve 日本";
    let (_, tokens) = server.post("/tokenize", &json!({"prompt": text, "add_special_tokens": false}));
    let ids: Vec<i64> = serde_json::from_value(tokens["tokens"].clone()).unwrap();
    let (_, back) = server.post("/detokenize", &json!({"tokens": ids}));
    assert_eq!(back["prompt"], text);
    let request = |prompt: Value| json!({"prompt": prompt, "temperature": 0, "max_tokens": 6, "logprobs": 2});
    let (of_text, of_ids) = (server.complete(&request(json!(text))), server.complete(&request(json!(ids))));
    assert_eq!(of_text["choices"], of_ids["choices"]);
    let mut so_far = ids.clone();
    let given = of_text["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().clone();
    for log in &given {
        let expected = logs(&model, &so_far);
        let last = expected.last().unwrap();
        assert!((log.as_f64().unwrap() - last[best(last)]).abs() < 2e-5);
        so_far.push(i64::try_from(best(last)).unwrap());
    }
    let (_, all) = server.post("/detokenize", &json!({"tokens": so_far[ids.len()..]}));
    let whole = all["prompt"].as_str().unwrap().to_owned();
    assert_eq!(of_text["choices"][0]["text"], whole.as_str());
    assert_eq!((given.len(), of_text["choices"][0]["finish_reason"].as_str()), (6, Some("length")));
    // A stop ends it before itself.
    let stop: String = whole.chars().skip(2).take(3).collect();
    let stopped = server.complete(&json!({"prompt": ids, "temperature": 0, "max_tokens": 6, "stop": [stop]}));
    let cut = &whole[..whole.find(&stop).unwrap()];
    assert_eq!(
        (stopped["choices"][0]["text"].as_str(), stopped["choices"][0]["finish_reason"].as_str()),
        (Some(cut), Some("stop"))
    );
}

#[test]
fn the_separator_has_a_name_and_never_comes_out_of_text() {
    let (_folder, _model, server) = setup();
    let (_, info) = server.get("/tokenizer_info");
    assert_eq!(info["eos_token"], "<|endoftext|>");
    let tokens = |text: &str| server.post("/tokenize", &json!({"prompt": text})).1["tokens"].clone();
    assert_eq!(tokens("<|endoftext|>"), json!([50_256]));
    assert!(!tokens("a <|endoftext|>").as_array().unwrap().contains(&json!(50_256)));
    assert_eq!(server.get("/v1/models").1["data"].as_array().unwrap().len(), 1);
}

#[test]
fn what_cannot_be_answered_is_refused_with_a_reason() {
    let (_folder, _model, server) = setup();
    for (body, reason) in [
        (json!({"prompt": []}), "at least one token"),
        (json!({"prompt": [[1], []]}), "at least one token"),
        (json!({"prompt": ""}), "at least one token"),
        (json!({"prompt": [60_000]}), "found 60000"),
        (json!({"prompt": [-1]}), "found -1"),
        (json!({"prompt": "a", "n": 2}), "it is 1 here"),
        (json!({"prompt": "a", "n": "2"}), "`n`"),
        (json!({"prompt": "a", "max_tokens": "2"}), "`max_tokens`: expected a whole number"),
        (json!({"prompt": ["a", 1]}), "`prompt`: expected text, ids, or a list of either"),
        (json!({"prompt": "a", "seed": 0.5}), "`seed`"),
        (json!({"prompt": "a", "something": 1}), "`something` is not known here"),
        (json!({"prompt": "a", "suffix": "b"}), "`suffix` is not supported"),
        (json!({"prompt": "a", "temperature": -1}), "`temperature`"),
        (json!({"prompt": "a", "top_p": 0}), "`top_p`"),
        (json!({"prompt": "a", "logprobs": 1000}), "`logprobs`"),
        (json!({"prompt": "a", "max_tokens": 10_000_000}), "from 0 to 131072"),
        (json!({"prompt": "a b c", "max_tokens": 131_072}), "at most 131072 tokens"),
        (json!({"nothing": 1}), "prompt"),
    ] {
        let (status, answer) = server.post("/v1/completions", &body);
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(status == 400 && message.contains(reason), "{body}: {status} {message}");
    }
    assert_eq!(server.get("/v1/chat").0, 404);
    assert_eq!(server.get("/v1/completions").0, 404);
    // A page in a browser can send neither this type nor this host without being asked for leave first.
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: text/plain", server.address);
    assert_eq!(server.send(&head, "{\"prompt\": \"a\"}").0, 415);
    let head = "POST /v1/completions HTTP/1.1\r\nHost: example.org\r\nContent-Type: application/json";
    assert_eq!(server.send(head, "{\"prompt\": \"a\"}").0, 403);
    // After all that it still answers, and ends when told to.
    assert_eq!(server.get("/health").0, 200);
    let mut server = server;
    let told = Command::new("kill").arg(server.child.id().to_string()).status().unwrap();
    assert!(told.success());
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn every_option_is_obeyed_or_refused() {
    let (_folder, _model, server) = setup();
    // Each of these would change the answer elsewhere: it is refused alone, and named.
    let ignored = case("ignored_options");
    for (key, value) in ignored.as_object().unwrap() {
        if ["prompt", "temperature", "max_tokens"].contains(&key.as_str()) {
            continue;
        }
        let body = json!({"prompt": "a", "max_tokens": 1, key: value});
        let (status, answer) = server.post("/v1/completions", &body);
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(status == 400 && message.contains(&format!("`{key}`")), "{body}: {status} {message}");
    }
    assert_eq!(server.post("/v1/completions", &ignored).0, 400);
    // At the values that change nothing they are what clients send of themselves.
    let neutral = json!({
        "model": "m", "user": "u", "n": 1, "best_of": 1, "stream": false, "suffix": "", "logit_bias": {}, "min_p": 0,
        "frequency_penalty": 0, "presence_penalty": 0.0, "repetition_penalty": 1.0, "stop_token_ids": [], "echo": false,
    });
    server.complete(&with(&neutral, &json!({"prompt": "a", "max_tokens": 1})));
    // A single most likely token leaves nothing to draw.
    let top_k = case("top_k");
    let text =
        |seed: u64| server.complete(&with(&top_k, &json!({"seed": seed})))["choices"][0]["text"].clone();
    let greedy = server.complete(&with(&top_k, &json!({"temperature": 0})))["choices"][0]["text"].clone();
    assert!((0..6).all(|seed| text(seed) == greedy));
    // What the protocol calls nullable stands for a key that was left out.
    let nulls = server.complete(&with(&case("nulls"), &json!({"temperature": 0, "logprobs": null})));
    let short = server.complete(&json!({"prompt": "a", "temperature": 0}));
    assert_eq!(nulls["choices"], short["choices"]);
    assert_eq!(nulls["usage"]["completion_tokens"], 16);
}

#[test]
fn a_stop_holds_with_log_probabilities_as_without() {
    let (_folder, _model, server) = setup();
    let body = case("stop_with_logprobs");
    let free = server.complete(&with(&body, &json!({"stop": null})));
    let first = free["choices"][0]["text"].as_str().unwrap().to_owned();
    assert!(!first.is_empty());
    let stopped = with(&body, &json!({"stop": [first]}));
    let with_logs = &server.complete(&stopped)["choices"][0];
    let without = &server.complete(&with(&stopped, &json!({"logprobs": null})))["choices"][0];
    for choice in [with_logs, without] {
        assert_eq!((choice["text"].as_str(), choice["finish_reason"].as_str()), (Some(""), Some("stop")));
    }
    // Nothing is returned of the token that stopped it, and nothing said of it.
    assert_eq!(with_logs["logprobs"]["tokens"], json!([]));
    assert!(without["logprobs"].is_null());
}

#[test]
fn offsets_count_characters_of_the_text_that_is_returned() {
    let (_folder, _model, server) = setup();
    let body = case("text_offset");
    let choice = &server.complete(&body)["choices"][0];
    let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
    assert_eq!(text.iter().collect::<String>(), body["prompt"].as_str().unwrap());
    let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
    let offsets = choice["logprobs"]["text_offset"].as_array().unwrap();
    // Worked out from the tokens' own bytes: the character that each begins in.
    let mut at = 0;
    for (token, offset) in tokens.iter().zip(offsets) {
        let whole: String = text.iter().collect();
        let inside = (0..text.len()).rfind(|&n| text[..n].iter().map(|c| c.len_utf8()).sum::<usize>() <= at);
        assert_eq!(offset.as_u64().unwrap() as usize, inside.unwrap(), "{token} of {whole}");
        let token = token.as_str().unwrap();
        at += token.strip_prefix("bytes:").map_or(token.len(), |bytes| bytes.matches("\\x").count());
    }
    assert_eq!(at, body["prompt"].as_str().unwrap().len());
    assert!(tokens.iter().any(|token| token.as_str().unwrap().starts_with("bytes:")), "no shared character");
    // The end is at the end, though tokens before it share characters.
    let end = offsets.last().unwrap().as_u64().unwrap() as usize;
    assert_eq!(text[end..].iter().collect::<String>(), " end");
}

#[test]
fn without_a_seed_each_text_is_drawn_anew_and_each_reply_has_its_own_name() {
    let (_folder, _model, server) = setup();
    let body = case("no_seed");
    let replies: Vec<Value> = (0..4).map(|_| server.complete(&body)).collect();
    let distinct = |key: fn(&Value) -> &Value| {
        replies.iter().map(|reply| key(reply).to_string()).collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!(distinct(|reply| &reply["choices"][0]["text"]), 4);
    assert_eq!(distinct(|reply| &reply["id"]), 4);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for reply in &replies {
        assert!(reply["id"].as_str().unwrap().starts_with("cmpl-"));
        assert!(now.abs_diff(reply["created"].as_u64().unwrap()) < 600);
        assert_eq!(reply["model"], "model", "its file's name, not its path");
    }
    let seeded = with(&body, &json!({"seed": 3}));
    assert_eq!(server.complete(&seeded)["choices"], server.complete(&seeded)["choices"]);
}

#[test]
fn a_key_that_occurs_twice_is_refused() {
    let (_folder, _model, server) = setup();
    let mut connection = Connection::new(&server);
    for path in ["/v1/completions", "/tokenize"] {
        let (status, answer) = connection.post(path, br#"{"prompt": "a", "prompt": "b"}"#);
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(status == 400 && message.contains("`prompt`: expected once, found twice"), "{message}");
    }
    let (status, answer) = connection.post("/detokenize", br#"{"tokens": [464, 60000]}"#);
    assert!(status == 400 && answer.to_string().contains("found 60000"), "{answer}");
}

#[test]
fn a_model_of_other_tokens_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = XlstmConfig {
        vocabulary_size: 64,
        embedding_dim: 16,
        blocks: 1,
        slstm_at: vec![],
        ..XlstmConfig::default()
    };
    let small =
        Model::new(&config.into(), Placement::new(tch::Device::Cpu, Precision::Float32, false), 1).unwrap();
    let path = folder.path().join("small.safetensors");
    export(&small, &path, 32).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"))
        .args(["serve", "--port", "0"])
        .arg(&path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("50257 tokens or more, found 64"), "{said}");
}

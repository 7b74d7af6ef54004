//! The completions protocol over HTTP, as lm-evaluation-harness speaks it, against log-likelihoods computed here.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::cell::{Cell, RefCell};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use proptest::prelude::*;
use serde_json::{Value, json};
use tch::{Kind, Tensor};
use xlstm_manifests::recipe::{Precision, XlstmConfig};
use xlstm_trainer::model::{Model, Placement, export};

/// A small model of GPT-2's tokens, with both kinds of block.
fn model() -> Model {
    let config = XlstmConfig { embedding_dim: 16, blocks: 2, slstm_at: vec![1], ..XlstmConfig::default() };
    Model::new(&config.into(), Placement::new(tch::Device::Cpu, Precision::Float32, false), 7).unwrap()
}

struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(parameters: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"))
            .args(["serve", "--port", "0", "--device", "cpu", "--threads", "1"])
            .arg(parameters)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address =
            line.strip_prefix("http://").and_then(|rest| rest.split('/').next()).unwrap().to_owned();
        assert!(address.starts_with("127.0.0.1:"), "{line}");
        Self { child, address }
    }

    /// Status and body of one request.
    fn send(&self, head: &str, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        write!(stream, "{head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap())
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json", self.address);
        self.send(&head, &body.to_string())
    }

    fn get(&self, path: &str) -> (u16, Value) {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: {}", self.address), "")
    }

    fn complete(&self, body: &Value) -> Value {
        let (status, answer) = self.post("/v1/completions", body);
        assert_eq!(status, 200, "{answer}");
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

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

fn setup() -> (tempfile::TempDir, Model, Server) {
    let folder = tempfile::tempdir().unwrap();
    let (model, path) = (model(), folder.path().join("model.safetensors"));
    export(&model, &path, 2048).unwrap();
    let server = Server::start(&path);
    (folder, model, server)
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

/// A body that was sent to servers of this protocol.
fn case(name: &str) -> Value {
    let path = format!("{}/tests/requests/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap()
}

/// A copy of a body with other values for some keys.
fn with(body: &Value, changes: &Value) -> Value {
    let mut body = body.clone();
    let object = body.as_object_mut().unwrap();
    object.extend(changes.as_object().unwrap().clone());
    body
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

/// A connection that many requests go through.
struct Connection {
    stream: BufReader<TcpStream>,
    host: String,
}

impl Connection {
    fn new(server: &Server) -> Self {
        let stream = TcpStream::connect(&server.address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream), host: server.address.clone() }
    }

    fn post(&mut self, path: &str, body: &[u8]) -> (u16, Value) {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        let request = [head.as_bytes(), body].concat();
        self.stream.get_mut().write_all(&request).unwrap();
        let (mut status, mut length, mut chunked) = (0, 0, false);
        loop {
            let mut line = String::new();
            assert!(self.stream.read_line(&mut line).unwrap() > 0, "the server closed the connection");
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest.split(' ').next().unwrap().parse().unwrap();
            } else if let Some(rest) = line.strip_prefix("content-length: ") {
                length = rest.parse().unwrap();
            } else if line == "transfer-encoding: chunked" {
                chunked = true;
            } else if line.is_empty() {
                break;
            }
        }
        if chunked {
            let events = self.events();
            assert_eq!(events.last().map(String::as_str), Some("[DONE]"), "{events:?}");
            return (status, serde_json::from_str(&events[0]).unwrap());
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).unwrap();
        (status, serde_json::from_slice(&answer).unwrap())
    }
}

impl Connection {
    /// What the events of a chunked body say, to its end.
    fn events(&mut self) -> Vec<String> {
        let mut body = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).unwrap();
            let length = usize::from_str_radix(line.trim(), 16).unwrap();
            let mut chunk = vec![0; length + 2];
            self.stream.read_exact(&mut chunk).unwrap();
            if length == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..length]);
        }
        let body = String::from_utf8(body).unwrap();
        let events = body.split_terminator("\n\n");
        events.map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
    }

    /// The events of a request.
    fn stream(&mut self, body: &Value) -> Vec<String> {
        let body = body.to_string();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        self.stream.get_mut().write_all([head, body].concat().as_bytes()).unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.stream.read_line(&mut head).unwrap() > 0, "the server closed the connection");
        }
        let head = head.to_ascii_lowercase();
        assert!(
            head.starts_with("http/1.1 200") && head.contains("content-type: text/event-stream"),
            "{head}"
        );
        self.events()
    }
}

#[test]
fn a_stream_is_the_whole_answer_in_pieces() {
    let (_folder, _model, server) = setup();
    let prompts = json!(["The quick brown fox", "naïve 日本", "a"]);
    let plain = json!({"prompt": prompts, "max_tokens": 12, "temperature": 1.0, "seed": 5});
    let whole = server.complete(&plain);
    // A text that ends the second and not the first.
    let second = whole["choices"][1]["text"].as_str().unwrap();
    let stop: String = second.chars().skip(3).take(4).collect();
    for changes in [
        json!({}),
        json!({"echo": true}),
        json!({"stop": [stop, "never written"]}),
        json!({"stream_options": {"include_usage": true}}),
        json!({"max_tokens": 0}),
        json!({"max_tokens": 1, "temperature": 0}),
    ] {
        let mut asked = with(&plain, &changes);
        asked.as_object_mut().unwrap().remove("stream_options");
        let whole = server.complete(&asked);
        let events =
            Connection::new(&server).stream(&with(&with(&plain, &changes), &json!({"stream": true})));
        let (last, events) = events.split_last().unwrap();
        assert_eq!(last, "[DONE]");
        let mut texts = vec![String::new(); 3];
        let mut reasons = vec![None; 3];
        let mut used = None;
        for event in events {
            let event: Value = serde_json::from_str(event).unwrap();
            assert_eq!(event["object"], "text_completion");
            for choice in event["choices"].as_array().unwrap() {
                let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
                assert!(reasons[index].is_none(), "a text that has ended goes on: {event}");
                texts[index] += choice["text"].as_str().unwrap();
                reasons[index] = choice["finish_reason"].as_str().map(str::to_owned);
            }
            used = used.or(event.get("usage").cloned());
        }
        for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
            assert_eq!(choice["text"], texts[index].as_str(), "{changes}");
            assert_eq!(choice["finish_reason"].as_str(), reasons[index].as_deref(), "{changes}");
        }
        let wanted = changes.get("stream_options").map(|_| whole["usage"].clone());
        assert_eq!(used, wanted, "{changes}");
    }
    for (changes, named) in [
        (json!({"logprobs": 1}), "`stream`"),
        (json!({"stream_options": {"include_usage": 1}}), "`stream_options`"),
        (json!({"prompt": []}), "`prompt`"),
    ] {
        let body = with(&with(&plain, &json!({"stream": true})), &changes);
        let (status, answer) = server.post("/v1/completions", &body);
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(status == 400 && message.contains(named), "{message}");
    }
    let (status, _) =
        server.post("/v1/completions", &json!({"prompt": "a", "stream_options": {"include_usage": true}}));
    assert_eq!(status, 400);
}

#[test]
fn requests_that_wait_are_scored_together_and_each_gets_its_own_answer() {
    let (_folder, _model, server) = setup();
    let bodies: Vec<Value> = (0..40)
        .map(|number| {
            let prompt = "one two three ".repeat(number % 7 + 1);
            match number {
                // Refused, among the others.
                9 => json!({"prompt": [60_000], "logprobs": 1, "temperature": 0, "max_tokens": 0}),
                17 => json!({"prompt": prompt, "max_tokens": 5, "temperature": 0}),
                _ => json!({
                    "prompt": [prompt, format!("{number} four")], "logprobs": number % 3, "temperature": 0,
                    "max_tokens": number % 2, "echo": true,
                }),
            }
        })
        .collect();
    let alone: Vec<(u16, Value)> = bodies.iter().map(|body| server.post("/v1/completions", body)).collect();
    // While this is generated, the others arrive.
    let together: Vec<(u16, Value)> = std::thread::scope(|scope| {
        let server = &server;
        let first = scope.spawn(|| server.complete(&json!({"prompt": "a", "max_tokens": 300})));
        std::thread::sleep(std::time::Duration::from_millis(50));
        let asked: Vec<_> =
            bodies.iter().map(|body| scope.spawn(|| server.post("/v1/completions", body))).collect();
        first.join().unwrap();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    for (index, ((status, alone), (found_status, found))) in alone.iter().zip(&together).enumerate() {
        assert_eq!(status, found_status, "{index}");
        let logs = |answer: &Value, choice: usize| -> Vec<Option<f64>> {
            let logs = answer["choices"][choice]["logprobs"]["token_logprobs"].as_array();
            logs.into_iter().flatten().map(Value::as_f64).collect()
        };
        let choices = |answer: &Value| answer["choices"].as_array().map_or(0, Vec::len);
        assert_eq!(choices(alone), choices(found));
        for choice in 0..choices(alone) {
            assert_eq!(alone["choices"][choice]["text"], found["choices"][choice]["text"], "{index}");
            let (expected, logs) = (logs(alone, choice), logs(found, choice));
            assert_eq!(expected.len(), logs.len(), "{index}");
            for (a, b) in expected.iter().zip(&logs) {
                let close = match (a, b) {
                    (Some(a), Some(b)) => (a - b).abs() < 1e-4,
                    (a, b) => a == b,
                };
                assert!(close, "{index}: {a:?} {b:?}");
            }
        }
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_stream_is_not_generated_for() {
    let (_folder, _model, server) = setup();
    let mut connection = Connection::new(&server);
    let body = json!({"prompt": "a", "max_tokens": 100_000, "temperature": 1, "stream": true}).to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        connection.host,
        body.len()
    );
    connection.stream.get_mut().write_all([head, body].concat().as_bytes()).unwrap();
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        connection.stream.read_line(&mut line).unwrap();
    }
    drop(connection);
    // The one thread that owns the model is free again, long before the text would have ended.
    server.complete(&json!({"prompt": "b", "max_tokens": 1}));
}

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

//! The completions protocol over HTTP, as lm-evaluation-harness speaks it, against log-likelihoods computed here.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tch::{Kind, Tensor};
use xlstm_manifests::recipe::{ModelConfig, Precision};
use xlstm_trainer::model::{Model, Placement, export};

/// A small model of GPT-2's tokens, with both kinds of block.
fn model() -> Model {
    let config = ModelConfig { embedding_dim: 16, blocks: 2, slstm_at: vec![1], ..ModelConfig::default() };
    Model::new(&config, Placement::new(tch::Device::Cpu, Precision::Float32, false), 7).unwrap()
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
        (json!({"prompt": "a", "n": 2}), "`n` is 1"),
        (json!({"prompt": "a", "stream": true}), "`stream` is not supported"),
        (json!({"prompt": "a", "temperature": -1}), "`temperature`"),
        (json!({"prompt": "a", "top_p": 0}), "`top_p`"),
        (json!({"prompt": "a", "logprobs": 1000}), "`logprobs`"),
        (json!({"prompt": "a", "max_tokens": 10_000_000}), "at most 131072 tokens"),
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
fn a_model_of_other_tokens_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = ModelConfig {
        vocabulary_size: 64,
        embedding_dim: 16,
        blocks: 1,
        slstm_at: vec![],
        ..ModelConfig::default()
    };
    let small = Model::new(&config, Placement::new(tch::Device::Cpu, Precision::Float32, false), 1).unwrap();
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

//! `xlstm-eval serve` under strangers: a thousand slow clients, clients that leave, signals in the middle of a long text.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xlstm_manifests::recipe::{Precision, XlstmConfig};
use xlstm_tests::hostile::{SIGTERM, allow_many_files, signal};
use xlstm_trainer::model::{Model, Placement, export};

struct Server {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = XlstmConfig { embedding_dim: 16, blocks: 1, slstm_at: vec![], ..XlstmConfig::default() };
        let placement = Placement::new(tch::Device::Cpu, Precision::Float32, false);
        let path = folder.path().join("small-model.safetensors");
        export(&Model::new(&config.into(), placement, 7).unwrap(), &path, 2048).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"))
            .args(["serve", "--port", "0", "--device", "cpu", "--threads", "1"])
            .arg(&path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address =
            line.strip_prefix("http://").and_then(|rest| rest.split('/').next()).unwrap().to_owned();
        Self { child, address, _folder: folder }
    }

    /// A connection on which the head of a request and a part of its body were sent.
    fn begin(&self, length: usize, sent: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        write!(
            stream,
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: \
             {length}\r\nConnection: close\r\n\r\n{sent}"
        )
        .unwrap();
        stream
    }

    fn ask(&self, body: &Value) -> TcpStream {
        let body = body.to_string();
        self.begin(body.len(), &body)
    }

    fn get(&self, path: &str) -> (u16, Value, Duration) {
        let begin = Instant::now();
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let (status, value) = answer(stream);
        (status, value, begin.elapsed())
    }

    /// Bytes of memory that it has.
    fn memory(&self) -> u64 {
        let status = fs_err::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().split(' ').next().unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Asks it to end; exit code, and how long it took.
    fn end(&mut self) -> (Option<i32>, Duration) {
        let begin = Instant::now();
        signal(self.child.id(), SIGTERM);
        (self.child.wait().unwrap().code(), begin.elapsed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn answer(mut stream: TcpStream) -> (u16, Value) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap())
}

/// The median of several times: one that a busy machine delays says nothing.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn a_thousand_slow_clients_keep_nobody_out() {
    allow_many_files();
    let mut server = Server::start();
    let before = server.memory();
    // Half of them send nearly as much as needs no room of its own.
    let large = "x".repeat(60_000);
    let slow: Vec<TcpStream> =
        (0..1000).map(|number| server.begin(8_000_000, if number % 2 == 0 { &large } else { "{" })).collect();
    let health = || median((0..21).map(|_| server.get("/health").2).collect());
    assert!(health() < Duration::from_millis(100), "{:?}", health());
    // A short request is answered, and `/health` meanwhile too.
    let short = server.ask(&json!({"prompt": "a", "max_tokens": 1, "temperature": 0}));
    assert!(health() < Duration::from_millis(100));
    assert_eq!(answer(short).0, 200);
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 300 << 20, "{grown} bytes more");
    drop(slow);
    let (code, time) = server.end();
    assert!(code == Some(0) && time < Duration::from_secs(5), "{code:?} after {time:?}");
}

#[test]
fn what_nobody_waits_for_is_given_up_and_a_signal_ends_a_long_text() {
    let mut server = Server::start();
    let long = json!({"prompt": "a", "max_tokens": 100_000, "temperature": 1});
    // Somebody asks for a long text and leaves; the next one is not kept waiting.
    drop(server.ask(&long));
    let begin = Instant::now();
    let (status, _) = answer(server.ask(&json!({"prompt": "a", "max_tokens": 1})));
    assert!(status == 200 && begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    let waiting = server.ask(&long);
    std::thread::sleep(Duration::from_millis(300));
    let (code, time) = server.end();
    assert!(code == Some(0) && time < Duration::from_secs(5), "{code:?} after {time:?}");
    // It was told so, where there was time for it.
    let mut text = String::new();
    let mut waiting = waiting;
    let _ = waiting.read_to_string(&mut text);
    assert!(text.is_empty() || text.contains("503"), "{text}");
}

#[test]
fn what_is_too_large_is_refused_and_the_model_has_no_path() {
    let server = Server::start();
    let (status, models, _) = server.get("/v1/models");
    assert_eq!((status, &models["data"][0]["id"]), (200, &json!("small-model")));
    assert_eq!(answer(server.begin(9 << 20, "")).0, 413);
    let members: String = (0..100_000).map(|number| format!("\"k{number}\":1,")).collect();
    let body = format!("{{{members}\"prompt\":\"a\"}}");
    let begin = Instant::now();
    assert_eq!(answer(server.begin(body.len(), &body)).0, 400);
    assert!(begin.elapsed() < Duration::from_secs(10));
    for body in [
        json!({"prompt": vec!["a"; 5000], "max_tokens": 1}),
        json!({"prompt": vec!["a"; 100], "max_tokens": 2}),
        json!({"prompt": vec![1; 20_000], "max_tokens": 1, "logprobs": 100}),
    ] {
        let (status, value) = answer(server.ask(&body));
        assert!(status == 400 && value["error"]["message"].as_str().unwrap().contains("at most"), "{value}");
    }
}

//! A server of a small model, and clients of it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use xlstm_manifests::recipe::{Precision, XlstmConfig};
use xlstm_trainer::model::{Model, Placement, export};

/// A small model of GPT-2's tokens, with both kinds of block.
pub(crate) fn model() -> Model {
    let config = XlstmConfig { embedding_dim: 16, blocks: 2, slstm_at: vec![1], ..XlstmConfig::default() };
    Model::new(&config.into(), Placement::new(tch::Device::Cpu, Precision::Float32, false), 7).unwrap()
}

pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: String,
}

impl Server {
    pub(crate) fn start(parameters: &Path) -> Self {
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
    pub(crate) fn send(&self, head: &str, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        write!(stream, "{head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json", self.address);
        self.send(&head, &body.to_string())
    }

    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: {}", self.address), "")
    }

    pub(crate) fn complete(&self, body: &Value) -> Value {
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

pub(crate) fn setup() -> (tempfile::TempDir, Model, Server) {
    let folder = tempfile::tempdir().unwrap();
    let (model, path) = (model(), folder.path().join("model.safetensors"));
    export(&model, &path, 2048).unwrap();
    let server = Server::start(&path);
    (folder, model, server)
}

/// A body that was sent to servers of this protocol.
pub(crate) fn case(name: &str) -> Value {
    let path = format!("{}/tests/requests/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap()
}

/// A copy of a body with other values for some keys.
pub(crate) fn with(body: &Value, changes: &Value) -> Value {
    let mut body = body.clone();
    let object = body.as_object_mut().unwrap();
    object.extend(changes.as_object().unwrap().clone());
    body
}

/// A connection that many requests go through.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    host: String,
}

impl Connection {
    pub(crate) fn new(server: &Server) -> Self {
        let stream = TcpStream::connect(&server.address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream), host: server.address.clone() }
    }

    /// Sends a request; its answer is yet to be read.
    pub(crate) fn ask(&mut self, path: &str, body: &[u8]) {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        self.stream.get_mut().write_all(&[head.as_bytes(), body].concat()).unwrap();
    }

    /// The head of an answer in small letters, a line each.
    pub(crate) fn head(&mut self) -> Vec<String> {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            assert!(self.stream.read_line(&mut line).unwrap() > 0, "the server closed the connection");
            match line.trim_end() {
                "" => return head,
                line => head.push(line.to_ascii_lowercase()),
            }
        }
    }

    pub(crate) fn post(&mut self, path: &str, body: &[u8]) -> (u16, Value) {
        self.ask(path, body);
        let head = self.head();
        let after = |start: &str| head.iter().find_map(|line| line.strip_prefix(start));
        let status = after("http/1.1 ").unwrap().split(' ').next().unwrap().parse().unwrap();
        if head.iter().any(|line| line == "transfer-encoding: chunked") {
            let events = self.events();
            assert_eq!(events.last().map(String::as_str), Some("[DONE]"), "{events:?}");
            return (status, serde_json::from_str(&events[0]).unwrap());
        }
        let mut answer = vec![0; after("content-length: ").unwrap().parse().unwrap()];
        self.stream.read_exact(&mut answer).unwrap();
        (status, serde_json::from_slice(&answer).unwrap())
    }

    /// What the events of a chunked body say, to its end.
    pub(crate) fn events(&mut self) -> Vec<String> {
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
    pub(crate) fn stream(&mut self, body: &Value) -> Vec<String> {
        self.ask("/v1/completions", body.to_string().as_bytes());
        let head = self.head();
        assert!(head[0].starts_with("http/1.1 200"), "{head:?}");
        assert!(head.contains(&"content-type: text/event-stream".to_owned()), "{head:?}");
        self.events()
    }

    /// The next line of an answer.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line
    }
}

//! As much of HTTP/1.1 as a file server needs: requests without a body, keep-alive, and answers that can break.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// How often a waiting connection looks whether the Hub is stopping.
const TICK: Duration = Duration::from_millis(20);
/// Bytes written at a time.
const PIECE: usize = 16 << 10;

pub(super) struct Request {
    pub(super) method: String,
    /// Percent-decoded segments of the path.
    pub(super) segments: Vec<String>,
    pub(super) query: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The value of `name` in the query; not decoded, as only plain values are used.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()
    }

    /// The first byte of `Range: bytes=N-`.
    pub(super) fn first_byte(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }

    fn parse(head: &str) -> Option<Self> {
        let mut lines = head.split("\r\n");
        let mut first = lines.next()?.split(' ');
        let (method, target) = (first.next()?, first.next()?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let headers = lines.filter_map(|line| line.split_once(':'));
        Some(Self {
            method: method.to_owned(),
            segments: path.trim_start_matches('/').split('/').map(decode).collect(),
            query: query.to_owned(),
            headers: headers.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect(),
        })
    }
}

/// Percent-decoding; what is not valid stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(decoded) if byte == b'%' => {
                bytes.push(decoded);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Percent-encoding of one path segment.
pub(super) fn encode(segment: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    let encoded =
        segment.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") });
    encoded.collect()
}

/// How an answer reaches the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    Whole,
    ResetAfter(usize),
    CutAfter(usize),
    EndAfter(usize),
    StallAfter(usize),
    Nothing { stall: bool },
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) delivery: Delivery,
}

impl Answer {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), delivery: Delivery::Whole }
    }

    pub(super) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} Loopback\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if matches!(self.delivery, Delivery::EndAfter(_)) {
            head.push_str("Transfer-Encoding: chunked\r\n\r\n");
        } else {
            head.push_str(&format!("Content-Length: {}\r\n\r\n", self.body.len()));
        }
        head
    }
}

/// A connection of one client.
pub(super) struct Connection<'a> {
    stream: TcpStream,
    unread: Vec<u8>,
    stopping: &'a dyn Fn() -> bool,
}

impl<'a> Connection<'a> {
    pub(super) fn new(stream: TcpStream, stopping: &'a dyn Fn() -> bool) -> io::Result<Self> {
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(TICK))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, unread: Vec::new(), stopping })
    }

    /// The next request; `None` when the client is gone or the Hub stops.
    pub(super) fn next_request(&mut self) -> Option<Request> {
        loop {
            if let Some(end) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = self.unread.drain(..end + 4).collect();
                return Request::parse(std::str::from_utf8(&head[..end]).ok()?);
            }
            if !self.read_more() {
                return None;
            }
        }
    }

    /// Sends `answer`, calling `sent` with the bytes of body as they go; whether the connection can be used again.
    pub(super) fn send(&mut self, answer: &Answer, head_only: bool, sent: &mut dyn FnMut(u64)) -> bool {
        if let Delivery::Nothing { stall } = answer.delivery {
            if stall {
                self.wait_for_client_to_leave();
            }
            return false;
        }
        if !self.write_all(answer.head().as_bytes()) {
            return false;
        }
        if head_only {
            return true;
        }
        let limit = match answer.delivery {
            Delivery::ResetAfter(n)
            | Delivery::CutAfter(n)
            | Delivery::EndAfter(n)
            | Delivery::StallAfter(n) => n,
            Delivery::Whole | Delivery::Nothing { .. } => usize::MAX,
        };
        let body = &answer.body[..answer.body.len().min(limit)];
        let chunked = matches!(answer.delivery, Delivery::EndAfter(_));
        for piece in body.chunks(PIECE) {
            let framed = match chunked {
                true => [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat(),
                false => piece.to_vec(),
            };
            if !self.write_all(&framed) {
                return false;
            }
            sent(piece.len() as u64);
        }
        match answer.delivery {
            Delivery::Whole => true,
            Delivery::EndAfter(_) => self.write_all(b"0\r\n\r\n"),
            Delivery::StallAfter(_) => {
                self.wait_for_client_to_leave();
                false
            }
            Delivery::ResetAfter(_) => {
                // Closing with no time to linger sends RST in place of FIN.
                let reset = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
                reset.expect("a socket option of every system");
                false
            }
            Delivery::CutAfter(_) | Delivery::Nothing { .. } => {
                // The client may have closed first.
                let _ = self.stream.shutdown(Shutdown::Write);
                false
            }
        }
    }

    fn wait_for_client_to_leave(&mut self) {
        while self.read_more() {}
    }

    /// Whether more may come.
    fn read_more(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            if (self.stopping)() {
                return false;
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(length) => {
                    self.unread.extend_from_slice(&buffer[..length]);
                    return true;
                }
                Err(error) if is_timeout(&error) => {}
                Err(_) => return false,
            }
        }
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if (self.stopping)() {
                return false;
            }
            match self.stream.write(bytes) {
                Ok(0) => return false,
                Ok(written) => bytes = &bytes[written..],
                Err(error) if is_timeout(&error) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

//! What was asked of the Hub, for assertions.

/// Which of the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// The Hub itself.
    Hub,
    /// The storage host that LFS files lie on.
    Storage,
}

/// One request and what became of it.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    /// Counts all requests of this Hub, from 0.
    pub number: u64,
    /// The server asked.
    pub host: Host,
    /// `GET`, `HEAD`, …
    pub method: String,
    /// The path, percent-decoded, without the query.
    pub path: String,
    /// The query, as sent.
    pub query: String,
    /// The file of a dataset it is about, if it is about one.
    pub file: Option<String>,
    /// Whether the answer is (or would be) the file's bytes, rather than a redirect to them.
    pub is_body: bool,
    /// The `Range` header.
    pub range: Option<String>,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The `Accept-Encoding` header.
    pub accept_encoding: Option<String>,
    /// The status sent; 0 when the connection was closed without one.
    pub status: u16,
    /// Bytes of the body that were handed to the network.
    pub body_bytes: u64,
}

//! What a Hub answers, head and body, to whatever it is asked: revision, listing, a file.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use xlstm_pipeline::hub::{FileRequest, Hub, HubConfig, RemoteFile, SilentObserver};

static ANSWER: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// A server that gives the same answer to everybody, and its address.
fn server() -> &'static str {
    static ADDRESS: OnceLock<String> = OnceLock::new();
    ADDRESS.get_or_init(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("its address"));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let answer = ANSWER.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(&answer);
            }
        });
        address
    })
}

pub(crate) fn run(data: &[u8]) {
    *ANSWER.lock().unwrap_or_else(PoisonError::into_inner) = data.to_vec();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut config = HubConfig::new(server(), folder.path().join("listings"));
    config.stall_timeout = Duration::from_millis(300);
    config.retry.attempts = 1;
    config.retry.rate_limit_patience = Duration::from_millis(50);
    config.retry.rate_limit_jitter = Duration::ZERO;
    let hub = Hub::new(config).expect("an address");
    let _ = hub.resolve("owner/name", "main");
    let sha = "0123456789abcdef0123456789abcdef01234567";
    let files = hub.list("owner/name", sha).map(|listing| listing.files).unwrap_or_default();
    let digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let known = digest.parse().map(xlstm_pipeline::hub::DeclaredDigest::Sha256);
    let known = RemoteFile { path: "f".into(), size: 5, digest: known.expect("a digest"), xet_hash: None };
    for (number, file) in files.iter().take(2).chain([&known]).enumerate() {
        let destination = folder.path().join(number.to_string());
        let request = FileRequest { repository: "owner/name", sha, file, destination: &destination };
        let _ = hub.download(&request, &SilentObserver, &AtomicBool::new(false));
    }
}

//! Who may reach the ranks' common store, and how much they may send.
//!
//! c10d's store believes everybody, keeps whatever is written, and its client waits for ever for a server that is silent.
//! So it is held on the loopback interface of one process, behind a *gate*, and reached through a *tunnel*:
//!
//! ```text
//! c10d client ─► tunnel (loopback, this process) ═══► gate (rank 0 or the parent of --nproc) ─► c10d store (loopback)
//!                      both prove that they know the secret; then bytes are passed on
//! ```
//! The gate listens on the loopback interface where all ranks are on one machine, else on all interfaces. It sends a
//! number used once; the tunnel answers with HMAC-SHA256 of it under the secret and a number of its own, and the gate
//! proves itself likewise. Nothing else is read from a stranger. A rank may send 64 MiB at once and 1 MiB a second.
//!
//! A store that is held by `torchrun`'s agent has no gate: there the tunnel only sees to silence.

use std::io::{Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::secret::{NUMBER, Secret, random, same};
use crate::error::{Result, TrainError};

/// What a gate sends first; the version of these few messages is in it.
const HELLO: &[u8; 16] = b"xlstm store 1\r\n\0";
/// The longest that a stranger may take to prove itself.
const PROOF: Duration = Duration::from_secs(10);
/// Connections at a time, and those of them that have not proved themselves.
const MAX_CONNECTIONS: usize = 16_384;
const MAX_STRANGERS: usize = 128;
/// Bytes that a connection may send at once, and in a second.
const BURST: f64 = (64 << 20) as f64;
const RATE: f64 = (1 << 20) as f64;
const STACK: usize = 128 << 10;

/// Whether `host` is a name of this machine's loopback interface.
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Passes on to the store at `store` (a port of the loopback interface) whoever knows `secret`, until this process ends.
/// `port` 0 takes a free one; the port is returned.
///
/// # Errors
/// When the port cannot be had.
pub(super) fn open(local: bool, port: u16, store: u16, secret: Secret) -> std::io::Result<u16> {
    let listener = if local {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port))?
    } else {
        // IPv6's unspecified address takes IPv4 as well, where there is IPv6 at all.
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse => Err(error),
            _ => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
        })?
    };
    let port = listener.local_addr()?.port();
    let (all, strangers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            };
            let (Some(place), Some(unproved)) =
                (Count::one(&all, MAX_CONNECTIONS), Count::one(&strangers, MAX_STRANGERS))
            else {
                continue;
            };
            let secret = secret.clone();
            spawn(move || {
                if admit(&stream, &secret).is_ok() {
                    drop(unproved);
                    if let Ok(inner) = TcpStream::connect((Ipv4Addr::LOCALHOST, store)) {
                        pass(stream, inner, None);
                    }
                }
                drop(place);
            });
        }
    });
    Ok(port)
}

/// One of a bounded number.
struct Count(Arc<AtomicUsize>);

impl Count {
    fn one(count: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let more = |count: usize| (count < most).then_some(count + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self(Arc::clone(count)))
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn admit(mut stream: &TcpStream, secret: &Secret) -> Result<()> {
    stream.set_write_timeout(Some(PROOF))?;
    let own = random()?;
    stream.write_all(HELLO)?;
    stream.write_all(&own)?;
    let mut answer = [0; NUMBER + 32];
    read_within(stream, &mut answer, PROOF)?;
    let (number, proof) = answer.split_at(NUMBER);
    let expected = secret.proof(&[b"rank", &own, number]);
    let proof: &[u8; 32] = proof.try_into().unwrap_or(&[0; 32]);
    if !same(&expected, proof) {
        return Err(TrainError::Usage("another secret".into()));
    }
    stream.write_all(&secret.proof(&[b"store", number, &own]))?;
    stream.set_read_timeout(None)?;
    Ok(stream.set_write_timeout(None)?)
}

/// As `read_exact`, within a time for all of it: a byte a second does not make it longer.
fn read_within(mut stream: &TcpStream, buffer: &mut [u8], limit: Duration) -> std::io::Result<()> {
    let deadline = Instant::now() + limit;
    let mut filled = 0;
    while filled < buffer.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// How a store is reached.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) host: String,
    pub(super) port: u16,
    /// None where no gate stands before the store.
    pub(super) secret: Option<Secret>,
    /// The longest that anything may take.
    pub(super) timeout: Duration,
}

/// A port of the loopback interface that leads to the store, as long as this process lives.
///
/// # Errors
/// When nobody answers in time, or somebody who does not know the secret.
pub(super) fn tunnel(way: &Way) -> Result<u16> {
    let deadline = Instant::now() + way.timeout;
    let first = loop {
        match dial(way, deadline) {
            Ok(stream) => break stream,
            // A store that is about to start.
            Err(Unreached::Nobody(_)) if Instant::now() + Duration::from_millis(100) < deadline => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(Unreached::Nobody(error)) => return Err(error.into()),
            Err(Unreached::Refused(error)) => return Err(error),
        }
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let way = way.clone();
    spawn(move || {
        let mut first = Some(first);
        for own in listener.incoming() {
            let Ok(own) = own else { continue };
            let limit = way.timeout;
            let outer = first.take().or_else(|| dial(&way, Instant::now() + limit).ok());
            // A client without a way out sees a connection that ends.
            if let Some(outer) = outer {
                spawn(move || pass(own, outer, Some(limit)));
            }
        }
    });
    Ok(port)
}

enum Unreached {
    /// Nobody answers; they may later.
    Nobody(std::io::Error),
    /// Somebody answers, and not as they should.
    Refused(TrainError),
}

fn dial(way: &Way, deadline: Instant) -> std::result::Result<TcpStream, Unreached> {
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let addresses: Vec<SocketAddr> =
        (way.host.as_str(), way.port).to_socket_addrs().map_err(Unreached::Nobody)?.collect();
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect_timeout(&address, left()) {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return match &way.secret {
                    None => Ok(stream),
                    Some(secret) => {
                        prove(&stream, secret, left()).map(|()| stream).map_err(Unreached::Refused)
                    }
                };
            }
            Err(error) => last = error,
        }
    }
    Err(Unreached::Nobody(last))
}

fn prove(mut stream: &TcpStream, secret: &Secret, limit: Duration) -> Result<()> {
    let fail = |text: &str| Err(TrainError::Usage(text.into()));
    let deadline = Instant::now() + limit;
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut hello = [0; HELLO.len() + NUMBER];
    if read_within(stream, &mut hello, left()).is_err() || !hello.starts_with(HELLO) {
        return fail("whoever listens there is no store of this program, or is silent");
    }
    let (other, own) = (&hello[HELLO.len()..], random()?);
    stream.set_write_timeout(Some(left()))?;
    stream.write_all(&own)?;
    stream.write_all(&secret.proof(&[b"rank", other, &own]))?;
    let mut proof = [0; 32];
    if read_within(stream, &mut proof, left()).is_err() {
        return fail("the store there has another secret, or is silent");
    }
    if !same(&proof, &secret.proof(&[b"store", &own, other])) {
        return fail("the store there has another secret");
    }
    stream.set_read_timeout(None)?;
    Ok(stream.set_write_timeout(None)?)
}

/// Passes bytes on both ways until one side ends. With `silence`, the outer side must send something within that time
/// after the first bytes went to it: a c10d store greets its client. Without, what comes in is bounded.
fn pass(own: TcpStream, outer: TcpStream, silence: Option<Duration>) {
    // `own` is whoever asks; `outer` is nearer to the store.
    let (Ok(own_back), Ok(outer_back)) = (own.try_clone(), outer.try_clone()) else { return };
    let _ = own.set_nodelay(true);
    let _ = outer.set_nodelay(true);
    let bounded = silence.is_none();
    let back = spawn(move || {
        let _ = outer_back.set_read_timeout(silence);
        copy(&outer_back, &own_back, false);
    });
    copy(&own, &outer, bounded);
    if let Some(back) = back {
        let _ = back.join();
    }
}

/// Copies until the end of `from`, then ends both sides.
fn copy(mut from: &TcpStream, mut to: &TcpStream, bounded: bool) {
    let mut buffer = [0; 16 << 10];
    let (mut allowed, mut since) = (BURST, Instant::now());
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        // Only the first answer is waited for with a limit: later ones may be asked for keys that do not exist yet.
        let _ = from.set_read_timeout(None);
        if bounded {
            allowed = (allowed + since.elapsed().as_secs_f64() * RATE).min(BURST) - count as f64;
            since = Instant::now();
            if allowed < 0.0 {
                break;
            }
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Option<std::thread::JoinHandle<()>> {
    // Without a thread there is no connection, which the other side notices.
    std::thread::Builder::new().stack_size(STACK).spawn(work).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store that gives back what it gets.
    fn echo() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        spawn(move || {
            for stream in listener.incoming().flatten() {
                spawn(move || copy(&stream, &stream, false));
            }
        });
        port
    }

    fn way(port: u16, secret: Option<&str>, seconds: u64) -> Way {
        let secret = secret.map(|text| Secret::new(text).unwrap());
        Way { host: "127.0.0.1".into(), port, secret, timeout: Duration::from_secs(seconds) }
    }

    #[test]
    fn only_whoever_knows_the_secret_comes_through() {
        let (good, bad) = ("a secret of the run", "another secret here");
        let gate = open(true, 0, echo(), Secret::new(good).unwrap()).unwrap();
        let port = tunnel(&way(gate, Some(good), 5)).unwrap();
        // A second client goes the same way.
        for text in [b"hello", b"again"] {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            stream.write_all(text).unwrap();
            let mut back = [0; 5];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(&back, text);
        }
        let error = tunnel(&way(gate, Some(bad), 5)).unwrap_err().to_string();
        assert!(error.contains("another secret"), "{error}");
        // Somebody who speaks to the store itself gets nothing back but the greeting.
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, gate)).unwrap();
        stream.write_all(&[7; NUMBER + 32]).unwrap();
        let mut back = Vec::new();
        let _ = stream.read_to_end(&mut back);
        assert_eq!(back.len(), HELLO.len() + NUMBER);
        assert!(Secret::new("short").is_err());
    }

    #[test]
    fn whoever_accepts_and_is_silent_is_given_up_in_time() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let begin = Instant::now();
        assert!(tunnel(&way(port, Some("a secret of the run"), 1)).is_err());
        // Without a gate: the client's connection ends.
        let tunnel = tunnel(&way(port, None, 1)).unwrap();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, tunnel)).unwrap();
        stream.write_all(b"ping").unwrap();
        let _ = stream.read(&mut [0; 8]);
        assert!(begin.elapsed() < Duration::from_secs(8));
        drop(listener);
    }

    #[test]
    fn more_than_a_rank_ever_sends_ends_its_connection() {
        let secret = "a secret of the run";
        let gate = open(true, 0, echo(), Secret::new(secret).unwrap()).unwrap();
        let port = tunnel(&way(gate, Some(secret), 5)).unwrap();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let mut reader = stream.try_clone().unwrap();
        spawn(move || while let Ok(1..) = reader.read(&mut [0; 1 << 16]) {});
        let piece = vec![0; 1 << 20];
        assert!((0..200).any(|_| stream.write_all(&piece).is_err()));
    }
}

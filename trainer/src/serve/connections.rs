//! Who is connected: so many, and no more. A newcomer takes the place of the one that has kept the server waiting longest.
//!
//! A connection costs a file descriptor and some buffers, so their number is bounded. A thousand clients that send a byte
//! a minute must not keep out one that sends a request: whoever's request is whole holds its place until it is answered,
//! all others can lose theirs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 512;
/// The longest that one may send or read nothing of use.
const PATIENCE: Duration = Duration::from_secs(60);

/// All connections.
#[derive(Debug, Clone, Default)]
pub(super) struct Connections {
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    all: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    task: Option<AbortHandle>,
    /// Whether its request is whole and waits for an answer.
    working: bool,
    /// Since when it is or is not.
    since: Instant,
}

/// One connection's place; given back when dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    open: Arc<Mutex<Open>>,
    number: u64,
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a newcomer; somebody else's where all are taken.
    pub(super) fn place(&self) -> ConnectionSlot {
        let mut open = self.open();
        if open.all.len() >= MAX_CONNECTIONS {
            open.end_slowest();
        }
        let number = open.next;
        open.next += 1;
        open.all.insert(number, Connection { task: None, working: false, since: Instant::now() });
        ConnectionSlot { open: Arc::clone(&self.open), number }
    }

    /// Ends the connection that has waited longest without a whole request.
    pub(super) fn end_slowest(&self) {
        self.open().end_slowest();
    }

    /// Whether somebody's request is whole and waits for an answer.
    pub(super) fn any_working(&self) -> bool {
        self.open().all.values().any(|connection| connection.working)
    }

    /// Ends connections that have sent no whole request, or not read their answer, for a minute.
    pub(super) fn end_stale(&self) {
        let now = Instant::now();
        self.open().end(|connection| !connection.working && now - connection.since > PATIENCE);
    }
}

impl Open {
    fn end_slowest(&mut self) {
        let idle = self.all.iter().filter(|(_, connection)| !connection.working);
        let Some((&slowest, _)) = idle.min_by_key(|(_, connection)| connection.since) else { return };
        if let Some(task) = self.all.remove(&slowest).and_then(|connection| connection.task) {
            task.abort();
        }
    }

    fn end(&mut self, ends: impl Fn(&Connection) -> bool) {
        self.all.retain(|_, connection| {
            let stays = !ends(connection);
            if let Some(task) = connection.task.as_ref().filter(|_| !stays) {
                task.abort();
            }
            stays
        });
    }
}

impl ConnectionSlot {
    /// The task that serves it.
    pub(super) fn served_by(&self, task: AbortHandle) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = open.all.get_mut(&self.number) {
            connection.task = Some(task);
        }
    }

    /// Its request is whole (`true`), or answered.
    pub(super) fn works(&self, working: bool) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = open.all.get_mut(&self.number) {
            connection.working = working;
            connection.since = Instant::now();
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all.remove(&self.number);
    }
}

/// Bytes of bodies or answers in memory, over all connections.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    taken: Arc<AtomicUsize>,
    most: usize,
}

/// A part of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(most: usize) -> Self {
        Self { taken: Arc::default(), most }
    }

    /// No bytes yet.
    pub(super) fn share(&self) -> Share {
        Share { budget: self.clone(), bytes: 0 }
    }
}

impl Share {
    /// Takes `bytes` more; `false` when there are not so many left.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let most = self.budget.most;
        let sum = |taken: usize| taken.checked_add(bytes).filter(|&sum| sum <= most);
        let grown = self.budget.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum).is_ok();
        if grown {
            self.bytes += bytes;
        }
        grown
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_makes_room_and_whoever_is_served_stays() {
        let connections = Connections::default();
        let places: Vec<ConnectionSlot> = (0..MAX_CONNECTIONS).map(|_| connections.place()).collect();
        places[0].works(true);
        let newcomer = connections.place();
        let open = connections.open();
        assert_eq!(open.all.len(), MAX_CONNECTIONS);
        assert!(open.all.contains_key(&places[0].number) && open.all.contains_key(&newcomer.number));
        assert!(!open.all.contains_key(&places[1].number));
        drop(open);
        drop((places, newcomer));
        assert!(connections.open().all.is_empty());
    }

    #[test]
    fn a_budget_is_not_exceeded_and_comes_back() {
        let budget = Budget::new(10);
        let (mut one, mut other) = (budget.share(), budget.share());
        assert!(one.grow(6) && !other.grow(5) && other.grow(4) && !one.grow(1));
        drop(other);
        assert!(one.grow(4));
    }
}

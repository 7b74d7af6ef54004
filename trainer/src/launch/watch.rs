//! Noticing that a rank is gone or stuck, and which one.
//!
//! Each rank has a thread that writes a *beat* into the store a few times in the stated time and reads those of all
//! others. A beat is a line: a counter, the rank's progress, and its state (`alive`, `left`, `failed: …`, `lost: …`).
//! Progress counts what every rank does in the same order: calls of the communicator and buckets of gradients sent.
//!
//! | what happened | how it is noticed | after |
//! |---|---|---|
//! | a process died | its connections break, so a call of ours fails; then its beat stands still | seconds |
//! | a process stopped, a machine or a cable died | its beat stands still | the stated time |
//! | a rank is stuck and its process lives | its progress stands still while another rank is ahead | the stated time |
//! | a rank failed and says why, or `--nproc`'s parent saw how it ended | its last beat | seconds |
//! | the process that holds the store died | the connection to it breaks | seconds |
//! | the process that holds the store stopped | it does not answer; a second thread sees that this one waits | the stated time |
//!
//! The verdict goes to the main thread. Where that waits for a GPU or for another rank and cannot be reached, this
//! thread ends the process.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use xlstm_bridge::distributed::{BucketCounter, Store};

use super::beats::{Member, beat_key};
use super::environment::Place;
use crate::checkpoint;
use crate::error::TrainError;
use xlstm_manifests::printable;
use xlstm_manifests::run_manifest::CHECKPOINTS_NAME;

/// How long the main thread has to end the process by itself after a verdict.
const GRACE: Duration = Duration::from_secs(10);

/// What the main thread and the watching thread share.
pub(super) struct Shared {
    pub(super) place: Place,
    pub(super) members: Vec<Member>,
    pub(super) timeout: Duration,
    pub(super) run: Mutex<Option<PathBuf>>,
    pub(super) buckets: OnceLock<BucketCounter>,
    calls: AtomicU64,
    /// A call failed: a beat that stands still for seconds is enough now.
    suspicious: AtomicBool,
    state: Mutex<Ending>,
    changed: Condvar,
    /// When the store last answered.
    answered: Mutex<Instant>,
}

#[derive(Default)]
struct Ending {
    verdict: Option<Verdict>,
    /// The state of the last beat: this rank is about to end.
    last_words: Option<String>,
}

/// A rank that is lost, and how that was seen.
#[derive(Debug, Clone)]
struct Verdict {
    rank: Option<u64>,
    reason: String,
}

impl Shared {
    fn member(&self, rank: u64) -> Option<&Member> {
        usize::try_from(rank).ok().and_then(|rank| self.members.get(rank))
    }

    /// The machine of a rank.
    pub(super) fn host_of(&self, rank: u64) -> String {
        self.member(rank).map_or_else(|| "an unknown host".to_owned(), |member| member.host.clone())
    }

    pub(super) fn new(place: Place, members: Vec<Member>, timeout: Duration) -> Self {
        Self {
            place,
            members,
            timeout,
            run: Mutex::new(None),
            buckets: OnceLock::new(),
            calls: AtomicU64::new(0),
            suspicious: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
            answered: Mutex::new(Instant::now()),
        }
    }

    /// This rank comes to its next collective call.
    pub(super) fn step(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    fn progress(&self) -> u64 {
        self.calls.load(Ordering::Relaxed) + self.buckets.get().map_or(0, BucketCounter::buckets)
    }

    fn state(&self) -> MutexGuard<'_, Ending> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Beats, so many in the stated time that one or two may get lost.
    fn interval(&self) -> Duration {
        (self.timeout / 10).clamp(Duration::from_millis(100), Duration::from_secs(1))
    }

    /// A call failed: which rank is lost? `error` where no answer is found in time.
    pub(super) fn diagnose(&self, error: TrainError) -> TrainError {
        self.suspicious.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + GRACE + 5 * self.interval();
        let mut state = self.state();
        loop {
            if let Some(verdict) = &state.verdict {
                let verdict = verdict.clone();
                drop(state);
                return self.lost(&verdict);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return error;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lost(&self, verdict: &Verdict) -> TrainError {
        let who = match verdict.rank {
            Some(rank) => match self.member(rank) {
                Some(member) => format!("rank {rank} (host {}, process {})", member.host, member.pid),
                None => format!("rank {rank}"),
            },
            None => "the launcher, which holds the ranks' common store,".to_owned(),
        };
        TrainError::RankLost { who, reason: verdict.reason.clone(), next: self.next() }
    }

    /// What to do after a rank was lost.
    fn next(&self) -> String {
        let run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(run) = run.as_deref() else { return "all ranks end; start them again".to_owned() };
        let steps = checkpoint::list(&run.join(CHECKPOINTS_NAME)).unwrap_or_default();
        match steps.last() {
            Some(step) => format!(
                "all ranks end; go on from step {step}, with any number of ranks: `xlstm-train --resume --out {}`",
                run.display()
            ),
            None => format!(
                "all ranks end; {} has no checkpoint yet, so it begins anew from step 0 with --resume",
                run.display()
            ),
        }
    }
}

/// The watching thread.
pub(super) struct Watch {
    pub(super) shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watch {
    /// Starts the thread; `store` is its own connection.
    pub(super) fn start(shared: Arc<Shared>, store: Store) -> Self {
        let own = Arc::clone(&shared);
        let other = Arc::clone(&shared);
        std::thread::spawn(move || watch_store(&other));
        let thread = std::thread::spawn(move || watch(&own, &store));
        Self { shared, thread: Some(thread) }
    }

    /// Writes the last beat and stops watching.
    pub(super) fn end(&mut self, last_words: String) {
        self.shared.state().last_words = Some(last_words);
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is known of another rank.
struct Seen {
    beat: String,
    since: Instant,
    progress: u64,
    progress_since: Instant,
}

/// Sees to a store that has become silent: whoever asks it waits for ever.
fn watch_store(shared: &Shared) {
    loop {
        std::thread::sleep(shared.interval());
        let silent = shared.answered.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        let mut state = shared.state();
        // Once there is a verdict, the watching thread sees to the rest, unless it is the one that waits.
        if state.last_words.is_some() {
            return;
        }
        if silent <= shared.timeout {
            continue;
        }
        if state.verdict.is_none() {
            let rank = (!shared.place.launcher_holds_store).then_some(0);
            let reason = format!("its store has not answered for {:.0} s", silent.as_secs_f64());
            state.verdict = Some(Verdict { rank, reason });
            shared.changed.notify_all();
        }
        if silent > shared.timeout + GRACE
            && let Some(verdict) = state.verdict.clone()
        {
            drop(state);
            end_process(&shared.lost(&verdict));
        }
    }
}

fn watch(shared: &Shared, store: &Store) {
    let now = Instant::now();
    let mut seen: Vec<Seen> = (0..shared.place.world)
        .map(|_| Seen { beat: String::new(), since: now, progress: 0, progress_since: now })
        .collect();
    let mut counter = 0_u64;
    let (mut verdict_since, mut broken) = (None, false);
    loop {
        let last_words = shared.state().last_words.clone();
        counter += 1;
        let verdict = if broken {
            None
        } else {
            look(shared, store, &mut seen, counter, last_words.as_deref()).unwrap_or_else(|_| {
                broken = true;
                Some(Verdict {
                    rank: (!shared.place.launcher_holds_store).then_some(0),
                    reason: "the connection to it broke".into(),
                })
            })
        };
        // A broken connection is answer enough: it has its verdict.
        *shared.answered.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let mut state = shared.state();
        if last_words.is_some() {
            return;
        }
        if state.verdict.is_none() && verdict.is_some() {
            state.verdict = verdict;
            verdict_since = Some(Instant::now());
            shared.changed.notify_all();
        }
        if verdict_since.is_some_and(|since| since.elapsed() > GRACE) && state.last_words.is_none() {
            let verdict = state.verdict.clone();
            drop(state);
            if let Some(verdict) = verdict {
                end_process(&shared.lost(&verdict));
            }
            return;
        }
        let waited = shared.changed.wait_timeout(state, shared.interval());
        drop(waited);
    }
}

/// Ends this process from the watching thread, because the main thread cannot be reached.
#[expect(clippy::print_stderr, reason = "messages go to stderr")]
fn end_process(error: &TrainError) {
    eprintln!("{}error: {}", super::error_prefix(), printable::lines(&error.to_string()));
    xlstm_bridge::runtime::exit_at_once(i32::from(error.exit_code()));
}

/// Writes this rank's beat and looks at those of the others.
fn look(
    shared: &Shared,
    store: &Store,
    seen: &mut [Seen],
    counter: u64,
    last_words: Option<&str>,
) -> std::result::Result<Option<Verdict>, xlstm_bridge::BridgeError> {
    let own = shared.place.rank;
    let progress = shared.progress();
    let line = format!("{counter} {progress} {}", last_words.unwrap_or("alive"));
    store.set(&beat_key(own), line.as_bytes())?;
    if last_words.is_some() {
        return Ok(None);
    }
    let mut second_hand = None;
    for rank in (0..shared.place.world).filter(|&rank| rank != own) {
        let seen = &mut seen[usize::try_from(rank).unwrap_or(0)];
        let beat =
            String::from_utf8_lossy(&store.get(&beat_key(rank), Duration::from_secs(10))?).into_owned();
        if beat != seen.beat {
            seen.since = Instant::now();
            let progress = beat.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
            if progress != seen.progress {
                (seen.progress, seen.progress_since) = (progress, Instant::now());
            }
            seen.beat = beat;
        }
        let state = seen.beat.splitn(3, ' ').nth(2).unwrap_or_default();
        if let Some(reason) = state.strip_prefix("failed: ") {
            return Ok(Some(Verdict { rank: Some(rank), reason: reason.to_owned() }));
        }
        if let Some((lost, reason)) = state.strip_prefix("lost: ").and_then(|text| text.split_once(' ')) {
            // Another rank's verdict: good where we find nothing ourselves.
            second_hand = Some(Verdict { rank: lost.parse().ok(), reason: reason.to_owned() });
        }
    }
    let suspicious = shared.suspicious.load(Ordering::Relaxed);
    Ok(still(shared, seen, progress, suspicious).or(second_hand))
}

/// A rank whose beat or progress stands still.
fn still(shared: &Shared, seen: &[Seen], progress: u64, suspicious: bool) -> Option<Verdict> {
    let others = || (0_u64..).zip(seen).filter(|(rank, _)| *rank != shared.place.rank);
    let alive = |seen: &Seen| seen.beat.is_empty() || seen.beat.ends_with(" alive");
    let limit = if suspicious { (5 * shared.interval()).min(shared.timeout) } else { shared.timeout };
    let silent = others().filter(|(_, seen)| alive(seen)).max_by_key(|(_, seen)| seen.since.elapsed());
    if let Some((rank, seen)) = silent.filter(|(_, seen)| seen.since.elapsed() > limit) {
        let reason = format!("nothing was heard of it for {:.0} s", seen.since.elapsed().as_secs_f64());
        return Some(Verdict { rank: Some(rank), reason });
    }
    let behind = others().filter(|(_, seen)| alive(seen) && seen.progress < progress);
    let (rank, seen) = behind.min_by_key(|(_, seen)| seen.progress)?;
    let time = seen.progress_since.elapsed();
    (time > shared.timeout).then(|| Verdict {
        rank: Some(rank),
        reason: format!(
            "it lives, but has not gone on for {:.0} s while other ranks wait for it",
            time.as_secs_f64()
        ),
    })
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end("failed: it ended without saying why".into());
        }
    }
}

/// What a rank says last.
pub(super) fn last_words<T>(result: &std::result::Result<T, &(dyn std::error::Error + 'static)>) -> String {
    let one_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
    let error = match result {
        Ok(_) => return "left".to_owned(),
        Err(error) => error,
    };
    match error.downcast_ref::<TrainError>() {
        Some(TrainError::RankLost { who, reason, .. }) => match lost_rank(who) {
            Some(rank) => format!("lost: {rank} {}", one_line(reason.clone())),
            None => "left".to_owned(),
        },
        _ => format!("failed: {}", one_line(error.to_string())),
    }
}

fn lost_rank(who: &str) -> Option<u64> {
    who.strip_prefix("rank ")?.split(' ').next()?.parse().ok()
}

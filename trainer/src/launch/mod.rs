//! How this process joins a run: alone, as one rank of several, or as the parent of local ranks.
//!
//! ```text
//! start_local(--nproc N) ── parent: N children, each this program again; waits ──► exit code
//!         │ no children wanted
//! Place::here() ── RANK … | OMPI_… | SLURM_… (environment.rs) ──► which device, how many threads
//!         │
//! connect ── alone: SingleProcess
//!         └─ rank:  store (gate.rs), names, group (Gloo, NCCL), watching thread (watch.rs) ──► Communicator + Membership
//!         │
//! Membership::leave(result) ── says how this rank ended, so that the others can
//! ```
//! Every program of this crate that computes on several processes goes these four steps.

mod beats;
mod environment;
mod gate;
mod hosts;
mod local;
mod processes;
mod secret;
mod watch;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tch::Device;
use xlstm_bridge::distributed::{Group, Store};

pub use environment::{Place, place};
pub use hosts::first_host;
pub use local::start_local;

use self::beats::{Member, beat_key};
use self::gate::Way;
use self::processes::Processes;
use self::secret::{SECRET, Secret};
use self::watch::{Shared, Watch};
use crate::communicator::{Communicator, SingleProcess};
use crate::error::{Result, TrainError};

/// What the others get on top of the stated time before they are ended from outside.
const GRACE: Duration = Duration::from_secs(30);

/// What the command line says about processes.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Ranks to start on this machine; each takes a GPU of its own
    #[arg(long = "nproc", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub processes: u64,
    /// Seconds after which a rank that is dead or stuck ends all others; longer than a checkpoint takes to write
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub rank_timeout: Duration,
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("expected seconds from 1 to 86400".into()),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Place {
    /// The place of this process; `None` where it computes alone.
    ///
    /// # Errors
    /// As [`place`].
    pub fn here() -> Result<Option<Self>> {
        Ok(place(&variable)?.filter(|place| place.world > 1))
    }
}

/// What goes before an error of this process: its rank, where there are several and no launcher of ours adds it.
#[must_use]
pub fn error_prefix() -> String {
    match Place::here() {
        Ok(Some(place)) if variable(environment::MARK).is_none() => prefix_of(place.rank),
        _ => String::new(),
    }
}

fn prefix_of(rank: u64) -> String {
    if rank == 0 { String::new() } else { format!("rank {rank}: ") }
}

/// What stands before all keys of one start of a run.
fn prefix(attempt: u64) -> String {
    format!("xlstm-{attempt}")
}

/// This process in its run.
pub struct Connection {
    /// What ranks tell each other.
    pub communicator: Box<dyn Communicator>,
    /// To be told how this rank ended.
    pub membership: Membership,
}

/// Joins the run that the environment names, or none.
///
/// `device` is where this rank computes. Returns when all ranks are there.
///
/// # Errors
/// When variables are wrong, a port is in use, a rank does not come within `options.rank_timeout`, or a backend is
/// missing.
pub fn connect(options: &Options, device: Device) -> Result<Connection> {
    let Some(place) = Place::here()? else {
        let communicator = Box::new(SingleProcess);
        return Ok(Connection { communicator, membership: Membership { watch: None, store: None } });
    };
    let timeout = options.rank_timeout;
    let store = open_store(&place, timeout)?;
    let (rank, world) = (place.rank, place.world);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let host = host.map_or_else(|_| "an unnamed host".to_owned(), |host| host.trim().to_owned());
    let member = Member { host, pid: std::process::id(), world };
    if store.add(&format!("count/{rank}"), 1)? != 1 {
        return Err(TrainError::Usage(format!(
            "expected one process for each rank, found a second one that is rank {rank} of the run at {}:{}: each \
             needs its own rank, and each run its own port",
            place.host, place.port
        )));
    }
    store.set(&beat_key(rank), b"0 0 alive")?;
    let text = serde_json::to_vec(&member).map_err(TrainError::internal)?;
    store.set(&format!("who/{rank}"), &text)?;
    let members = beats::meet(&place, &store, timeout)?;

    let loopback = gate::is_loopback(&place.host);
    let shared = Arc::new(Shared::new(place, members, timeout));
    let watching = Watch::start(Arc::clone(&shared), client(&shared.place, timeout)?);
    // The watching thread is to be first: it knows which rank it is.
    let slack = timeout + GRACE;
    let group = Group::join(&store, (rank, world), device, slack, loopback)
        .map_err(|error| shared.diagnose(error.into()))?;
    let _ = shared.buckets.set(group.progress());
    let own = client(&shared.place, timeout)?;
    let communicator = Processes { shared, group, store: own, reducer: RefCell::new(None) };
    let membership = Membership { watch: Some(watching), store: Some(store) };
    Ok(Connection { communicator: Box::new(communicator), membership })
}

fn open_store(place: &Place, timeout: Duration) -> Result<Store> {
    if place.rank != 0 || place.launcher_holds_store {
        return client(place, timeout);
    }
    let store = Store::serve(0, &prefix(place.attempt), timeout)?;
    let local = gate::is_loopback(&place.host);
    let secret = secret(place)?.unwrap_or_else(Secret::of_this_machine);
    match gate::open(local, place.port, store.port(), secret) {
        Ok(_) => Ok(store),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(TrainError::Usage(format!(
            "expected port {} to be free on {}, where rank 0 begins, found it in use: another run may have it; set \
             MASTER_PORT to a free one for all ranks",
            place.port, place.host
        ))),
        Err(error) => Err(error.into()),
    }
}

/// What proves that a process belongs to the run; `None` where a launcher of others holds the store, and asks nobody.
fn secret(place: &Place) -> Result<Option<Secret>> {
    let ours = variable(environment::MARK).is_some();
    if place.launcher_holds_store && !ours {
        return Ok(None);
    }
    match variable(SECRET) {
        Some(text) => Secret::new(&text).map(Some),
        None if gate::is_loopback(&place.host) => Ok(Some(Secret::of_this_machine())),
        None => Err(TrainError::Usage(format!(
            "expected the run's secret in {}, because rank 0 at {} is reached over the network, found none: set it to \
             the same random text for all ranks (`export {}=$(openssl rand -hex 32)` before srun; with mpirun hand it \
             on as MASTER_ADDR), so that nobody else can write into the run's store",
            SECRET, place.host, SECRET
        ))),
    }
}

fn client(place: &Place, timeout: Duration) -> Result<Store> {
    let nobody = |error: &dyn std::fmt::Display| {
        TrainError::Usage(format!(
            "expected rank 0's store at {}:{}, found none within {} s: is rank 0 running, and do all ranks \
             have the same MASTER_ADDR and MASTER_PORT? ({error})",
            place.host,
            place.port,
            timeout.as_secs()
        ))
    };
    let way = Way { host: place.host.clone(), port: place.port, secret: secret(place)?, timeout };
    let port = gate::tunnel(&way).map_err(|error| nobody(&error))?;
    Store::connect("127.0.0.1", port, &prefix(place.attempt), timeout).map_err(|error| nobody(&error))
}

/// This process's place among the ranks, until it leaves.
pub struct Membership {
    watch: Option<Watch>,
    store: Option<Store>,
}

impl Membership {
    /// Tells the other ranks how this one ended, so that they can say it and end as well.
    pub fn leave<T>(mut self, result: std::result::Result<T, &(dyn std::error::Error + 'static)>) {
        let (Some(mut watch), Some(store)) = (self.watch.take(), self.store.take()) else { return };
        watch.end(watch::last_words(&result));
        let place = &watch.shared.place;
        let Ok(mut left) = store.add("left", 1) else { return };
        // Whoever holds the store stays until the others have read the last words in it.
        let world = i64::try_from(place.world).unwrap_or(i64::MAX);
        let patience = if result.is_ok() { GRACE } else { Duration::from_secs(15) };
        let begin = Instant::now();
        while place.rank == 0 && !place.launcher_holds_store && left < world && begin.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(20));
            left = store.add("left", 0).unwrap_or(world);
        }
    }
}

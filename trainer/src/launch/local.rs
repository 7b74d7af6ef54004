//! `--nproc N`: ranks on this machine, as children of a process that is no rank itself.
//!
//! The parent holds the ranks' common store on the loopback interface, behind a secret that only its children get, on a
//! port that the system picks, so no two runs can want the same one.
//! It starts this program again with the same arguments, less `--nproc`, and with the variables that `torchrun` sets.
//! Rank 0 writes to the terminal as a single process would; of the others only what they write to stderr is shown,
//! after their number. A signal to the parent goes on to all ranks. When one rank ends badly, the parent writes into
//! the store how, waits as long as the others need to notice, and then ends them.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use xlstm_bridge::distributed::Store;
use xlstm_manifests::printable;

use super::beats::write_end;
use super::environment::{MARK, Place, place};
use super::gate;
use super::secret::{SECRET, Secret};
use super::{GRACE, Options, prefix, prefix_of};
use crate::error::{Result, TrainError};
use crate::signals::Signals;

/// Starts `options.processes` ranks of this program and waits for them; `None` where this process is to do the work
/// itself. Call it before libtorch's first use. Returns the exit code: 0, or that of the rank that failed first.
///
/// # Errors
/// When this process is already one rank of several, or a rank cannot be started.
pub fn start_local(options: &Options) -> Result<Option<u8>> {
    if options.processes <= 1 {
        return Ok(None);
    }
    if let Some(Place { rank, world, started_by, .. }) = place(&super::variable)?
        && world > 1
    {
        return Err(TrainError::Usage(format!(
            "expected either --nproc or a launcher, found --nproc {} in rank {rank} of {world}, started by \
             {started_by}: leave --nproc out",
            options.processes
        )));
    }
    let signals = Signals::forward()?;
    let store = Store::serve(0, &prefix(0), options.rank_timeout)?;
    let secret = Secret::random()?;
    let port = gate::open(true, 0, store.port(), Secret::new(&secret)?)?;
    let mut ranks = Ranks { store, port, secret, children: Vec::new(), seen: Arc::default() };
    let (sender, ends) = unbounded();
    for rank in 0..options.processes {
        match ranks.start(rank, options.processes) {
            Ok(child) => {
                let sender = sender.clone();
                ranks.children.push(Running { pid: child.id(), ended: false });
                std::thread::spawn(move || {
                    let mut child = child;
                    let status = child.wait();
                    // The receiver is gone only when the parent ends.
                    let _ = sender.send((rank, status));
                });
            }
            Err(error) => {
                ranks.signal(libc_signal::KILL);
                return Err(error.into());
            }
        }
    }
    Ok(Some(ranks.wait(&ends, &signals, options.rank_timeout + GRACE)))
}

mod libc_signal {
    pub(super) const KILL: i32 = signal_hook::consts::SIGKILL;
    pub(super) const TERMINATE: i32 = signal_hook::consts::SIGTERM;
}

struct Running {
    pid: u32,
    ended: bool,
}

struct Ranks {
    store: Store,
    /// Where ranks reach it, and with what.
    port: u16,
    secret: String,
    children: Vec<Running>,
    /// Lines that a rank above 0 has written: ranks often say the same.
    seen: Arc<Mutex<HashSet<String>>>,
}

type End = (u64, std::io::Result<ExitStatus>);

impl Ranks {
    fn start(&self, rank: u64, world: u64) -> std::io::Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(without_nproc(std::env::args_os().skip(1)))
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", world.to_string())
            .env("LOCAL_RANK", rank.to_string())
            .env("LOCAL_WORLD_SIZE", world.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", self.port.to_string())
            .env(SECRET, &self.secret)
            .env("TORCHELASTIC_USE_AGENT_STORE", "True")
            .env("TORCHELASTIC_RESTART_COUNT", "0")
            .env(MARK, "1")
            // Groups of their own: a Ctrl-C at the terminal reaches the parent alone, which passes it on once.
            .process_group(0);
        if rank > 0 {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        }
        let mut child = command.spawn()?;
        if let Some(stderr) = child.stderr.take() {
            let seen = Arc::clone(&self.seen);
            std::thread::spawn(move || pass_on(rank, stderr, &seen));
        }
        Ok(child)
    }

    fn wait(&mut self, ends: &Receiver<End>, signals: &Signals, patience: Duration) -> u8 {
        let mut code = None;
        let mut deadline: Option<Instant> = None;
        let mut passed_on = 0;
        while self.children.iter().any(|child| !child.ended) {
            match ends.recv_timeout(Duration::from_millis(100)) {
                Ok((rank, status)) => {
                    let ended = self.ended(rank, status);
                    if ended != 0 {
                        code.get_or_insert(ended);
                        deadline.get_or_insert_with(|| Instant::now() + patience);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while passed_on < signals.count() {
                passed_on += 1;
                self.signal(signals.received().map_or(libc_signal::TERMINATE, i32::from));
            }
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                self.signal(libc_signal::KILL);
                deadline = None;
            }
        }
        code.unwrap_or(0)
    }

    /// Notes how a rank ended; its exit code, 1 where a signal ended it.
    fn ended(&mut self, rank: u64, status: std::io::Result<ExitStatus>) -> u8 {
        let child = usize::try_from(rank).ok().and_then(|rank| self.children.get_mut(rank));
        // Every rank that ends was started here.
        if let Some(child) = child {
            child.ended = true;
        }
        let (code, how) = match status {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => {
                    (u8::try_from(code).unwrap_or(2), format!("it ended with exit code {code}"))
                }
                (None, signal) => (1, format!("it was ended by signal {}", signal.unwrap_or_default())),
            },
            Err(error) => (2, format!("it cannot be waited for: {error}")),
        };
        if code != 0 {
            // The ranks that wait for it read this; they have their own signs as well.
            let _ = write_end(&self.store, rank, &how);
        }
        code
    }

    fn signal(&self, number: i32) {
        for child in self.children.iter().filter(|child| !child.ended) {
            xlstm_bridge::runtime::send_signal(child.pid, number);
        }
    }
}

/// Shows what a rank above 0 writes to stderr, each line once.
#[expect(clippy::print_stderr, reason = "messages go to stderr")]
fn pass_on(rank: u64, stderr: impl Read, seen: &Mutex<HashSet<String>>) {
    for line in BufReader::new(stderr).split(b'\n') {
        let Ok(line) = line else { return };
        let line = String::from_utf8_lossy(&line).into_owned();
        if seen.lock().unwrap_or_else(PoisonError::into_inner).insert(line.clone()) {
            eprintln!("{}{}", prefix_of(rank), printable::text(&line));
        }
    }
}

/// These arguments less `--nproc N` or `--nproc=N`.
fn without_nproc(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut value_follows = false;
    for argument in arguments {
        if std::mem::take(&mut value_follows) {
            continue;
        }
        let text = argument.to_string_lossy();
        if text == "--nproc" {
            value_follows = true;
        } else if !text.starts_with("--nproc=") {
            kept.push(argument);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nproc_is_left_out_of_the_arguments() {
        let list = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        for arguments in ["a --nproc 2 --out b", "a --nproc=2 --out b", "a --out b --nproc 2"] {
            assert_eq!(without_nproc(list(arguments).into_iter()), list("a --out b"), "{arguments}");
        }
    }
}

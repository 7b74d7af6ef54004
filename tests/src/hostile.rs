//! Altered files: the same ones every time, for readers that must not break on any of them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Marsaglia's xorshift: the same numbers everywhere.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Numbers that follow from `seed`, which is not 0.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.number() % limit.max(1) as u64).unwrap_or(0)
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// Texts that stand for numbers and other things in JSON and TOML, and what they may become.
const WORDS: [&str; 22] = [
    "0",
    "-1",
    "1e308",
    "-0.0",
    "9007199254740993",
    "18446744073709551615",
    "1e18",
    "null",
    "true",
    "\"\"",
    "[]",
    "{}",
    "inf",
    "nan",
    "\"\\u0000\"",
    "\"../../x\"",
    "0.5",
    "4294967296",
    "[[[[[[]]]]]]",
    "\"\\ud800\"",
    "1000000000",
    "2",
];

/// `sound` with some bytes replaced, cut out, doubled or cut off; numbers become other numbers, in binary and in text.
#[must_use]
pub fn altered(sound: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            break;
        }
        // Most of what a file says of itself stands at its ends.
        let at = match random.below(4) {
            0 => random.below(bytes.len().min(512)),
            1 => bytes.len() - 1 - random.below(bytes.len().min(1024)),
            _ => random.below(bytes.len()),
        };
        match random.below(12) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..bytes.len().min(at + 1 + random.below(9)))),
            2 => {
                let again = bytes[at..bytes.len().min(at + 1 + random.below(64))].to_vec();
                bytes.splice(at..at, again);
            }
            3 => bytes[at..].iter_mut().take(8).for_each(|byte| *byte = 0xff),
            4 | 5 => number(&mut bytes, at, random),
            6..=8 => word(&mut bytes, at, random),
            _ => bytes[at] = u8::try_from(random.below(256)).unwrap_or(0),
        }
    }
    bytes
}

/// Another number of 4 or 8 bytes, at a multiple of its size.
fn number(bytes: &mut [u8], at: usize, random: &mut Random) {
    let size = random.pick(&[4, 8]);
    let at = at - at % size;
    let Some(place) = bytes.get_mut(at..at + size) else { return };
    let mut old = [0; 8];
    old[..size].copy_from_slice(place);
    let old = u64::from_le_bytes(old);
    let any = random.number();
    let new = random.pick(&[
        0,
        1,
        old.wrapping_add(1),
        old.wrapping_sub(1),
        old.wrapping_mul(2),
        8,
        1 << 31,
        u64::MAX,
        1 << 62,
        any,
    ]);
    place.copy_from_slice(&new.to_le_bytes()[..size]);
}

/// Another word in the place of the number or text around `at`.
fn word(bytes: &mut Vec<u8>, at: usize, random: &mut Random) {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+' | b'_' | b'"');
    let start = bytes[..at].iter().rposition(|&byte| !inside(byte)).map_or(0, |before| before + 1);
    let end = bytes[at..].iter().position(|&byte| !inside(byte)).map_or(bytes.len(), |after| at + after);
    // Not in values of binary files, which look like long words.
    if start < end && end - start < 100 {
        bytes.splice(start..end, random.pick(&WORDS).bytes());
    }
}

/// How many altered copies of each of `seeds` seeds are tried: `usual` of them, or with `XLSTM_HOSTILE_INPUTS=N` so many that
/// they are at least N together.
///
/// # Panics
/// When the variable is not a number.
#[must_use]
pub fn copies(seeds: usize, usual: usize) -> usize {
    let Ok(all) = std::env::var("XLSTM_HOSTILE_INPUTS") else { return usual };
    all.parse::<usize>().expect("XLSTM_HOSTILE_INPUTS is a number").div_ceil(seeds.max(1))
}

/// Does `body` with `count` altered copies of each of `seeds` (or as many as [`copies`] says), and with the seeds themselves.
/// A panic in it, on whatever thread, and an input that takes longer than 30 seconds fail the test. Prints how many there were,
/// the longest time that one took, and the most memory that this process had so far.
///
/// With `XLSTM_FUZZ_CORPUS=FOLDER` nothing is altered or run: the seeds are written into `FOLDER/TEST`, for libFuzzer to begin
/// with (`tests/python/fuzz_targets.py`).
///
/// # Panics
/// For such an input, which is described; where a seed cannot be written.
#[expect(clippy::print_stdout, reason = "cargo shows it with --nocapture alone")]
pub fn alter_and_run(seeds: &[Vec<u8>], count: usize, body: impl Fn(&[u8])) {
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    if let Some(folder) = corpus_folder() {
        write_seeds(&folder.join(name), seeds);
        return;
    }
    let count = copies(seeds.len(), count);
    let mut slowest = Duration::ZERO;
    for (number, seed) in seeds.iter().enumerate() {
        body(seed);
        let mut random = Random::new(1 + number as u64);
        for input in 0..count {
            let data = altered(seed, &mut random);
            let begin = Instant::now();
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&data)));
            assert!(
                done.is_ok(),
                "input {input} of seed {number} is not met with an error: {}",
                shown(&data)
            );
            slowest = slowest.max(begin.elapsed());
            assert!(
                begin.elapsed() < Duration::from_secs(30),
                "input {input} of seed {number} takes too long"
            );
        }
    }
    let all = count * seeds.len();
    println!(
        "{name}: {all} altered copies of {} files, the slowest took {slowest:.1?}, {} MiB of memory at most",
        seeds.len(),
        peak_memory() >> 20
    );
}

/// Where seeds are to be written instead of anything else: `XLSTM_FUZZ_CORPUS`.
#[must_use]
pub fn corpus_folder() -> Option<PathBuf> {
    std::env::var_os("XLSTM_FUZZ_CORPUS").map(PathBuf::from)
}

/// Each under the digest of its content, which is what libFuzzer's own have as names.
fn write_seeds(folder: &Path, seeds: &[Vec<u8>]) {
    std::fs::create_dir_all(folder).expect("a folder for seeds");
    for seed in seeds {
        let name = xlstm_manifests::Sha256Digest::of(seed).to_string();
        std::fs::write(folder.join(name), seed).expect("a seed is written");
    }
}

/// The most memory that this process had, bytes; 0 where the system does not say.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kibibytes| kibibytes << 10)
}

fn shown(data: &[u8]) -> String {
    let head = &data[..data.len().min(600)];
    format!("{} bytes: {}", data.len(), head.escape_ascii())
}

/// How a program met a hostile file.
#[derive(Debug)]
pub struct Met {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Both outputs.
    pub said: String,
    /// The most memory that it had, bytes.
    pub memory: u64,
    /// How long it took.
    pub time: Duration,
}

impl Met {
    /// What is wrong with it: exit code 0 or 1 with a message, no panic and no C++ trace, below 1 GiB and 30 seconds.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let trace =
            ["panicked at", "frame #", "Exception raised from", "terminate called", "fault of the program"]
                .into_iter()
                .find(|text| self.said.contains(text));
        let wrong = match (self.code, trace) {
            (None, _) => "a signal ended it".to_owned(),
            (_, Some(trace)) => format!("it says `{trace}`"),
            (Some(0), None) => String::new(),
            (Some(1), None) if self.said.trim().is_empty() => "exit code 1 without a message".to_owned(),
            (Some(1), None) => String::new(),
            (Some(code), None) => format!("exit code {code}"),
        };
        let wrong = match wrong.as_str() {
            "" if self.memory >= 1 << 30 => format!("{} bytes of memory", self.memory),
            "" if self.time >= Duration::from_secs(30) => format!("{:?}", self.time),
            "" => return None,
            _ => wrong,
        };
        Some(format!("{wrong}\n{}", self.said))
    }
}

/// Runs a program to its end, or ends it after 40 seconds.
///
/// # Panics
/// When it cannot be started.
#[must_use]
#[expect(clippy::zombie_processes, reason = "wait4 waits, and says what memory it had")]
pub fn meet(command: &mut Command) -> Met {
    let begin = Instant::now();
    let output = tempfile::tempfile().expect("a file for what it says");
    let errors = output.try_clone().expect("the same file");
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(output.try_clone().expect("the same file")))
        .stderr(Stdio::from(errors))
        .spawn()
        .expect("it starts");
    let pid = libc::pid_t::try_from(child.id()).expect("a process");
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    loop {
        // SAFETY: places for the results; the child is ours, and nobody else waits for it.
        let ended = unsafe { libc::wait4(pid, &raw mut status, libc::WNOHANG, usage.as_mut_ptr()) };
        if ended == pid {
            break;
        }
        if begin.elapsed() > Duration::from_secs(40) {
            // SAFETY: plain call.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    // SAFETY: wait4 has filled it in.
    let usage = unsafe { usage.assume_init() };
    let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
    let mut said = Vec::new();
    let mut output = output;
    use std::io::{Read as _, Seek as _};
    output.rewind().expect("to its head");
    output.read_to_end(&mut said).expect("read");
    let memory = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
    Met { code, said: String::from_utf8_lossy(&said).into_owned(), memory, time: begin.elapsed() }
}

/// Lets this process open as many files as the system allows it, for tests with many connections.
pub fn allow_many_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: places for the results; a limit is raised up to what is allowed.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max.min(8192);
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
}

/// Sends a signal to a process that the test has started.
pub fn signal(process: u32, number: i32) {
    if let Ok(process) = libc::pid_t::try_from(process) {
        // SAFETY: plain call.
        unsafe { libc::kill(process, number) };
    }
}

/// The number of the signal that asks a program to end.
pub const SIGTERM: i32 = libc::SIGTERM;

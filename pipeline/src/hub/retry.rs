//! Going on after a failure: exponential backoff for what may pass, patience for what was asked for.
//!
//! Two budgets, kept apart. Failures (408, 5xx, a refused connection, a reset, a stall) in a row *without one new
//! byte* are limited to [`RetryPolicy::attempts`]; any progress resets the count, so that a file of 6 GB over a
//! bad line arrives in the end. Being asked to wait (429) is no failure: it costs time, up to
//! [`RetryPolicy::rate_limit_patience`] for one request.

use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, Instant};

use super::error::HubError;

/// How often a waiting thread looks whether it should stop.
pub(super) const SLICE: Duration = Duration::from_millis(50);

/// How failures and rate limits are met. The defaults suit the real Hub; tests shrink the delays.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Attempts in a row without progress before giving up.
    pub attempts: u32,
    /// Delay after the first failure; it doubles with each further one.
    pub first_delay: Duration,
    /// The longest delay between two attempts.
    pub longest_delay: Duration,
    /// Wait after a 429 that does not say how long.
    pub rate_limit_default: Duration,
    /// Upper end of the random time added to each rate-limit wait, so that machines do not return all at once.
    pub rate_limit_jitter: Duration,
    /// The longest that one request waits for rate limits altogether.
    pub rate_limit_patience: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 8,
            first_delay: Duration::from_secs(1),
            longest_delay: Duration::from_secs(60),
            rate_limit_default: Duration::from_secs(60),
            rate_limit_jitter: Duration::from_secs(2),
            rate_limit_patience: Duration::from_secs(4 * 3600),
        }
    }
}

impl RetryPolicy {
    /// The delay after `failures` failures in a row: doubling, capped, and between half and all of that at random.
    fn delay(&self, failures: u32) -> Duration {
        let doubled = self
            .first_delay
            .saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.longest_delay).mul_f64(0.5 + 0.5 * random_fraction())
    }
}

/// A number in `[0, 1)`. It spreads requests out in time and decides nothing else.
pub(super) fn random_fraction() -> f64 {
    let bits = std::hash::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// One request (or one file, by as many requests as it takes) on its way: budgets, counts and the wish to stop.
pub(super) struct Effort<'a> {
    /// What is being done, for messages.
    pub(super) what: String,
    /// Requests sent to the Hub so far; redirects belong to the request they answer.
    pub(super) requests: u64,
    policy: &'a RetryPolicy,
    stop: &'a dyn Fn() -> bool,
    waiting: &'a dyn Fn(&str, Duration),
    failures: u32,
    /// Connections in a row that were given up for being too slow: that they brought a few bytes does not count.
    slow: u32,
    waited: Duration,
    farthest: u64,
}

/// Whether a body comes fast enough: a byte every half minute is no silence, and yet no file ever arrives.
pub(super) struct Pace {
    window: Duration,
    since: Instant,
    bytes: u64,
}

/// What a [`Pace`] says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Speed {
    /// Too early to say.
    Unknown,
    /// Fast enough, for a whole window.
    Enough,
    /// Too slow.
    TooSlow,
}

impl Pace {
    /// Bytes a second that a connection must bring.
    const LEAST: f64 = 512.0;

    /// Looked at over four times the longest silence.
    pub(super) fn new(silence: Duration) -> Self {
        Self { window: silence * 4, since: Instant::now(), bytes: 0 }
    }

    pub(super) fn advance(&mut self, bytes: usize) -> Speed {
        self.bytes += bytes as u64;
        let elapsed = self.since.elapsed();
        if elapsed < self.window {
            return Speed::Unknown;
        }
        let enough = self.bytes as f64 >= Self::LEAST * elapsed.as_secs_f64();
        (self.since, self.bytes) = (Instant::now(), 0);
        if enough { Speed::Enough } else { Speed::TooSlow }
    }
}

impl<'a> Effort<'a> {
    pub(super) fn new(
        what: String,
        policy: &'a RetryPolicy,
        stop: &'a dyn Fn() -> bool,
        waiting: &'a dyn Fn(&str, Duration),
    ) -> Self {
        Self {
            what,
            requests: 0,
            policy,
            stop,
            waiting,
            failures: 0,
            slow: 0,
            waited: Duration::ZERO,
            farthest: 0,
        }
    }

    /// Whether the caller wants to stop, as an error.
    pub(super) fn check_stop(&self) -> Result<(), HubError> {
        if (self.stop)() { Err(HubError::Cancelled) } else { Ok(()) }
    }

    pub(super) fn stop(&self) -> &'a dyn Fn() -> bool {
        self.stop
    }

    /// The first `byte` bytes are here. Where they never were before, earlier failures are forgotten; bytes that
    /// come again, from a server that ignores ranges and breaks off each time, are no progress.
    pub(super) fn progressed_to(&mut self, byte: u64) {
        if byte > self.farthest {
            self.farthest = byte;
            self.failures = 0;
            self.waited = Duration::ZERO;
        }
    }

    /// The bytes so far were wrong: the next ones count as progress again.
    pub(super) fn starts_anew(&mut self) {
        self.farthest = 0;
    }

    /// A connection has been fast enough for a while.
    pub(super) fn well_paced(&mut self) {
        self.slow = 0;
    }

    /// As [`failed`](Self::failed), for a connection that was too slow.
    ///
    /// # Errors
    /// As [`failed`](Self::failed).
    pub(super) fn too_slow(&mut self) -> Result<(), HubError> {
        self.slow += 1;
        self.failures = self.failures.max(self.slow - 1);
        self.failed("the server sends less than 512 bytes a second")
    }

    /// Counts a failure and waits before the next attempt.
    ///
    /// # Errors
    /// [`HubError::Unreachable`] when the attempts are used up; [`HubError::Cancelled`].
    pub(super) fn failed(&mut self, reason: &str) -> Result<(), HubError> {
        self.failures += 1;
        if self.failures >= self.policy.attempts {
            return Err(HubError::Unreachable {
                what: self.what.clone(),
                attempts: self.failures,
                reason: reason.to_owned(),
            });
        }
        let delay = self.policy.delay(self.failures);
        (self.waiting)(reason, delay);
        self.sleep(delay)
    }

    /// Waits as long as a gate stays closed.
    ///
    /// # Errors
    /// [`HubError::RateLimited`] when patience ends; [`HubError::Cancelled`].
    pub(super) fn pass(&mut self, gate: &super::rate::Gate) -> Result<(), HubError> {
        loop {
            let closed = gate.remaining();
            if closed.is_zero() {
                return self.check_stop();
            }
            let wait = closed + self.policy.rate_limit_jitter.mul_f64(random_fraction());
            if self.waited + closed > self.policy.rate_limit_patience {
                return Err(HubError::RateLimited {
                    what: self.what.clone(),
                    waited: self.waited,
                    asked: closed,
                });
            }
            (self.waiting)("the Hub's rate limit", wait);
            self.waited += wait;
            self.sleep(wait)?;
        }
    }

    fn sleep(&self, delay: Duration) -> Result<(), HubError> {
        let end = Instant::now() + delay;
        loop {
            self.check_stop()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(SLICE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap() {
        let policy = RetryPolicy::default();
        for (failures, full) in [(1, 1.0), (2, 2.0), (4, 8.0), (7, 60.0), (40, 60.0)] {
            let delay = policy.delay(failures).as_secs_f64();
            assert!((full / 2.0..=full).contains(&delay), "{failures}: {delay}");
        }
    }

    #[test]
    fn progress_renews_the_attempts_and_silence_uses_them_up() {
        let policy = RetryPolicy { attempts: 3, first_delay: Duration::ZERO, ..RetryPolicy::default() };
        let mut effort = Effort::new("testing".into(), &policy, &|| false, &|_, _| {});
        for byte in 1..=10 {
            effort.failed("reset").unwrap();
            effort.failed("reset").unwrap();
            effort.progressed_to(byte);
        }
        effort.progressed_to(9);
        effort.failed("reset").unwrap();
        effort.failed("reset").unwrap();
        let error = effort.failed("stall").unwrap_err();
        assert!(matches!(error, HubError::Unreachable { attempts: 3, .. }), "{error}");
    }

    #[test]
    fn a_wait_beyond_patience_is_an_error_at_once() {
        let gate = crate::hub::rate::Gate::default();
        gate.close_for(Duration::from_secs(100_000));
        let policy = RetryPolicy::default();
        let mut effort = Effort::new("testing".into(), &policy, &|| false, &|_, _| {});
        assert!(matches!(effort.pass(&gate), Err(HubError::RateLimited { .. })));
    }
}

//! The Hub's rate limits: what its headers say, one gate for all who wait, and what a plan costs in time.
//!
//! The Hub counts requests in fixed windows of five minutes, in one bucket for its API (listings) and another for
//! its resolver (files). Beyond the limit it answers 429 with
//! `RateLimit: "resolvers";r=0;t=55` (nothing left, a new window in 55 s; IETF draft-ietf-httpapi-ratelimit-headers-09),
//! `RateLimit-Policy: "fixed window";"resolvers";q=5000;w=300`, or the older `Retry-After` (seconds, or a date).
//! The wait concerns all downloads of the process alike: whichever learns of it first closes the gate for all.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};

/// Length of the Hub's window, in seconds.
const WINDOW_SECONDS: f64 = 300.0;

/// Seconds that `requests` file downloads take at the least because of the Hub's limit on its resolver: 5,000 in
/// five minutes with a free account, 3,000 for an anonymous address. What fits in the first window is free.
#[must_use]
pub fn plan_seconds(requests: u64, authenticated: bool) -> f64 {
    windows_to_wait(requests, if authenticated { 5_000 } else { 3_000 })
}

/// Seconds that `requests` calls of the Hub's API (one for each 1,000 entries of a listing) take at the least:
/// 1,000 in five minutes with a free account, 500 for an anonymous address.
#[must_use]
pub fn plan_listing_seconds(requests: u64, authenticated: bool) -> f64 {
    windows_to_wait(requests, if authenticated { 1_000 } else { 500 })
}

fn windows_to_wait(requests: u64, quota: u64) -> f64 {
    (requests.saturating_sub(1) / quota) as f64 * WINDOW_SECONDS
}

/// How long the headers of an answer ask to wait; `None` when they say nothing of it.
pub(super) fn requested_wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let items = rate_limit_items(headers);
    let exhausted = items.iter().filter(|item| item.remaining == Some(0)).filter_map(|item| item.reset).max();
    exhausted
        .or_else(|| items.iter().filter_map(|item| item.reset).max())
        .or_else(|| retry_after(headers, now))
        .or_else(|| policy_window(headers))
}

/// The wait announced with the last request of a window, before any refusal.
pub(super) fn exhausted_wait(headers: &HeaderMap) -> Option<Duration> {
    let items = rate_limit_items(headers);
    items.iter().filter(|item| item.remaining == Some(0)).filter_map(|item| item.reset).max()
}

struct RateLimitItem {
    remaining: Option<u64>,
    reset: Option<Duration>,
}

/// The items of `RateLimit: "name";r=…;t=…, …`.
fn rate_limit_items(headers: &HeaderMap) -> Vec<RateLimitItem> {
    let values = headers.get_all("ratelimit").iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|item| RateLimitItem {
            remaining: parameter(item, "r"),
            reset: parameter(item, "t").map(Duration::from_secs),
        })
        .collect()
}

/// The number after `;name=`.
fn parameter(item: &str, name: &str) -> Option<u64> {
    item.split(';').find_map(|part| {
        let (key, value) = part.split_once('=')?;
        if key.trim() == name { value.trim().parse().ok() } else { None }
    })
}

fn policy_window(headers: &HeaderMap) -> Option<Duration> {
    let policy = headers.get("ratelimit-policy")?.to_str().ok()?;
    parameter(policy, "w").map(Duration::from_secs)
}

fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let when = httpdate::parse_http_date(value).ok()?;
    // Measured on the server's own clock where it tells the time: ours may be off.
    let date = headers.get(DATE).and_then(|date| date.to_str().ok());
    let now = date.and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or(now);
    Some(when.duration_since(now).unwrap_or_default())
}

/// Closed until an instant; every request waits before it.
#[derive(Debug, Default)]
pub(super) struct Gate {
    until: Mutex<Option<Instant>>,
}

impl Gate {
    /// Closes the gate for `wait` from now, or leaves it closed for longer if it is.
    pub(super) fn close_for(&self, wait: Duration) {
        let until = Instant::now().checked_add(wait);
        let mut current = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        *current = (*current).max(until);
    }

    /// How long the gate stays closed.
    pub(super) fn remaining(&self) -> Duration {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(pairs: &[(&'static str, &str)]) -> Option<u64> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        requested_wait(&headers, SystemTime::UNIX_EPOCH).map(|wait| wait.as_secs())
    }

    #[test]
    fn every_way_of_saying_when_to_come_back() {
        assert_eq!(wait(&[("ratelimit", "\"api\";r=0;t=55")]), Some(55));
        assert_eq!(wait(&[("ratelimit", "\"api\";r=0;t=55"), ("retry-after", "7")]), Some(55));
        assert_eq!(wait(&[("ratelimit", "\"a\";r=9;t=300, \"b\";r=0; t=12")]), Some(12));
        assert_eq!(wait(&[("retry-after", "7")]), Some(7));
        assert_eq!(wait(&[("retry-after", "Thu, 01 Jan 1970 00:01:30 GMT")]), Some(90));
        let by_server_clock =
            [("date", "Mon, 23 Nov 2026 12:00:00 GMT"), ("retry-after", "Mon, 23 Nov 2026 12:00:05 GMT")];
        assert_eq!(wait(&by_server_clock), Some(5));
        assert_eq!(wait(&[("ratelimit-policy", "\"fixed window\";\"api\";q=500;w=300")]), Some(300));
        assert_eq!(wait(&[]), None);
        assert_eq!(wait(&[("retry-after", "soon"), ("ratelimit", "???")]), None);
    }

    #[test]
    fn the_gate_stays_closed_for_the_longest_wait() {
        let gate = Gate::default();
        assert_eq!(gate.remaining(), Duration::ZERO);
        gate.close_for(Duration::from_secs(1000));
        gate.close_for(Duration::from_secs(1));
        assert!(gate.remaining() > Duration::from_secs(900));
    }

    #[test]
    fn the_whole_of_slimpajama_takes_two_hours_of_requests() {
        assert_eq!(plan_seconds(122_005, true), 7_200.0);
        assert_eq!(plan_seconds(122_005, false), 12_000.0);
        assert_eq!(plan_seconds(5_000, true), 0.0);
        assert_eq!(plan_seconds(0, false), 0.0);
        assert_eq!(plan_listing_seconds(123, false), 0.0);
    }
}

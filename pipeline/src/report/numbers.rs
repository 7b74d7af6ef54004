//! Numbers as people read them: thousands in groups, sizes in decimal units (as disks and networks count).

/// `1234567` as `1,234,567`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in bytes with a decimal unit: `12 B`, `3.4 kB`, `1.2 TB`.
#[must_use]
pub fn bytes(size: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    // Precision does not matter: three digits are shown.
    let mut value = size as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    match (unit, value < 9.95) {
        (0, _) => format!("{size} B"),
        (_, true) => format!("{value:.1} {}", units[unit]),
        (_, false) => format!("{value:.0} {}", units[unit]),
    }
}

/// `part` of `whole` in percent; none when there is no whole.
#[must_use]
pub fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| 100.0 * part as f64 / whole as f64)
}

/// `part` of `whole` as text; a dash when there is no whole.
#[must_use]
pub fn percent_of(part: u64, whole: u64) -> String {
    share(part, whole).map_or("–".into(), percent)
}

/// A share as text: one decimal, more where it is small, `0 %` only for nothing at all.
#[must_use]
pub fn percent(share: f64) -> String {
    match share {
        0.0 => "0 %".into(),
        s if s < 0.0005 => format!("{s:.1e} %"),
        s if s < 0.1 => format!("{s:.3} %"),
        s => format!("{s:.1} %"),
    }
}

/// Seconds since 1970 as date and time, UTC.
#[must_use]
pub fn moment(seconds: u64) -> String {
    let time = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(seconds));
    // The form of HTTP ends before the year 10000.
    time.filter(|_| seconds < 253_402_300_800)
        .map_or_else(|| format!("{seconds} s after 1970"), httpdate::fmt_http_date)
}

/// A span of time in two units.
#[must_use]
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

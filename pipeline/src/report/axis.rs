//! Axes of plots: round ticks, short labels, linear or logarithmic positions.

/// About `count` round numbers from `low` to `high`.
#[must_use]
pub fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let raw = (high - low) / count.max(1) as f64;
    if !raw.is_finite() || raw <= 0.0 {
        return vec![low];
    }
    let power = 10.0_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|&step| step >= raw)
        .unwrap_or(raw);
    let first = (low / step).ceil() as i64;
    (first..).map(|index| index as f64 * step).take_while(|&tick| tick <= high * (1.0 + 1e-12)).collect()
}

/// A number in three digits or so, with k, M, B or T for thousands, and powers for what is tiny.
#[must_use]
pub fn label(value: f64) -> String {
    let text = |value: f64, unit: &str| {
        let digits = format!("{value:.2}");
        format!("{}{unit}", digits.trim_end_matches('0').trim_end_matches('.'))
    };
    match value.abs() {
        v if v >= 1e15 => format!("{value:.1e}"),
        v if v >= 1e12 => text(value / 1e12, "T"),
        v if v >= 1e9 => text(value / 1e9, "B"),
        v if v >= 1e6 => text(value / 1e6, "M"),
        v if v >= 1e3 => text(value / 1e3, "k"),
        v if v >= 0.095 || v == 0.0 => text(value, ""),
        v if v >= 0.000_95 => {
            let digits = format!("{value:.5}");
            digits.trim_end_matches('0').to_owned()
        }
        _ => format!("{value:.0e}"),
    }
}

/// Maps values to fractions of an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    /// A scale over these values; those that are not finite (or, on a logarithmic one, not above 0) do not count.
    #[must_use]
    pub fn over(values: impl Iterator<Item = f64>, logarithmic: bool) -> Self {
        let usable = values.filter(|&value| value.is_finite() && (!logarithmic || value > 0.0));
        let (low, high) =
            usable.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low > high { (1.0, 2.0) } else { (low, high) };
        let margin = if low < high { 0.0 } else { (low.abs() * 0.05).max(f64::MIN_POSITIVE) };
        Self { low: low - margin, high: high + margin, logarithmic }
    }

    /// The same scale with a little room at both ends.
    #[must_use]
    pub fn padded(self) -> Self {
        let room = 0.05;
        if self.logarithmic {
            let factor = (self.high / self.low).powf(room);
            return Self { low: self.low / factor, high: self.high * factor, ..self };
        }
        let room = room * (self.high - self.low);
        Self { low: self.low - room, high: self.high + room, ..self }
    }

    /// The same scale, beginning at 0.
    #[must_use]
    pub fn from_zero(self) -> Self {
        Self { low: self.low.min(0.0), ..self }
    }

    /// The position of a value on the axis: 0 at the low end, 1 at the high end.
    #[must_use]
    pub fn at(&self, value: f64) -> f64 {
        let map = |value: f64| if self.logarithmic { value.max(f64::MIN_POSITIVE).ln() } else { value };
        (map(value) - map(self.low)) / (map(self.high) - map(self.low)).max(f64::MIN_POSITIVE)
    }

    /// Round values along it.
    #[must_use]
    pub fn ticks(&self, count: usize) -> Vec<f64> {
        if !self.logarithmic {
            return ticks(self.low, self.high, count);
        }
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let between = |factors: &[f64]| -> Vec<f64> {
            let all = decades.clone().flat_map(|power| factors.iter().map(move |f| f * 10f64.powi(power)));
            all.filter(|tick| (self.low..=self.high).contains(tick)).collect()
        };
        let fine = between(&[1.0, 2.0, 5.0]);
        let coarse = between(&[1.0]);
        match (fine.len() <= count + 2, fine.len() < 2) {
            (_, true) => ticks(self.low, self.high, count),
            (true, _) => fine,
            (false, _) => coarse,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_labels_short() {
        assert_eq!(ticks(0.0, 60.0, 6), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        assert_eq!(ticks(3.0, 3.0, 6), [3.0]);
        assert_eq!([label(1_500_000.0), label(0.25), label(2000.0)], ["1.5M", "0.25", "2k"]);
        assert_eq!([label(0.003), label(1e-5), label(0.0), label(1.2e13)], ["0.003", "1e-5", "0", "12T"]);
    }

    #[test]
    fn scales_reach_from_0_to_1() {
        let scale = Scale::over([2.0, f64::NAN, 8.0].into_iter(), false);
        assert_eq!([scale.at(2.0), scale.at(5.0), scale.at(8.0)], [0.0, 0.5, 1.0]);
        let scale = Scale::over([1.0, 0.0, 100.0].into_iter(), true);
        assert!((scale.at(10.0) - 0.5).abs() < 1e-12);
        assert_eq!(scale.ticks(6), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(Scale::over([1.0, 1e9].into_iter(), true).ticks(5).len(), 10);
        let one = Scale::over([3.0].into_iter(), false);
        assert!((one.at(3.0) - 0.5).abs() < 1e-9);
        assert!(Scale::over(std::iter::empty(), true).at(1.5).is_finite());
    }
}

//! Model FLOP utilization: which operations are counted, and against which peak.
//!
//! Operations of a token, forward and backward, are the architecture's (`Architecture::operations_per_token`, with its
//! formula by name). For xLSTM they are `6·P + 12·M`: `P` counts the parameters in matrix products (all matrices but the
//! token embedding) and `M` the cells of the matrix memories. Peaks are the makers' dense bfloat16 figures. A device that is not listed has no utilization: a guess
//! would be worse than none.

/// Dense bf16 peak in operations a second, by a part of the device's name; the first match counts.
const PEAKS: &[(&str, f64)] = &[
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
];

/// The peak of a device by its name; `None` where it is not known.
#[must_use]
pub fn peak_operations(device_name: &str) -> Option<f64> {
    PEAKS.iter().find(|(part, _)| device_name.contains(part)).map(|&(_, peak)| peak)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_device_has_no_peak() {
        assert_eq!(peak_operations("NVIDIA H100 80GB HBM3"), Some(989e12));
        assert_eq!(peak_operations("NVIDIA H100 PCIe"), Some(756e12));
        assert_eq!(peak_operations("cpu"), None);
    }
}

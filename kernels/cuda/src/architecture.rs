//! What machine code is made for.

use std::fmt;

/// What machine code is made for: a compute capability, and whether it may use what only that one has.
///
/// Kernels come in two kinds: with `wgmma` and the copy engine (9.0 alone, whose `wgmma` no later GPU has), and with
/// `mma.sync` and `cp.async` (all others). What else differs is the shared memory of a multiprocessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Compute capability 8.0 (A100): 164 KiB of shared memory a multiprocessor.
    Sm80,
    /// 8.6 and 8.7 (RTX 30, A10, A40): 100 KiB.
    Sm86,
    /// 8.9 (RTX 40, L4, L40): 100 KiB.
    Sm89,
    /// 9.0 with its own instructions (H100, H200): `wgmma`, clusters and the copy engine; 228 KiB.
    Sm90a,
    /// 10.0 and 10.3 (B200, B300): 228 KiB.
    Sm100,
    /// 12.0 and 12.1 (RTX 50, RTX PRO): 100 KiB.
    Sm120,
    /// The code of 8.0 as PTX, which the driver of any later GPU assembles: to test that path, and its speed.
    Ptx80,
    /// The code of 8.6 as PTX, with the tiles that its shared memory allows.
    Ptx86,
}

impl Architecture {
    /// All that machine code is made for, in the order of their compute capability.
    pub const NATIVE: [Self; 6] = [Self::Sm80, Self::Sm86, Self::Sm89, Self::Sm90a, Self::Sm100, Self::Sm120];

    /// The name that NVRTC uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sm80 => "sm_80",
            Self::Sm86 => "sm_86",
            Self::Sm89 => "sm_89",
            Self::Sm90a => "sm_90a",
            Self::Sm100 => "sm_100",
            Self::Sm120 => "sm_120",
            Self::Ptx80 => "compute_80",
            Self::Ptx86 => "compute_86",
        }
    }

    /// What a GPU of this compute capability runs; `None` for one that the kernels do not know. Machine code runs on
    /// later minor versions of its major version too.
    #[must_use]
    pub fn of_capability(major: i32, minor: i32) -> Option<Self> {
        match (major, minor) {
            (8, 0) => Some(Self::Sm80),
            (8, 6..=8) => Some(Self::Sm86),
            (8, 9) => Some(Self::Sm89),
            (9, 0) => Some(Self::Sm90a),
            (10, _) => Some(Self::Sm100),
            (12, _) => Some(Self::Sm120),
            _ => None,
        }
    }

    /// What `--gpu-architecture` asks for: `8.0` or `8.6`, as PTX.
    ///
    /// # Errors
    /// The names it knows, where `name` is none of them.
    pub fn forced(name: &str) -> Result<Self, String> {
        match name {
            "8.0" => Ok(Self::Ptx80),
            "8.6" => Ok(Self::Ptx86),
            _ => Err(format!("expected 8.0 or 8.6, found `{name}`")),
        }
    }

    /// Whether the code is PTX, which the driver assembles.
    #[must_use]
    pub fn is_ptx(self) -> bool {
        matches!(self, Self::Ptx80 | Self::Ptx86)
    }

    /// Whether products are `wgmma` on tiles that the copy engine brings (`BULK` in `bulk.cuh`).
    #[must_use]
    pub fn has_wgmma(self) -> bool {
        self == Self::Sm90a
    }

    /// Whether blocks of a kernel can share memory as a cluster.
    #[must_use]
    pub fn has_clusters(self) -> bool {
        matches!(self, Self::Sm90a | Self::Sm100 | Self::Sm120)
    }

    /// Whether a kernel can begin before the one in front of it has ended (`wait_for_previous` of `common.cuh`).
    #[must_use]
    pub fn has_overlapping_launches(self) -> bool {
        matches!(self, Self::Sm90a | Self::Sm100 | Self::Sm120)
    }

    /// Whether clusters of up to 16 blocks hold an sLSTM head; those of 12.0 have 8 blocks, of less memory.
    #[must_use]
    pub fn has_large_clusters(self) -> bool {
        matches!(self, Self::Sm90a | Self::Sm100)
    }

    /// Shared memory of a multiprocessor in KiB, one of them the system's for each block that runs on it.
    #[must_use]
    pub fn shared_kibibytes(self) -> u32 {
        match self {
            Self::Sm80 | Self::Ptx80 => 164,
            Self::Sm86 | Self::Sm89 | Self::Sm120 | Self::Ptx86 => 100,
            Self::Sm90a | Self::Sm100 => 228,
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

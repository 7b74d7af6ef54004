//! Ways to misbehave, and when.

/// What a fault strikes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `GET /api/datasets/…/revision/…`
    Revision,
    /// `GET /api/datasets/…/tree/…`
    Tree,
    /// The Hub's resolver, asked for this file.
    Resolve(String),
    /// The answer that carries this file's bytes.
    Body(String),
    /// The Hub's resolver, asked for any file.
    AnyResolve,
    /// The answer that carries any file's bytes.
    AnyBody,
}

/// What happens in place of the right answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// This status, with these headers and this body.
    Status(u16, Vec<(String, String)>, String),
    /// 429 with `RateLimit` and `RateLimit-Policy` that ask for this many seconds.
    RateLimited(u64),
    /// 429 with `Retry-After` of this value.
    RetryAfter(String),
    /// 429 that says nothing of when to come back.
    BareTooMany,
    /// The right answer, with `RateLimit` saying it was the window's last for this many seconds.
    LastOfWindow(u64),
    /// The connection is closed before any answer.
    Close,
    /// The right header, this many bytes of the body, then a TCP reset.
    ResetAfter(u64),
    /// The right header, this many bytes of the body, then an orderly close.
    CutAfter(u64),
    /// A body that ends early although its framing (chunked) says it is whole.
    EndAfter(u64),
    /// The right header, this many bytes of the body, then nothing more on an open connection.
    StallAfter(u64),
    /// No header, on an open connection.
    StallBeforeHeader,
    /// The whole file with 200, whatever range was asked for.
    IgnoreRange,
    /// As [`Effect::IgnoreRange`], reset after this many bytes.
    IgnoreRangeAndResetAfter(u64),
    /// 206 with bytes from 0 on, and a `Content-Range` that says so, whatever range was asked for.
    OtherRange,
    /// 416, whatever range was asked for.
    Unsatisfiable,
    /// The byte at this offset of the file is changed.
    WrongByte(u64),
    /// An answer of 200 with this body in place of the file.
    OtherBody(Vec<u8>),
    /// 302 (or 307) to this address.
    Redirect(String),
}

/// An effect, on what, and when.
#[derive(Debug, Clone)]
pub struct Fault {
    pub(super) target: Target,
    pub(super) effect: Effect,
    pub(super) skip: usize,
    pub(super) times: Option<usize>,
}

impl Fault {
    /// `effect` on every request that `target` fits.
    #[must_use]
    pub fn new(target: Target, effect: Effect) -> Self {
        Self { target, effect, skip: 0, times: None }
    }

    /// `effect` on the bytes of file `path`.
    #[must_use]
    pub fn on_body(path: &str, effect: Effect) -> Self {
        Self::new(Target::Body(path.to_owned()), effect)
    }

    /// `effect` on the resolver's answer for file `path`.
    #[must_use]
    pub fn on_resolve(path: &str, effect: Effect) -> Self {
        Self::new(Target::Resolve(path.to_owned()), effect)
    }

    /// Only this many times.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = Some(times);
        self
    }

    /// Not for the first `skip` requests that fit.
    #[must_use]
    pub fn after(mut self, skip: usize) -> Self {
        self.skip = skip;
        self
    }

    fn fits(&self, target: &Target) -> bool {
        match (&self.target, target) {
            (Target::AnyResolve, Target::Resolve(_)) | (Target::AnyBody, Target::Body(_)) => true,
            (mine, other) => mine == other,
        }
    }
}

/// The effect due for a request to `target`, counted down.
pub(super) fn due(faults: &mut [Fault], target: &Target) -> Option<Effect> {
    for fault in faults.iter_mut().filter(|fault| fault.fits(target)) {
        if fault.skip > 0 {
            fault.skip -= 1;
            continue;
        }
        match &mut fault.times {
            Some(0) => {}
            Some(times) => {
                *times -= 1;
                return Some(fault.effect.clone());
            }
            None => return Some(fault.effect.clone()),
        }
    }
    None
}

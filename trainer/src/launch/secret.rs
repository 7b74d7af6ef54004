//! What ranks on several machines prove to each other that they know, without sending it.

use std::io::Read as _;

use xlstm_manifests::Sha256Digest;

use crate::error::{Result, TrainError};

/// The variable that holds the secret of ranks on several machines.
pub(super) const SECRET: &str = "XLSTM_STORE_SECRET";
/// The fewest characters of a secret that somebody chose.
const MIN_SECRET: usize = 16;
/// Bytes of a number used once.
pub(super) const NUMBER: usize = 32;

/// What all ranks of a run know, and nobody else.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret(not shown)")
    }
}

impl Secret {
    /// A text that somebody chose.
    ///
    /// # Errors
    /// When it is short enough to be guessed.
    pub(super) fn new(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.len() < MIN_SECRET {
            return Err(TrainError::Usage(format!(
                "expected at least {MIN_SECRET} characters in {SECRET}, found {}: make it with `openssl rand -hex 32`",
                text.len()
            )));
        }
        Ok(Self(text.as_bytes().to_vec()))
    }

    /// That of ranks which were started by hand on one machine without one: whoever else is on the machine knows it too.
    pub(super) fn of_this_machine() -> Self {
        Self(b"this machine".to_vec())
    }

    /// A new one, as text for children.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub(super) fn random() -> Result<String> {
        Ok(random()?.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// HMAC-SHA256 of `parts`, one after the other.
    pub(super) fn proof(&self, parts: &[&[u8]]) -> [u8; 32] {
        const BLOCK: usize = 64;
        let mut key = [0; BLOCK];
        let hashed = Sha256Digest::of(&self.0).0;
        let short = if self.0.len() > BLOCK { &hashed[..] } else { &self.0[..] };
        key[..short.len()].copy_from_slice(short);
        let keyed = |pad: u8, message: &[u8]| {
            let mut bytes: Vec<u8> = key.iter().map(|byte| byte ^ pad).collect();
            bytes.extend_from_slice(message);
            Sha256Digest::of(&bytes).0
        };
        keyed(0x5c, &keyed(0x36, &parts.concat()))
    }
}

/// A number used once.
pub(super) fn random() -> Result<[u8; NUMBER]> {
    let mut number = [0; NUMBER];
    fs_err::File::open("/dev/urandom")?.read_exact(&mut number)?;
    Ok(number)
}

/// Whether two proofs are the same, in a time that does not tell how far they agree.
pub(super) fn same(left: &[u8; 32], right: &[u8; 32]) -> bool {
    left.iter().zip(right).fold(0, |differ, (left, right)| differ | (left ^ right)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_is_that_of_rfc_4231() {
        let secret = Secret(b"Jefe".to_vec());
        let proof = secret.proof(&[b"what do ya want ", b"for nothing?"]);
        let hex: String = proof.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        let long = Secret(vec![0xaa; 131]);
        let proof = long.proof(&[b"Test Using Larger Than Block-Size Key - Hash Key First"]);
        assert_eq!(proof[..4], [0x60, 0xe4, 0x31, 0x59]);
    }
}

//! What ranks and launchers write into the store about themselves: who a rank is, its beats, how it ended.

use std::time::{Duration, Instant};

use xlstm_bridge::distributed::Store;

use super::environment::Place;
use crate::error::{Result, TrainError};

/// Who a rank is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Member {
    pub(super) host: String,
    pub(super) pid: u32,
    /// The number of ranks that it knows of.
    pub(super) world: u64,
}

/// The key of a rank's beat.
pub(super) fn beat_key(rank: u64) -> String {
    format!("beat/{rank}")
}

/// The key under which a launcher writes how a rank's process ended, for ranks that still wait for it to come.
fn end_key(rank: u64) -> String {
    format!("end/{rank}")
}

/// What a launcher does when a rank's process has ended badly: the rank's last beat says so, unless the rank itself said
/// why.
pub(super) fn write_end(
    store: &Store,
    rank: u64,
    how: &str,
) -> std::result::Result<(), xlstm_bridge::BridgeError> {
    store.set(&end_key(rank), how.as_bytes())?;
    let beat = store.find(&beat_key(rank))?.unwrap_or_default();
    let beat = String::from_utf8_lossy(&beat);
    match beat.strip_suffix(" alive") {
        Some(beat) => store.set(&beat_key(rank), format!("{beat} failed: {how}").as_bytes()),
        None => Ok(()),
    }
}

/// Waits for all ranks to say who they are.
pub(super) fn meet(place: &Place, store: &Store, timeout: Duration) -> Result<Vec<Member>> {
    let begin = Instant::now();
    let mut members = Vec::new();
    for rank in 0..place.world {
        let member = loop {
            if let Some(bytes) = store.find(&format!("who/{rank}"))? {
                break serde_json::from_slice::<Member>(&bytes).map_err(|error| {
                    TrainError::Usage(format!("expected a rank of this program in the store at {}:{}, found another writer: {error}", place.host, place.port))
                })?;
            }
            if let Some(reason) = store.find(&end_key(rank))? {
                let reason = String::from_utf8_lossy(&reason).into_owned();
                let next = "no rank has begun".to_owned();
                return Err(TrainError::RankLost { who: format!("rank {rank}"), reason, next });
            }
            if begin.elapsed() > timeout {
                return Err(TrainError::Usage(format!(
                    "expected {} ranks at {}:{}, found no rank {rank} within {} s: was every rank started, with the \
                     same address, port and number of ranks?",
                    place.world,
                    place.host,
                    place.port,
                    timeout.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        if member.world != place.world {
            return Err(TrainError::Usage(format!(
                "expected the same number of ranks everywhere, found {} at rank {} and {} at rank {rank} (host {})",
                place.world, place.rank, member.world, member.host
            )));
        }
        members.push(member);
    }
    Ok(members)
}

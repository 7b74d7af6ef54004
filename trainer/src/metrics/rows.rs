//! `rows/rank-00000.jsonl`: which rows a rank took, as they came from the loader. Nobody needs it to trace a step, which
//! is arithmetic; it is there to check that arithmetic against what happened (`logging.rows = true`).

use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use xlstm_manifests::order::StepRow;

use crate::error::{Result, TrainError};

/// One line: a micro-batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenRows {
    /// The step.
    pub step: u64,
    /// Ranks in this session.
    pub world: u64,
    /// Which pass over the data and which row, in order.
    pub rows: Vec<(u64, u64)>,
}

/// Appends lines for one rank.
pub(crate) struct RowLog {
    file: fs_err::File,
    world: u64,
}

impl RowLog {
    pub(crate) fn append(run: &Path, rank: u64, world: u64) -> Result<Self> {
        let folder = run.join("rows");
        fs_err::create_dir_all(&folder)?;
        let path = folder.join(format!("rank-{rank:05}.jsonl"));
        Ok(Self { file: fs_err::OpenOptions::new().create(true).append(true).open(path)?, world })
    }

    pub(crate) fn write(&mut self, step: u64, rows: &[StepRow]) -> Result<()> {
        let rows = rows.iter().map(|row| (row.epoch, row.row)).collect();
        let line = TakenRows { step, world: self.world, rows };
        let mut text = serde_json::to_vec(&line).map_err(TrainError::internal)?;
        text.push(b'\n');
        self.file.write_all(&text)?;
        Ok(())
    }
}

//! The links of the parameters that a run began with: the file, and the whole run that made it.

use super::{Chain, Depth};
use crate::error::Result;
use crate::provenance::{InitialLink, RunLinks};

impl Chain {
    /// Follows the parameters that a run began with, through the run that made them.
    pub(super) fn initial(&mut self, initial: &InitialLink, depth: &Depth) -> Result<()> {
        for file in &initial.files {
            self.file(&format!("first parameters: {}", file.name), file);
        }
        let Some(folder) = &initial.folder else {
            let file = initial.files.first().map(|file| file.path.clone()).unwrap_or_default();
            let detail = "a file by itself: nothing says what its parameters were trained on";
            self.add("first parameters: run", &file, super::LinkState::Unchecked, detail);
            return Ok(());
        };
        let link = "first parameters: run";
        match &initial.run {
            None => self.not_at_hand(link, folder, "no run in this folder"),
            Some(Err(error)) => self.failed(link, folder, error.to_string()),
            Some(Ok(run)) => {
                self.list(
                    link,
                    folder,
                    "recipe and training root are those recorded",
                    &initial.differences(),
                );
                return self.run_behind(run, depth);
            }
        }
        Ok(())
    }

    /// The links of the run that made them, told from the run's own by their names.
    fn run_behind(&mut self, run: &RunLinks, depth: &Depth) -> Result<()> {
        let before = self.links.len();
        self.run_links(run, depth)?;
        for link in &mut self.links[before..] {
            link.link = format!("first parameters: {}", link.link);
        }
        Ok(())
    }
}

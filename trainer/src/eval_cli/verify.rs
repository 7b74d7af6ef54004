//! `xlstm-eval verify RUN|REPORT`: does every link of the chain still hold?

use std::path::PathBuf;

use clap::Args;
use xlstm_manifests::printable;
use xlstm_trainer::command_line::{DeviceArguments, Kernels, print, print_json_pretty};
use xlstm_trainer::verify::{Chain, Depth, LinkState, verify};

/// Exit code where all links that could be followed hold, but not all could be followed.
const NOT_FOLLOWED: u8 = 3;

/// Check every link from a run or a report to its bytes.
#[derive(Debug, Args)]
pub(super) struct VerifyArguments {
    /// Folders of runs, and reports of evaluations (folder or file)
    #[arg(required = true, value_name = "RUN|REPORT")]
    paths: Vec<PathBuf>,
    /// Also read source files again, tokenize them anew, and compute the newest validation again
    #[arg(long)]
    deep: bool,
    /// Folder of the source files, where they are not where `prepare` left them
    #[arg(long, value_name = "DIR", requires = "deep")]
    inputs: Option<PathBuf>,
    /// Folder in which datasets are looked for by their root, beside where they were and where the run is; may be given
    /// again
    #[arg(long, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// Fail (exit code 1) where a link could not be followed, too
    #[arg(long)]
    strict: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl VerifyArguments {
    /// Follows the chains; returns the exit code: 1 when a link is broken, [`NOT_FOLLOWED`] when one could not be followed.
    pub(super) fn run(&self) -> anyhow::Result<u8> {
        let depth = Depth { deep: self.deep, inputs: self.inputs.clone(), data: self.data.clone() };
        if self.deep {
            DeviceArguments {
                device: "cpu".into(),
                threads: None,
                kernels: Kernels::Auto,
                gpu_architecture: None,
            }
            .start()?;
        }
        let mut chain = Chain::default();
        for path in &self.paths {
            chain.links.extend(verify(path, &depth)?.links);
        }
        if self.json {
            print_json_pretty(&chain)?;
        } else {
            print(&text(&chain))?;
        }
        let missing = chain.count(LinkState::NotAtHand) > 0;
        Ok(match (chain.holds(), missing) {
            (false, _) => 1,
            (true, true) if self.strict => 1,
            (true, true) => NOT_FOLLOWED,
            (true, false) => 0,
        })
    }
}

fn text(chain: &Chain) -> String {
    let mut out = String::new();
    for link in &chain.links {
        let state = match link.state {
            LinkState::Ok => "ok",
            LinkState::Failed => "FAILED",
            LinkState::NotAtHand => "not at hand",
            LinkState::NotAsked => "not asked",
            LinkState::Unchecked => "unchecked",
        };
        out.push_str(&format!(
            "{state:<12} {:<34} {}\n{:13}{}\n",
            printable::text(&link.link),
            printable::path(&link.path),
            "",
            printable::text(&link.detail)
        ));
    }
    let count = |state| chain.count(state);
    out.push_str(&format!(
        "{} links hold, {} do not, {} are not at hand, {} were not asked for\n",
        count(LinkState::Ok),
        count(LinkState::Failed),
        count(LinkState::NotAtHand),
        count(LinkState::NotAsked)
    ));
    let unchecked = count(LinkState::Unchecked);
    if unchecked > 0 {
        out.push_str(&format!(
            "{unchecked} splits have source files that were compared with nothing that anybody published\n"
        ));
    }
    out
}

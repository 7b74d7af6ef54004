//! `xlstm-eval verify RUN|REPORT`: does every link of the chain still hold?

use std::path::PathBuf;

use clap::Args;
use xlstm_trainer::command_line::{DeviceArguments, Kernels, print};
use xlstm_trainer::verify::{Chain, Depth, State, verify};

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
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl VerifyArguments {
    /// Follows the chains; returns the exit code: 1 when a link is broken.
    pub(super) fn run(&self) -> anyhow::Result<u8> {
        let depth = Depth { deep: self.deep, inputs: self.inputs.clone() };
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
            print(&format!("{}\n", serde_json::to_string_pretty(&chain)?))?;
        } else {
            print(&text(&chain))?;
        }
        Ok(u8::from(!chain.holds()))
    }
}

fn text(chain: &Chain) -> String {
    let mut out = String::new();
    for link in &chain.links {
        let state = match link.state {
            State::Ok => "ok",
            State::Failed => "FAILED",
            State::NotAtHand => "not at hand",
        };
        out.push_str(&format!(
            "{state:<12} {:<34} {}\n{:13}{}\n",
            link.link,
            link.path.display(),
            "",
            link.detail
        ));
    }
    let count = |state| chain.count(state);
    out.push_str(&format!(
        "{} links hold, {} do not, {} are not at hand\n",
        count(State::Ok),
        count(State::Failed),
        count(State::NotAtHand)
    ));
    out
}

//! Which rank this process is, as the program that started it says by environment variables.
//!
//! | started by | rank, ranks, rank on this machine | where rank 0 is |
//! |---|---|---|
//! | `torchrun`, `--nproc`, by hand | `RANK`, `WORLD_SIZE`, `LOCAL_RANK` | `MASTER_ADDR`, `MASTER_PORT` |
//! | `mpirun` (Open MPI) | `OMPI_COMM_WORLD_RANK`, `…_SIZE`, `…_LOCAL_RANK` | the same two; on one machine not needed |
//! | `mpirun`, `mpiexec` (MPICH, Intel MPI) | `PMI_RANK`, `PMI_SIZE`, `MPI_LOCALRANKID` | as Open MPI |
//! | `mpirun` (MVAPICH) | `MV2_COMM_WORLD_RANK`, `…_SIZE`, `…_LOCAL_RANK` | as Open MPI |
//! | `srun` (Slurm) | `SLURM_PROCID`, `SLURM_NTASKS`, `SLURM_LOCALID` | the same two; else the first host of `SLURM_NODELIST`, and a port made from the job's number |
//!
//! The first line of the table that applies counts: `torchrun` is often started by `srun`, and `mpirun` within a job.
//! A rank of any other launcher is refused by the name of its variable: taken for a program by itself, each of N ranks
//! would train alone into one folder.

use super::hosts::first_host;
use crate::error::{Result, TrainError};

/// Set in ranks that `--nproc` started.
pub(super) const MARK: &str = "XLSTM_LAUNCHED";
/// The port where nothing else says one; `torchrun`'s own.
const DEFAULT_PORT: u16 = 29500;

/// One rank among several, and how it reaches the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// This rank, from 0.
    pub rank: u64,
    /// How many there are.
    pub world: u64,
    /// This rank among those on this machine: which GPU it takes.
    pub local_rank: u64,
    /// Ranks on this machine that share its cores; `None` where the launcher gives each its own.
    pub local_world: Option<u64>,
    /// The machine of rank 0.
    pub host: String,
    /// The port there.
    pub port: u16,
    /// Whether the launcher holds the store, and not rank 0.
    pub launcher_holds_store: bool,
    /// How often the launcher has started these ranks before: keys of an earlier attempt may still be in its store.
    pub attempt: u64,
    /// Who started it, for messages.
    pub started_by: &'static str,
}

/// The place that the variables name; `None` where none is named.
///
/// # Errors
/// When variables are missing, are no numbers, or contradict each other.
pub fn place(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Place>> {
    let set = |name: &str| variable(name).is_some();
    if ["RANK", "WORLD_SIZE", "LOCAL_RANK"].into_iter().any(set) {
        return torchrun(variable).map(Some);
    }
    // Inside a batch script, where nobody else was started, Slurm sets these as well, but names no step.
    let only_script = set("SLURM_JOB_ID") && !set("SLURM_STEP_ID");
    let slurm_step = set("SLURM_PROCID") && !only_script;
    for mpi in MPI {
        // `srun --mpi=pmi2` sets PMI_RANK too, and no local rank: Slurm then knows more.
        if set(mpi.names[0]) && (!slurm_step || set(mpi.names[2])) {
            return from_mpi(variable, &mpi).map(Some);
        }
    }
    if slurm_step {
        return slurm(variable).map(Some);
    }
    match OTHER_LAUNCHERS.into_iter().find(|(name, _)| set(name)) {
        None => Ok(None),
        Some((name, launcher)) => Err(TrainError::Usage(format!(
            "expected a launcher that is known here, found {name}={}, which {launcher} sets: set RANK, WORLD_SIZE, \
             LOCAL_RANK, MASTER_ADDR and MASTER_PORT in each rank, or unset {name} to train in one process",
            variable(name).unwrap_or_default()
        ))),
    }
}

/// Variables of other launchers that number the processes they start.
const OTHER_LAUNCHERS: [(&str, &str); 5] = [
    ("PMIX_RANK", "a launcher with PMIx"),
    ("PALS_RANKID", "PALS (HPE Cray)"),
    ("ALPS_APP_PE", "ALPS (Cray)"),
    ("JSM_NAMESPACE_RANK", "jsrun (IBM)"),
    ("FLUX_TASK_RANK", "Flux"),
];

/// An MPI's launcher and its variables.
struct Mpi {
    name: &'static str,
    /// Rank, ranks, rank on this machine.
    names: [&'static str; 3],
    /// Ranks on this machine.
    local_world: &'static str,
    /// How its `mpirun` hands a variable to all ranks.
    hand_on: &'static str,
}

const MPI: [Mpi; 3] = [
    Mpi {
        name: "Open MPI",
        names: ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
        local_world: "OMPI_COMM_WORLD_LOCAL_SIZE",
        hand_on: "-x MASTER_ADDR=HOST",
    },
    Mpi {
        name: "MVAPICH",
        names: ["MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"],
        local_world: "MV2_COMM_WORLD_LOCAL_SIZE",
        hand_on: "-genv MASTER_ADDR HOST",
    },
    Mpi {
        name: "MPICH or Intel MPI",
        names: ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"],
        local_world: "MPI_LOCALNRANKS",
        hand_on: "-genv MASTER_ADDR HOST",
    },
];

fn torchrun(variable: &dyn Fn(&str) -> Option<String>) -> Result<Place> {
    let names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"];
    all_set(variable, &names)?;
    let agent = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
    let ours = variable(MARK).is_some();
    let place = Place {
        rank: number(variable, "RANK")?,
        world: number(variable, "WORLD_SIZE")?,
        local_rank: number(variable, "LOCAL_RANK")?,
        local_world: optional(variable, "LOCAL_WORLD_SIZE")?,
        host: text(variable, "MASTER_ADDR")?,
        port: port(variable, DEFAULT_PORT)?,
        launcher_holds_store: agent,
        attempt: optional(variable, "TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0),
        started_by: if ours { "--nproc" } else { "torchrun's variables" },
    };
    checked(place, ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
}

fn from_mpi(variable: &dyn Fn(&str) -> Option<String>, mpi: &Mpi) -> Result<Place> {
    all_set(variable, &mpi.names)?;
    let world = number(variable, mpi.names[1])?;
    let here = optional(variable, mpi.local_world)?;
    let host = match variable("MASTER_ADDR") {
        Some(host) => host,
        None if here == Some(world) || world == 1 => "127.0.0.1".to_owned(),
        None => {
            return Err(TrainError::Usage(format!(
                "expected MASTER_ADDR, the machine of rank 0, because mpirun started ranks on several machines, found \
                 none: add `{}` to mpirun",
                mpi.hand_on
            )));
        }
    };
    let place = Place {
        rank: number(variable, mpi.names[0])?,
        world,
        local_rank: number(variable, mpi.names[2])?,
        local_world: None,
        host,
        port: port(variable, DEFAULT_PORT)?,
        launcher_holds_store: false,
        attempt: 0,
        started_by: mpi.name,
    };
    checked(place, mpi.names)
}

fn slurm(variable: &dyn Fn(&str) -> Option<String>) -> Result<Place> {
    // A step may have fewer tasks and nodes than its job.
    let pick = |first: &'static str, second: &'static str| {
        if variable(first).is_some() { first } else { second }
    };
    let tasks = pick("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS");
    let nodes = pick("SLURM_STEP_NODELIST", "SLURM_NODELIST");
    let names = ["SLURM_PROCID", tasks, "SLURM_LOCALID"];
    all_set(variable, &names)?;
    let host = match variable("MASTER_ADDR") {
        Some(host) => host,
        None => {
            all_set(variable, &[nodes])?;
            let list = text(variable, nodes)?;
            first_host(&list).ok_or_else(|| {
                TrainError::Usage(format!(
                    "expected a list of hosts in {nodes}, found `{list}`: set MASTER_ADDR"
                ))
            })?
        }
    };
    // Two jobs on one machine get different ports.
    let job = optional(variable, "SLURM_JOB_ID")?.unwrap_or(0);
    let step = optional(variable, "SLURM_STEP_ID")?.unwrap_or(0);
    let made = if job == 0 { DEFAULT_PORT } else { 20_000 + ((job * 7 + step) % 10_000) as u16 };
    let place = Place {
        rank: number(variable, names[0])?,
        world: number(variable, names[1])?,
        local_rank: number(variable, names[2])?,
        local_world: None,
        host,
        port: port(variable, made)?,
        launcher_holds_store: false,
        attempt: optional(variable, "SLURM_RESTART_COUNT")?.unwrap_or(0),
        started_by: "Slurm",
    };
    checked(place, names)
}

fn checked(place: Place, [rank, world, local_rank]: [&str; 3]) -> Result<Place> {
    if place.rank >= place.world || place.local_rank >= place.world {
        return Err(TrainError::Usage(format!(
            "expected {rank} and {local_rank} below {world}, found {rank}={}, {local_rank}={}, {world}={}",
            place.rank, place.local_rank, place.world
        )));
    }
    Ok(place)
}

/// Refuses a set of variables of which only some are there.
fn all_set(variable: &dyn Fn(&str) -> Option<String>, names: &[&str]) -> Result<()> {
    let (found, missing): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| variable(name).is_some());
    if missing.is_empty() {
        return Ok(());
    }
    let found = found.iter().map(|name| format!("{name}={}", variable(name).unwrap_or_default()));
    let found = found.collect::<Vec<_>>().join(", ");
    Err(TrainError::Usage(format!(
        "expected {}, which say which rank this process is, found {}: set {} as well, or unset the others to train \
         in one process",
        names.join(", "),
        if found.is_empty() { "none of them" } else { &found },
        missing.join(", ")
    )))
}

fn text(variable: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<String> {
    variable(name)
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty())
        .ok_or_else(|| TrainError::Usage(format!("expected a value in {name}, found an empty one")))
}

fn optional(variable: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<Option<u64>> {
    if variable(name).is_none() { Ok(None) } else { number(variable, name).map(Some) }
}

fn number(variable: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<u64> {
    let text = text(variable, name)?;
    text.parse().map_err(|_| TrainError::Usage(format!("expected a whole number in {name}, found `{text}`")))
}

fn port(variable: &dyn Fn(&str) -> Option<String>, default: u16) -> Result<u16> {
    let Some(text) = variable("MASTER_PORT") else { return Ok(default) };
    text.trim().parse().ok().filter(|&port| port != 0).ok_or_else(|| {
        TrainError::Usage(format!("expected a port from 1 to 65535 in MASTER_PORT, found `{text}`"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(variables: &[(&str, &str)]) -> Result<Option<Place>> {
        place(&|name| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn refused(variables: &[(&str, &str)]) -> String {
        found(variables).unwrap_err().to_string()
    }

    const TORCHRUN: [(&str, &str); 5] = [
        ("RANK", "3"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "node7"),
        ("MASTER_PORT", "1234"),
    ];

    #[test]
    fn torchrun_is_read_and_comes_first() {
        assert_eq!(found(&[]).unwrap(), None);
        let mut variables = TORCHRUN.to_vec();
        variables.extend([
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "1"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ]);
        variables.push(("TORCHELASTIC_RESTART_COUNT", "2"));
        let place = found(&variables).unwrap().unwrap();
        assert_eq!((place.rank, place.world, place.local_rank), (3, 4, 1));
        assert_eq!((place.host.as_str(), place.port), ("node7", 1234));
        assert!(place.launcher_holds_store);
        assert_eq!(place.attempt, 2);
    }

    #[test]
    fn partial_and_contradictory_variables_are_refused() {
        for missing in 0..TORCHRUN.len() {
            let mut variables = TORCHRUN.to_vec();
            let (name, _) = variables.remove(missing);
            let message = refused(&variables);
            assert!(message.contains(&format!("set {name} as well")), "{message}");
        }
        let with = |name: &'static str, value: &'static str| {
            let mut variables = TORCHRUN.to_vec();
            variables.retain(|(other, _)| *other != name);
            variables.push((name, value));
            refused(&variables)
        };
        assert!(with("RANK", "4").contains("RANK=4, LOCAL_RANK=1, WORLD_SIZE=4"));
        assert!(with("RANK", "-1").contains("expected a whole number in RANK, found `-1`"));
        assert!(with("MASTER_PORT", "0").contains("found `0`"));
        assert!(with("MASTER_ADDR", " ").contains("MASTER_ADDR"));
        let message = refused(&[("SLURM_PROCID", "0"), ("SLURM_LOCALID", "0")]);
        assert!(message.contains("set SLURM_NTASKS as well"), "{message}");
    }

    #[test]
    fn slurm_takes_the_first_host_and_the_steps_own_counts() {
        let variables = [
            ("SLURM_JOB_ID", "77"),
            ("SLURM_STEP_ID", "3"),
            ("SLURM_PROCID", "9"),
            ("SLURM_NTASKS", "64"),
            ("SLURM_STEP_NUM_TASKS", "16"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_NODELIST", "gpu[08-11],gpu20"),
        ];
        let place = found(&variables).unwrap().unwrap();
        assert_eq!((place.rank, place.world, place.local_rank), (9, 16, 1));
        assert_eq!((place.host.as_str(), place.port), ("gpu08", 20_542));
        assert!(!place.launcher_holds_store);
        // A batch script is no rank, though Slurm numbers it.
        let script: Vec<_> = variables.into_iter().filter(|(name, _)| *name != "SLURM_STEP_ID").collect();
        assert_eq!(found(&script).unwrap(), None);
        // The four variables alone will do.
        let four: Vec<_> = script.into_iter().filter(|(name, _)| *name != "SLURM_JOB_ID").collect();
        assert_eq!(found(&four).unwrap().unwrap().port, DEFAULT_PORT);
    }

    #[test]
    fn open_mpi_on_one_machine_needs_no_address() {
        let mut variables = vec![
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        assert_eq!(found(&variables).unwrap().unwrap().host, "127.0.0.1");
        variables[3].1 = "1";
        assert!(refused(&variables).contains("-x MASTER_ADDR"));
    }

    #[test]
    fn mpich_and_intel_mpi_are_read_and_others_refused() {
        let mut variables =
            vec![("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("MPI_LOCALRANKID", "1"), ("MPI_LOCALNRANKS", "2")];
        let place = found(&variables).unwrap().unwrap();
        assert_eq!((place.rank, place.world, place.local_rank), (1, 2, 1));
        assert_eq!((place.host.as_str(), place.started_by), ("127.0.0.1", "MPICH or Intel MPI"));
        variables[3].1 = "1";
        assert!(refused(&variables).contains("-genv MASTER_ADDR"));
        // Half of them is no place; `srun --mpi=pmi2` sets two beside its own.
        assert!(refused(&variables[..2]).contains("set MPI_LOCALRANKID as well"));
        let slurm = [
            ("PMI_RANK", "3"),
            ("PMI_SIZE", "4"),
            ("SLURM_PROCID", "3"),
            ("SLURM_NTASKS", "4"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_NODELIST", "a[1-2]"),
        ];
        assert_eq!(found(&slurm).unwrap().unwrap().started_by, "Slurm");
        for name in ["PMIX_RANK", "PALS_RANKID", "FLUX_TASK_RANK"] {
            let message = refused(&[(name, "0")]);
            assert!(message.contains(&format!("found {name}=0")), "{message}");
        }
    }
}

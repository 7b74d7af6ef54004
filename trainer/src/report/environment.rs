//! Which programs ran where, session by session.

use xlstm_manifests::run_manifest::Session;
use xlstm_pipeline::report::{Cell, Page, Table, moment};

use super::RunView;

/// The section on the environment.
pub(super) fn write(page: &mut Page, runs: &[RunView]) {
    page.section("environment", "Environment");
    let columns = [
        "Run",
        "#First step",
        "Started",
        "#Ranks",
        "Device",
        "Precision",
        "Program",
        "Commit",
        "libtorch",
        "Binary, SHA-256",
    ];
    let mut table = Table::new("Sessions: each start of the program on a run", &columns).sortable();
    for run in runs {
        for session in run.sessions() {
            table.cells(row(&run.name, session));
        }
    }
    page.table(&table);
}

fn row(name: &str, session: &Session) -> Vec<Cell> {
    let program = &session.program;
    let commit = Cell::code(&program.commit);
    // A build from altered sources cannot be repeated from its commit.
    let altered = program.commit.ends_with("-dirty") || program.commit == "unknown";
    let binary = program.binary_sha256.map(|digest| Cell::code(&digest.to_string()));
    vec![
        Cell::text(name),
        Cell::count(session.first_step),
        Cell::number(session.started_at as f64, &moment(session.started_at)),
        Cell::count(session.world),
        Cell::text(&session.device),
        Cell::text(&session.precision),
        Cell::text(&format!("{} {}, {}", program.name, program.version, program.kernels)),
        if altered { commit.warn() } else { commit },
        Cell::text(&program.libtorch),
        binary.unwrap_or_else(Cell::missing),
    ]
}

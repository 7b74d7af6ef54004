//! A report for people: Markdown whose tables also read well as they are, so that a terminal gets the same text.

use std::fmt::Write as _;

use xlstm_manifests::printable;

use super::paper::{DOMAIN_MODELS, DomainTable, EXTRAPOLATION_16384, SOURCE_PERPLEXITIES, SOURCES};
use super::results::{
    Accuracy, AccuracyFigures, ErrorFigures, Extrapolation, Interval, Paloma, Perplexity, Position, Protocol,
    Report, Results, SquaredError, Statistics, Throughput, rate,
};

/// Our model's twin among [`DOMAIN_MODELS`], and a Transformer: what stands beside our figures.
const BESIDE: [usize; 2] = [4, 1];

/// The whole report.
#[must_use]
pub fn markdown(report: &Report) -> String {
    let title = match &report.results {
        Results::Perplexity(_) => "Perplexity",
        Results::Paloma(_) => "PALOMA",
        Results::Extrapolation(_) => "Length extrapolation",
        Results::Throughput(_) => "Throughput of generation",
        Results::Accuracy(_) => "Accuracy",
        Results::SquaredError(_) => "Squared error",
    };
    let mut out = format!("# {title}\n\n");
    for (name, text) in provenance(report) {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "- {name}: {text}");
    }
    for mark in &report.marks {
        let _ = writeln!(out, "- **note**: {}", plain(&mark.text));
    }
    out + "\n" + &figures(report, true)
}

/// The figures alone, for a terminal: without the table of domains unless `all`.
#[must_use]
pub fn figures(report: &Report, all: bool) -> String {
    match &report.results {
        Results::Perplexity(results) => perplexity(results) + INTERVALS,
        Results::Paloma(results) => paloma(results, all) + INTERVALS,
        Results::Extrapolation(results) => extrapolation(results),
        Results::Throughput(results) => throughput(results),
        Results::Accuracy(results) => accuracy(results),
        Results::SquaredError(results) => squared_error(results),
    }
}

/// How intervals come about, and what to expect of them.
pub(crate) const INTERVALS: &str = "\nIntervals: 95 %, Student's t over the documents of a line, long ones counted as Kish's effective number does; none \
     from fewer than five documents, or an effective number below three. Where loss goes with length, expect 88 to 92 %, and \
     less where lengths differ a hundredfold.\n";

/// Text as Markdown: on one line, with what would begin a tag, a link or code, or end a table's cell, taken for itself.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let text = printable::text(text);
    // `xLSTM[7:1]` begins no link.
    let links = text.contains("](") || text.contains("][");
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        // A backslash stays as it is where it escapes nothing, so that `\u{1b}` reads well in a terminal too.
        let escapes = character == '\\' && characters.peek().is_none_or(char::is_ascii_punctuation);
        if escapes || matches!(character, '|' | '`' | '<') || (links && character == '[') {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

/// Text as code in Markdown: nothing in it ends the code.
fn code(text: &str) -> String {
    let text = printable::text(text);
    let longest = text.split(|character| character != '`').map(str::len).max().unwrap_or(0);
    match longest {
        0 => format!("`{text}`"),
        longest => {
            let fence = "`".repeat(longest + 1);
            format!("{fence} {text} {fence}")
        }
    }
}

/// What leads from the figures back to their bytes, as Markdown.
fn provenance(report: &Report) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let model = &report.model;
    let trained = match (model.step, model.tokens) {
        (Some(step), Some(tokens)) => format!(", after step {step}, {tokens} tokens"),
        _ => String::new(),
    };
    let context =
        model.context_length.map(|length| format!(", with a context of {length} tokens")).unwrap_or_default();
    let size = format!("{} parameters{trained}{context}", model.parameters);
    lines.push(("model", format!("{}, {size}", plain(&model.architecture))));
    for (name, file) in &model.files {
        lines.push(("file", format!("{}, {} bytes, SHA-256 `{}`", code(name), file.size, file.sha256)));
    }
    if let Some(run) = &report.run {
        let (path, digest) = (run.path.to_string_lossy(), run.manifest_sha256);
        lines.push(("run", format!("{}, `run.json` SHA-256 `{digest}`", code(&path))));
        lines.push(("recipe", format!("{}, SHA-256 `{}`", plain(&run.recipe.name), run.recipe.sha256)));
        let (split, profile) = (code(&run.train.split), plain(&run.train.profile));
        lines.push(("trained on", format!("{split} of {profile}, root `{}`", run.train.root)));
    }
    if let Some(data) = &report.dataset {
        let revision = match (&data.repository, &data.revision) {
            (Some(repository), Some(revision)) => format!(", {} at {}", plain(repository), plain(revision)),
            _ => String::new(),
        };
        let (split, profile) = (code(&data.split), plain(&data.profile));
        lines.push(("evaluated on", format!("{split} of {profile}{revision}, root `{}`", data.root)));
        lines.push(("tokenizer", format!("{}, SHA-256 `{}`", plain(&data.tokenizer), data.tokenizer_sha256)));
    }
    let program = &report.program;
    let made = [&program.name, &program.version, &program.commit].map(|text| plain(text));
    lines.push(("program", format!("{} {}, commit {}", made[0], made[1], made[2])));
    let setting = &report.setting;
    lines.push((
        "setting",
        format!(
            "{}, context {} tokens, {}, {}",
            protocol(setting.protocol),
            setting.context_length,
            plain(&setting.precision),
            plain(&setting.device)
        ),
    ));
    lines
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::PackedRows => "packed rows as in training",
        Protocol::Paper => "the paper's windows and averages",
        Protocol::Official => "the paper's windows and averages (then called the official evaluator's)",
        Protocol::Disjoint => "windows that never overlap",
        Protocol::Extrapolation => "growing contexts over the same tokens",
        Protocol::Throughput => "time only",
        Protocol::StoredTargets => "the targets that the examples store",
    }
}

/// A table: the first column to the left, all others to the right.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|text| plain(text)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].chars().count(), 3]).max().unwrap_or(3)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .enumerate()
            .map(
                |(column, (cell, &width))| {
                    if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                },
            )
            .collect();
        format!("| {} |\n", padded.join(" | "))
    };
    let mut out = line(&mut header.iter().copied());
    let rule = widths.iter().enumerate().map(|(column, &width)| {
        if column == 0 { "-".repeat(width + 2) } else { format!("{}:", "-".repeat(width + 1)) }
    });
    let _ = writeln!(out, "|{}|", rule.collect::<Vec<_>>().join("|"));
    for row in &rows {
        out += &line(&mut row.iter().map(String::as_str));
    }
    out
}

fn figure(value: f64) -> String {
    if value >= 1e6 { format!("{value:.3e}") } else { format!("{value:.3}") }
}

fn interval(interval: Option<Interval>) -> String {
    interval.map_or_else(String::new, |ends| format!("{} to {}", figure(ends.low), figure(ends.high)))
}

const STATISTICS: [&str; 6] = ["documents", "tokens", "loss", "perplexity", "95 % interval", "bits/byte"];

fn cells(name: &str, statistics: Option<&Statistics>) -> Vec<String> {
    let Some(found) = statistics else {
        return [name, "missing", "", "", "", "", ""].map(str::to_owned).to_vec();
    };
    vec![
        name.to_owned(),
        found.documents.to_string(),
        found.tokens.to_string(),
        format!("{:.4}", found.loss),
        figure(found.perplexity),
        interval(found.perplexity_interval),
        found.bits_per_byte.map_or_else(String::new, |bits| format!("{bits:.4}")),
    ]
}

fn header(first: &'static str) -> Vec<&'static str> {
    std::iter::once(first).chain(STATISTICS).collect()
}

fn perplexity(results: &Perplexity) -> String {
    let sets = results.sets.iter().map(|set| cells(&set.name, Some(&set.statistics)));
    let rows: Vec<_> = sets.chain([cells("all", Some(&results.total))]).collect();
    let frequencies: Vec<Vec<String>> = results
        .frequencies
        .iter()
        .map(|one| {
            let perplexity = one.perplexity.map_or_else(|| "–".to_owned(), figure);
            vec![one.name(), one.types.to_string(), one.tokens.to_string(), perplexity]
        })
        .collect();
    let by_frequency = if frequencies.is_empty() {
        String::new()
    } else {
        let names = ["times in the training split", "types", "tokens", "perplexity"];
        format!("\n{}", table(&names, &frequencies))
    };
    format!("{}\n{}{by_frequency}", table(&header("set"), &rows), positions(&results.positions))
}

fn positions(positions: &[Position]) -> String {
    let rows: Vec<Vec<String>> = positions
        .iter()
        .map(|position| {
            let name = if position.first == position.last {
                position.first.to_string()
            } else {
                format!("{} to {}", position.first, position.last)
            };
            vec![name, position.tokens.to_string(), figure(position.perplexity)]
        })
        .collect();
    table(&["position in the context", "tokens", "perplexity"], &rows)
}

fn paloma(results: &Paloma, all: bool) -> String {
    let [ours, transformer] = BESIDE.map(|model| DOMAIN_MODELS[model]);
    let mut names = header("source");
    names.extend(["macro", ours, transformer]);
    let mut rows: Vec<Vec<String>> = Vec::new();
    for source in &results.sources {
        let mut row = cells(&source.name, source.statistics.as_ref());
        row.push(source.macro_perplexity.map(figure).unwrap_or_default());
        let place = SOURCES.iter().position(|(known, _)| *known == source.source);
        for model in BESIDE {
            row.push(
                place.map(|place| format!("{:.2}", SOURCE_PERPLEXITIES[place][model])).unwrap_or_default(),
            );
        }
        rows.push(row);
    }
    rows.push(cells("all", Some(&results.total)));
    if let Some(last) = rows.last_mut() {
        last.resize(names.len(), String::new());
    }
    let averages: Vec<Vec<String>> = results
        .averages
        .iter()
        .map(|average| {
            let missing =
                if average.missing.is_empty() { "nothing".to_owned() } else { average.missing.join(", ") };
            vec![average.name.clone(), average.perplexity.map(figure).unwrap_or_default(), missing]
        })
        .collect();
    let averages = table(&["average", "perplexity", "lacks"], &averages);
    let mut out = format!("{}\n{averages}\n{}", table(&names, &rows), positions(&results.positions));
    if all {
        out += "\n## Domains\n\n";
        out += &domains(results);
    }
    out
}

fn domains(results: &Paloma) -> String {
    let [ours, transformer] = BESIDE.map(|model| DOMAIN_MODELS[model]);
    let printed = DomainTable::new();
    let mut names = header("domain");
    names.extend([ours, transformer]);
    let mut rows = Vec::new();
    for source in &results.sources {
        for domain in source.domains.iter().chain(&source.files) {
            let mut row = cells(&format!("{}/{}", source.source, domain.name), Some(&domain.statistics));
            let row_of = printed.find(&source.source, &domain.name);
            for model in BESIDE {
                let cell = row_of.map(|row| format!("{:.2}", row.perplexities[model]));
                row.push(cell.unwrap_or_default());
            }
            rows.push(row);
        }
    }
    table(&names, &rows)
}

fn extrapolation(results: &Extrapolation) -> String {
    let [ours, transformer] = BESIDE.map(|model| DOMAIN_MODELS[model]);
    let rows: Vec<Vec<String>> = results
        .lengths
        .iter()
        .map(|length| {
            let printed = |model: usize| {
                let known = length.length == 16384;
                if known { format!("{:.2}", EXTRAPOLATION_16384[model]) } else { String::new() }
            };
            vec![
                length.length.to_string(),
                length.contexts.to_string(),
                length.tokens.to_string(),
                figure(length.perplexity),
                interval(length.perplexity_interval),
                printed(BESIDE[0]),
                printed(BESIDE[1]),
            ]
        })
        .collect();
    let names = ["context", "contexts", "tokens", "perplexity", "95 % interval", ours, transformer];
    let texts = results.lengths.last().map_or(0, |length| length.contexts);
    format!(
        "{}\nIntervals: 95 %, Student's t over {texts} texts of the longest context; none from fewer than five.\n\n{}",
        table(&names, &rows),
        positions(&results.positions)
    )
}

fn accuracy(results: &Accuracy) -> String {
    let row = |name: String, found: &AccuracyFigures| {
        vec![
            name,
            found.examples.to_string(),
            found.targets.to_string(),
            format!("{:.4}", found.accuracy),
            interval(found.accuracy_interval),
            format!("{:.4}", found.loss),
        ]
    };
    let lengths = results.lengths.iter().map(|length| row(length.name(), &length.figures));
    let rows: Vec<_> = lengths.chain([row("all".into(), &results.total)]).collect();
    table(&["length", "examples", "targets", "accuracy", "95 % interval", "loss"], &rows)
}

fn squared_error(results: &SquaredError) -> String {
    let row = |name: String, examples: u64, targets: u64, error: f64, interval: Option<Interval>| {
        let interval =
            interval.map_or_else(String::new, |Interval { low, high }| format!("{low:.3e}–{high:.3e}"));
        vec![name, examples.to_string(), targets.to_string(), format!("{error:.4e}"), interval]
    };
    let of = |name: String, found: &ErrorFigures| {
        row(name, found.examples, found.targets, found.mean_squared_error, found.interval)
    };
    let lengths = results.lengths.iter().map(|length| of(length.name(), &length.figures));
    let end = &results.at_end;
    let end =
        row("all, last target".into(), end.examples, end.examples, end.mean_squared_error, end.interval);
    let rows: Vec<_> = lengths.chain([end, of("all".into(), &results.total)]).collect();
    let positions: Vec<_> = results
        .positions
        .iter()
        .map(|place| {
            vec![place.name(), place.targets.to_string(), format!("{:.4e}", place.mean_squared_error)]
        })
        .collect();
    format!(
        "{}\nThe best constant has {:.4e}, the variance of the targets.\n\n{}",
        table(&["length", "examples", "targets", "mean squared error", "95 % interval"], &rows),
        results.target_variance,
        table(&["position", "targets", "mean squared error"], &positions)
    )
}

fn throughput(results: &Throughput) -> String {
    let times: Vec<Vec<String>> = results
        .generation
        .iter()
        .map(|time| {
            let speed = rate(time.tokens as f64, time.seconds);
            let speed = speed.map_or_else(|| "–".into(), |speed| format!("{speed:.1}"));
            vec![time.tokens.to_string(), format!("{:.3}", time.seconds), speed]
        })
        .collect();
    let batches: Vec<Vec<String>> = results
        .batches
        .iter()
        .map(|batch| vec![batch.batch.to_string(), format!("{:.1}", batch.tokens_per_second)])
        .collect();
    format!(
        "{}\n{}",
        table(&["generated, batch 1", "seconds", "tokens/s"], &times),
        table(&["batch", "tokens/s"], &batches)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_begin_nothing_and_end_nothing() {
        assert_eq!(plain("a|b `c` <d> [e](f) g_h"), "a\\|b \\`c\\` \\<d> \\[e](f) g_h");
        assert_eq!(plain("x\\|y\\"), "x\\\\\\|y\\\\", "a backslash does not take the next one's place");
        assert_eq!(plain("\u{1b}[2J\nz"), "\\u{1b}[2J\\nz");
        assert_eq!(plain("xLSTM[7:1]"), "xLSTM[7:1]");
        assert_eq!((code("a"), code("a`b``c")), ("`a`".into(), "``` a`b``c ```".into()));
        let lines = table(&["set", "n"], &[vec!["a\\|b".into(), "1".into()]]);
        assert!(lines.ends_with("| a\\\\\\|b |   1 |\n"), "{lines}");
    }
}

//! A report as files: `report.json`, `report.csv`, `report.md`, all whole or not there. JSON comes last: with it, all is.

use std::path::Path;

use xlstm_manifests::atomic::write_atomic;
use xlstm_manifests::printable;

use super::corpus::Corpus;
use super::results::{
    Accuracy, AccuracyFigures, AccuracyPositions, EndError, ErrorFigures, ErrorPositions, Interval, Report,
    Results, ScaledAccuracy, SquaredError, Statistics, rate,
};
use super::statistics::DocumentScore;
use super::text;
use crate::error::Result;

/// The table's name in an evaluation's folder.
pub const CSV_NAME: &str = "report.csv";
/// The name of the table of documents in an evaluation's folder.
pub const DOCUMENTS_NAME: &str = "documents.csv";
/// The text's name in an evaluation's folder.
pub const MARKDOWN_NAME: &str = "report.md";

/// Writes all files of a report into `folder`.
///
/// # Errors
/// When writing fails.
pub fn write(report: &Report, folder: &Path) -> Result<()> {
    write_atomic(&folder.join(CSV_NAME), csv(report).as_bytes())?;
    write_atomic(&folder.join(MARKDOWN_NAME), text::markdown(report).as_bytes())?;
    report.store(folder)?;
    Ok(())
}

/// Writes the figures of each scored document into `folder`, in stream order: the file and record that it came from, its
/// set, scored tokens, bytes (empty where not all of it was scored), nats, nats a token, bits a byte.
///
/// # Errors
/// When writing fails.
pub fn write_documents(corpus: &Corpus, documents: &[DocumentScore], folder: &Path) -> Result<()> {
    let mut text = String::from("document,file,record,set,tokens,bytes,nll,loss,bits_per_byte\n");
    for (number, (document, info)) in documents.iter().zip(&corpus.documents).enumerate() {
        if document.tokens == 0 {
            continue;
        }
        let file = corpus.manifest().inputs.get(info.input as usize).map(|input| input.path.to_string());
        let set = document.set.and_then(|set| corpus.sets.get(set as usize)).map_or("", String::as_str);
        let bytes = document.bytes.filter(|&bytes| bytes > 0);
        let bits = bytes.map(|bytes| document.nll / (bytes as f64 * std::f64::consts::LN_2));
        text += &format!(
            "{number},{},{},{},{},{},{},{},{}\n",
            quote(&file.unwrap_or_default()),
            info.record,
            quote(set),
            document.tokens,
            bytes.map(|bytes| bytes.to_string()).unwrap_or_default(),
            document.nll,
            document.nll / document.tokens as f64,
            bits.map(|bits| bits.to_string()).unwrap_or_default()
        );
    }
    write_atomic(&folder.join(DOCUMENTS_NAME), text.as_bytes())?;
    Ok(())
}

/// The figures as a table: `level` is `total`, `source`, `domain`, `set`, `average`, `frequency`, `position`, `length`, `generation`
/// or `batch`; fields that a level does not have are empty.
#[must_use]
pub fn csv(report: &Report) -> String {
    let mut lines = vec![
        "level,source,name,documents,tokens,bytes,nll,loss,loss_low,loss_high,perplexity,perplexity_low,\
         perplexity_high,bits_per_byte,bits_per_byte_low,bits_per_byte_high"
            .to_owned(),
    ];
    match &report.results {
        Results::Perplexity(results) => {
            lines.push(line("total", "", "", Some(&results.total)));
            for set in &results.sets {
                lines.push(line("set", "", &set.name, Some(&set.statistics)));
            }
        }
        Results::Paloma(results) => {
            lines.push(line("total", "", "", Some(&results.total)));
            for average in &results.averages {
                let value = average.perplexity.map(|value| value.to_string()).unwrap_or_default();
                lines.push(format!("average,,{},,,,,,,,{value},,,,,", quote(&average.name)));
            }
            for source in &results.sources {
                lines.push(line("source", &source.source, &source.name, source.statistics.as_ref()));
            }
            for source in &results.sources {
                for domain in &source.domains {
                    lines.push(line("domain", &source.source, &domain.name, Some(&domain.statistics)));
                }
                for file in &source.files {
                    lines.push(line("file", &source.source, &file.name, Some(&file.statistics)));
                }
            }
        }
        Results::Extrapolation(results) => {
            for length in &results.lengths {
                let (low, high) = ends(length.perplexity_interval);
                lines.push(format!(
                    "length,,{},{},{},,{},{},,,{},{low},{high},,,",
                    length.length,
                    length.contexts,
                    length.tokens,
                    length.nll,
                    length.nll / length.tokens as f64,
                    length.perplexity
                ));
            }
        }
        Results::Accuracy(results) => return accuracy_csv(results),
        Results::SquaredError(results) => return error_csv(results),
        Results::Throughput(results) => {
            lines[0] = "level,batch,tokens,seconds,tokens_per_second".to_owned();
            for time in &results.generation {
                let speed = rate(time.tokens as f64, time.seconds);
                let speed = speed.map(|speed| speed.to_string()).unwrap_or_default();
                lines.push(format!("generation,1,{},{},{speed}", time.tokens, time.seconds));
            }
            for batch in &results.batches {
                // A batch's time is its tokens over their speed.
                let seconds = rate((batch.batch * batch.tokens) as f64, batch.tokens_per_second);
                let seconds = seconds.map(|seconds| seconds.to_string()).unwrap_or_default();
                lines.push(format!(
                    "batch,{},{},{seconds},{}",
                    batch.batch, batch.tokens, batch.tokens_per_second
                ));
            }
        }
    }
    let positions = match &report.results {
        Results::Perplexity(results) => results.positions.as_slice(),
        Results::Paloma(results) => &results.positions,
        Results::Extrapolation(results) => &results.positions,
        Results::Throughput(_) | Results::Accuracy(_) | Results::SquaredError(_) => &[],
    };
    if let Results::Perplexity(results) = &report.results {
        for one in &results.frequencies {
            let loss = one.perplexity.map(|_| (one.nll / one.tokens as f64).to_string()).unwrap_or_default();
            let perplexity = one.perplexity.map(|value| value.to_string()).unwrap_or_default();
            let (name, tokens, nll) = (one.name(), one.tokens, one.nll);
            lines.push(format!("frequency,,{name},,{tokens},,{nll},{loss},,,{perplexity},,,,,"));
        }
    }
    for position in positions {
        lines.push(format!(
            "position,,{}-{},,{},,{},{},,,{},,,,,",
            position.first,
            position.last,
            position.tokens,
            position.nll,
            position.nll / position.tokens as f64,
            position.perplexity
        ));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn line(level: &str, source: &str, name: &str, statistics: Option<&Statistics>) -> String {
    let start = format!("{level},{},{}", quote(source), quote(name));
    let Some(statistics) = statistics else { return format!("{start},,,,,,,,,,,,,") };
    let (loss_low, loss_high) = ends(statistics.loss_interval);
    let (low, high) = ends(statistics.perplexity_interval);
    let (bits_low, bits_high) = ends(statistics.bits_per_byte_interval);
    let bits = statistics.bits_per_byte.map(|bits| bits.to_string()).unwrap_or_default();
    format!(
        "{start},{},{},{},{},{},{loss_low},{loss_high},{},{low},{high},{bits},{bits_low},{bits_high}",
        statistics.documents,
        statistics.tokens,
        statistics.bytes,
        statistics.nll,
        statistics.loss,
        statistics.perplexity
    )
}

/// One line for all examples, then one for each length, and one for each position of a target (whose first and last stand
/// in the columns of lengths).
fn accuracy_csv(results: &Accuracy) -> String {
    let mut lines = vec![
        "level,length_first,length_last,examples,targets,correct,accuracy,accuracy_low,accuracy_high,nll,loss,scaled_accuracy"
            .to_owned(),
    ];
    let scaled = |accuracy: f64| {
        results
            .scaled
            .map_or_else(String::new, |scaled| ScaledAccuracy::of(accuracy, scaled.chance).total.to_string())
    };
    let mut line = |level: &str, lengths: (String, String), figures: &AccuracyFigures| {
        let (low, high) = ends(figures.accuracy_interval);
        let AccuracyFigures { examples, targets, correct, accuracy, nll, loss, .. } = figures;
        let (first, last) = lengths;
        lines.push(format!(
            "{level},{first},{last},{examples},{targets},{correct},{accuracy},{low},{high},{nll},{loss},{}",
            scaled(*accuracy)
        ));
    };
    line("total", Default::default(), &results.total);
    for length in &results.lengths {
        line("length", (length.first.to_string(), length.last.to_string()), &length.figures);
    }
    for AccuracyPositions { first, last, targets, correct, accuracy, nll } in &results.positions {
        let loss = nll / *targets as f64;
        lines.push(format!(
            "position,{first},{last},,{targets},{correct},{accuracy},,,{nll},{loss},{}",
            scaled(*accuracy)
        ));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// One line for all targets, one for the last targets, then one for each length, and one for each position of a target.
fn error_csv(results: &SquaredError) -> String {
    let mut lines =
        vec!["level,first,last,examples,targets,squared_error,mean_squared_error,low,high".to_owned()];
    let mut line = |level: &str, range: &str, figures: &ErrorFigures| {
        let (low, high) = ends(figures.interval);
        let ErrorFigures { examples, targets, squared_error, mean_squared_error, .. } = figures;
        lines.push(format!(
            "{level},{range},{examples},{targets},{squared_error},{mean_squared_error},{low},{high}"
        ));
    };
    line("total", ",", &results.total);
    let EndError { examples, squared_error, mean_squared_error, interval } = results.at_end;
    let at_end = ErrorFigures { examples, targets: examples, squared_error, mean_squared_error, interval };
    line("end", ",", &at_end);
    for length in &results.lengths {
        line("length", &format!("{},{}", length.first, length.last), &length.figures);
    }
    for ErrorPositions { first, last, targets, squared_error, mean_squared_error } in &results.positions {
        lines.push(format!("position,{first},{last},,{targets},{squared_error},{mean_squared_error},,"));
    }
    lines.push(format!("target_variance,,,,,,{},,", results.target_variance));
    lines.push(String::new());
    lines.join("\n")
}

fn ends(interval: Option<Interval>) -> (String, String) {
    interval.map(|interval| (interval.low.to_string(), interval.high.to_string())).unwrap_or_default()
}

/// A CSV field on one line, quoted where RFC 4180 asks for it.
fn quote(field: &str) -> String {
    let field = printable::text(field);
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.into_owned()
    }
}

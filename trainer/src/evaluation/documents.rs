//! The table of documents beside a report (`documents.csv`), read again: what comparisons are paired by.

use std::path::Path;

use super::output::DOCUMENTS_NAME;
use super::results::{Report, Results, Statistics};
use crate::error::{Result, TrainError};

/// A scored document.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredDocument {
    /// Its number in the split's stream.
    pub number: u64,
    /// Its set; empty where it has none.
    pub set: String,
    /// Scored tokens.
    pub tokens: u64,
    /// Their negative log-likelihood in nats.
    pub nll: f64,
}

/// The documents of the report in `folder`; `None` where it has no such table (reports of earlier versions, and of
/// evaluations without documents).
///
/// # Errors
/// When the table cannot be read, or its sums are not the report's.
pub fn read(report: &Report, folder: &Path) -> Result<Option<Vec<ScoredDocument>>> {
    let path = folder.join(DOCUMENTS_NAME);
    let Some(total) = total(report).filter(|_| path.is_file()) else { return Ok(None) };
    let text = fs_err::read_to_string(&path)?;
    let damaged = |line: usize, found: &str| {
        let hint = "the table was altered: evaluate again with another --out";
        TrainError::file(&path, format!("a scored document in line {line}"), format!("`{found}`"), hint)
    };
    let mut documents = Vec::new();
    for (number, line) in text.lines().enumerate().skip(1) {
        documents.push(document(line).ok_or_else(|| damaged(number + 1, line))?);
    }
    let tokens: u64 = documents.iter().map(|document| document.tokens).sum();
    let nll: f64 = documents.iter().map(|document| document.nll).sum();
    let close = (nll - total.nll).abs() <= 1e-9 * total.nll.abs().max(1.0);
    if tokens != total.tokens || !close {
        let expected = format!("the documents of its report, {} tokens and {} nats", total.tokens, total.nll);
        let hint = "the table or the report was altered: evaluate again with another --out";
        return Err(TrainError::file(&path, expected, format!("{tokens} tokens and {nll} nats"), hint));
    }
    Ok(Some(documents))
}

fn total(report: &Report) -> Option<&Statistics> {
    match &report.results {
        Results::Perplexity(results) => Some(&results.total),
        Results::Paloma(results) => Some(&results.total),
        Results::Extrapolation(_)
        | Results::Throughput(_)
        | Results::Accuracy(_)
        | Results::SquaredError(_) => None,
    }
}

/// `document,file,record,set,tokens,bytes,nll,loss,bits_per_byte`.
fn document(line: &str) -> Option<ScoredDocument> {
    let fields = fields(line)?;
    let [number, _file, _record, set, tokens, _bytes, nll, ..] = fields.as_slice() else { return None };
    let nll = nll.parse::<f64>().ok().filter(|nll| nll.is_finite())?;
    Some(ScoredDocument {
        number: number.parse().ok()?,
        set: set.clone(),
        tokens: tokens.parse().ok().filter(|&tokens| tokens > 0)?,
        nll,
    })
}

/// The fields of a line of CSV (RFC 4180); `None` where a quote is not closed.
fn fields(line: &str) -> Option<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        let last = fields.last_mut()?;
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                last.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => last.push(other),
        }
    }
    (!quoted).then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are_written() {
        let line = "3,\"a,b\"\"c.jsonl\",7,\"x|\"\"y\"\"\",12,,34.5,2.875,";
        let expected = ScoredDocument { number: 3, set: "x|\"y\"".into(), tokens: 12, nll: 34.5 };
        assert_eq!(document(line), Some(expected));
        for broken in ["", "3,a,7,set,0,,1.0,1.0,", "3,a,7,set,1,,NaN,1.0,", "3,\"a,7,set,1,,2.0,1.0,"] {
            assert_eq!(document(broken), None, "{broken}");
        }
    }
}

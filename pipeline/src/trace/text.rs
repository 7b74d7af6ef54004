//! A trace as text.

use std::io::{self, Write};

use xlstm_manifests::manifest::Declared;
use xlstm_manifests::printable;

use super::{DocumentTrace, Excerpt, SampleTrace, SourceTrace, TokenTrace, TraceReport};
use crate::report::{bytes, count};

pub(super) fn write(out: &mut dyn Write, report: &TraceReport) -> io::Result<()> {
    writeln!(out, "split {}, root {}", printable::text(&report.split), report.root)?;
    if let Some(row) = &report.row {
        let proof = if row.proved { "proved" } else { "NOT proved" };
        writeln!(
            out,
            "row {} is row {} of {}: {} tokens, from token {} of the stream",
            row.row,
            row.row_in_shard,
            row.shard,
            count(row.tokens),
            count(row.first_position)
        )?;
        writeln!(out, "  shard   sha256 {}", row.shard_sha256)?;
        writeln!(out, "  tokens  leaf {}, {proof} under the shard's root {}", row.leaf, row.tokens_root)?;
    }
    for document in &report.documents {
        write_document(out, document)?;
    }
    if let Some(token) = &report.token {
        write_token(out, token)?;
    }
    if let Some(sample) = &report.sample {
        write_sample(out, sample)?;
    }
    for problem in &report.problems {
        writeln!(out, "✗ {}", printable::text(problem))?;
    }
    Ok(())
}

fn write_document(out: &mut dyn Write, document: &DocumentTrace) -> io::Result<()> {
    let place = document
        .tokens_of_row
        .map_or(String::new(), |(first, last)| format!(", tokens {first} to {last} of the row"));
    writeln!(
        out,
        "document {}{place}: {} tokens, {}",
        document.document,
        count(document.tokens),
        bytes(document.bytes)
    )?;
    let input = &document.input;
    writeln!(out, "  text    sha256 {}", document.digest)?;
    if let Some(id) = &document.id {
        writeln!(out, "  id      {}", printable::text(id))?;
    }
    if let Some(set) = &document.set {
        writeln!(out, "  set     {}", printable::text(set))?;
    }
    if let Some(license) = &document.license {
        writeln!(out, "  license {} (the document's own)", printable::text(license))?;
    }
    if let Some(source) = &document.source {
        writeln!(out, "  from    {} (says the document)", printable::text(source))?;
    }
    let path = printable::text(&input.path);
    writeln!(out, "  source  record {} of {path}, sha256 {}", document.record, input.sha256)?;
    match &input.declared {
        Some(Declared { algorithm, digest, by }) => {
            let line = format!("{algorithm} {digest}, published by {by}");
            writeln!(out, "  digest  compared with {}", printable::text(&line))?;
        }
        None => writeln!(out, "  digest  compared with nothing that anybody published")?,
    }
    if let Some(claim) = &input.claimed {
        writeln!(out, "  from    {}", printable::text(&claim.sentence()))?;
    }
    if let Some(repository) = &input.repository {
        let revision = input.revision.as_deref().unwrap_or("a revision not recorded");
        writeln!(out, "  from    {} @ {}", printable::text(repository), printable::text(revision))?;
    }
    for licence in &input.licences {
        writeln!(out, "  license {}", printable::text(licence))?;
    }
    Ok(())
}

/// Symbols of the sample and of its solution.
fn write_sample(out: &mut dyn Write, sample: &SampleTrace) -> io::Result<()> {
    writeln!(out, "sample of {}", sample.generator)?;
    writeln!(out, "  inputs  {}", sample.inputs.join(" "))?;
    let said: Vec<String> = sample.targets.iter().map(|(at, symbol)| format!("{symbol} at {at}")).collect();
    writeln!(out, "  targets {}", said.join(", "))?;
    writeln!(out, "  stored  {}", if sample.agrees { "the same row" } else { "another row" })
}

fn write_token(out: &mut dyn Write, token: &TokenTrace) -> io::Result<()> {
    if let Some(target) = &token.target {
        let (input, label) = match token.id {
            Some(id) => (format!("id {id}"), "  ids     "),
            None => (format!("inputs {}", token.text.token), "  inputs  "),
        };
        writeln!(out, "position {}: {input}, target {target}, of example {}", token.token, token.document)?;
        write_excerpt(out, label, &token.text)?;
        return write_source(out, &token.source);
    }
    let what = if token.separator { ", the separator after the document" } else { "" };
    writeln!(
        out,
        "token {}: id {}, token {} of document {}, at byte {} of its text{what}",
        token.token,
        token.id.unwrap_or_default(),
        count(token.token_of_document),
        token.document,
        count(token.byte_of_document)
    )?;
    write_excerpt(out, "  tokens  ", &token.text)?;
    write_source(out, &token.source)
}

fn write_source(out: &mut dyn Write, source: &SourceTrace) -> io::Result<()> {
    match source {
        SourceTrace::Agrees { file, text } => {
            writeln!(out, "  source  `{}`: digest and text agree", printable::path(file))?;
            write_excerpt(out, "  source  ", text)
        }
        SourceTrace::Differs { .. } => writeln!(out, "  source  differs, see below"),
        SourceTrace::NotAtHand { reason } => writeln!(out, "  source  {}", printable::text(reason)),
    }
}

/// The excerpt with the token between `⟦` and `⟧`; later lines are indented to the first.
fn write_excerpt(out: &mut dyn Write, label: &str, text: &Excerpt) -> io::Result<()> {
    let joined = format!("…{}⟦{}⟧{}…", text.before, text.token, text.after);
    let indent = format!("\n{:width$}", "", width = label.len());
    writeln!(out, "{label}{}", printable::lines(&joined).replace('\n', &indent))
}

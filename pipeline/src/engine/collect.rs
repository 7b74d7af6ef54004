//! The collector: drains inputs in order into the builder.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crossbeam_channel::Receiver;
use xlstm_manifests::manifest::Manifest;

use super::asked::Seen;
use super::batch::{Item, Tokenized};
use super::filter::BEYOND_MAX_TOKENS;
use super::{EngineError, EngineOptions, Observer, OnBadRecord, Provided, Shared, Stream};
use crate::plan::format_name;
use crate::split::{Cursor, InputMeta, SplitBuilder, TokenizedDocument};

pub(super) fn collect(
    mut builder: SplitBuilder,
    shared: &Shared<'_>,
    streams: &Receiver<Result<Stream, EngineError>>,
    options: &EngineOptions,
    observer: &dyn Observer,
) -> Result<Manifest, EngineError> {
    let limit = options.max_tokens.unwrap_or(u64::MAX);
    let mut durable = builder.durable_input();
    let whole = shared.cursor == Cursor::default() && options.max_tokens.is_none();
    let mut seen = Seen::default();
    for stream in streams {
        let stream = stream?;
        // A resumed run may have reached the bound already: then the open input is still to be counted out.
        let resumes = stream.provided.index == shared.cursor.input && shared.cursor.stored_tokens.is_some();
        if builder.tally().totals().tokens >= limit && !resumes {
            break;
        }
        shared.budget.set_head(stream.provided.index);
        let size = collect_input(&mut builder, shared, &stream, options, observer, limit, &mut seen)?;
        observer.input_done(size);
        if builder.durable_input() > durable {
            durable = builder.durable_input();
            shared.provider.lock().unwrap_or_else(PoisonError::into_inner).durable_before(durable);
        }
        if builder.tally().totals().tokens >= limit {
            break;
        }
    }
    shared.cancel();
    if let Some(missing) = seen.missing(&options.asked).filter(|_| whole) {
        return Err(EngineError::Option(missing));
    }
    Ok(builder.finish()?)
}

fn lost_thread<T>(_: T) -> EngineError {
    EngineError::Internal("a reader or tokenizer thread ended before its work was done".into())
}

fn collect_input(
    builder: &mut SplitBuilder,
    shared: &Shared<'_>,
    stream: &Stream,
    options: &EngineOptions,
    observer: &dyn Observer,
    limit: u64,
    seen: &mut Seen,
) -> Result<u64, EngineError> {
    let provided = &stream.provided;
    let (size, sha256) = stream.start.recv().map_err(lost_thread)??;
    let planned = &provided.planned;
    builder.begin_input(InputMeta {
        path: planned.path.clone(),
        format: format_name(planned.format).to_owned(),
        size,
        sha256,
        declared: planned.declared.clone(),
        licence: planned.licence.clone(),
    })?;
    for batch in &stream.batches {
        let batch = batch?.recv().map_err(lost_thread)??;
        seen.absorb(&batch.seen);
        take_batch(builder, provided, &batch, options, limit)?;
        shared.budget.release(provided.index, batch.cost);
        let totals = builder.tally().totals();
        if totals.tokens >= limit {
            shared.enough.store(true, Ordering::Relaxed);
        }
        observer.progress(provided.index, totals.documents, totals.text_bytes, totals.tokens);
    }
    builder.end_input();
    Ok(size)
}

fn take_batch(
    builder: &mut SplitBuilder,
    provided: &Provided,
    batch: &Tokenized,
    options: &EngineOptions,
    limit: u64,
) -> Result<(), EngineError> {
    for item in &batch.items {
        match item {
            Item::LeftOut(reason) => builder.left_out(reason, 1),
            Item::Bad { reason, .. } if options.on_bad_record == OnBadRecord::Skip => {
                builder.left_out(reason.reason(), 1);
            }
            Item::Bad { number, reason, found } => {
                return Err(EngineError::BadRecord {
                    path: provided.path.clone(),
                    record: *number,
                    reason: reason.reason(),
                    found: found.clone(),
                });
            }
            // The interrupted document of a resumed run was counted when its first tokens were stored.
            Item::Document(_) if builder.tally().totals().tokens >= limit && !builder.is_interrupted() => {
                builder.left_out(BEYOND_MAX_TOKENS, 1);
            }
            Item::Document(kept) => builder.document(&TokenizedDocument {
                record: kept.record,
                ids: &batch.ids[kept.ids.clone()],
                bytes: kept.bytes,
                chars: kept.chars,
                words: kept.words,
                digest: kept.digest,
                set: kept.set.as_deref(),
                id: kept.id.as_deref(),
                license: kept.license.as_deref(),
                source: kept.source.as_deref(),
                truncated: kept.truncated,
                example: None,
            })?,
        }
    }
    Ok(())
}

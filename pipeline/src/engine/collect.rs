//! The collector: drains inputs in order into the builder.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crossbeam_channel::Receiver;
use xlstm_manifests::manifest::{Manifest, Met};

use super::asked::absorb;
use super::batch::{Item, Tokenized};
use super::filter::BEYOND_MAX_TOKENS;
use super::{EngineError, EngineOptions, InputStream, Observer, OnBadRecord, Provided, Shared};
use crate::plan::format_name;
use crate::split::{Cursor, InputMeta, SplitBuilder, TokenizedDocument};

/// What the collector keeps from input to input.
struct Collector<'a, 'p> {
    builder: SplitBuilder,
    shared: &'a Shared<'p>,
    options: &'a EngineOptions,
    observer: &'a dyn Observer,
    /// Tokens after which no document is taken.
    limit: Option<u64>,
    /// What records had of what is asked for; none: a run was resumed whose journal does not tell.
    met: Option<Met>,
}

pub(super) fn collect(
    builder: SplitBuilder,
    shared: &Shared<'_>,
    streams: &Receiver<Result<InputStream, EngineError>>,
    options: &EngineOptions,
    observer: &dyn Observer,
) -> Result<Manifest, EngineError> {
    let mut durable = builder.durable_input();
    let limit = options.max_tokens;
    let begins = shared.cursor == Cursor::default();
    let met = builder.tally().met().cloned().or_else(|| begins.then(Met::default));
    let mut collector = Collector { builder, shared, options, observer, limit, met };
    for stream in streams {
        let stream = stream?;
        // A resumed run may have reached the bound already: then the open input is still to be counted out.
        let resumes = stream.provided.index == shared.cursor.input && shared.cursor.stored_tokens.is_some();
        if collector.has_enough() && !resumes {
            break;
        }
        shared.budget.set_head(stream.provided.index);
        let size = collector.input(&stream)?;
        observer.input_done(size);
        if collector.builder.durable_input() > durable {
            durable = collector.builder.durable_input();
            shared.provider.lock().unwrap_or_else(PoisonError::into_inner).durable_before(durable);
        }
        if collector.has_enough() {
            break;
        }
    }
    shared.cancel();
    if let Some(met) = &collector.met {
        // Of a part without records too.
        collector.builder.met(met);
    }
    // Another part may have what this one lacks: `merge` looks at all of them.
    if let Some(met) = &collector.met
        && !collector.builder.is_part()
        && let Some(missing) = options.asked.missing(met, collector.builder.tally().totals())
    {
        return Err(EngineError::Option(missing));
    }
    Ok(collector.builder.finish()?)
}

fn lost_thread<T>(_: T) -> EngineError {
    EngineError::Internal("a reader or tokenizer thread ended before its work was done".into())
}

impl Collector<'_, '_> {
    /// Whether the split has the tokens that were asked for.
    fn has_enough(&self) -> bool {
        self.limit.is_some_and(|limit| self.builder.tally().totals().tokens >= limit)
    }

    /// Collects one whole input and returns its size.
    fn input(&mut self, stream: &InputStream) -> Result<u64, EngineError> {
        let provided = &stream.provided;
        let (size, sha256) = stream.start.recv().map_err(lost_thread)??;
        let planned = &provided.planned;
        self.builder.begin_input(InputMeta {
            path: planned.path.clone(),
            format: format_name(planned.format).to_owned(),
            size,
            sha256,
            declared: planned.declared.clone(),
            licence: planned.licence.clone(),
        })?;
        for batch in &stream.batches {
            let batch = batch?.recv().map_err(lost_thread)??;
            self.meet(&batch.met);
            self.batch(provided, &batch)?;
            self.shared.budget.release(provided.index, batch.cost);
            if self.has_enough() {
                self.shared.enough.store(true, Ordering::Relaxed);
            }
            let totals = self.builder.tally().totals();
            self.observer.progress(provided.index, totals.documents, totals.text_bytes, totals.tokens);
        }
        self.builder.end_input();
        Ok(size)
    }

    /// Notes what the records of a batch have, before the first of them is stored.
    fn meet(&mut self, batch: &Met) {
        let Some(met) = &mut self.met else { return };
        absorb(met, batch, &self.options.asked.exclude_sets);
        self.builder.met(met);
    }

    fn batch(&mut self, provided: &Provided, batch: &Tokenized) -> Result<(), EngineError> {
        for item in &batch.items {
            match item {
                Item::LeftOut(reason) => self.builder.left_out(reason, 1),
                Item::Bad { reason, .. } if self.options.on_bad_record == OnBadRecord::Skip => {
                    self.builder.left_out(reason.reason(), 1);
                }
                Item::Bad { number, reason, found } => {
                    return Err(EngineError::BadRecord {
                        path: provided.path.clone(),
                        record: *number,
                        reason: reason.reason(),
                        found: found.clone(),
                    });
                }
                Item::NotTheCopy { number, expected, found } => {
                    return Err(EngineError::NotTheCopy {
                        path: provided.path.clone(),
                        record: *number,
                        expected: *expected,
                        found: *found,
                    });
                }
                // The interrupted document of a resumed run was counted when its first tokens were stored.
                Item::Document(_) if self.has_enough() && !self.builder.is_interrupted() => {
                    self.builder.left_out(BEYOND_MAX_TOKENS, 1);
                }
                Item::Document(kept) => {
                    let (meta, ids) = (&kept.meta, &batch.ids[kept.ids.clone()]);
                    let kept = Some((&batch.ids, kept.ids.start));
                    self.builder.document(&TokenizedDocument { meta, ids, kept, example: None })?;
                }
            }
        }
        Ok(())
    }
}

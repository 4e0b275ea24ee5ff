//! A sink that touches nothing: documents go to stdout as NDJSON.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::output::{self, Reader};
use crate::pipeline::Sink;
use crate::pipeline::delivery::{Attempt, Outcome};

/// Prints each document on a line of its own and calls it created.
pub(super) struct DryRun {
    /// Cancelled when nobody reads on, or nothing can be written.
    pub stop: CancellationToken,
    /// Why it was cancelled, if it was.
    pub end: Arc<Mutex<Option<End>>>,
}

/// Why no more documents are printed.
#[derive(Debug)]
pub(super) enum End {
    /// Whoever read them has enough.
    ReaderGone,
    /// They cannot be written.
    Failed(io::Error),
}

impl DryRun {
    fn end(&self, end: End) {
        let mut first = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(end);
        self.stop.cancel();
    }
}

impl Sink for DryRun {
    async fn send(&self, body: Bytes, operations: usize) -> Attempt {
        let mut documents = Vec::with_capacity(body.len());
        // Lines come in pairs: the action, the document.
        for document in body
            .split_inclusive(|&byte| byte == b'\n')
            .skip(1)
            .step_by(2)
        {
            documents.extend_from_slice(document);
        }
        match output::raw_data(&documents) {
            Ok(Reader::There) => {}
            Ok(Reader::Gone) => self.end(End::ReaderGone),
            Err(failed) => self.end(End::Failed(failed)),
        }
        Attempt::Items(
            std::iter::repeat_with(|| Outcome::Created)
                .take(operations)
                .collect(),
        )
    }
}

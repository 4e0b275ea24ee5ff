//! A sink that touches nothing: documents go to stdout as NDJSON.

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::output::{self, Reader};
use crate::pipeline::Sink;
use crate::pipeline::delivery::{Attempt, Outcome};

/// Prints each document on a line of its own and calls it created.
pub(super) struct DryRun {
    /// Cancelled when nobody reads on.
    pub stop: CancellationToken,
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
            Ok(Reader::Gone) => self.stop.cancel(),
            Err(failed) => {
                error!("cannot write to stdout: {failed}");
                self.stop.cancel();
            }
        }
        Attempt::Items(
            std::iter::repeat_with(|| Outcome::Created)
                .take(operations)
                .collect(),
        )
    }
}

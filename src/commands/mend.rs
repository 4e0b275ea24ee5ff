//! What somebody can do about a failure. Each part knows that of its own errors; here they are
//! found among the causes of whatever ended a command.

use std::error::Error;

use crate::checkpoint::tally::TallyError;
use crate::checkpoint::{CheckpointError, StorageError};
use crate::commands::old_days::TooOld;
use crate::elastic::assets::InstallError;
use crate::elastic::client::{ClientError, ServerError};
use crate::elastic::dead_letters::DeadLetterIndexError;
use crate::elastic::kibana::KibanaError;
use crate::elastic::lookup::LookupError;
use crate::elastic::work::WorkError;
use crate::teleport::client::CallError;
use crate::teleport::identity::IdentityError;

/// The advice of the first cause that has some.
pub(super) fn mend(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(mend) = mend_of(error) {
            return Some(mend);
        }
        next = error.source();
    }
    None
}

fn mend_of(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<CheckpointError>() {
        error.mend()
    } else if let Some(error) = error.downcast_ref::<StorageError>() {
        error.mend().map(str::to_owned)
    } else if let Some(error) = error.downcast_ref::<CallError>() {
        error.mend()
    } else if let Some(error) = error.downcast_ref::<IdentityError>() {
        error.mend()
    } else if let Some(error) = error.downcast_ref::<ServerError>() {
        error.mend().map(str::to_owned)
    } else if let Some(error) = error.downcast_ref::<LookupError>() {
        Some(error.fault().mend.clone()).filter(|mend| !mend.is_empty())
    } else if let Some(error) = error.downcast_ref::<TallyError>() {
        Some(error.mend().to_owned())
    } else if let Some(error) = error.downcast_ref::<KibanaError>() {
        error.mend().map(str::to_owned)
    } else if let Some(error) = error.downcast_ref::<ClientError>() {
        error.mend().map(str::to_owned)
    } else if let Some(error) = error.downcast_ref::<InstallError>() {
        error.mend().map(str::to_owned)
    } else if let Some(error) = error.downcast_ref::<WorkError>() {
        error.mend().map(str::to_owned)
    } else if let Some(error) = error.downcast_ref::<DeadLetterIndexError>() {
        error.mend().map(str::to_owned)
    } else if error.is::<TooOld>() {
        Some(TooOld::mend().to_owned())
    } else {
        None
    }
}

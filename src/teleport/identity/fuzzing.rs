//! What holds for every file of credentials, be it one or not.

use std::path::PathBuf;

use chrono::{DateTime, TimeDelta};

use super::{Credentials, IdentityError, PemFile};
use crate::output::Chain;

/// The bytes, as an identity file and as each file of a trio, are credentials or an error in one
/// line that quotes nothing of a key; and line ends of Windows change nothing.
///
/// # Panics
/// If that is not so.
pub fn identity(bytes: &[u8]) {
    // As main does; a second time it is there already.
    rustls::crypto::ring::default_provider()
        .install_default()
        .unwrap_or_default();
    let outcome = said(&load(bytes));
    if let Ok(text) = std::str::from_utf8(bytes) {
        let other = load(text.replace('\n', "\r\n").as_bytes());
        assert_eq!(outcome, said(&other));
    }
    said(&trio(bytes));
}

fn load(bytes: &[u8]) -> Result<Credentials, IdentityError> {
    Credentials::from_identity(&file(bytes)?)
}

fn trio(bytes: &[u8]) -> Result<Credentials, IdentityError> {
    Credentials::from_key_pair(&file(bytes)?, &file(bytes)?, &file(bytes)?)
}

fn file(bytes: &[u8]) -> Result<PemFile, IdentityError> {
    let file = PemFile {
        what: "the identity file",
        path: PathBuf::from("identity"),
        is_exposed: false,
        blocks: Vec::new(),
    };
    file.with_blocks_of(bytes.to_vec())
}

/// What the outcome says to whom it concerns.
fn said(outcome: &Result<Credentials, IdentityError>) -> Vec<String> {
    let credentials = match outcome {
        Ok(credentials) => credentials,
        Err(error) => return vec![shown(error)],
    };
    assert!(!credentials.cluster.is_empty());
    let (from, to) = (credentials.not_before, credentials.not_after);
    let second = TimeDelta::seconds(1);
    let mut said = vec![format!("{}: {from} to {to}", credentials.cluster)];
    for time in [
        DateTime::UNIX_EPOCH,
        from,
        from.checked_sub_signed(second).unwrap_or(from),
        to,
        to.checked_sub_signed(second).unwrap_or(to),
    ] {
        let checked = credentials.check_time(time);
        assert_eq!(checked.is_ok(), from <= time && time < to);
        said.extend(checked.err().as_ref().map(shown));
    }
    said
}

fn shown(error: &IdentityError) -> String {
    let text = Chain(error).to_string();
    assert!(!text.contains(char::is_control), "{text:?}");
    // A key's lines are runs of 64 characters of both cases. Nothing that we say has such a run.
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
    for run in text.split(|c| !is_base64(c)) {
        assert!(run.len() < 24, "{text:?}");
    }
    text
}

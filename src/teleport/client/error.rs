//! Why a call failed, and what to do about it.

use std::error::Error;
use std::sync::Arc;

use thiserror::Error;
use tonic::{Code, Status};

use super::SILENCE;
use crate::output::Chain;
use crate::telemetry::Reason;
use crate::teleport::dial::{DialError, explain_alert};
use crate::teleport::identity::IdentityError;

/// Why a call failed.
#[derive(Debug, Error)]
pub enum CallError {
    /// The credentials' files are not usable.
    #[error(transparent)]
    Identity(Arc<IdentityError>),
    /// There is no connection.
    #[error("cannot reach Teleport")]
    Dial(#[source] Arc<DialError>),
    /// The server says no, or the connection broke.
    #[error("Teleport answered {method} with {code:?}: {message}")]
    Status {
        /// The call.
        method: &'static str,
        /// gRPC's code.
        code: Code,
        /// The server's words, or those of the transport.
        message: String,
    },
    /// No word for too long.
    #[error("Teleport said nothing for {} s after {method}", SILENCE.as_secs())]
    Silence {
        /// The call.
        method: &'static str,
    },
}

/// What to do about a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Try again: it passes by itself.
    Retry,
    /// Hold, say so loudly, try again: somebody must act.
    Hold,
    /// The server does not know the call.
    Unknown,
    /// What was asked for is not there.
    NotFound,
    /// The server does not understand what was asked, so a key or cursor of its own may be stale.
    Invalid,
}

impl CallError {
    /// What to do about it.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Identity(_) => Remedy::Hold,
            Self::Dial(dial) if dial.is_transient() => Remedy::Retry,
            Self::Dial(_) => Remedy::Hold,
            Self::Silence { .. } => Remedy::Retry,
            Self::Status { code, .. } => match code {
                Code::Unimplemented => Remedy::Unknown,
                Code::NotFound => Remedy::NotFound,
                Code::InvalidArgument | Code::OutOfRange => Remedy::Invalid,
                Code::PermissionDenied | Code::Unauthenticated => Remedy::Hold,
                Code::Ok
                | Code::Cancelled
                | Code::Unknown
                | Code::DeadlineExceeded
                | Code::AlreadyExists
                | Code::ResourceExhausted
                | Code::FailedPrecondition
                | Code::Aborted
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss => Remedy::Retry,
            },
        }
    }

    /// What kind of failure it is.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Identity(_) => Reason::Credentials,
            Self::Dial(_) | Self::Silence { .. } => Reason::Unreachable,
            Self::Status { .. } if self.is_too_much() => Reason::Overloaded,
            Self::Status { code, .. } => match code {
                Code::PermissionDenied => Reason::Denied,
                Code::Unauthenticated => Reason::Credentials,
                Code::Unavailable | Code::DeadlineExceeded => Reason::Unreachable,
                _ => Reason::Other,
            },
        }
    }

    /// The server failed and did not say of what: also what some backends make of a key that they
    /// cannot read.
    pub(in crate::teleport) fn is_unexplained(&self) -> bool {
        let unexplained = |code: &Code| matches!(code, Code::Unknown | Code::Internal);
        matches!(self, Self::Status { code, .. } if unexplained(code))
    }

    /// What was asked for is not for us.
    pub(in crate::teleport) fn is_denied(&self) -> bool {
        let denied = Code::PermissionDenied;
        matches!(self, Self::Status { code, .. } if *code == denied)
    }

    /// The server has too much to do. It also has this code for an answer that is too large, which
    /// asking less often does not make smaller.
    pub(in crate::teleport) fn is_too_much(&self) -> bool {
        match self {
            Self::Status {
                code: Code::ResourceExhausted,
                message,
                ..
            } => !message.contains("larger than max"),
            _ => false,
        }
    }

    /// May come of what lies at the place that was asked for, an event that cannot be sent, and
    /// then comes each time.
    pub(in crate::teleport) fn may_be_the_place(&self) -> bool {
        match self {
            Self::Status { code, message, .. } => match code {
                Code::ResourceExhausted => !message.contains("rate limit"),
                Code::Unknown
                | Code::Internal
                | Code::Unavailable
                | Code::DeadlineExceeded
                | Code::DataLoss
                // What tonic says of a message over our own limit.
                | Code::OutOfRange => true,
                _ => false,
            },
            _ => false,
        }
    }

    /// What somebody should do; `None` where waiting is all.
    pub fn mend(&self) -> Option<String> {
        match self {
            Self::Status {
                code: Code::PermissionDenied | Code::Unauthenticated,
                method,
                message,
            } => Some(denied(method, message)),
            Self::Identity(identity) => identity.mend(),
            Self::Dial(dial) => dial.mend().map(str::to_owned),
            Self::Status { .. } | Self::Silence { .. } => None,
        }
    }

    pub(super) fn new(method: &'static str, status: &Status) -> Self {
        let mut cause: Option<&(dyn Error + 'static)> = status.source();
        while let Some(error) = cause {
            match error.downcast_ref::<Unreachable>() {
                Some(Unreachable::Dial(dial)) => return Self::Dial(dial.clone()),
                Some(Unreachable::Identity(identity)) => return Self::Identity(identity.clone()),
                None => {}
            }
            if let Some(rustls::Error::AlertReceived(alert)) = tls_cause(error) {
                let message = explain_alert(*alert).0.to_owned();
                return Self::Status {
                    method,
                    code: status.code(),
                    message,
                };
            }
            cause = error.source();
        }
        let mut message = status.message().to_owned();
        // tonic says "transport error" and keeps what it was to itself.
        if let Some(source) = status.source() {
            let chain = Chain(source).to_string();
            message = if message.is_empty() {
                chain
            } else {
                format!("{message} ({chain})")
            };
        }
        Self::Status {
            method,
            code: status.code(),
            message,
        }
    }
}

fn tls_cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let io = error.downcast_ref::<std::io::Error>()?;
    io.get_ref()?.downcast_ref()
}

/// What to do about a call that is not allowed.
fn denied(method: &str, message: &str) -> String {
    if message.contains("lock") && message.contains("in force") {
        return "a lock is in force: `tctl get locks` shows it, `tctl rm lock/NAME` ends it".into();
    }
    if message.contains("anonymous") {
        return "our certificate did not reach the Auth Service: check what stands between".into();
    }
    let rule = match method {
        "UpsertLock" => "resources: [lock], verbs: [create, update]",
        "StreamUnstructuredSessionEvents" => "resources: [session], verbs: [list, read]",
        _ => "resources: [event, session], verbs: [list, read]",
    };
    format!("give the identity's user a role with the rule `{rule}`")
}

/// The connector's error, which tonic boxes and hands back as a cause.
#[derive(Debug, Error)]
pub(super) enum Unreachable {
    #[error(transparent)]
    Dial(Arc<DialError>),
    #[error(transparent)]
    Identity(Arc<IdentityError>),
}

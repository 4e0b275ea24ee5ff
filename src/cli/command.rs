//! The commands and their own arguments, checked as far as no setting is needed for that.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap_complete::Shell;

use super::configure::Configure;
use super::install::{Grant, Kibana};
use crate::checkpoint::DeadLetterFilter;
use crate::config::{HostUrl, Needs, StateHome};

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Write the files that somebody needs who sets it up.
    Configure(Configure),
    /// Put template and lifecycle policy into Elasticsearch.
    Install {
        /// Only show the requests.
        dry_run: bool,
        /// Replace what somebody has edited.
        overwrite: bool,
        /// Whom to give rights.
        grant: Grant,
        /// What to put into which Kibana.
        kibana: Option<Kibana>,
        /// With what sharing a backfill needs.
        work: bool,
    },
    /// Follow the audit log.
    Start(Start),
    /// Index a closed range of time.
    Backfill(Backfill),
    /// End a backfill that machines share, for all of them.
    CancelShare {
        /// Its name.
        name: String,
    },
    /// Compare Teleport with Elasticsearch.
    Verify(Verify),
    /// Say how far the audit log is indexed.
    Status {
        /// As JSON.
        json: bool,
        /// The name of a shared backfill, to tell of that.
        share: Option<String>,
    },
    /// Look after documents that Elasticsearch refused.
    DeadLetters(DeadLetters),
    /// Look after the state file.
    State(State),
    /// Prove configuration and both ends.
    Check {
        /// Print the configuration in effect.
        show_config: bool,
    },
    /// Show it all on one machine.
    Demo(Demo),
    /// Print what a shell needs to complete our commands and flags.
    Completions(Shell),
    /// Write the man pages into this folder.
    ManPages(PathBuf),
    /// Print the version.
    Version,
}

impl Command {
    /// The parts of the configuration that it cannot do without.
    pub fn needs(&self) -> Needs {
        match self {
            // A dry run touches nothing but Teleport and stdout.
            Self::Start(Start { dry_run: true, .. })
            | Self::Backfill(Backfill { dry_run: true, .. }) => Needs {
                teleport: true,
                ..Needs::default()
            },
            Self::Start(_) => Needs {
                teleport: true,
                elasticsearch: true,
                state: true,
                ..Needs::default()
            },
            Self::Backfill(_) => Needs {
                teleport: true,
                elasticsearch: true,
                storage: true,
                ..Needs::default()
            },
            // What it writes down, dead letters above all, is to be found again.
            Self::Verify(verify) => Needs {
                teleport: true,
                elasticsearch: true,
                storage: verify.refill,
                ..Needs::default()
            },
            Self::Check { .. } => Needs {
                teleport: true,
                elasticsearch: true,
                ..Needs::default()
            },
            Self::Install { .. }
            | Self::CancelShare { .. }
            | Self::Status { share: Some(_), .. } => Needs {
                elasticsearch: true,
                ..Needs::default()
            },
            Self::DeadLetters(DeadLetters::Retry(_)) => Needs {
                elasticsearch: true,
                state: true,
                ..Needs::default()
            },
            Self::Status { .. } | Self::DeadLetters(_) => Needs {
                state: true,
                ..Needs::default()
            },
            Self::State(State::Move { .. }) => Needs {
                elasticsearch: true,
                storage: true,
                ..Needs::default()
            },
            Self::State(_) => Needs {
                storage: true,
                ..Needs::default()
            },
            Self::Configure(_)
            | Self::Demo(_)
            | Self::Completions(_)
            | Self::ManPages(_)
            | Self::Version => Needs::default(),
        }
    }
}

/// How to follow the audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// Stop once everything that is there is indexed.
    pub exit_on_last_event: bool,
    /// Read, but neither write documents nor move the checkpoint.
    pub dry_run: bool,
    /// The storage of Teleport's event handler, to go on from.
    pub import_state: Option<PathBuf>,
    /// Where to go on, if not where the last run ended.
    pub new_position: Option<MovePosition>,
}

/// An order to move the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MovePosition {
    /// Back or forward.
    pub way: Way,
    /// To which second.
    pub to: DateTime<Utc>,
    /// Whether the user knows what it means.
    pub is_confirmed: bool,
}

/// Where a position is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To read again.
    Back,
    /// To skip.
    Forward,
}

impl Way {
    /// The flag that asks for it.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Back => "--rewind-to",
            Self::Forward => "--forward-to",
        }
    }
}

/// A closed range of time: `from` is before `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backfill {
    /// The first second, inclusive.
    pub from: DateTime<Utc>,
    /// The end, exclusive.
    pub to: DateTime<Utc>,
    /// Read a finished range once more.
    pub again: bool,
    /// Read, but neither write documents nor move the checkpoint.
    pub dry_run: bool,
    /// With whom.
    pub share: Option<Share>,
}

/// A backfill that machines share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its name.
    pub name: String,
    /// How long a piece belongs to a worker that is not heard of.
    pub lease: Duration,
}

/// A closed range of time to compare: `from` is before `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verify {
    /// The first second, inclusive.
    pub from: DateTime<Utc>,
    /// The end, exclusive.
    pub to: DateTime<Utc>,
    /// Send what is missing.
    pub refill: bool,
    /// As JSON.
    pub json: bool,
}

/// What to do with documents that Elasticsearch refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeadLetters {
    /// List them.
    List {
        /// Which.
        filter: DeadLetterFilter,
        /// How many at most, the newest first.
        limit: u32,
        /// As JSON.
        json: bool,
    },
    /// Show one.
    Show {
        /// The document's id.
        id: String,
        /// With the document.
        payload: bool,
    },
    /// Send them again.
    Retry(DeadLetterFilter),
    /// Write them as NDJSON.
    Export {
        /// Which.
        filter: DeadLetterFilter,
        /// A new file; stdout if `None`.
        output: Option<PathBuf>,
    },
    /// Delete them.
    Drop(DeadLetterFilter),
}

/// What to do with the state file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Copy it.
    Backup {
        /// A new file.
        file: PathBuf,
    },
    /// Move it aside.
    Reset,
    /// Bring it from the file into Elasticsearch, or back.
    Move {
        /// Whereto.
        to: StateHome,
    },
}

/// What the demonstration is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demo {
    /// How many events to invent.
    pub events: u64,
    /// Over how many days, up to now.
    pub days: u32,
    /// What the stand-in Auth Service offers.
    pub api: DemoApi,
    /// How much of the demonstration runs.
    pub part: DemoPart,
}

/// The event APIs of the stand-in Auth Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DemoApi {
    /// Chunks per day.
    Export,
    /// Windows of time.
    Search,
    /// Either.
    Both,
}

/// How much of the demonstration runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DemoPart {
    /// From the stand-in Auth Service through the pipeline into Elasticsearch.
    Whole {
        /// A real one; the stand-in if `None`.
        elasticsearch: Option<HostUrl>,
        /// Go on until stopped instead of ending when all is indexed.
        stay: bool,
    },
    /// The stand-in Auth Service alone, for an indexer that runs elsewhere.
    AuthService {
        /// Where it listens.
        listen: SocketAddr,
        /// Where it writes the identity file for its clients.
        identity_dir: PathBuf,
    },
}

//! The log level of a daemon, which SIGHUP has read again from where it came from.

use std::path::PathBuf;

use tracing::warn;

use crate::config::sources::{self, FlagSetting};
use crate::config::{Config, CredentialPaths, Needs, Selected, Warning};
use crate::output::Chain;
use crate::shutdown::Reload;
use crate::telemetry::Log;
use crate::teleport::identity::Credentials;

/// Where the configuration comes from.
pub(super) struct ConfigSource {
    pub file: Option<PathBuf>,
    pub flags: Vec<FlagSetting>,
    /// Which of several clusters, if one is chosen.
    pub cluster: Option<String>,
    pub needs: Needs,
}

/// Why there is no configuration.
pub(super) struct Unusable {
    /// Each in one line, with its place.
    pub mistakes: Vec<String>,
    /// What to do about them, where they do not say it.
    pub hint: Option<String>,
}

impl ConfigSource {
    /// Reads it, as it is now.
    pub(super) fn read(&self) -> Result<(Selected, Vec<Warning>), Unusable> {
        let flags = self.flags.clone();
        let raw = sources::collect(self.file.as_deref(), std::env::vars_os(), flags);
        let raw = raw.map_err(|unreadable| Unusable {
            mistakes: vec![Chain(&unreadable).to_string()],
            hint: Some(unreadable.hint()),
        })?;
        // Credentials that cannot be used are told of where they are needed.
        let cluster_of = |paths: &CredentialPaths| Some(Credentials::load(paths).ok()?.cluster);
        let selected = Config::select(raw, self.needs, self.cluster.as_deref(), cluster_of);
        selected.map_err(|mistakes| {
            let texts = mistakes.list().iter().map(|mistake| mistake.text.clone());
            Unusable {
                mistakes: texts.collect(),
                hint: None,
            }
        })
    }
}

/// The level that the log has, and where another one may be found.
pub(super) struct LogLevel {
    pub log: Log,
    pub source: ConfigSource,
}

impl LogLevel {
    /// Reads the level again each time that somebody asks, until it is dropped. No other setting
    /// changes before the next start; a file with mistakes changes nothing.
    pub(super) async fn follow(self, mut reload: Reload) {
        loop {
            reload.asked().await;
            match self.source.read() {
                Ok((selected, _)) => self.log.set_level(&selected.any().log.level),
                Err(unusable) => {
                    for mistake in unusable.mistakes {
                        warn!("keeping the log level: {mistake}");
                    }
                }
            }
        }
    }
}

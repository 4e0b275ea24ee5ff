//! Where a demonstration takes place.

use super::*;

/// A new folder of this run's own, for this user alone.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new() -> Result<Self, Failure> {
        let name = format!("teleport-event-indexer-demo-{}", std::process::id());
        for attempt in 0..100 {
            let path = std::env::temp_dir().join(format!("{name}-{attempt}"));
            match platform::private_folder().create(&path) {
                Ok(()) => return Ok(Self(path)),
                // Never into a folder that somebody else has put there.
                Err(taken) if taken.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(failed) => {
                    return Err(failed)
                        .with_context(|| format!("cannot make the folder {}", path.display()))?;
                }
            }
        }
        Err(Failure::Failed(anyhow::anyhow!(
            "no free name for a folder in the system's own"
        )))
    }

    pub(super) fn identity(&self) -> PathBuf {
        self.0.join("identity")
    }

    pub(super) fn documents(&self) -> PathBuf {
        self.0.join("documents.sqlite")
    }

    pub(super) fn state(&self, pass: usize) -> PathBuf {
        self.0.join(format!("state-{}", pass + 1))
    }

    pub(super) fn elasticsearch(&self) -> ElasticsearchOptions {
        let database = Some(self.documents());
        ElasticsearchOptions {
            database,
            ..ElasticsearchOptions::default()
        }
    }
}

/// Where everything is, as the pipeline's configuration needs it.
pub(super) struct Setting<'a> {
    pub(super) folder: &'a Folder,
    pub(super) auth: &'a StandInAuth,
    pub(super) url: &'a HostUrl,
    pub(super) log: &'a Log,
}

/// What the indices of a demonstration begin with, so that they never mix with real ones.
pub(super) const INDEX_PREFIX: &str = "teleport-demo-";

impl Setting<'_> {
    pub(super) fn index(&self) -> String {
        // A number of its own for each run, as a real Elasticsearch keeps what earlier runs left.
        format!("{INDEX_PREFIX}{}-%Y.%m.%d", self.log.to.timestamp())
    }

    /// The configuration of a pass, through the same gate as a user's. Credentials for a real
    /// Elasticsearch come from the environment.
    pub(super) fn config(&self, pass: usize) -> Result<Config, Failure> {
        let path = |path: &Path| path.display().to_string();
        let settings: [(&'static Key, String); 9] = [
            (&keys::STORAGE, path(&self.folder.state(pass))),
            (&keys::START_TIME, self.log.from.to_rfc3339()),
            (&keys::TELEPORT_ADDR, self.auth.address().to_string()),
            (&keys::TELEPORT_IDENTITY, path(&self.folder.identity())),
            (&keys::HOSTS, self.url.to_string()),
            (&keys::INDEX, self.index()),
            (&keys::TEMPLATE, "teleport-demo".into()),
            (&keys::POLICY, "teleport-demo".into()),
            (&keys::LISTEN_ADDR, "127.0.0.1:0".into()),
        ];
        let flags = settings
            .into_iter()
            .map(|(key, value)| FlagSetting {
                key,
                values: vec![value],
            })
            .chain([FlagSetting {
                key: &keys::TIMEOUT,
                values: vec!["500ms".into()],
            }])
            .collect();
        let needs = Needs {
            teleport: true,
            elasticsearch: true,
            storage: true,
            ..Needs::default()
        };
        let raw = sources::collect(None, std::env::vars_os(), flags)?;
        let (config, _) =
            Config::resolve(raw, needs).map_err(|wrong| Failure::Usage(wrong.to_string()))?;
        Ok(config)
    }
}

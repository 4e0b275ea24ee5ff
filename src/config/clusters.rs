//! Several clusters in one process: the tables `[[cluster]]`.
//!
//! What a table does not set it takes from above all tables. A flag or a variable holds for all
//! clusters, and beats the tables as it beats the rest of the file. What comes of one table is just
//! what a file for that cluster alone would give, with a directory below `storage` for its state.

use std::path::Path;

use super::keys::{self, Group, Key};
use super::mistakes::{Mistake, Mistakes, Origin};
use super::sources::{ClusterTable, Raw, Setting, Value};
use super::{Config, CredentialPaths, Needs, StateHome, Warning, values};

/// The tables' name in the file.
pub(super) const TABLES: &str = "cluster";

/// The flag that chooses one.
pub const CLUSTER_FLAG: &str = "--cluster";

/// What a command is to work on.
#[derive(Clone, Debug)]
pub enum Selected {
    /// One cluster; or none, where the command needs none.
    One(Box<Config>),
    /// Each of the tables; at least one.
    Each(Vec<Config>),
}

impl Selected {
    /// One of them, for what is the same in all.
    pub fn any(&self) -> &Config {
        match self {
            Self::One(config) => config,
            Self::Each(configs) => configs.first().expect("there is a table"),
        }
    }
}

/// The files that prove who we are: a table that names one of them wants none of the others.
const CREDENTIALS: [&Key; 4] = [
    &keys::TELEPORT_IDENTITY,
    &keys::TELEPORT_KEY,
    &keys::TELEPORT_CERT,
    &keys::TELEPORT_CA,
];

/// Why a key may not stand in a table; `None` if it may.
pub fn refusal(key: &Key) -> Option<&'static str> {
    match key.group {
        _ if key == &keys::STORAGE => {
            Some("each cluster has a directory of its own below it, by its name")
        }
        _ if key == &keys::STATE => Some("the states of all clusters lie in the same place"),
        _ if key == &keys::GRACE_PERIOD => Some("the process stops as a whole"),
        _ if key == &keys::BYTES_PER_SECOND || key == &keys::BACKFILL_BYTES_PER_SECOND => {
            Some("it is about Elasticsearch, which all clusters share")
        }
        Group::Elasticsearch | Group::Install => {
            Some("all clusters go into the same Elasticsearch, in the same way")
        }
        Group::Logging => Some("the process has one log"),
        Group::Listening => Some("the process has one status page"),
        Group::State
        | Group::Reading
        | Group::Following
        | Group::Teleport
        | Group::Limits
        | Group::Locks => None,
    }
}

/// Whether a table may call itself so.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_good = (1..=MOST_CHARACTERS).contains(&name.len())
        && name.chars().all(|c| is_plain(c) || c == '-')
        && name.starts_with(is_plain)
        && name.ends_with(is_plain);
    if is_good {
        Ok(())
    } else {
        Err(
            "must be of lower-case letters, digits and dashes, with no dash at either end, and of \
             at most 63 characters",
        )
    }
}

/// As for a name of a host.
const MOST_CHARACTERS: usize = 63;

/// What mistakes call a table.
pub(super) fn label(name: &str) -> String {
    format!("cluster \"{name}\"")
}

impl Config {
    /// As [`Config::resolve`], for a file that may have tables: for each of them, or the one that is
    /// chosen by name. `cluster_of` tells to which cluster credentials lead, if it can: a state
    /// without a name of its own has that one's.
    ///
    /// # Errors
    /// With every mistake there is in any of them, if there is one.
    pub fn select(
        mut raw: Raw,
        needs: Needs,
        choice: Option<&str>,
        cluster_of: impl Fn(&CredentialPaths) -> Option<String>,
    ) -> Result<(Selected, Vec<Warning>), Mistakes> {
        let tables = std::mem::take(&mut raw.tables);
        if let Some(choice) = choice
            && !raw.is_partial
            && !tables.iter().any(|table| table.name == choice)
        {
            raw.mistakes.push(no_such_table(choice, &tables));
        }
        if tables.is_empty() || raw.is_partial {
            let (config, warnings) = Self::resolve(raw, needs)?;
            return Ok((Selected::One(Box::new(config)), warnings));
        }
        let mut found = Found {
            mistakes: std::mem::take(&mut raw.mistakes),
            warnings: std::mem::take(&mut raw.warnings),
        };
        let of_tables: Vec<Option<Self>> = tables
            .iter()
            .map(|table| {
                let config = found.resolve(of_table(&raw, table), needs)?;
                let cluster = Some(table.name.clone());
                Some(Self { cluster, ..config })
            })
            .collect();
        found.look_for_the_same(&tables, &of_tables);
        if are_named_apart_by_file(&raw, choice) {
            found.look_for_one_state(&states(&raw, &tables, &of_tables, cluster_of));
        }
        let is_of_none = !needs.teleport && !needs.storage && !needs.state;
        let of_all = if is_of_none {
            raw.settings
                .retain(|_, setting| refusal(setting.key).is_some());
            found.resolve(raw, needs)
        } else {
            None
        };
        if let Some(mistakes) = Mistakes::of(found.mistakes) {
            return Err(mistakes);
        }
        let mut configs = of_tables.into_iter().flatten();
        let selected = match choice {
            _ if is_of_none => Selected::One(Box::new(of_all.expect("there is no mistake"))),
            None => Selected::Each(configs.collect()),
            Some(choice) => {
                let chosen = configs.find(|config| config.cluster.as_deref() == Some(choice));
                Selected::One(Box::new(chosen.expect("its table is there")))
            }
        };
        Ok((selected, found.warnings))
    }
}

fn no_such_table(choice: &str, tables: &[ClusterTable]) -> Mistake {
    let flag = format!("{CLUSTER_FLAG} {choice}");
    let text = if tables.is_empty() {
        format!("{flag}: the configuration file has no tables [[cluster]]")
    } else {
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        let names = names.join(", ");
        format!(
            "{flag}: there is no such table [[cluster]] in the configuration file, only {names}"
        )
    };
    Mistake {
        origin: Some(Origin::Flag(CLUSTER_FLAG.to_owned())),
        text,
    }
}

/// What has been found in one table after the other: of what stands above all, once.
struct Found {
    mistakes: Vec<Mistake>,
    warnings: Vec<Warning>,
}

impl Found {
    fn resolve(&mut self, raw: Raw, needs: Needs) -> Option<Config> {
        let (config, warnings, mistakes) = match Config::resolve(raw, needs) {
            Ok((config, warnings)) => (Some(config), warnings, Vec::new()),
            Err(mistakes) => (None, Vec::new(), mistakes.list().to_vec()),
        };
        for mistake in mistakes {
            if !self.mistakes.contains(&mistake) {
                self.mistakes.push(mistake);
            }
        }
        for warning in warnings {
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
        config
    }

    /// The same address may lead to another cluster, if the certificate says so; with the same
    /// certificate it does not.
    fn look_for_the_same(&mut self, tables: &[ClusterTable], configs: &[Option<Config>]) {
        let ways = configs
            .iter()
            .map(|config| config.as_ref().and_then(|config| config.teleport.as_ref()));
        let ways: Vec<_> = tables.iter().zip(ways).collect();
        for (n, (table, way)) in ways.iter().enumerate() {
            let Some(way) = way else { continue };
            let mut before = ways.iter().take(n);
            let same = before.find(|(_, other)| {
                other.is_some_and(|other| {
                    other.addr == way.addr && other.credentials == way.credentials
                })
            });
            if let Some((other, _)) = same {
                let text = format!(
                    "{}: {}: has the teleport.addr and the credentials of {} ({}), so it is the same \
                     cluster",
                    table.origin, table.label, other.label, other.origin
                );
                let origin = Some(table.origin.clone());
                self.mistakes.push(Mistake { origin, text });
            }
        }
    }

    /// Of two with one state only one could ever lead.
    fn look_for_one_state(&mut self, states: &[State<'_>]) {
        for (n, state) in states.iter().enumerate() {
            let mut before = states.iter().take(n);
            let Some(other) = before.find(|other| other.name == state.name) else {
                continue;
            };
            let shown = |table: &ClusterTable| format!("{} ({})", table.label, table.origin);
            let (name, table) = (&state.name, state.table);
            let named = state.setting.as_ref().or(other.setting.as_ref());
            let (origin, text) = match named {
                Some(setting) => {
                    let (shown_other, shown_table) = (shown(other.table), shown(table));
                    let text = format!(
                        "{}: {shown_other} and {shown_table} would have this one state: give each a \
                         {} of its own in its table, or none",
                        setting.shown(),
                        keys::STATE_NAME.name
                    );
                    (&setting.origin, text)
                }
                None => {
                    let text = format!(
                        "{}: {}: its credentials lead to {name}, as those of {} do, so both would have \
                         one state: take one of them away, or give one a {}",
                        table.origin,
                        table.label,
                        shown(other.table),
                        keys::STATE_NAME.name
                    );
                    (&table.origin, text)
                }
            };
            let origin = Some(origin.clone());
            self.mistakes.push(Mistake { origin, text });
        }
    }
}

/// Whether each table has a state in Elasticsearch under the name that the file gives it. A flag or a
/// variable names that of the chosen one.
fn are_named_apart_by_file(raw: &Raw, choice: Option<&str>) -> bool {
    let home = raw.settings.get(keys::STATE.name);
    let home = home.and_then(|setting| values::state_home(&setting.value).ok());
    let name = raw.settings.get(keys::STATE_NAME.name);
    home == Some(StateHome::Elasticsearch)
        && (choice.is_none() || name.is_none_or(Setting::is_of_file))
}

/// The state of a table.
struct State<'a> {
    table: &'a ClusterTable,
    name: String,
    /// By which it has that name; none if by its identity.
    setting: Option<Setting>,
}

/// The states whose names are known.
fn states<'a>(
    raw: &Raw,
    tables: &'a [ClusterTable],
    configs: &[Option<Config>],
    cluster_of: impl Fn(&CredentialPaths) -> Option<String>,
) -> Vec<State<'a>> {
    let state = |(table, config): (&'a ClusterTable, &Option<Config>)| {
        let setting = of_table(raw, table).settings.remove(keys::STATE_NAME.name);
        let name = match &setting {
            Some(setting) => values::state_name(&setting.value).ok()?,
            None => cluster_of(&config.as_ref()?.teleport.as_ref()?.credentials)?,
        };
        Some(State {
            table,
            name,
            setting,
        })
    };
    tables.iter().zip(configs).filter_map(state).collect()
}

/// The settings of one table, with those above all that it takes over.
fn of_table(raw: &Raw, table: &ClusterTable) -> Raw {
    let mut settings = raw.settings.clone();
    let is_credential = |made: &Setting| CREDENTIALS.contains(&made.key);
    // They go together: whoever makes one of them makes all.
    let mut above = raw.settings.values().filter(|made| is_credential(made));
    let are_of_all = above.any(|made| !made.is_of_file());
    if table.settings.values().any(is_credential) && !are_of_all {
        settings.retain(|_, made| !is_credential(made));
    }
    for (name, made) in &table.settings {
        let is_free = settings.get(name).is_none_or(Setting::is_of_file);
        if is_free && !(are_of_all && is_credential(made)) {
            settings.insert(name, made.clone());
        }
    }
    if let Some(Setting {
        value: Value::Text(storage),
        ..
    }) = settings.get_mut(keys::STORAGE.name)
        && !storage.is_empty()
    {
        let directory = Path::new(storage.as_str()).join(&table.name);
        *storage = directory.to_string_lossy().into_owned();
    }
    Raw {
        settings,
        exposed_file: raw.exposed_file.clone(),
        table: Some((table.label.clone(), table.origin.clone())),
        ..Raw::default()
    }
}

//! `configure`: writes what is needed to set the program up, and says what to do with it.

mod handover;
mod helm;
mod manifest;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use chrono::{SecondsFormat, Utc};

use self::handover::Handover;
use super::{Exit, Failure};
use crate::cli::Configure;
use crate::config::keys::{self, Group, Key, Kind};
use crate::config::sources::FlagSetting;
use crate::config::written::Written;
use crate::output;
use crate::platform;

const LOCKS: &str = "      # Locks for users who fail to log in again and again.
      - resources: [lock]
        verbs: [list, read, create, update]
";

/// Where tbot writes the identity, and where things are in a container.
const IDENTITY: &str = "/var/lib/teleport-event-indexer/identity";
const IN_CONTAINER: &[(&str, &str)] = &[
    ("storage", "/state"),
    ("teleport.identity", "/identity"),
    ("forward.elasticsearch.api-key", "file:/secrets/api-key"),
];

/// The secret of Kubernetes with what Elasticsearch wants: `api-key`, and `ca.crt` if there is one.
const SECRET: &str = "teleport-event-indexer-elasticsearch";
const CA_IN_CONTAINER: (&str, &str) = ("forward.elasticsearch.ca", "/secrets/ca.crt");

/// A file to write.
struct Content {
    name: &'static str,
    text: String,
    /// What it is for, in a few words.
    purpose: &'static str,
    /// Nobody else may read it.
    is_private: bool,
}

pub(super) fn configure(options: &Configure, flags: Vec<FlagSetting>) -> Result<Exit, Failure> {
    let written = read(options, flags)?;
    for note in &written.notes {
        output::note(format_args!("note: {note}"));
    }
    let handover = Handover::of(options, &written);
    let contents = contents(options, &written, handover.as_ref());
    let left_out = left_out(&written);
    let install = install(&written);
    let ca = written.text_of(&keys::CA);
    let addr = written.addr();
    match written.check() {
        Ok(warnings) => {
            for warning in warnings {
                output::note(format_args!("warning: {warning}"));
            }
        }
        Err(mistakes) => {
            for mistake in mistakes.list() {
                output::note(format_args!("error: {}", mistake.text));
            }
            return Ok(Exit::Usage);
        }
    }
    write(&options.directory, &contents, options.force)?;
    if !left_out.is_empty() {
        output::note(format_args!(
            "note: {}: of this machine, so left out of kubernetes.yaml and helm-values.yaml; there, \
             secrets give an API key and an identity",
            left_out.join(", ")
        ));
    }
    for Content { name, purpose, .. } in &contents {
        let path = options.directory.join(name);
        output::data(format_args!("{}: {purpose}", path.display()))?;
    }
    let steps = include_str!("../../templates/configure/next-steps.txt");
    let import = handover.as_ref().map_or_else(String::new, Handover::flag);
    let import_steps = handover.as_ref().map_or_else(String::new, Handover::steps);
    let ca = ca.map_or_else(String::new, |ca| format!(" --from-file=ca.crt={ca}"));
    let steps = steps
        .replace("@INSTALL@", &install)
        .replace("@DIR@", &options.directory.display().to_string())
        .replace("@CA@", &ca)
        .replace("@SECRET@", SECRET)
        .replace("@ADDR@", &addr)
        .replace("@IMPORT-STEPS@", &import_steps)
        .replace("@IMPORT@", &import);
    output::data(steps.trim_end())?;
    Ok(Exit::Done)
}

/// How to make what is needed in Elasticsearch, once its address is known.
fn install(written: &Written) -> String {
    let flag = |key: &Key| {
        written
            .text_of(key)
            .map(|value| format!(" --{} {value}", key.flag()))
    };
    let address = flag(&keys::HOSTS).or_else(|| flag(&keys::CLOUD_ID));
    let (first, address) = match address {
        Some(address) => ("", address),
        None => (
            " set hosts or cloud-id in @DIR@/config.toml, then,",
            format!(
                " --{} https://elasticsearch.example.com:9200",
                keys::HOSTS.flag()
            ),
        ),
    };
    let work = if manifest::is_led(written) {
        " --work"
    } else {
        ""
    };
    let trust = [&keys::CA, &keys::CA_FINGERPRINT].map(|key| flag(key).unwrap_or_default());
    format!(
        "Elasticsearch:{first} as a user who may:\n\n  \
         teleport-event-indexer install{work}{address}{} \\",
        trust.concat()
    )
}

/// What is known of the configuration: the event handler's, and over it what was typed.
fn read(options: &Configure, mut flags: Vec<FlagSetting>) -> Result<Written, Failure> {
    if let Some(addr) = &options.addr {
        flags.push(FlagSetting {
            key: &keys::TELEPORT_ADDR,
            values: vec![addr.clone()],
        });
    }
    let written = Written::new(options.from.as_deref(), flags);
    let written = written.map_err(|unreadable| Failure::Unusable(unreadable.into()))?;
    if !written.is_set(keys::TELEPORT_ADDR.name) {
        return Err(Failure::Usage(
            "the event handler's configuration has no addr in [teleport]: give it behind the folder"
                .to_owned(),
        ));
    }
    Ok(written)
}

/// What is a path or a secret of this machine: in a container both are elsewhere.
fn is_of_this_machine(key: &Key) -> bool {
    matches!(key.kind, Kind::Path | Kind::Secret)
        || key == &keys::USER
        || key.group == Group::Listening
}

/// What has no counterpart in the files for Kubernetes.
fn left_out(written: &Written) -> Vec<&'static str> {
    let has_counterpart = |key: &Key| {
        let names = IN_CONTAINER.iter().chain([&CA_IN_CONTAINER]);
        names.map(|(name, _)| *name).any(|name| name == key.name)
    };
    let keys = written.values().map(|(key, _)| key);
    keys.filter(|key| is_of_this_machine(key) && !has_counterpart(key))
        .map(|key| key.name)
        .collect()
}

fn contents(options: &Configure, written: &Written, handover: Option<&Handover>) -> Vec<Content> {
    // With the event handler's state, reading goes on where that has stopped.
    let start = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
    let is_first = options.from.is_none() && !written.is_set(keys::START_TIME.name);
    let start = is_first.then_some((keys::START_TIME.name, start.as_str()));
    let changes: Vec<(&'static str, &str)> = start.into_iter().collect();
    let mut in_container = [&changes[..], IN_CONTAINER].concat();
    if manifest::is_led(written) {
        // There is no volume.
        in_container.retain(|(name, _)| *name != keys::STORAGE.name);
    }
    in_container.extend(written.is_set(keys::CA.name).then_some(CA_IN_CONTAINER));
    let config = written.text(|key| !is_of_this_machine(key), &in_container);
    let indented: Vec<String> = config
        .lines()
        .map(|line| format!("    {line}").trim_end().to_owned())
        .collect();
    let locks = if options.locks { LOCKS } else { "" };
    let role = include_str!("../../templates/configure/teleport-role.yaml");
    let tbot = include_str!("../../templates/configure/tbot.yaml");
    let kubernetes = manifest::manifest(written, handover);
    let unit = include_str!("../../packaging/systemd/teleport-event-indexer.service");
    let content = |name, purpose, text: String| Content {
        name,
        text,
        purpose,
        is_private: false,
    };
    vec![
        Content {
            is_private: true,
            ..content(
                "config.toml",
                "the configuration",
                written.text(|_| true, &changes),
            )
        },
        content(
            "teleport-role.yaml",
            "role and user for Teleport",
            role.replace("@LOCKS@", locks),
        ),
        content(
            "teleport-impersonator-role.yaml",
            "role for who signs the identity",
            include_str!("../../templates/configure/teleport-impersonator-role.yaml").to_owned(),
        ),
        content(
            "tbot.yaml",
            "Machine ID, which keeps the identity fresh",
            tbot.replace("@ADDR@", &written.addr())
                .replace("@IDENTITY@", IDENTITY),
        ),
        content(
            "elasticsearch-writer-role.json",
            "role for Elasticsearch, for who makes it by hand",
            include_str!("../../templates/elasticsearch-writer-role.json").to_owned(),
        ),
        content(
            "teleport-event-indexer.service",
            "systemd unit",
            handover.map_or_else(|| unit.to_owned(), |handover| handover.unit(unit)),
        ),
        content(
            "kubernetes.yaml",
            "configuration, volume and deployment for Kubernetes, without Helm",
            kubernetes
                .replace("@CONFIG@", &indented.join("\n"))
                .replace("@SECRET@", SECRET),
        ),
        content(
            "helm-values.yaml",
            "values for the Helm chart",
            helm::values(written, &changes, handover),
        ),
    ]
}

/// Writes all files, or none.
fn write(directory: &Path, contents: &[Content], is_forced: bool) -> Result<(), Failure> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make the folder {}", directory.display()))
        .map_err(Failure::Unusable)?;
    let paths = contents.iter().map(|content| directory.join(content.name));
    let there: Vec<String> = paths
        .filter(|path| path.symlink_metadata().is_ok())
        .map(|path| path.display().to_string())
        .collect();
    if !there.is_empty() && !is_forced {
        return Err(Failure::Usage(format!(
            "these are there already: {}; name another folder, or replace them with --force",
            there.join(", ")
        )));
    }
    let mut begun = Vec::new();
    let prepared = contents.iter().try_for_each(|content| {
        let path = directory.join(format!(".{}.new", content.name));
        begun.push(path.clone());
        prepare(&path, content).map_err(|error| (path, error))
    });
    if let Err((path, error)) = prepared {
        for path in begun.iter().filter(|path| path.exists()) {
            fs::remove_file(path)
                .with_context(|| format!("cannot remove {} again", path.display()))?;
        }
        let error = anyhow::Error::new(error);
        let error = error.context(format!("cannot write {}", path.display()));
        return Err(Failure::Unusable(error));
    }
    for (content, path) in contents.iter().zip(begun) {
        let target = directory.join(content.name);
        fs::rename(&path, &target)
            .with_context(|| format!("cannot put {} in its place", target.display()))?;
    }
    Ok(())
}

fn prepare(path: &PathBuf, content: &Content) -> io::Result<()> {
    // Of a run that was killed.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = if content.is_private {
        platform::create_private(path)?
    } else {
        platform::create_public(path)?
    };
    file.write_all(content.text.as_bytes())?;
    file.sync_all()
}

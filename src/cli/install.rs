//! What `install` makes besides the template and the policy.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, value_parser};

use super::switch;
use crate::config::HostUrl;

/// Whom to give rights, and which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Make the role.
    pub role: bool,
    /// Make a user of this name, with the role.
    pub user: Option<String>,
    /// Make an API key.
    pub api_key: bool,
    /// The rights to read instead.
    pub verifier: bool,
    /// The rights that Teleport's guide gives instead.
    pub teleport_plugin: bool,
    /// Make another secret although there is one.
    pub new_secret: bool,
    /// A new file for the secret; stdout if `None`.
    pub secret_file: Option<PathBuf>,
}

impl Grant {
    /// Whether there is anything to make.
    pub fn is_wanted(&self) -> bool {
        self.role || self.api_key || self.user.is_some()
    }
}

/// Where Kibana is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kibana {
    /// Its URL; that in the cloud id if `None`.
    pub url: Option<HostUrl>,
    /// The space; the default one if `None`.
    pub space: Option<String>,
}

/// The flags that ask for rights.
pub(super) fn grant_flags() -> [Arg; 7] {
    const HEADING: &str = "Roles, users and keys";
    [
        switch(
            "create-role",
            "Make the role of the writer, who can add documents and nothing else",
        ),
        switch("create-api-key", "Make an API key with these rights"),
        Arg::new("create-user")
            .long("create-user")
            .value_name("NAME")
            .help("Make a user with a new password, and the role"),
        switch(
            "verifier",
            "The rights to read instead, with which `verify` compares both ends",
        ),
        switch(
            "teleport-plugin",
            "The rights of Teleport's own guide instead, which can change and delete",
        )
        .conflicts_with("verifier"),
        switch(
            "new-secret",
            "Another key or password although there is one",
        ),
        Arg::new("secret-file")
            .long("secret-file")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("Write the secret into this new file, for its owner only, not to stdout"),
    ]
    .map(|arg| arg.help_heading(HEADING))
}

/// What of them was given.
pub(super) fn grant(matches: &ArgMatches) -> Result<Grant, String> {
    let grant = Grant {
        role: matches.get_flag("create-role"),
        user: matches.get_one("create-user").cloned(),
        api_key: matches.get_flag("create-api-key"),
        verifier: matches.get_flag("verifier"),
        teleport_plugin: matches.get_flag("teleport-plugin"),
        new_secret: matches.get_flag("new-secret"),
        secret_file: matches.get_one("secret-file").cloned(),
    };
    if (grant.verifier || grant.teleport_plugin) && !grant.is_wanted() {
        return Err(
            "--verifier and --teleport-plugin go with --create-role, --create-user or \
             --create-api-key"
                .into(),
        );
    }
    let makes_a_secret = grant.api_key || grant.user.is_some();
    if (grant.new_secret || grant.secret_file.is_some()) && !makes_a_secret {
        return Err(
            "--new-secret and --secret-file go with --create-user or --create-api-key".into(),
        );
    }
    if grant.user.is_some() && grant.api_key {
        return Err("--create-user and --create-api-key make a secret each: one at a time".into());
    }
    if grant
        .user
        .as_deref()
        .is_some_and(|name| !is_user_name(name))
    {
        return Err(
            "--create-user takes 1 to 507 letters, digits and ASCII signs, without a colon or a \
             space at an end"
                .into(),
        );
    }
    Ok(grant)
}

/// The flags that ask for what is in Kibana.
pub(super) fn kibana_flags() -> [Arg; 2] {
    [
        Arg::new("kibana")
            .long("kibana")
            .value_name("URL")
            .num_args(0..=1)
            .default_missing_value("")
            .help("Put data view, dashboards and saved searches there; without a URL into the cloud id's Kibana"),
        Arg::new("kibana-space")
            .long("kibana-space")
            .value_name("SPACE")
            .requires("kibana")
            .help("Into this space instead of the default one"),
    ]
    .map(|arg| arg.help_heading("Kibana"))
}

/// What of them was given.
pub(super) fn kibana(matches: &ArgMatches) -> Result<Option<Kibana>, String> {
    let Some(url) = matches.get_one::<String>("kibana") else {
        return Ok(None);
    };
    // Not by clap, which would repeat a URL that may hold a password.
    let url = match url.as_str() {
        "" => None,
        url => Some(HostUrl::parse(url).map_err(|error| format!("the URL of --kibana {error}"))?),
    };
    let space = matches.get_one::<String>("kibana-space").cloned();
    let is_legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
    if let Some(space) = &space
        && (space.is_empty() || !space.chars().all(is_legal))
    {
        return Err(
            "--kibana-space takes the space's identifier: small letters, digits, _ and -".into(),
        );
    }
    let space = space.filter(|space| space != "default");
    Ok(Some(Kibana { url, space }))
}

/// What Elasticsearch takes, but for the colon, at which HTTP ends a user's name.
fn is_user_name(name: &str) -> bool {
    let is_legal = |c: char| (' '..='~').contains(&c) && c != ':';
    (1..=507).contains(&name.len()) && name.chars().all(is_legal) && name.trim() == name
}

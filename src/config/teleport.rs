//! The table `[teleport]`.

use std::path::PathBuf;
use std::time::Duration;

use super::address::Address;
use super::keys;
use super::resolver::Resolver;
use super::values;

/// How to reach Teleport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TeleportConfig {
    /// The Proxy Service or the Auth Service.
    pub addr: Address,
    /// Where the client's key and certificates lie.
    pub credentials: CredentialPaths,
    /// How often to look whether those files have changed; `None` reads them once.
    pub refresh: Option<Duration>,
}

/// The files that prove who we are. Nobody has opened them yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialPaths {
    /// All in one file, as `tbot` and `tctl auth sign` write it, or the folder that `tbot` writes to.
    Identity(PathBuf),
    /// Three PEM files.
    KeyPair {
        /// The private key.
        key: PathBuf,
        /// The client certificate.
        cert: PathBuf,
        /// Teleport's CA certificates.
        ca: PathBuf,
    },
}

/// Reads the table; `None` if it is not complete and need not be.
pub(super) fn resolve(resolver: &mut Resolver, is_needed: bool) -> Option<TeleportConfig> {
    let addr = resolver.optional(&keys::TELEPORT_ADDR, |value| {
        Address::parse(&values::text(value)?).map_err(|error| error.to_string())
    });
    if is_needed && !resolver.is_set(&keys::TELEPORT_ADDR) {
        resolver.missing(
            &keys::TELEPORT_ADDR,
            "give host:443 of a Proxy Service or host:3025 of an Auth Service",
        );
    }
    let credentials = credentials(resolver, is_needed);
    let is_refreshed = resolver.value(&keys::TELEPORT_REFRESH_ENABLED, values::boolean);
    let interval = resolver.value(
        &keys::TELEPORT_REFRESH_INTERVAL,
        values::duration(Duration::from_secs(1), Duration::from_hours(24)),
    );
    if !is_refreshed && resolver.is_set(&keys::TELEPORT_REFRESH_INTERVAL) {
        resolver.warn_about(
            &keys::TELEPORT_REFRESH_INTERVAL,
            "has no effect unless refresh.enabled is true",
        );
    }
    Some(TeleportConfig {
        addr: addr?,
        credentials: credentials?,
        refresh: is_refreshed.then_some(interval),
    })
}

fn credentials(resolver: &mut Resolver, is_needed: bool) -> Option<CredentialPaths> {
    let identity = resolver.optional(&keys::TELEPORT_IDENTITY, values::path);
    let trio = [
        &keys::TELEPORT_KEY,
        &keys::TELEPORT_CERT,
        &keys::TELEPORT_CA,
    ];
    let [key, cert, ca] = trio.map(|part| resolver.optional(part, values::path));
    let first_set = trio.into_iter().find(|part| resolver.is_set(part));
    match (resolver.is_set(&keys::TELEPORT_IDENTITY), first_set) {
        (true, Some(part)) => resolver.exclude(
            &keys::TELEPORT_IDENTITY,
            part,
            "keep either the identity file or key, cert and ca",
        ),
        (true, None) => {}
        (false, Some(part)) => {
            let absent: Vec<&str> = trio
                .into_iter()
                .filter(|part| !resolver.is_set(part))
                .map(|part| part.name)
                .collect();
            if !absent.is_empty() {
                let absent = absent.join(" and ");
                resolver.wrong(
                    part,
                    format!("goes with {absent}: give all three, or an identity"),
                );
            }
        }
        (false, None) if is_needed => resolver.missing(
            &keys::TELEPORT_IDENTITY,
            "name the identity file, or set key, cert and ca",
        ),
        (false, None) => {}
    }
    if let Some(path) = identity {
        return Some(CredentialPaths::Identity(path));
    }
    Some(CredentialPaths::KeyPair {
        key: key?,
        cert: cert?,
        ca: ca?,
    })
}

//! Sessions under way. Events of one session share its id, its user and its machine.

use std::collections::VecDeque;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::cast::{Host, Person, remote};
use super::catalogue::{Scene, merged};

/// A session under way.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) sid: String,
    pub(super) person: Person,
    login: &'static str,
    pub(super) host: Host,
    pub(super) remote: String,
    pub(super) started: DateTime<Utc>,
}

/// The sessions of one kind that have started and not yet ended.
#[derive(Default)]
pub(super) struct Open(VecDeque<Session>);

// Enough that sessions overlap; past it the oldest is forgotten, as if its end got lost.
const MOST_OPEN: usize = 64;

impl Open {
    pub(super) fn push(&mut self, session: Session) {
        if self.0.len() == MOST_OPEN {
            self.0.pop_front();
        }
        self.0.push_back(session);
    }
}

impl Session {
    fn new(scene: &mut Scene, started: DateTime<Utc>) -> Self {
        let random = &mut scene.random;
        let person = Person::any(random);
        Self {
            sid: random.uuid(),
            person,
            login: person.login(random),
            host: Host::any(random),
            remote: remote(random),
            started,
        }
    }

    /// The user, server, session and connection groups of an event.
    pub(super) fn fields(&self, cluster: &str) -> Value {
        merged([
            self.person.fields(cluster),
            self.host.fields(),
            json!({
                "sid": self.sid, "login": self.login, "proto": "ssh",
                "addr.local": self.host.address(3022), "addr.remote": self.remote,
                "private_key_policy": "none",
            }),
        ])
    }
}

/// Where the sessions of one kind are kept.
pub(super) type Kind = fn(&mut Scene) -> &mut Open;

/// One of the open sessions of a kind; if there is none, one that began earlier, unseen.
pub(super) fn some(scene: &mut Scene, kind: Kind) -> Session {
    let n_open = kind(scene).0.len() as u64;
    if n_open == 0 {
        let minutes = i64::try_from(scene.random.between(1, 90)).expect("small");
        let started = scene.now - TimeDelta::minutes(minutes);
        return Session::new(scene, started);
    }
    let place = usize::try_from(scene.random.below(n_open)).expect("an index of the sessions");
    kind(scene).0[place].clone()
}

/// A session that begins now.
pub(super) fn started(scene: &mut Scene, kind: Kind) -> Session {
    let now = scene.now;
    let session = Session::new(scene, now);
    kind(scene).push(session.clone());
    session
}

/// A session that ends now.
pub(super) fn ended(scene: &mut Scene, kind: Kind) -> Session {
    let session = kind(scene).0.pop_front();
    session.unwrap_or_else(|| some(scene, kind))
}

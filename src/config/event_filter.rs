//! Which events are wanted, by type.

use std::collections::BTreeSet;
use std::fmt;

/// Names of event types, in which `*` stands for any characters, or none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TypeSet(BTreeSet<String>);

impl fmt::Debug for TypeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromIterator<String> for TypeSet {
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        Self(names.into_iter().collect())
    }
}

impl TypeSet {
    /// Whether it names nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names as they were given, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether one of the names stands for this type. Asked for a name with a `*`, it tells whether
    /// one of its own covers all that this stands for: no type has a `*` of its own.
    pub fn contains(&self, event_type: &[u8]) -> bool {
        self.0
            .iter()
            .any(|name| stands_for(name.as_bytes(), event_type))
    }
}

/// Whether a name, in which `*` stands for any characters, stands for a type.
fn stands_for(name: &[u8], event_type: &[u8]) -> bool {
    let (mut in_name, mut in_type) = (0, 0);
    // Behind the last `*`, and how far the type was when it was met: it may take one byte more.
    let mut last_star: Option<(usize, usize)> = None;
    while in_type < event_type.len() {
        match name.get(in_name) {
            Some(b'*') => {
                in_name += 1;
                last_star = Some((in_name, in_type));
            }
            Some(byte) if *byte == event_type[in_type] => {
                in_name += 1;
                in_type += 1;
            }
            _ => {
                let Some((behind, taken)) = last_star else {
                    return false;
                };
                last_star = Some((behind, taken + 1));
                (in_name, in_type) = (behind, taken + 1);
            }
        }
    }
    name[in_name..].iter().all(|byte| *byte == b'*')
}

/// Which events are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Only these; all if empty.
    pub types: TypeSet,
    /// But not these. Covers no name of `types`.
    pub skip_types: TypeSet,
}

impl EventFilter {
    /// Whether events of this type are wanted.
    pub fn admits(&self, event_type: &[u8]) -> bool {
        (self.types.is_empty() || self.types.contains(event_type))
            && !self.skip_types.contains(event_type)
    }

    /// Whether all are.
    pub fn admits_all(&self) -> bool {
        self.types.is_empty() && self.skip_types.is_empty()
    }

    /// The types to ask the server for: it knows whole names only, and no way to leave some out.
    /// Empty for all.
    pub fn for_server(&self) -> Vec<String> {
        if self.types.names().any(|name| name.contains('*')) {
            return Vec::new();
        }
        self.types.names().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> TypeSet {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_star_stands_for_any_characters_or_none() {
        for (name, stands, does_not) in [
            (
                "user.login",
                &["user.login"][..],
                &["user", "user.login.x", "", "User.login"][..],
            ),
            (
                "user.*",
                &["user.login", "user."],
                &["user", "users.login", "a user.login"],
            ),
            (
                "*.end",
                &["session.end", ".end", "a.end.end"],
                &["session.end.", "end"],
            ),
            (
                "db.*.end",
                &["db.session.end", "db..end"],
                &["db.end", "db.session.end.x"],
            ),
            ("*", &["", "x", "\u{e4}"], &[]),
            ("**a*b*", &["ab", "xaxbx", "aab"], &["ba", "a", ""]),
        ] {
            for event_type in stands {
                assert!(
                    set(&[name]).contains(event_type.as_bytes()),
                    "{name}: {event_type}"
                );
            }
            for event_type in does_not {
                assert!(
                    !set(&[name]).contains(event_type.as_bytes()),
                    "{name}: {event_type}"
                );
            }
        }
        // Bytes that are no text, and a name that covers another.
        assert!(set(&["a*"]).contains(b"a\xff"));
        assert!(set(&["session.*"]).contains(b"session.*.end"));
        assert!(!set(&["session.*.end"]).contains(b"session.*"));
    }

    #[test]
    fn a_filter_admits_what_is_named_and_not_skipped() {
        let filter = |types, skipped| EventFilter {
            types: set(types),
            skip_types: set(skipped),
        };
        let only = filter(&["user.login"], &[]);
        assert!(only.admits(b"user.login") && !only.admits(b"user"));
        assert_eq!(
            (only.for_server(), only.admits_all()),
            (vec!["user.login".to_owned()], false)
        );
        let but = filter(&[], &["user.*"]);
        assert!(!but.admits(b"user.login") && but.admits(b"user") && but.admits(b"\xff"));
        assert!(but.for_server().is_empty() && !but.admits_all());
        let both = filter(&["user.*", "session.start"], &["user.login"]);
        assert!(both.admits(b"user.create") && both.admits(b"session.start"));
        assert!(!both.admits(b"user.login") && !both.admits(b"session.end"));
        assert!(both.for_server().is_empty());
        assert!(filter(&[], &[]).admits_all());
    }
}

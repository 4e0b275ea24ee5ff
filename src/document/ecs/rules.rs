//! What an event is about, by its type: ECS's `event.category` and `event.type`.
//!
//! Each version of Teleport adds event types, so there is no list of all: the category follows from
//! how a type begins, its `event.type` from the last word. A type of an unknown beginning is taken
//! for one about the configuration if its last word says that something was made, changed or
//! deleted, and has no category otherwise.

/// Both as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// `event.category`, or empty.
    pub(super) category: &'static str,
    /// `event.type`.
    pub(super) kind: &'static str,
}

/// How types begin, and their category; the first that fits counts.
const CATEGORIES: &[(&str, &str)] = &[
    ("user.login", AUTHENTICATION),
    ("user.headless", AUTHENTICATION),
    ("auth_preference.", CONFIGURATION),
    ("auth", AUTHENTICATION),
    ("mfa_auth_challenge.", AUTHENTICATION),
    ("bot.join", AUTHENTICATION),
    ("instance.join", AUTHENTICATION),
    ("cert.", AUTHENTICATION),
    ("device.authenticate", AUTHENTICATION),
    ("session.command", PROCESS),
    ("exec", PROCESS),
    ("session.disk", FILE),
    ("scp", FILE),
    ("sftp", FILE),
    ("file_transfer_request.", FILE),
    ("desktop.directory.", FILE),
    ("session.network", NETWORK),
    ("port", NETWORK),
    ("x11-forward", NETWORK),
    ("session.", SESSION),
    ("app.session.start", SESSION),
    ("app.session.end", SESSION),
    ("app.session.", WEB),
    ("db.session.", DATABASE),
    ("windows.desktop.session.", SESSION),
    ("desktop.", SESSION),
    ("kube.request", API),
    ("user.", IAM),
    ("role.", IAM),
    ("lock.", IAM),
    ("bot.", IAM),
    ("access_list", IAM),
    ("access_request", IAM),
    ("join_token.", IAM),
    ("provision_token.", IAM),
    ("reset_password_token.", IAM),
    ("recovery_", IAM),
    ("privilege_token.", IAM),
    ("mfa.", IAM),
    ("device.", IAM),
    ("github.", IAM),
    ("oidc.", IAM),
    ("saml.", IAM),
    ("okta.", IAM),
    ("scim.", IAM),
];

const API: &str = r#"["api"]"#;
const AUTHENTICATION: &str = r#"["authentication"]"#;
const CONFIGURATION: &str = r#"["configuration"]"#;
const DATABASE: &str = r#"["database"]"#;
const FILE: &str = r#"["file"]"#;
const IAM: &str = r#"["iam"]"#;
const NETWORK: &str = r#"["network"]"#;
const PROCESS: &str = r#"["process"]"#;
const SESSION: &str = r#"["session"]"#;
const WEB: &str = r#"["web"]"#;

const ACCESS: &str = r#"["access"]"#;
const CHANGE: &str = r#"["change"]"#;
const CREATION: &str = r#"["creation"]"#;
const DELETION: &str = r#"["deletion"]"#;
const DENIED: &str = r#"["denied"]"#;
const END: &str = r#"["end"]"#;
const ERROR: &str = r#"["error"]"#;
const INFO: &str = r#"["info"]"#;
const START: &str = r#"["start"]"#;

/// The last words of types, and what they say.
const WORDS: &[(&str, &str)] = &[
    ("start", START),
    ("started", START),
    ("connect", START),
    ("join", START),
    ("login", START),
    ("authenticate", START),
    ("command", START),
    ("exec", START),
    ("end", END),
    ("ended", END),
    ("disconnect", END),
    ("leave", END),
    ("logout", END),
    ("create", CREATION),
    ("created", CREATION),
    ("add", CREATION),
    ("enroll", CREATION),
    ("generated", CREATION),
    ("update", CHANGE),
    ("updated", CHANGE),
    ("change", CHANGE),
    ("changed", CHANGE),
    ("review", CHANGE),
    ("rename", CHANGE),
    ("delete", DELETION),
    ("deleted", DELETION),
    ("remove", DELETION),
    ("removed", DELETION),
    ("expire", DELETION),
    ("request", ACCESS),
    ("query", ACCESS),
    ("execute", ACCESS),
    ("read", ACCESS),
    ("write", ACCESS),
    ("access", ACCESS),
    ("accessed", ACCESS),
    ("search", ACCESS),
    ("scp", ACCESS),
    ("sftp", ACCESS),
    ("disk", ACCESS),
    ("denied", DENIED),
    ("failed", ERROR),
    ("failure", ERROR),
];

impl Rule {
    /// That of an event type.
    pub(super) fn of(event_type: &[u8]) -> Self {
        let begins = |(begin, _): &&(&str, &str)| event_type.starts_with(begin.as_bytes());
        let category = CATEGORIES
            .iter()
            .find(begins)
            .map(|(_, category)| *category);
        let last = event_type.rsplit(|byte| b"._-".contains(byte)).next();
        let last = last.unwrap_or_default();
        let says = |(word, _): &&(&str, &str)| word.as_bytes() == last;
        let kind = WORDS.iter().find(says).map_or(INFO, |(_, kind)| *kind);
        let is_about_a_setting = [CREATION, CHANGE, DELETION].contains(&kind);
        let otherwise = if is_about_a_setting {
            CONFIGURATION
        } else {
            ""
        };
        Self {
            category: category.unwrap_or(otherwise),
            kind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_and_unknown_types_have_what_their_words_say() {
        for (event_type, category, kind) in [
            ("user.login", AUTHENTICATION, START),
            ("user.password_change", IAM, CHANGE),
            ("session.start", SESSION, START),
            ("session.leave", SESSION, END),
            ("session.command", PROCESS, START),
            ("exec", PROCESS, START),
            ("scp", FILE, ACCESS),
            ("db.session.query", DATABASE, ACCESS),
            ("db.session.query.failed", DATABASE, ERROR),
            ("db.create", CONFIGURATION, CREATION),
            ("app.session.chunk", WEB, INFO),
            ("kube.request", API, ACCESS),
            ("auth", AUTHENTICATION, INFO),
            ("a_new_thing.delete", CONFIGURATION, DELETION),
            ("a_new_thing.spun", "", INFO),
            ("", "", INFO),
        ] {
            let rule = Rule { category, kind };
            assert_eq!(Rule::of(event_type.as_bytes()), rule, "{event_type}");
        }
    }

    #[test]
    fn each_value_is_one_that_ecs_allows() {
        let categories = CATEGORIES.iter().map(|(_, category)| *category);
        let kinds = WORDS.iter().map(|(_, kind)| *kind);
        for json in categories.chain(kinds).chain([CONFIGURATION, INFO]) {
            let list: Vec<String> = serde_json::from_str(json).unwrap();
            assert_eq!(list.len(), 1, "{json}");
        }
    }
}

//! The sets of rights, as the embedded roles say them.

use serde_json::{Value, json};

/// A set of rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Adds documents and creates the index of a new day; can neither read, change nor delete.
    Writer,
    /// Reads, for `verify`, and nothing else.
    Verifier,
    /// Those of Teleport's own guide, for its event handler; can change and delete.
    TeleportPlugin,
}

impl Rights {
    /// The name of the role, and of an API key with these rights.
    pub(super) fn role_name(self, template: &str) -> String {
        match self {
            Self::Writer => format!("{template}-writer"),
            Self::Verifier => format!("{template}-verifier"),
            Self::TeleportPlugin => "teleport-plugin".to_owned(),
        }
    }

    /// The body of `PUT /_security/role/NAME`.
    pub(super) fn role(self, index_wildcard: &str) -> Value {
        let text = match self {
            Self::Writer => include_str!("../../../templates/elasticsearch-writer-role.json"),
            Self::Verifier => include_str!("../../../templates/elasticsearch-verifier-role.json"),
            Self::TeleportPlugin => {
                include_str!("../../../templates/elasticsearch-teleport-plugin-role.json")
            }
        };
        let mut role: Value = serde_json::from_str(text).expect("a test reads every embedded role");
        role["indices"][0]["names"] = json!([index_wildcard]);
        role
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_gives_what_it_is_for_and_no_more() {
        let of = |rights: Rights| {
            let role = rights.role("audit-*");
            let index = &role["indices"][0];
            assert_eq!(role["indices"].as_array().unwrap().len(), 1);
            let name = rights.role_name("audit");
            format!(
                "{name}: {} {} {}",
                role["cluster"], index["names"], index["privileges"]
            )
        };
        insta::assert_snapshot!(of(Rights::Writer), @r#"audit-writer: ["monitor","read_ilm"] ["audit-*"] ["create_doc","auto_configure"]"#);
        insta::assert_snapshot!(of(Rights::Verifier), @r#"audit-verifier: ["monitor"] ["audit-*"] ["read"]"#);
        insta::assert_snapshot!(of(Rights::TeleportPlugin), @r#"teleport-plugin: ["manage_index_templates","manage_ilm","monitor"] ["audit-*"] ["write","manage"]"#);
    }
}

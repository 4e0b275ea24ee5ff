//! Names with `*` in them.

/// Whether `text` is of the form of `pattern`, in which `*` stands for any text.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        // The earliest place leaves the most for what follows.
        let Some((_, after)) = rest.split_once(part) else {
            return false;
        };
        rest = after;
    }
    rest.ends_with(last)
}

/// Whether a list such as `a,b-*` or `_all` names `index_name`.
pub(super) fn names(list: &str, index_name: &str) -> bool {
    list.split(',')
        .any(|pattern| pattern == "_all" || matches(pattern, index_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, expected) in [
            ("audit-events-*", "audit-events-2026.03.04", true),
            ("audit-events-*", "audit-events-", true),
            ("audit-events-*", "audit-event", false),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*ab", "aab", true),
            ("a*ab", "ab", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
        assert!(names("x,y-*", "y-1") && names("_all", "z") && !names("x,y-*", "z"));
    }
}

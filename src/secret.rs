//! A text that cannot be printed, logged or serialised by accident.

use std::fmt;

/// A password, key or token. It has no `Display` and no `Serialize`, its `Debug` is a fixed word,
/// and reading it needs the named call [`Secret::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text over.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself; for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_text() {
        assert_eq!(
            format!("{:?}", Some(Secret::new("hunter2"))),
            "Some([secret])"
        );
    }
}

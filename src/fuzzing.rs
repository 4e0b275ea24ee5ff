//! The fuzz targets, each named as its file in `fuzz/fuzz_targets`. They are compiled for those and
//! for the tests, never into the program. What each must hold lies beside what it is about, where
//! private functions can be seen.

pub use crate::config::fuzzing::configuration;
pub use crate::document::fuzzing::document;
pub use crate::elastic::bulk::fuzzing::bulk_answer;
pub use crate::teleport::client::fuzzing::event_answer;
pub use crate::teleport::identity::fuzzing::identity;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    const TARGETS: [&str; 5] = [
        "bulk_answer",
        "configuration",
        "document",
        "event_answer",
        "identity",
    ];

    /// What is in a folder, by name.
    fn list(folder: &str) -> Vec<PathBuf> {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let entries = fs::read_dir(fuzz.join(folder)).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }

    /// What fuzzing has found once is found again here, should it come back.
    fn each_input_holds(name: &str, target: fn(&[u8])) {
        let inputs = list(&format!("corpus/{name}"));
        assert!(inputs.len() >= 20, "{} inputs", inputs.len());
        for input in inputs {
            // The last line tells which one it was.
            println!("{}", input.display());
            target(&fs::read(input).unwrap());
        }
    }

    #[test]
    fn bulk_answer() {
        each_input_holds("bulk_answer", super::bulk_answer);
    }

    #[test]
    fn configuration() {
        each_input_holds("configuration", super::configuration);
    }

    #[test]
    fn document() {
        each_input_holds("document", super::document);
    }

    #[test]
    fn event_answer() {
        each_input_holds("event_answer", super::event_answer);
    }

    #[test]
    fn identity() {
        each_input_holds("identity", super::identity);
    }

    #[test]
    fn there_is_a_program_for_every_target() {
        let stems = |folder| {
            let paths = list(folder).into_iter();
            let stems = paths.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
            stems.collect::<Vec<_>>()
        };
        assert_eq!(stems("corpus"), TARGETS);
        assert_eq!(stems("fuzz_targets"), TARGETS);
        let manifest = include_str!("../fuzz/Cargo.toml");
        for target in TARGETS {
            let path = format!("name = \"{target}\"\npath = \"fuzz_targets/{target}.rs\"");
            assert!(manifest.contains(&path), "{target}");
        }
    }
}

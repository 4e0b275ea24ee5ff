//! Who may name whom: a change in one library, or at one end, must not reach through the program.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one, not what tests call"
)]

use std::fs;
use std::path::Path;

/// Files hold no more lines than this, without their tests.
const MOST_LINES: usize = 500;

struct Source {
    /// Below `src`, such as `teleport/client.rs`.
    path: String,
    /// Without comments and without the tests at its end.
    code: String,
}

/// All that is compiled into the program.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let is_rust = path.extension().is_some_and(|extension| extension == "rs");
            let tests = ["tests.rs", "fuzzing.rs"];
            let is_test = tests.iter().any(|name| path.ends_with(name));
            if !is_rust || is_test {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(&root).unwrap();
            sources.push(Source {
                path: path.to_str().unwrap().to_owned(),
                code: without_tests(&text),
            });
        }
    }
    sources
}

fn without_tests(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let is_tests = |next: &&str| next.starts_with("mod tests");
        if line == "#[cfg(test)]" && lines.peek().is_some_and(is_tests) {
            break;
        }
        if !line.trim_start().starts_with("//") {
            code.push_str(line);
        }
        code.push('\n');
    }
    code
}

impl Source {
    /// In one of these modules: `teleport` is `teleport.rs` and all below `teleport/`.
    fn is_in(&self, modules: &[&str]) -> bool {
        modules.iter().any(|module| {
            let rest = self.path.strip_prefix(module);
            rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        })
    }

    /// Names the word as the beginning of a path: `tonic::`, `use tonic`, `crate::teleport`.
    fn names(&self, word: &str) -> bool {
        let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        self.code.match_indices(word).any(|(place, _)| {
            let (before, rest) = self.code.split_at(place);
            let (_, after) = rest.split_at(word.len());
            let begins = before.ends_with(" ::") || !before.ends_with(is_part);
            let is_used = before.ends_with("use ") && after.starts_with([';', ' ']);
            begins && (after.starts_with("::") || is_used || word.starts_with("crate::"))
        })
    }
}

/// The files outside of these modules that name one of these words.
fn strays(words: &[&str], modules: &[&str]) -> Vec<String> {
    let sources = sources();
    for word in words {
        // Else a rule would be kept by a word that nobody uses any more.
        let is_named = |source: &Source| source.is_in(modules) && source.names(word);
        assert!(sources.iter().any(is_named), "no {word} in {modules:?}");
    }
    let mut strays = Vec::new();
    for source in sources.iter().filter(|source| !source.is_in(modules)) {
        for word in words.iter().filter(|word| source.names(word)) {
            strays.push(format!("{} names {word}", source.path));
        }
    }
    strays
}

#[test]
fn each_library_is_named_where_it_belongs() {
    let nobody: [String; 0] = [];
    let grpc = ["tonic", "prost", "tonic_prost"];
    assert_eq!(strays(&grpc, &["teleport", "demo"]), nobody);
    assert_eq!(strays(&["elasticsearch"], &["elastic"]), nobody);
    assert_eq!(strays(&["rusqlite"], &["checkpoint", "demo"]), nobody);
    assert_eq!(strays(&["clap"], &["cli"]), nobody);
    assert_eq!(strays(&["indicatif"], &["output"]), nobody);
    // What one system alone has would keep the program from being compiled for another.
    let system = ["std::os::unix", "tokio::signal", "rustix"];
    assert_eq!(strays(&system, &["platform"]), nobody);
}

#[test]
fn the_two_ends_do_not_know_each_other() {
    let mut found = Vec::new();
    let others = ["crate::elastic", "crate::teleport"];
    for (end, other) in ["teleport", "elastic"].into_iter().zip(others) {
        for source in sources().iter().filter(|source| source.is_in(&[end])) {
            if source.names(other) {
                found.push(format!("{} names {other}", source.path));
            }
        }
    }
    assert_eq!(found, [""; 0]);
}

#[test]
fn only_output_prints() {
    let words = [
        "println!",
        "print!(",
        "dbg!",
        "io::stdout()",
        "io::stderr()",
    ];
    let prints = |source: &Source| words.iter().any(|word| source.code.contains(word));
    let printing = sources().into_iter().filter(prints);
    let printing: Vec<_> = printing.map(|source| source.path).collect();
    assert_eq!(printing, ["output.rs"]);
}

#[test]
fn no_file_is_too_long_to_read() {
    let mut long = Vec::new();
    for source in sources() {
        let lines = source.code.lines().count();
        // Nobody reads what is generated.
        if lines > MOST_LINES && !source.is_in(&["teleport/proto"]) {
            long.push(format!("{}: {lines} lines", source.path));
        }
    }
    assert_eq!(long, [""; 0]);
}

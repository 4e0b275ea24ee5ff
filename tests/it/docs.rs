//! What the documents say about the program is what the program says.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one, not what tests call"
)]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use teleport_event_indexer::config::clusters::refusal;
use teleport_event_indexer::config::keys::KEYS;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files
}

/// All of the program's own texts, each on one line as the compiler sees it; without the stand-ins.
fn source() -> String {
    let mut files = files_below(&root("src"), "rs");
    files.retain(|file| !file.starts_with(root("src/demo")));
    let mut source = String::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            match line.strip_suffix('\\') {
                Some(begin) => {
                    source.push_str(begin);
                    while let Some(next) = lines.next_if(|next| next.trim_start().is_empty()) {
                        source.push_str(next.trim());
                    }
                    if let Some(next) = lines.peek_mut() {
                        *next = next.trim_start();
                    }
                }
                None => {
                    source.push_str(line);
                    source.push('\n');
                }
            }
        }
    }
    source
}

/// The parts of a message that do not differ from case to case.
fn fixed_parts(message: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for c in message.chars() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                parts.push(String::new());
            }
            '…' => parts.push(String::new()),
            _ if depth == 0 => parts.last_mut().unwrap().push(c),
            _ => {}
        }
    }
    parts
        .iter()
        .map(|part| part.trim().to_owned())
        .filter(|part| part.chars().filter(|c| c.is_alphabetic()).count() > 2)
        .collect()
}

/// What stands between backticks in the first column of its tables.
fn told_messages(document: &str) -> Vec<&str> {
    let rows = document.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.trim_start_matches("| ").split(" | ").next().unwrap());
    cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect()
}

#[test]
fn each_message_of_the_troubleshooting_page_is_the_programs() {
    let document = fs::read_to_string(root("docs/troubleshooting.md")).unwrap();
    let source = source();
    let messages = told_messages(&document);
    assert!(messages.len() > 100, "{}", messages.len());
    let strange: Vec<_> = messages
        .iter()
        .filter(|message| {
            let parts = fixed_parts(message);
            !parts.iter().all(|part| source.contains(part.as_str()))
        })
        .collect();
    assert!(strange.is_empty(), "the program says none of {strange:#?}");
}

/// Faults of the program itself, which nobody can bring about.
const INTERNAL: &[&str] = &[
    "the pipeline has ended",
    "the state file has no run",
    "a step of",
    "run {run} is not finished",
    "not needed, as nothing on the way",
    "reading the audit log failed for good",
];

#[test]
fn each_error_of_the_program_is_on_the_troubleshooting_page() {
    let document = fs::read_to_string(root("docs/troubleshooting.md")).unwrap();
    let told = told_messages(&document).join("\n");
    let source = source();
    let mut missing = BTreeSet::new();
    let mut errors = 0;
    for (_, text) in source
        .match_indices("#[error(")
        .map(|(at, found)| source.split_at(at + found.len()))
    {
        let Some(text) = text.trim_start().strip_prefix('"') else {
            continue;
        };
        let message = text.split('"').next().unwrap();
        // What is told of it may leave out how it ends.
        let mut clauses = message.split("; ").flat_map(|clause| clause.split(": "));
        let Some(fixed) = clauses.find_map(|clause| {
            let parts = fixed_parts(clause);
            let longest = parts.into_iter().max_by_key(String::len)?;
            (longest.len() > 5).then_some(longest)
        }) else {
            continue;
        };
        errors += 1;
        let is_internal = INTERNAL.iter().any(|begin| message.starts_with(begin));
        if !is_internal && !told.contains(&fixed) {
            missing.insert(message.to_owned());
        }
    }
    assert!(errors > 80, "{errors}");
    assert!(missing.is_empty(), "not told of: {missing:#?}");
}

/// `docs/configuration.md`, made of the table of settings.
fn reference() -> String {
    let mut text = String::from(CONFIGURATION);
    let mut heading = "";
    for key in KEYS {
        if key.group.heading() != heading {
            heading = key.group.heading();
            write!(
                text,
                "\n## {heading}\n\n| key | value | default | |\n|---|---|---|---|\n"
            )
            .unwrap();
        }
        let default = key.default.map(|value| format!("`{value}`"));
        let value = key.kind.value_name().replace('|', "\\|");
        write!(
            text,
            "| `{}` | {value} | {} | {}",
            key.name,
            default.unwrap_or_default(),
            key.help.replace('|', "\\|").replace('*', "\\*"),
        )
        .unwrap();
        for alias in key.aliases {
            write!(text, "; also `{alias}`").unwrap();
        }
        text.push_str(" |\n");
    }
    let of_one = KEYS.iter().filter(|key| refusal(key).is_none());
    let of_one: Vec<String> = of_one.map(|key| format!("`{}`", key.name)).collect();
    writeln!(text, "{CLUSTERS}{}.", of_one.join(", ")).unwrap();
    text
}

const CLUSTERS: &str = "
## Several clusters

A table `[[cluster]]`, of which there is one for each of [several clusters](clusters.md), has a `name` and may have these: ";

const CONFIGURATION: &str = "# Configuration

Every setting there is; `templates/config.toml` explains them at length. A key's flag is its name with dashes for dots and without
`forward.`, and its variable the same in capitals behind `EVENT_INDEXER_`: `forward.elasticsearch.batch-bytes` is
`--elasticsearch-batch-bytes` and `EVENT_INDEXER_ELASTICSEARCH_BATCH_BYTES`. A flag beats a variable, a variable beats the file, which
`--config` or `EVENT_INDEXER_CONFIG` names. `check --show-config` prints what is in effect. `install` knows the keys of
`forward.elasticsearch.install` by their last part alone, too (`--retention`).

This page is made of the program's own table, by `WRITE_DOCS=1 cargo test --test it docs`.
";

#[test]
fn the_reference_of_settings_is_the_programs_table() {
    let path = root("docs/configuration.md");
    let reference = reference();
    if std::env::var_os("WRITE_DOCS").is_some() {
        fs::write(&path, &reference).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap();
    let differs = written
        .lines()
        .zip(reference.lines())
        .find(|(written, right)| written != right);
    assert_eq!(differs, None, "WRITE_DOCS=1 mends it");
    assert_eq!(written.lines().count(), reference.lines().count());
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents = files_below(&root("docs"), "md");
    documents.extend([root("README.md"), root("ARCHITECTURE.md")]);
    let mut broken = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        let links = text.split("](").skip(1);
        for link in links.map(|rest| rest.split(')').next().unwrap()) {
            let file = link.split('#').next().unwrap();
            let is_ours = !file.is_empty() && !link.contains("://");
            if is_ours && !document.parent().unwrap().join(file).exists() {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

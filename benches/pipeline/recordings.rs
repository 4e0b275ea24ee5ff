//! Peak memory with few and many session recordings.

use anyhow::{Result, ensure};

use super::program::{self, Route};
use super::servers::Teleport;
use super::sink::Sink;

/// Events of each recording.
const RECORDED: usize = 40;

/// Events of the log that a session makes: its start, data, end and upload.
const OF_SESSION: usize = 4;

/// Reads a tenth of the recordings, and then all of them, from logs that are equally long.
pub(crate) fn memory(recordings: usize) -> Result<()> {
    let events = recordings * OF_SESSION * 2;
    println!("session recordings of {RECORDED} events, from a log of {events}, into a sink\n");
    println!("| recordings | documents | seconds | CPU s | peak MiB |");
    println!("|---|---|---|---|---|");
    let sink = Sink::start(false)?;
    for recordings in [recordings / 10, recordings] {
        let flags = [("--sessions", recordings), ("--session-events", RECORDED)];
        let flags: Vec<String> = flags
            .iter()
            .flat_map(|(name, value)| [(*name).to_owned(), value.to_string()])
            .collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let teleport = Teleport::start(events, &flags)?;
        let route = Route {
            teleport: teleport.address(),
            identity: &teleport.identity(),
            elasticsearch: &sink.address.to_string(),
            settings: "gzip = false",
        };
        let cost = program::run_with(&route, "skip-session-types = []")?;
        // The log, what is recorded, and a document about each session.
        let documents = events + recordings * (RECORDED + 1);
        let received = sink.take().operations;
        ensure!(
            received == documents as u64,
            "{received} of {documents} documents have come"
        );
        println!(
            "| {recordings} | {documents} | {:.0} | {:.1} | {:.1} |",
            cost.elapsed.as_secs_f64(),
            cost.cpu_seconds,
            cost.peak_bytes as f64 / f64::from(1 << 20)
        );
    }
    Ok(())
}

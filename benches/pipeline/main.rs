//! Measures the whole program between real servers. `cargo bench --bench pipeline` prints what
//! there is to measure; the README tells what came out.
//!
//! Every figure is one of a run of the released program in a process of its own, with an empty
//! state, on a log of one million events that `faketeleport` makes and serves over mTLS. What is
//! compared is run in turn, in one go of this benchmark, since machines differ from hour to hour.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "a program of its own, on threads that do nothing else, which prints what it finds"
)]

mod documents;
mod elasticsearch;
mod gzip;
mod latency;
mod program;
mod recordings;
mod relay;
mod replay;
mod servers;
mod sink;
mod soak;
mod templates;

use anyhow::{Result, bail};

use elasticsearch::Mappings;
use program::{Cost, Route};
use servers::{Api, Teleport};
use sink::Sink;

const USAGE: &str = "\
cargo bench --bench pipeline -- WHAT [EVENTS] [TURNS]

sink           into a sink that answers at once: events per CPU second, rate, memory
elasticsearch  into Elasticsearch, in turn with a replay of prepared requests
guessed        the same with mappings that Elasticsearch guesses, which cost it twice as much
memory         peak memory into Elasticsearch, with EVENTS and three times as many events
latency        with and without 25 and 100 ms added to every round trip
start          from the program's start to the first acknowledged document
documents      key order and id: size on disk, rate, and Elasticsearch's CPU
templates      the template of Teleport's guide and ours: size on disk
gzip           levels: size and time
recordings     peak memory with RECORDINGS session recordings and a tenth of them, into a sink
soak           [MINUTES] at full speed while both ends break all the time

EVENTS is 1000000 if not given, TURNS 5, RECORDINGS 10000, MINUTES 30. All but
sink, recordings, gzip and soak need a JDK and Maven, all need Go:
see tests/elasticsearch/README.md and tests/faketeleport/README.md.";

fn main() -> Result<()> {
    // Cargo adds --bench.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let number = |n: usize, default: usize| match arguments.get(n) {
        Some(text) => text.parse(),
        None => Ok(default),
    };
    let (events, turns) = (number(1, 1_000_000)?, number(2, 5)?);
    match arguments.first().map(String::as_str) {
        Some("sink") => into_sink(events, turns),
        Some("elasticsearch") => elasticsearch::against_replay(events, turns, Mappings::Ours),
        Some("guessed") => elasticsearch::against_replay(events, turns, Mappings::Guessed),
        Some("memory") => elasticsearch::memory(events),
        Some("latency") => latency::added(events, turns),
        Some("start") => latency::first_document(turns),
        Some("documents") => documents::measure(events, turns),
        Some("templates") => templates::measure(events, turns),
        Some("gzip") => gzip::measure(events),
        Some("recordings") => recordings::memory(number(1, 10_000)?),
        Some("soak") => soak::soak(number(1, 30)?.try_into()?),
        None => {
            println!("{USAGE}");
            Ok(())
        }
        Some(other) => bail!("there is no {other}\n\n{USAGE}"),
    }
}

fn into_sink(events: usize, turns: usize) -> Result<()> {
    let teleport = Teleport::start(events, &[])?;
    let sink = Sink::start(false)?;
    println!("into a sink that answers at once, {events} events, median of {turns}\n");
    println!("| by | events per CPU second | CPU s per 100,000 | events/s | peak MiB |");
    println!("|---|---|---|---|---|");
    for api in Api::BOTH {
        teleport.serve_by(api)?;
        let route = Route {
            teleport: teleport.address(),
            identity: &teleport.identity(),
            elasticsearch: &sink.address.to_string(),
            settings: "gzip = false",
        };
        let mut costs = Vec::new();
        for _ in 0..turns {
            let cost = program::run(&route)?;
            let received = sink.take().operations;
            if received != events as u64 {
                bail!("{received} of {events} events have come");
            }
            costs.push(cost);
        }
        println!("| {} | {} |", api.name(), row(&costs, events));
    }
    Ok(())
}

/// The middle ones of several runs' figures, as cells of a table.
fn row(costs: &[Cost], events: usize) -> String {
    let events = events as f64;
    let cpu = median(costs.iter().map(|cost| cost.cpu_seconds));
    let seconds = median(costs.iter().map(|cost| cost.elapsed.as_secs_f64()));
    let peak = median(costs.iter().map(|cost| cost.peak_bytes as f64));
    format!(
        "{:.0} | {:.2} | {:.0} | {:.0}",
        events / cpu,
        cpu / events * 100_000.0,
        events / seconds,
        peak / f64::from(1 << 20)
    )
}

/// The middle one; of an even number the lower of the two in the middle.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) / 2]
}

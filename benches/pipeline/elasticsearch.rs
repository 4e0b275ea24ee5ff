//! Into a real Elasticsearch.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::program::{self, Cost, Route};
use super::replay;
use super::servers::{Api, Elasticsearch, Teleport};
use super::sink::Sink;
use super::{median, row};

/// Bulk requests that the program has in flight, and connections of a replay.
pub(crate) const CONNECTIONS: usize = 4;

/// What tells Elasticsearch how to index the events.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mappings {
    /// The program's template.
    Ours,
    /// Each text both as text and as keyword.
    Guessed,
}

/// One run into Elasticsearch.
#[derive(Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) seconds: f64,
    pub(crate) server_cpu: f64,
}

/// The program in turn with a replay of the requests that it sends, once with `uid` as id and once
/// with the program's own ids.
pub(crate) fn against_replay(events: usize, turns: usize, mappings: Mappings) -> Result<()> {
    let teleport = Teleport::start(events, &[])?;
    let own = requests(&teleport)?;
    let uids = replay::with_uids(&own)?;
    let server = Elasticsearch::start()?;
    if mappings == Mappings::Guessed {
        server.guess_mappings()?;
    }
    // Java compiles what is hot while it runs: the first million is much slower.
    timed(&server, events, |server| {
        replay::replay(server, &uids, CONNECTIONS).map(drop)
    })?;
    println!("into Elasticsearch, {events} events, {turns} turns, each with all of these\n");
    println!("| by | documents/s | Elasticsearch's CPU s per 100,000 | its processors in use |");
    println!("|---|---|---|---|");
    let mut replays = [Vec::new(), Vec::new()];
    let mut programs = [Vec::new(), Vec::new()];
    for turn in 0..turns {
        for (bodies, taken) in [&uids, &own].into_iter().zip(&mut replays) {
            let sent = timed(&server, events, |server| {
                replay::replay(server, bodies, CONNECTIONS).map(drop)
            })?;
            taken.push(sent);
        }
        for (api, taken) in Api::BOTH.into_iter().zip(&mut programs) {
            teleport.serve_by(api)?;
            taken.push(through_program(&teleport, &server, events)?);
        }
        tell(turn + 1, turns);
    }
    let per_second = |taken: &Taken| events as f64 / taken.seconds;
    for (name, taken) in ["replay, id = uid", "replay, same ids"]
        .iter()
        .zip(&replays)
    {
        println!("| {name} | {} |", server_row(taken, events));
    }
    for (api, runs) in Api::BOTH.iter().zip(&programs) {
        let taken: Vec<Taken> = runs.iter().map(|run| run.0).collect();
        println!(
            "| the program, {} | {} |",
            api.name(),
            server_row(&taken, events)
        );
    }
    println!("\n| by | events per CPU second | CPU s per 100,000 | events/s | peak MiB |");
    println!("|---|---|---|---|---|");
    for (api, runs) in Api::BOTH.iter().zip(&programs) {
        let costs: Vec<Cost> = runs.iter().map(|run| run.1).collect();
        println!("| {} | {} |", api.name(), row(&costs, events));
    }
    println!("\nmedians of the pairs of each turn");
    for (api, runs) in Api::BOTH.iter().zip(&programs) {
        let pairs = |replays: &[Taken]| {
            median(
                runs.iter()
                    .zip(replays)
                    .map(|(run, replay)| per_second(&run.0) / per_second(replay)),
            )
        };
        let share = median(runs.iter().map(|run| run.1.cpu_seconds / run.0.server_cpu));
        println!(
            "{}: {:.3} of the replay with id = uid, {:.3} of that with the same ids; CPU of the \
             program : CPU of Elasticsearch {share:.3}",
            api.name(),
            pairs(&replays[0]),
            pairs(&replays[1]),
        );
    }
    Ok(())
}

fn tell(turn: usize, turns: usize) {
    use std::io::Write;
    writeln!(std::io::stderr(), "turn {turn} of {turns} done").expect("stderr takes a line");
}

fn server_row(taken: &[Taken], events: usize) -> String {
    let seconds = median(taken.iter().map(|taken| taken.seconds));
    let cpu = median(taken.iter().map(|taken| taken.server_cpu));
    let events = events as f64;
    format!(
        "{:.0} | {:.2} | {:.2}",
        events / seconds,
        cpu / events * 100_000.0,
        cpu / seconds
    )
}

/// The bodies that the program sends for this log.
pub(crate) fn requests(teleport: &Teleport) -> Result<Vec<Vec<u8>>> {
    let sink = Sink::start(true)?;
    program::run(&Route {
        teleport: teleport.address(),
        identity: &teleport.identity(),
        elasticsearch: &sink.address.to_string(),
        settings: "gzip = false",
    })?;
    Ok(sink.take().bodies)
}

pub(crate) fn through_program(
    teleport: &Teleport,
    server: &Elasticsearch,
    events: usize,
) -> Result<(Taken, Cost)> {
    let mut cost = None;
    let taken = timed(server, events, |server| {
        cost = Some(program::run(&Route {
            teleport: teleport.address(),
            identity: &teleport.identity(),
            elasticsearch: server.address(),
            settings: &Elasticsearch::settings(),
        })?);
        Ok(())
    })?;
    Ok((taken, cost.expect("it has run")))
}

/// Does something with an empty, quiet server and takes its time and the server's; checks that each
/// event is there once. What the server still does afterwards by itself does not count.
pub(crate) fn timed(
    server: &Elasticsearch,
    events: usize,
    work: impl FnOnce(&Elasticsearch) -> Result<()>,
) -> Result<Taken> {
    server.clear()?;
    let cpu = server.cpu_seconds()?;
    let began = Instant::now();
    work(server)?;
    let seconds = began.elapsed().as_secs_f64();
    let server_cpu = server.cpu_seconds()? - cpu;
    let there = server.documents()?;
    ensure!(
        there == events as u64,
        "{there} documents of {events} events"
    );
    Ok(Taken {
        seconds,
        server_cpu,
    })
}

/// Peak memory, and that it does not grow with the log.
pub(crate) fn memory(events: usize) -> Result<()> {
    let server = Elasticsearch::start()?;
    println!("peak resident memory into Elasticsearch\n");
    println!("| events | by | peak MiB | events/s |");
    println!("|---|---|---|---|");
    for events in [events, 3 * events] {
        // A hundredth of them of 60 KiB: as large as events are, but for the rarest.
        let big = ["--big-every", "1000", "--big-bytes", "61440"];
        let teleport = Teleport::start(events, &big)?;
        for api in Api::BOTH {
            teleport.serve_by(api)?;
            let (_, cost) = through_program(&teleport, &server, events)?;
            println!(
                "| {events} | {} | {:.1} | {:.0} |",
                api.name(),
                cost.peak_bytes as f64 / f64::from(1 << 20),
                events as f64 / cost.elapsed.as_secs_f64()
            );
        }
    }
    Ok(())
}

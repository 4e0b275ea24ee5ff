//! What distance to the servers costs, and how soon the first document is there.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::elasticsearch;
use super::median;
use super::program::{self, Route};
use super::relay::Relay;
use super::servers::{Api, Elasticsearch, Teleport};
use super::sink::Sink;

/// Both ends behind relays that add nothing, 25 ms and 100 ms, in turn.
pub(crate) fn added(events: usize, turns: usize) -> Result<()> {
    const DELAYS: [Duration; 3] = [
        Duration::ZERO,
        Duration::from_millis(25),
        Duration::from_millis(100),
    ];

    let teleport = Teleport::start(events, &[])?;
    let server = Elasticsearch::start()?;
    let sink = Sink::start(false)?;
    println!(
        "with a delay added to every round trip on both sides, {events} events, {turns} turns\n"
    );
    println!("| into | by | + 0 ms: events/s | + 25 ms | + 100 ms |");
    println!("|---|---|---|---|---|");
    // Java compiles what is hot while it runs.
    elasticsearch::through_program(&teleport, &server, events)?;
    for into in ["Elasticsearch", "a sink"] {
        let (address, settings) = match into {
            "a sink" => (sink.address.to_string(), "gzip = false".to_owned()),
            _ => (server.address().to_owned(), Elasticsearch::settings()),
        };
        for api in Api::BOTH {
            teleport.serve_by(api)?;
            let mut seconds = [const { Vec::new() }; DELAYS.len()];
            for _ in 0..turns {
                for (delay, seconds) in DELAYS.into_iter().zip(&mut seconds) {
                    let near_teleport = Relay::start(teleport.address(), delay)?;
                    let near_elasticsearch = Relay::start(&address, delay)?;
                    server.clear()?;
                    let cost = program::run(&Route {
                        teleport: &near_teleport.address.to_string(),
                        identity: &teleport.identity(),
                        elasticsearch: &near_elasticsearch.address.to_string(),
                        settings: &settings,
                    })?;
                    seconds.push(cost.elapsed.as_secs_f64());
                }
            }
            let near = &seconds[0];
            let ratio = |far: &[f64]| median(near.iter().zip(far).map(|(near, far)| near / far));
            println!(
                "| {into} | {} | {:.0} | × {:.2} | × {:.2} |",
                api.name(),
                events as f64 / median(near.iter().copied()),
                ratio(&seconds[1]),
                ratio(&seconds[2]),
            );
        }
    }
    Ok(())
}

/// From the program's start to the first answer to a bulk request: where the indices of the log's
/// three days are there, as nearly always, and where this request has them made.
pub(crate) fn first_document(turns: usize) -> Result<()> {
    const EVENTS: usize = 10_000;

    let server = Elasticsearch::start()?;
    let mut waits = [const { [const { Vec::new() }; 2] }; 2];
    // The first turn only warms the server up.
    for turn in 0..=turns {
        for (api, waits) in Api::BOTH.into_iter().zip(&mut waits) {
            server.clear()?;
            for (seed, waits) in waits.iter_mut().enumerate() {
                // Other events each time: what is there already would be answered sooner.
                let teleport = Teleport::start(EVENTS, &["--seed", &seed.to_string()])?;
                teleport.serve_by(api)?;
                let wait = first_answer(&teleport, &server)?;
                if turn > 0 {
                    waits.push(wait);
                }
            }
            let there = server.documents()?;
            ensure!(there == 2 * EVENTS as u64, "{there} documents are there");
        }
    }
    println!("ms from the program's start to the first answer to a bulk request, of {turns}\n");
    println!("| indices | by | least | median | most |");
    println!("|---|---|---|---|---|");
    for (api, [made, there]) in Api::BOTH.into_iter().zip(waits) {
        for (indices, waits) in [("there", there), ("made by it", made)] {
            let least = waits.iter().copied().fold(f64::INFINITY, f64::min);
            let most = waits.iter().copied().fold(0.0, f64::max);
            let middle = median(waits.iter().copied());
            println!(
                "| {indices} | {} | {least:.0} | {middle:.0} | {most:.0} |",
                api.name()
            );
        }
    }
    Ok(())
}

/// Milliseconds.
fn first_answer(teleport: &Teleport, server: &Elasticsearch) -> Result<f64> {
    let relay = Relay::start(server.address(), Duration::ZERO)?;
    let began = Instant::now();
    program::run(&Route {
        teleport: teleport.address(),
        identity: &teleport.identity(),
        elasticsearch: &relay.address.to_string(),
        settings: &Elasticsearch::settings(),
    })?;
    let answered = relay.first_bulk_answer();
    let answered = answered.context("no bulk request was answered")?;
    Ok((answered - began).as_secs_f64() * 1000.0)
}

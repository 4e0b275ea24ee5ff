//! What the order of keys and the kind of id cost Elasticsearch: the same documents, sent in the
//! same requests, with keys sorted or in random order as Teleport sends them, and with the program's
//! ids or the events' `uid`.

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::elasticsearch::{self, CONNECTIONS, Taken};
use super::median;
use super::replay::{replay, rewritten, with_uids, write_action};
use super::servers::{Elasticsearch, Teleport};

pub(crate) fn measure(events: usize, turns: usize) -> Result<()> {
    let teleport = Teleport::start(events, &[])?;
    let sorted = elasticsearch::requests(&teleport)?;
    drop(teleport);
    let random = shuffled(&sorted)?;
    let ways = [
        ("random", "uid", with_uids(&random)?),
        ("random", "ours", random),
        ("sorted", "uid", with_uids(&sorted)?),
        ("sorted", "ours", sorted),
    ];
    let server = Elasticsearch::start()?;
    let send = |bodies| move |server: &Elasticsearch| replay(server, bodies, CONNECTIONS).map(drop);
    // Java compiles what is hot while it runs: the first million is much slower.
    elasticsearch::timed(&server, events, send(&ways[0].2))?;
    let mut taken: [Vec<(Taken, f64)>; 4] = Default::default();
    for _ in 0..turns {
        for ((_, _, bodies), taken) in ways.iter().zip(&mut taken) {
            let sent = elasticsearch::timed(&server, events, send(bodies))?;
            server.request("POST", "/audit-events-*/_forcemerge?max_num_segments=1", "")?;
            taken.push((sent, server.stored_bytes()?));
        }
    }
    println!("{events} documents, {turns} turns, one after the other in each\n");
    println!(
        "| keys | id | documents/s | Elasticsearch's CPU s per 100,000 | bytes a document, merged |"
    );
    println!("|---|---|---|---|---|");
    for ((keys, id, _), taken) in ways.iter().zip(&taken) {
        let events = events as f64;
        let seconds = median(taken.iter().map(|taken| taken.0.seconds));
        let cpu = median(taken.iter().map(|taken| taken.0.server_cpu));
        let bytes = median(taken.iter().map(|taken| taken.1));
        println!(
            "| {keys} | {id} | {:.0} | {:.2} | {:.0} |",
            events / seconds,
            cpu / events * 100_000.0,
            bytes / events
        );
    }
    Ok(())
}

/// The same requests with the keys of each object in an order that is as good as random.
fn shuffled(bodies: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
    let mut random = 1;
    rewritten(bodies, |action, source, out| {
        let id = action.rsplit(|byte| *byte == b'"').nth(1);
        write_action(action, id.context("an action line has an id")?, out)?;
        write(&serde_json::from_slice(source)?, &mut random, out)?;
        Ok(())
    })
}

fn write(value: &Value, random: &mut u64, out: &mut Vec<u8>) -> Result<()> {
    match value {
        Value::Object(members) => write_object(members, random, out),
        Value::Array(values) => {
            out.push(b'[');
            for (n, value) in values.iter().enumerate() {
                if n > 0 {
                    out.push(b',');
                }
                write(value, random, out)?;
            }
            out.push(b']');
            Ok(())
        }
        plain => Ok(serde_json::to_writer(out, plain)?),
    }
}

fn write_object(members: &Map<String, Value>, random: &mut u64, out: &mut Vec<u8>) -> Result<()> {
    let mut members: Vec<_> = members.iter().collect();
    for end in (1..members.len()).rev() {
        // Marsaglia's xorshift.
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        let other = usize::try_from(*random >> 33)? % (end + 1);
        members.swap(end, other);
    }
    out.push(b'{');
    for (n, (key, value)) in members.into_iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, key)?;
        out.push(b':');
        write(value, random, out)?;
    }
    out.push(b'}');
    Ok(())
}

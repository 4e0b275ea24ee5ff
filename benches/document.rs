//! Measures the way from protobuf's wire to JSON text, without anything around it.
//! `cargo bench --bench document` prints a table.
//!
//! The events are the stand-in's, with their keys in random order as Teleport's come. All ways are
//! run in turn, many times; the middle one of each turn's ratios is given, since machines differ
//! from moment to moment. The reference is the plain way: `prost_types::Struct`, from it a
//! `serde_json::Value`, from it the text.

#![expect(
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "a program of its own, which prints what it finds"
)]

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, ensure};
use chrono::{Days, Utc};
use prost::Message;
use prost_types::value::Kind;
use serde_json::{Map, Number, Value};
use teleport_event_indexer::demo::events::{self, Id};
use teleport_event_indexer::document::{Encoder, IndexPattern, Schema, Transcoder};
use teleport_event_indexer::event::AuditEvent;

const EVENTS: usize = 20_000;
const TURNS: usize = 41;

/// Converts all events once.
type Way<'a> = Box<dyn FnMut() -> Result<()> + 'a>;

fn main() -> Result<()> {
    let to = Utc::now();
    let events: Vec<AuditEvent> = events::generate(1, EVENTS as u64, to - Days::new(3), to, "a.b")
        .map(|event| events::encode(&event, Id::OfEvent))
        .collect();
    let bytes: usize = events.iter().map(|event| event.body.len()).sum();
    println!(
        "{EVENTS} events, {} bytes each on average, one thread",
        bytes / EVENTS
    );

    let mut transcoder = Transcoder::default();
    let mut out = Vec::new();
    for event in &events {
        out.clear();
        transcoder.transcode(&event.body, &mut out)?;
        ensure!(
            out == reference(&event.body)?,
            "both ways must give the same text"
        );
    }

    let mut encoder = Encoder::new(&IndexPattern::default());
    let mut adding = Encoder::new(&IndexPattern::default()).with_schema(Schema::Ecs);
    let mut ways: [(&str, Way<'_>); 4] = [
        (
            "prost Struct → serde_json::Value → text",
            Box::new(|| {
                for event in &events {
                    black_box(reference(&event.body)?);
                }
                Ok(())
            }),
        ),
        (
            "wire → JSON",
            Box::new(|| {
                out.clear();
                for event in &events {
                    transcoder.transcode(black_box(&event.body), &mut out)?;
                }
                black_box(&out);
                Ok(())
            }),
        ),
        (
            "the same with action line and id",
            Box::new({
                let mut out = Vec::new();
                let events = &events;
                move || {
                    out.clear();
                    for event in events {
                        encoder.encode(black_box(event), &mut out)?;
                    }
                    black_box(&out);
                    Ok(())
                }
            }),
        ),
        (
            "the same with ECS fields",
            Box::new({
                let mut out = Vec::new();
                let events = &events;
                move || {
                    out.clear();
                    for event in events {
                        adding.encode(black_box(event), &mut out)?;
                    }
                    black_box(&out);
                    Ok(())
                }
            }),
        ),
    ];
    let mut nanoseconds = [const { Vec::new() }; 4];
    for _ in 0..TURNS {
        for ((_, way), taken) in ways.iter_mut().zip(&mut nanoseconds) {
            let began = Instant::now();
            way()?;
            taken.push(began.elapsed().as_secs_f64() * 1e9 / EVENTS as f64);
        }
    }
    println!("\n| | ns an event | times as fast |\n|---|---|---|");
    for ((name, _), taken) in ways.iter().zip(&nanoseconds) {
        let ratios = nanoseconds[0]
            .iter()
            .zip(taken)
            .map(|(plain, taken)| plain / taken);
        println!(
            "| {name} | {:.0} | {:.2} |",
            median(taken.iter().copied()),
            median(ratios)
        );
    }
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn reference(body: &[u8]) -> Result<Vec<u8>> {
    let decoded = prost_types::Struct::decode(body)?;
    Ok(serde_json::to_vec(&object(decoded))?)
}

/// `serde_json` keeps an object's members sorted, and `prost_types` does, too.
fn object(decoded: prost_types::Struct) -> Value {
    let members = decoded.fields.into_iter();
    Value::Object(
        members
            .map(|(key, member)| (key, value(member)))
            .collect::<Map<_, _>>(),
    )
}

fn value(decoded: prost_types::Value) -> Value {
    /// What a double holds exactly along with all below it.
    const EXACT: f64 = 9_007_199_254_740_992.0;

    match decoded.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(truth)) => Value::Bool(truth),
        Some(Kind::StringValue(text)) => Value::String(text),
        #[expect(
            clippy::cast_possible_truncation,
            reason = "it is whole and small enough"
        )]
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() <= EXACT => {
            Value::from(number as i64)
        }
        Some(Kind::NumberValue(number)) => Number::from_f64(number).into(),
        Some(Kind::StructValue(decoded)) => object(decoded),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(value).collect(),
    }
}

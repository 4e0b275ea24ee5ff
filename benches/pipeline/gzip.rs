//! What the levels of gzip win and cost, on the program's own requests.

use std::io::Write;
use std::time::Instant;

use anyhow::Result;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::elasticsearch;
use super::median;
use super::servers::Teleport;

/// Requests that each level compresses.
const REQUESTS: usize = 20;

pub(crate) fn measure(events: usize) -> Result<()> {
    let teleport = Teleport::start(events, &[])?;
    let bodies = elasticsearch::requests(&teleport)?;
    let bodies = &bodies[..bodies.len().min(REQUESTS)];
    let plain: usize = bodies.iter().map(Vec::len).sum();
    println!(
        "{} requests of {} bytes on average\n",
        bodies.len(),
        plain / bodies.len()
    );
    println!("| level | plain : compressed | CPU s per 1 GB of plain text |");
    println!("|---|---|---|");
    for level in [1, 2, 3, 4, 5, 6, 9] {
        let mut packed = 0;
        let mut seconds = Vec::new();
        for body in bodies {
            let began = Instant::now();
            let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
            encoder.write_all(body)?;
            packed += encoder.finish()?.len();
            seconds.push(began.elapsed().as_secs_f64() / body.len() as f64);
        }
        println!(
            "| {level} | {:.1} | {:.1} |",
            plain as f64 / packed as f64,
            median(seconds.into_iter()) * 1e9
        );
    }
    Ok(())
}

//! `status --share`: how far a shared backfill has come, as Elasticsearch knows it.

use std::time::Duration;

use serde_json::{Value, json};

use super::unknown;
use crate::commands::status::{safe_form_words, time};
use crate::commands::transfer::{Patience, reach_elasticsearch};
use crate::commands::{Exit, Failure};
use crate::config::Config;
use crate::elastic::work::Work;
use crate::output;
use crate::share::{Listing, Piece, PieceState, Share, ShareState};
use crate::shutdown::Shutdown;
use crate::teleport::part::Part;

pub(in crate::commands) async fn status(
    config: &Config,
    name: &str,
    as_json: bool,
    shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    let elasticsearch = config.elasticsearch.as_ref();
    let elasticsearch = elasticsearch.expect("the command needs it");
    let reached = reach_elasticsearch(elasticsearch, Patience::Seconds, &shutdown.stop).await?;
    let Some((client, _)) = reached else {
        return Ok(Exit::Failed);
    };
    let work = Work::new(client, name);
    let Some((share, _)) = work.share().await? else {
        return Err(unknown(name));
    };
    let listing = work.list().await?;
    let text = if as_json {
        serde_json::to_string_pretty(&as_value(&share, &listing))?
    } else {
        as_text(&share, &listing)
    };
    output::data(text)?;
    Ok(Exit::Done)
}

fn leased(listing: &Listing) -> impl Iterator<Item = &Piece> {
    let pieces = listing.pieces.iter().map(|(_, piece, _)| piece);
    pieces.filter(|piece| piece.state == PieceState::Leased)
}

/// Events a second since the piece was first worked on.
fn rate(piece: &Piece) -> u64 {
    piece.tally.events.saturating_mul(1000) / piece.worked_ms.max(1)
}

/// If those who work now go on as all pieces so far went. `None`: nothing to go by.
fn time_left(listing: &Listing) -> Option<Duration> {
    if listing.n_done == 0 || listing.n_leased == 0 {
        return None;
    }
    let left = listing.n_pieces - listing.n_done;
    let each = listing.worked_ms / listing.n_done;
    Some(Duration::from_millis(
        each.saturating_mul(left) / listing.n_leased,
    ))
}

fn state(share: &Share, listing: &Listing) -> &'static str {
    match share.state {
        ShareState::Cancelled => "cancelled",
        ShareState::Planning => "being cut into pieces",
        ShareState::Planned if listing.n_done == listing.n_pieces => "done",
        ShareState::Planned if listing.n_leased == 0 => "nobody works on it",
        ShareState::Planned => "in work",
    }
}

fn part_words(part: Part) -> String {
    if part.is_whole() {
        String::new()
    } else {
        format!(" (part {part})")
    }
}

fn as_text(share: &Share, listing: &Listing) -> String {
    let n_open = listing.n_pieces - listing.n_done - listing.n_leased;
    let tally = &listing.tally;
    let mut lines = vec![
        format!(
            "share          {}: {} to {}, {}",
            share.name,
            time(share.from_ms),
            time(share.to_ms),
            state(share, listing)
        ),
        format!("cluster        {}", share.cluster),
        format!(
            "pieces         {}: {} done, {} in work, {n_open} open",
            listing.n_pieces, listing.n_done, listing.n_leased
        ),
        format!(
            "documents      {} created{}, {} already there, {} dead letters, {} gaps",
            tally.created,
            safe_form_words(tally.safe_form),
            tally.already_there,
            tally.dead_letters,
            tally.gaps
        ),
    ];
    for piece in leased(listing) {
        lines.push(format!(
            "  {}: {} to {}{}, complete up to {}, {} events/s",
            piece.owner.as_deref().unwrap_or("somebody"),
            time(piece.from_ms),
            time(piece.to_ms),
            part_words(piece.part),
            time(piece.progress.position_ms),
            rate(piece)
        ));
    }
    if let Some(left) = time_left(listing) {
        lines.push(format!("time left      about {} s", left.as_secs()));
    }
    lines.join("\n")
}

fn as_value(share: &Share, listing: &Listing) -> Value {
    let workers = leased(listing).map(|piece| {
        json!({
            "owner": piece.owner,
            "from": time(piece.from_ms),
            "to": time(piece.to_ms),
            "part": (!piece.part.is_whole()).then(|| piece.part.to_string()),
            "position": time(piece.progress.position_ms),
            "events_per_second": rate(piece),
            "taken_over": piece.taken_over,
        })
    });
    json!({
        "share": share.name,
        "state": state(share, listing),
        "cluster": share.cluster,
        "from": time(share.from_ms),
        "to": time(share.to_ms),
        "pieces": listing.n_pieces,
        "done": listing.n_done,
        "in_work": listing.n_leased,
        "tally": listing.tally,
        "workers": workers.collect::<Vec<_>>(),
        "seconds_left": time_left(listing).map(|left| left.as_secs()),
    })
}

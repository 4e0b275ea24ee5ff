//! The program is killed at each write to its state file and at each sync of it, one after the
//! other, with half of the write done.
use std::fs;

use chrono::TimeDelta;
use rusqlite::{Connection, OpenFlags};
use teleport_event_indexer::demo::auth::{AuthOptions, Unreadable};
use teleport_event_indexer::demo::elastic::{ElasticsearchOptions, Refusal};

use crate::support::rig::{Rig, backfill, event, midnight, realistic};

const REFUSED: &str = "refused.one";

/// The n-th process dies at its n-th write, until one comes to the end: the number of that one. They
/// all work on one state.
fn die_at_each_write(export: bool) -> i64 {
    let auth = AuthOptions {
        export,
        chunk_events: 30,
        ..AuthOptions::default()
    };
    let options = ElasticsearchOptions::default();
    let mut rig = Rig::with(auth, options, "batch = 40", "batch-documents = 20");
    rig.append(realistic(1, 120, 3, 1));
    rig.append([event("refused", REFUSED, midnight(2))]);
    let mut large = event("large", "large", midnight(2) + TimeDelta::hours(7));
    large["command"] = "x".repeat(20_000).into();
    rig.append([large]);
    // A chunk hides none, so by export it comes.
    let limit = (10_000, Unreadable::Hidden);
    rig.auth().set_unreadable(Some(limit));
    rig.elasticsearch().add_rule(|operation| {
        let refused = operation.contains(REFUSED);
        refused.then(Refusal::mapping_failure)
    });
    let faults = rig.befall();
    let mut n = 0;
    loop {
        n += 1;
        faults.kill_at_step(n);
        let output = rig.run(&backfill(3, 1));
        rig.assert_nothing_was_passed();
        if output.signal != Some(9) {
            // The one before may have died with all of it done.
            let was_done = output.stderr.contains("this range is done");
            let code = Some(i32::from(!was_done));
            assert_eq!(output.code, code, "{}", output.stderr);
            assert!(n > 20, "only {n} processes have died");
            break;
        }
    }
    assert!(rig.backfill().finished);
    if export {
        rig.assert_complete_but(&[REFUSED]);
    } else {
        assert_eq!(rig.open_gaps().len(), 1);
        assert_eq!(rig.stored().1.len(), 1);
        rig.assert_complete_but_for(&["large"], &[REFUSED]);
    }
    n
}

#[test]
fn while_it_exports() {
    println!("{} processes", die_at_each_write(true));
}

#[test]
fn while_it_searches() {
    println!("{} processes", die_at_each_write(false));
}

/// A state file as format 2 had it.
const FORMAT_2: &str = include_str!("format_2.sql");

#[test]
fn while_it_brings_an_old_state_file_up_to_date() {
    let mut rig = Rig::new("", "");
    rig.append([event("new", "plain", midnight(2))]);
    let path = rig.storage().join("state.sqlite");
    let open = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        Connection::open_with_flags(&path, flags).unwrap()
    };
    let format = || -> i64 {
        let format = open().pragma_query_value(None, "user_version", |row| row.get(0));
        format.unwrap()
    };
    let faults = rig.befall();
    let mut seen = Vec::new();
    for n in 1.. {
        fs::remove_dir_all(rig.storage()).unwrap_or_default();
        fs::create_dir(rig.storage()).unwrap();
        open().execute_batch(FORMAT_2).unwrap();
        assert_eq!(format(), 2);
        faults.kill_at_step(n);
        let output = rig.run(&backfill(3, 1));
        seen.push(format());
        let kept = "SELECT (SELECT position_ms FROM runs WHERE kind = 'daemon') || ' ' ||
            (SELECT count(*) FROM gaps) || ' ' || (SELECT reason FROM dead_letters)";
        let kept: String = open().query_row(kept, [], |row| row.get(0)).unwrap();
        assert_eq!(kept, "1790000000000 2 no such field", "killed at write {n}");
        if output.signal != Some(9) {
            assert!(rig.backfill().finished, "{}", output.stderr);
            break;
        }
    }
    // Some died before and some behind the one moment at which it is new.
    assert!(seen.is_sorted(), "{seen:?}");
    let newest = seen[seen.len() - 1];
    assert!(
        newest > 2 && seen.iter().all(|format| [2, newest].contains(format)),
        "{seen:?}"
    );
    let n_old = seen.iter().filter(|format| **format == 2).count();
    assert!(n_old > 3 && n_old < seen.len() - 3, "{seen:?}");
}

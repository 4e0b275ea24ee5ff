//! A state as bytes, and back: for one that lies elsewhere than in a file of this machine.

use std::path::PathBuf;

use rusqlite::Connection;

use super::error::classify;
use super::{Checkpoint, CheckpointError, refuse_unknown, schema};

/// Where SQLite's header says how the file is written and read: 2 is by a write-ahead log, which a
/// database in memory cannot have.
const HOW_WRITTEN: std::ops::Range<usize> = 18..20;

impl Checkpoint {
    /// The state as of one moment, as SQLite would write it into a file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn image(&self) -> Result<Vec<u8>, CheckpointError> {
        let mut connection = self.connection();
        let image = connection
            .serialize("main")
            .map_err(|error| classify(&self.path, "copy", error))?;
        let mut image = image.to_vec();
        if let Some(how) = image.get_mut(HOW_WRITTEN) {
            how.fill(1);
        }
        Ok(image)
    }

    /// A number that grows with each change by this value, and with no other: whether there may be a new
    /// image.
    pub fn changes(&self) -> u64 {
        self.connection().total_changes()
    }

    /// A state in memory that begins as this one, or as a new one if that is empty. `name` says
    /// where it lies, for people.
    ///
    /// # Errors
    /// If it is damaged, of another program or of a newer version.
    pub fn of_image(image: &[u8], name: &str) -> Result<Self, CheckpointError> {
        let path = PathBuf::from(name);
        let failed = |doing| {
            let path = path.clone();
            move |error| classify(&path, doing, error)
        };
        let mut connection = Connection::open_in_memory().map_err(failed("open it"))?;
        if !image.is_empty() {
            connection
                .deserialize_read_exact("main", image, image.len(), false)
                .map_err(failed("read it"))?;
        }
        refuse_unknown(
            &path,
            &schema::format(&connection).map_err(failed("read it"))?,
        )?;
        schema::migrate(&mut connection, schema::MIGRATIONS)
            .map_err(failed("bring the tables up to date"))?;
        Ok(Self::new(path, connection))
    }
}

#[cfg(test)]
mod tests {
    use crate::checkpoint::{Counts, SourceMode, Step};

    use super::*;

    #[test]
    fn a_state_goes_from_a_file_into_memory_and_back() {
        let directory = tempfile::tempdir().unwrap();
        let file = Checkpoint::open(directory.path()).unwrap();
        let step = |reached_ms| Step::Window {
            from_ms: 0,
            to_ms: 100,
            reached_ms,
        };
        let run = file.daemon_run("example", || 0).unwrap().0.id;
        file.set_mode(run, SourceMode::Search).unwrap();
        file.commit(run, &[step(10)], &Counts::default()).unwrap();

        let memory = Checkpoint::of_image(&file.image().unwrap(), "elsewhere").unwrap();
        let position = |checkpoint: &Checkpoint| checkpoint.run(run).unwrap().position_ms;
        assert_eq!(position(&memory), 10);
        memory.commit(run, &[step(50)], &Counts::default()).unwrap();
        // More than fits into what was read.
        let session = |n| crate::checkpoint::Gap {
            reason: "test".to_owned(),
            from_ms: n,
            detail: "x".repeat(1000),
            ..crate::checkpoint::Gap::default()
        };
        for n in 0..500 {
            assert!(memory.record_gap(run, &session(n)).unwrap());
        }
        let again = Checkpoint::of_image(&memory.image().unwrap(), "elsewhere").unwrap();
        assert_eq!((position(&again), position(&file)), (50, 10));
        assert_eq!(again.summary().unwrap().gaps, 500);
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let state = Checkpoint::of_image(&[], "elsewhere").unwrap();
        let image = state.image().unwrap();
        let refused = |image: &[u8]| {
            let error = Checkpoint::of_image(image, "elsewhere").unwrap_err();
            error.to_string()
        };
        assert!(refused(&image[..5000]).contains("elsewhere"));
        assert!(refused(&[7; 8192]).contains("elsewhere"));
        let mut newer = image;
        // The format, in SQLite's header.
        newer[60..64].copy_from_slice(&99_u32.to_be_bytes());
        assert!(refused(&newer).contains("format 99"), "{}", refused(&newer));
    }
}

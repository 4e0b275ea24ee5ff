//! Failed logins that may lead to locks, and the locks that are still to be made.

use rusqlite::{Transaction, params};

use super::{Checkpoint, CheckpointError, signed, unsigned};

/// A login that has failed. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedLogin {
    /// Who was to be logged in.
    pub user: String,
    /// As whom on the machine; mostly empty.
    pub login: String,
    /// The event's id.
    pub event: Vec<u8>,
    /// When it was.
    pub time_ms: i64,
}

/// How many failed logins make a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRule {
    /// So many of one user.
    pub attempts: usize,
    /// Within this time, in milliseconds.
    pub period_ms: i64,
    /// Failures from before this are known no more: none as old is read any more either.
    pub known_from_ms: i64,
}

/// A lock that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueLock {
    /// Whom to lock.
    pub user: String,
    /// Of the last failure: as whom on the machine.
    pub login: String,
    /// When the last failure was, in milliseconds since 1970.
    pub failed_ms: i64,
    /// How many failures led to it.
    pub failures: u64,
}

impl Checkpoint {
    /// Writes failed logins down, each once however often it is read, and the locks that come of
    /// them. Says whether there are any.
    ///
    /// Failures that led to a lock count no more, so the next one needs as many new ones.
    ///
    /// # Errors
    /// If the state file cannot be changed.
    pub fn add_failed_logins(
        &self,
        failed: &[FailedLogin],
        rule: LockRule,
    ) -> Result<bool, CheckpointError> {
        self.write("write down failed logins", |transaction| {
            transaction
                .prepare_cached("DELETE FROM failed_logins WHERE time_ms < ?1")?
                .execute([rule.known_from_ms])?;
            let mut insert = transaction.prepare_cached(
                "INSERT INTO failed_logins (user, time_ms, event) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO NOTHING",
            )?;
            let mut is_any_due = false;
            for login in failed {
                let is_new = insert.execute(params![login.user, login.time_ms, login.event])? > 0;
                if is_new && is_too_many(transaction, &login.user, rule)? {
                    make_due(transaction, login)?;
                    is_any_due = true;
                }
            }
            Ok(is_any_due)
        })
    }

    /// The locks that are to be made, by user.
    ///
    /// # Errors
    /// If the state file cannot be read.
    pub fn due_locks(&self) -> Result<Vec<DueLock>, CheckpointError> {
        self.read("read which locks are to be made", |transaction| {
            let due = transaction
                .prepare_cached("SELECT user, login, failed_ms, failures FROM locks ORDER BY user")?
                .query_map([], |row| {
                    Ok(DueLock {
                        user: row.get(0)?,
                        login: row.get(1)?,
                        failed_ms: row.get(2)?,
                        failures: row.get(3).map(unsigned)?,
                    })
                })?
                .collect::<Result<_, _>>()?;
            Ok(due)
        })
    }

    /// Forgets a lock that was made, or that nobody is to make; not one that has become due since.
    ///
    /// # Errors
    /// If the state file cannot be changed.
    pub fn settle_lock(&self, lock: &DueLock) -> Result<(), CheckpointError> {
        self.write("settle a lock", |transaction| {
            transaction.execute(
                "DELETE FROM locks WHERE user = ?1 AND failed_ms = ?2 AND failures = ?3",
                params![lock.user, lock.failed_ms, signed(lock.failures)],
            )?;
            Ok(())
        })
    }
}

/// Whether there are so many failures of a user within the period, whichever came first.
fn is_too_many(
    transaction: &Transaction<'_>,
    user: &str,
    rule: LockRule,
) -> rusqlite::Result<bool> {
    let times: Vec<i64> = transaction
        .prepare_cached(
            "SELECT time_ms FROM failed_logins WHERE user = ?1 AND counted = 0 ORDER BY time_ms",
        )?
        .query_map([user], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let is_short = |span: &[i64]| span[span.len() - 1] - span[0] <= rule.period_ms;
    Ok(times.windows(rule.attempts).any(is_short))
}

fn make_due(transaction: &Transaction<'_>, last: &FailedLogin) -> rusqlite::Result<()> {
    let failures = transaction.execute(
        "UPDATE failed_logins SET counted = 1 WHERE user = ?1 AND counted = 0",
        [&last.user],
    )?;
    transaction
        .prepare_cached(
            "INSERT INTO locks (user, login, failed_ms, failures) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET login = excluded.login,
                 failed_ms = max(failed_ms, excluded.failed_ms),
                 failures = failures + excluded.failures",
        )?
        .execute(params![
            last.user,
            last.login,
            last.time_ms,
            i64::try_from(failures).unwrap_or(i64::MAX)
        ])
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(user: &str, event: &str, time_ms: i64) -> FailedLogin {
        FailedLogin {
            user: user.to_owned(),
            login: String::new(),
            event: event.as_bytes().to_vec(),
            time_ms,
        }
    }

    const RULE: LockRule = LockRule {
        attempts: 3,
        period_ms: 60_000,
        known_from_ms: 0,
    };

    #[test]
    fn so_many_within_the_period_lock_that_user_once() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Checkpoint::open(directory.path()).unwrap();
        let add = |checkpoint: &Checkpoint, logins: &[FailedLogin]| {
            checkpoint.add_failed_logins(logins, RULE).unwrap()
        };
        let due = |checkpoint: &Checkpoint| {
            let due = checkpoint.due_locks().unwrap().into_iter();
            due.map(|lock| (lock.user, lock.failed_ms, lock.failures))
                .collect::<Vec<_>>()
        };
        // Two each, and the third too late, by a millisecond; in no order, and read twice.
        let checkpoint = open();
        let early = [
            failed("alice", "3", 60_001),
            failed("bob", "1", 5),
            failed("alice", "1", 0),
            failed("bob", "2", 6),
            failed("alice", "2", 30_000),
        ];
        assert!(!add(&checkpoint, &early));
        assert!(!add(&checkpoint, &early));
        assert_eq!(due(&checkpoint), []);

        // All of it is known to the next process; the same time is another event.
        drop(checkpoint);
        let checkpoint = open();
        assert!(add(&checkpoint, &[failed("alice", "4", 60_001)]));
        assert_eq!(due(&checkpoint), [("alice".to_owned(), 60_001, 4)]);
        assert!(!add(&checkpoint, &early));
        assert!(!add(&checkpoint, &[failed("alice", "4", 60_001)]));
        let [lock] = &checkpoint.due_locks().unwrap()[..] else {
            panic!("it is one");
        };
        checkpoint.settle_lock(lock).unwrap();
        assert_eq!(due(&checkpoint), []);

        // What has led to a lock counts no more.
        let more = [failed("alice", "5", 60_002), failed("alice", "6", 60_003)];
        assert!(!add(&checkpoint, &more));
        assert!(add(&checkpoint, &[failed("alice", "7", 60_004)]));
        assert_eq!(due(&checkpoint), [("alice".to_owned(), 60_004, 3)]);
        // A lock that has become due anew is not settled by an older one.
        checkpoint.settle_lock(lock).unwrap();
        assert_eq!(due(&checkpoint).len(), 1);
    }

    #[test]
    fn what_is_too_old_is_forgotten() {
        let checkpoint = Checkpoint::open_in_memory().unwrap();
        let old = [failed("alice", "1", 10), failed("alice", "2", 20)];
        assert!(!checkpoint.add_failed_logins(&old, RULE).unwrap());
        let later = LockRule {
            known_from_ms: 15,
            ..RULE
        };
        let third = [failed("alice", "3", 30)];
        assert!(!checkpoint.add_failed_logins(&third, later).unwrap());
        let fourth = [failed("alice", "4", 30)];
        assert!(checkpoint.add_failed_logins(&fourth, later).unwrap());
    }
}

//! Faults of the system under the program: a clock that jumps, a full disk, a death at any write to
//! the state file. A small C library, preloaded into the program as it is, brings them about; so
//! the program has no hook for them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `EIO` of Linux.
pub(crate) const IO_ERROR: i64 = 5;

/// `ENOSPC` of Linux.
pub(crate) const NO_SPACE: i64 = 28;

/// What the library is to do, in a file that the program has mapped.
pub(crate) struct Faults {
    library: PathBuf,
    path: PathBuf,
    plan: File,
}

impl Faults {
    /// No faults, to begin with; `directory` takes library and plan.
    pub(crate) fn new(directory: &Path) -> Self {
        let library = directory.join("faults.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/faults.c");
        let built = Command::new("cc")
            .args([
                "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o",
            ])
            .args([&library, &source])
            .output()
            .expect("there is a C compiler, as SQLite needs one");
        let errors = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{errors}");
        let path = directory.join("faults.plan");
        std::fs::write(&path, [0; 32]).expect("the folder takes a file");
        let plan = File::options().read(true).write(true).open(&path);
        let plan = plan.expect("it was just written");
        Self {
            library,
            path,
            plan,
        }
    }

    /// The environment of a program that is to have them.
    pub(crate) fn environment(&self) -> [(&'static str, String); 2] {
        let text = |path: &Path| path.to_str().expect("the path is UTF-8").to_owned();
        [
            ("LD_PRELOAD", text(&self.library)),
            ("FAULTS_PLAN", text(&self.path)),
        ]
    }

    /// From now on the clock is so many seconds ahead.
    pub(crate) fn set_clock_ahead(&self, seconds: i64) {
        self.set(0, seconds);
    }

    /// The program is to die at the n-th write to its state file, or sync of it, from now on; half
    /// of a write is done.
    pub(crate) fn kill_at_step(&self, n: i64) {
        self.set(1, self.steps() + n);
    }

    /// From now on writing to the state file fails with this; 0 for no longer.
    pub(crate) fn fail_writes(&self, error: i64) {
        self.set(2, error);
    }

    /// How many writes and syncs of the state file there were.
    pub(crate) fn steps(&self) -> i64 {
        let mut cell = [0; 8];
        let read = self.plan.read_exact_at(&mut cell, 3 * 8);
        read.expect("the plan has four cells");
        i64::from_ne_bytes(cell)
    }

    fn set(&self, cell: u64, value: i64) {
        let written = self.plan.write_all_at(&value.to_ne_bytes(), cell * 8);
        written.expect("the plan can be written");
    }
}

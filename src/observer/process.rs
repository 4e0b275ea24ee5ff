//! What the process takes of the machine, where the system tells.

use std::fs;

/// What the process has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Process {
    /// Processor time so far, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Memory that is resident, in bytes.
    pub resident_bytes: Option<u64>,
    /// Open files and connections.
    pub open_files: Option<u64>,
}

/// Linux counts processor time in hundredths of a second for everybody who asks.
const TICKS_A_SECOND: f64 = 100.0;

pub(super) fn look() -> Process {
    let stat = fs::read_to_string("/proc/self/stat").ok();
    let status = fs::read_to_string("/proc/self/status").ok();
    let files = fs::read_dir("/proc/self/fd").ok();
    Process {
        cpu_seconds: stat.and_then(|stat| cpu_seconds(&stat)),
        resident_bytes: status.and_then(|status| resident_bytes(&status)),
        // Less the one by which we count.
        open_files: files.map(|files| (files.count() as u64).saturating_sub(1)),
    }
}

/// The name of the process stands before, in parentheses, and may have any character.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let sum = ticks()? + ticks()?;
    Some(sum as f64 / TICKS_A_SECOND)
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        let stat = "42 (a) (b) S 1 42 42 0 -1 4194560 1 2 3 4 150 25 6 7 20 0 3 0 99 1 2";
        assert_eq!(cpu_seconds(stat), Some(1.75));
        assert_eq!(cpu_seconds("42"), None);
        assert_eq!(
            resident_bytes("VmHWM: 9 kB\nVmRSS:\t  12 kB\n"),
            Some(12 << 10)
        );
        if cfg!(target_os = "linux") {
            let seen = look();
            assert!(seen.resident_bytes.is_some_and(|bytes| bytes > 1 << 20));
            assert!(seen.cpu_seconds.is_some() && seen.open_files.is_some_and(|n| n >= 3));
        }
    }
}

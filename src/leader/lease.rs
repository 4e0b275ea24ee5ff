//! The lease as those see it who send something under it.

use std::pin::pin;
use std::task::Poll;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::pipeline::{PageSender, Source};

/// Until when this process leads. Ends by itself, whatever becomes of who renews it.
#[derive(Clone, Debug)]
pub struct Lease(watch::Receiver<Instant>);

impl Lease {
    /// A lease that lasts until what is sent says, and who says so.
    pub fn new(until: Instant) -> (watch::Sender<Instant>, Self) {
        let (sender, receiver) = watch::channel(until);
        (sender, Self(receiver))
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        // The clock, and not a timer: after the process was stopped timers come late.
        Instant::now() >= *self.0.borrow()
    }

    /// Waits until it has ended. It may be dropped at any point.
    pub async fn over(mut self) {
        loop {
            let until = *self.0.borrow_and_update();
            tokio::select! {
                biased;
                // Dropped by who renews it: it is not renewed any more.
                Ok(()) = self.0.changed() => {}
                () = sleep_until(until) => return,
            }
        }
    }

    /// Does something as long as the lease lasts, and then no more: it never comes to an end then,
    /// and is dropped with the run that it is part of.
    pub async fn within<T>(&self, work: impl Future<Output = T>) -> T {
        let mut over = pin!(self.clone().over());
        let mut work = pin!(work);
        std::future::poll_fn(|context| {
            if self.is_over() || over.as_mut().poll(context).is_ready() {
                return Poll::Pending;
            }
            work.as_mut().poll(context)
        })
        .await
    }
}

/// A source that does nothing any more once the lease has ended: what it does beside reading, as it
/// locks users, is for one process.
#[derive(Debug)]
pub struct Leased<S> {
    /// What reads.
    pub source: S,
    /// Until when.
    pub lease: Lease,
}

impl<S: Source> Source for Leased<S> {
    type Error = S::Error;

    async fn run(self, pages: PageSender, stop: CancellationToken) -> Result<(), S::Error> {
        self.lease.within(self.source.run(pages, stop)).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nothing_goes_on_after_the_lease() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let (renew, lease) = Lease::new(start + second);
        lease.within(tokio::time::sleep(second / 2)).await;
        renew.send(start + 3 * second).unwrap();
        lease.within(tokio::time::sleep(2 * second)).await;
        assert_eq!(start.elapsed(), second / 2 + 2 * second);
        let late = lease.within(tokio::time::sleep(second));
        assert!(timeout(100 * second, late).await.is_err());
        assert!(lease.is_over());
        let at_once = lease.within(std::future::ready(()));
        assert!(timeout(second, at_once).await.is_err());
        drop(renew);
        lease.over().await;
    }
}

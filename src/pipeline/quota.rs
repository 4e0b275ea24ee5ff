//! Quotas: so many requests, events or bytes a second.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// Lets so many units a second pass, whoever asks.
pub type Limiter = DefaultDirectRateLimiter;

/// A limiter of `per_second` units a second, with one second's worth of burst.
pub fn limiter(per_second: NonZeroU32) -> Limiter {
    RateLimiter::direct(Quota::per_second(per_second))
}

/// Waits until `units` may pass. More than one second's worth passes in several helpings, since
/// the limiter lets nothing larger than its burst pass at once.
pub async fn pass(limiter: &Limiter, units: usize) {
    let mut left = u32::try_from(units).unwrap_or(u32::MAX);
    let mut helping = u32::MAX;
    while let Some(n) = NonZeroU32::new(left.min(helping)) {
        match limiter.until_n_ready(n).await {
            Ok(()) => left -= n.get(),
            Err(too_many) => helping = too_many.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn more_than_a_burst_passes_in_helpings() {
        let limiter = limiter(NonZeroU32::new(1_000_000).unwrap());
        pass(&limiter, 0).await;
        pass(&limiter, 1_000_001).await;
        assert!(
            limiter
                .check_n(NonZeroU32::new(1_000_000).unwrap())
                .unwrap()
                .is_err()
        );
    }
}

//! Names that are never used again, and jitter.

fn bits() -> u64 {
    getrandom::u64().unwrap_or_else(|_| {
        // No source of randomness: the clock and the process tell lives apart well enough.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        u64::from(now.subsec_nanos()) << 32 ^ now.as_secs() ^ u64::from(std::process::id()) << 20
    })
}

/// A name that was never used: for one life of a producer or worker, or an id.
pub fn name() -> String {
    format!("{:016x}", bits())
}

/// A number between the two.
pub(crate) fn between(low: f64, high: f64) -> f64 {
    let whole = u32::try_from(bits() >> 32).unwrap_or(0);
    low + (high - low) * f64::from(whole) / f64::from(u32::MAX)
}

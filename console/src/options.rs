//! Numbers of command lines, with limits that all three programs share and say alike.

/// The most tokens: no model has a longer context.
pub const MOST_TOKENS: usize = 1 << 20;

/// A whole number from `LEAST` to `MOST`, as an option gives it.
///
/// # Errors
/// It is none, or beyond a limit; both are named.
pub fn whole<const LEAST: usize, const MOST: usize>(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(number) if (LEAST..=MOST).contains(&number) => Ok(number),
        _ => Err(format!("expected a whole number from {LEAST} to {MOST}")),
    }
}

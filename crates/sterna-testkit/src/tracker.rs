//! How the writes of tests' guests are tracked.

/// The variable that says it: `pagemap-scan` or `soft-dirty`; the best that the kernel can if it is not set.
pub const VARIABLE: &str = "STERNA_TEST_TRACKER";

/// What the environment asks for, as an agent's option has it.
///
/// # Panics
/// If it asks for something else: a test must not quietly use what nobody asked for.
#[must_use]
pub fn wanted() -> Option<&'static str> {
    match std::env::var(VARIABLE).as_deref() {
        Err(_) | Ok("") => None,
        Ok("pagemap-scan") => Some("pagemap-scan"),
        Ok("soft-dirty") => Some("soft-dirty"),
        Ok(other) => panic!("{VARIABLE} is {other:?}, neither pagemap-scan nor soft-dirty"),
    }
}

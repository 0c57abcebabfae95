//! Sizes, rates and times as people write and read them.

use bytesize::ByteSize;
use std::time::Duration;

/// Bytes, from `512MiB`, `1.5G` or a plain number.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    text.parse::<ByteSize>().map(|size| size.as_u64())
}

/// Bytes a second, from `100MB/s`.
pub(crate) fn parse_rate(text: &str) -> Result<u64, String> {
    parse_size(text.strip_suffix("/s").unwrap_or(text).trim_end())
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// A rate for people.
pub(crate) fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", ByteSize(bytes_per_second).display().si())
}

/// A time for people, to three digits or so.
pub(crate) fn time(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1000.0;
    match milliseconds {
        ..10.0 => format!("{milliseconds:.2} ms"),
        10.0..100.0 => format!("{milliseconds:.1} ms"),
        100.0..1000.0 => format!("{milliseconds:.0} ms"),
        1000.0..100_000.0 => format!("{:.2} s", time.as_secs_f64()),
        _ => humantime::format_duration(Duration::from_secs(time.as_secs())).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_sizes_are_read_in_powers_of_ten_and_of_two() {
        assert_eq!(parse_rate("100MB/s"), Ok(100_000_000));
        assert_eq!(parse_rate("1GiB/s"), Ok(1 << 30));
        assert_eq!(parse_size("512 MiB"), Ok(512 << 20));
        assert!(parse_size("fast").is_err());
    }

    #[test]
    fn times_have_three_digits() {
        assert_eq!(time(Duration::from_micros(3_617)), "3.62 ms");
        assert_eq!(time(Duration::from_micros(18_440)), "18.4 ms");
        assert_eq!(time(Duration::from_millis(5_312)), "5.31 s");
        assert_eq!(time(Duration::from_millis(190_900)), "3m 10s");
    }
}

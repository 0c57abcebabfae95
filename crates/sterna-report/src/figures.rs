//! Figures as they are read: three digits that count, and a unit.

use std::time::{Duration, UNIX_EPOCH};

const KIB: f64 = 1024.0;
const BYTE_UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// The last second of the year 9999, after which dates are not written any more.
const LAST_DATE_SECONDS: u64 = 253_402_300_799;

/// A duration, from microseconds to hours.
pub(crate) fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if time.is_zero() {
        "0 ms".into()
    } else if seconds < 0.000_999_5 {
        format!("{} µs", digits(seconds * 1e6))
    } else if seconds < 0.999_5 {
        format!("{} ms", digits(seconds * 1e3))
    } else if seconds < 120.0 {
        format!("{} s", digits(seconds))
    } else if seconds < 7200.0 {
        format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
    } else {
        format!("{} h {:02} min", time.as_secs() / 3600, time.as_secs() / 60 % 60)
    }
}

/// A number of bytes.
pub(crate) fn bytes(bytes: u64) -> String {
    scaled(number(bytes))
}

/// A number of bytes a second; a dash where there is none.
pub(crate) fn rate(bytes_per_second: Option<f64>) -> String {
    bytes_per_second.map_or_else(|| "–".into(), |rate| format!("{}/s", scaled(rate)))
}

/// A count, with thin spaces between thousands.
pub(crate) fn count(count: u64) -> String {
    let plain = count.to_string();
    let mut text = String::with_capacity(plain.len() * 2);
    for (index, digit) in plain.chars().enumerate() {
        if index > 0 && (plain.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A time since 1970 as date and time of day.
pub(crate) fn date(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    match UNIX_EPOCH.checked_add(Duration::from_secs(seconds)) {
        Some(at) if seconds <= LAST_DATE_SECONDS => {
            humantime::format_rfc3339_seconds(at).to_string().replace('T', " ").replace('Z', " UTC")
        }
        _ => "an impossible date".into(),
    }
}

/// A share of a whole as a percentage or, from twice the whole on, as a multiple.
pub(crate) fn share(part: u64, whole: u64) -> Option<String> {
    let share = number(part) / number(Some(whole).filter(|whole| *whole > 0)?);
    Some(match share {
        share if share >= 2.0 => format!("{} ×", digits(share)),
        share => format!("{} %", digits(share * 100.0)),
    })
}

/// How many bytes a second; `None` where no time passed.
pub(crate) fn per_second(bytes: u64, time: Duration) -> Option<f64> {
    (!time.is_zero()).then(|| number(bytes) / time.as_secs_f64())
}

/// A whole number for a picture, where its last digits do not show.
#[expect(clippy::cast_precision_loss, reason = "for pictures and three digits")]
pub(crate) fn number(whole: u64) -> f64 {
    whole as f64
}

/// The unit in which numbers of bytes up to `largest` are read: its size and its name.
pub(crate) fn byte_unit(largest: f64) -> (f64, &'static str) {
    let mut size = 1.0;
    let mut name = BYTE_UNITS[0];
    for unit in &BYTE_UNITS[1..] {
        if largest / size < 1000.0 {
            break;
        }
        size *= KIB;
        name = unit;
    }
    (size, name)
}

/// The unit in which an axis of times up to `longest` is marked: its seconds and its name.
pub(crate) fn time_unit(longest: Duration) -> (f64, &'static str) {
    match longest.as_secs_f64() {
        to if to < 2.5 => (1e-3, "ms"),
        to if to < 600.0 => (1.0, "s"),
        _ => (60.0, "min"),
    }
}

fn scaled(bytes: f64) -> String {
    let (size, name) = byte_unit(bytes);
    if size > 1.0 { format!("{} {name}", digits(bytes / size)) } else { format!("{bytes:.0} B") }
}

/// Three digits that count; a number of four digits keeps them all.
fn digits(value: f64) -> String {
    if value < 0.005 {
        return if value > 0.0 { "< 0.01".into() } else { "0".into() };
    }
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_the_unit_that_fits() {
        let cases = [
            (0, "0 ms"),
            (7, "7.00 µs"),
            (999, "999 µs"),
            (1_000, "1.00 ms"),
            (14_240, "14.2 ms"),
            (999_999, "1.00 s"),
            (5_310_000, "5.31 s"),
            (125_000_000, "2 min 05 s"),
            (7_320_000_000, "2 h 02 min"),
        ];
        for (micros, text) in cases {
            assert_eq!(time(Duration::from_micros(micros)), text);
        }
        assert!(time(Duration::MAX).ends_with("min"));
    }

    #[test]
    fn bytes_are_read_in_binary_units() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1023, "1.00 KiB"),
            (4096, "4.00 KiB"),
            (512 << 20, "512 MiB"),
            (1 << 30, "1.00 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (value, text) in cases {
            assert_eq!(bytes(value), text);
        }
    }

    #[test]
    fn nothing_in_no_time_is_no_rate() {
        assert_eq!(rate(per_second(5, Duration::ZERO)), "–");
        assert_eq!(rate(per_second(1 << 20, Duration::from_millis(500))), "2.00 MiB/s");
    }

    #[test]
    fn counts_are_grouped_by_thousands() {
        assert_eq!(count(131_072), "131\u{202f}072");
        assert_eq!(count(72), "72");
    }

    #[test]
    fn every_number_of_milliseconds_is_some_date() {
        assert_eq!(date(1_763_683_200_999), "2025-11-21 00:00:00 UTC");
        assert_eq!(date(LAST_DATE_SECONDS * 1000), "9999-12-31 23:59:59 UTC");
        assert_eq!(date(u64::MAX), "an impossible date");
    }

    #[test]
    fn a_share_of_nothing_is_not_written() {
        assert_eq!(share(1, 0), None);
        assert_eq!(share(1, 4).unwrap(), "25.0 %");
        assert_eq!(share(9, 2).unwrap(), "4.50 ×");
    }
}

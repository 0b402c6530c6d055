//! Times as the API writes them, and durations as people read them.
//!
//! Instants travel through the code as seconds since the epoch, which is what `metav1.Time` keeps.

use std::time::Duration;

use jiff::Timestamp;

/// `metav1.Time`: `2026-01-02T03:04:05Z`. Out of range is clamped to what a timestamp holds.
pub fn rfc3339(seconds: i64) -> String {
    timestamp(seconds, 0).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `metav1.MicroTime`: always six digits of fraction.
pub fn rfc3339_micro(seconds: i64, nanos: i32) -> String {
    timestamp(seconds, nanos).strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Seconds since the epoch of a time in any zone, with or without fraction.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    parse(text).map(|t| t.as_second())
}

/// The instant of a time in any zone, with its fraction.
pub fn parse(text: &str) -> Option<Timestamp> {
    // jiff reads more than RFC 3339; the API takes that only: a `T`, and a zone at the end.
    let bytes = text.as_bytes();
    let shaped = bytes.len() >= 20 && bytes[10] == b'T' && bytes[13] == b':' && bytes[16] == b':';
    if shaped { text.parse().ok() } else { None }
}

/// An instant of seconds and nanoseconds, clamped to what a timestamp holds.
pub fn timestamp(seconds: i64, nanos: i32) -> Timestamp {
    Timestamp::new(seconds, nanos).unwrap_or(if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

/// A duration as Go writes it: `1h30m`, `15s`, `500ms`.
///
/// Upstream: Go's time.ParseDuration, without signs
pub fn go_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration like 15s or 1m30s");
    let mut rest = if text == "0" { "0s" } else { text };
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        total += number.parse::<f64>().map_err(|_| wrong())? * seconds;
        rest = after;
    }
    if text.is_empty() { Err(wrong()) } else { Duration::try_from_secs_f64(total).map_err(|_| wrong()) }
}

/// A duration in seconds as `kubectl get` shows ages: `5s`, `3m10s`, `2d3h`, `400d`.
///
/// Upstream: apimachinery/pkg/util/duration/duration.go HumanDuration
pub fn human_duration(seconds: i64) -> String {
    match seconds {
        ..=-2 => return "<invalid>".to_owned(),
        -1 => return "0s".to_owned(),
        _ => {}
    }
    let minutes = seconds / 60;
    let hours = minutes / 60;
    let days = hours / 24;
    let years = days / 365;
    let two = |large: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{small_unit}") }
    };
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        two(minutes, "m", seconds % 60, "s")
    } else if hours < 3 {
        format!("{minutes}m")
    } else if hours < 8 {
        two(hours, "h", minutes % 60, "m")
    } else if hours < 48 {
        format!("{hours}h")
    } else if days < 8 {
        two(days, "d", hours % 24, "h")
    } else if days < 365 * 2 {
        format!("{days}d")
    } else if days < 365 * 8 {
        two(years, "y", days % 365, "d")
    } else {
        format!("{years}y")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339_micro(1_767_323_045, 120_000), "2026-01-02T03:04:05.000120Z");
        for (text, seconds) in [
            ("2026-01-02T03:04:05Z", Some(1_767_323_045)),
            ("2026-01-02T04:04:05+01:00", Some(1_767_323_045)),
            ("2026-01-02T03:04:05.999999Z", Some(1_767_323_045)),
            ("2026-01-02", None),
            ("2026-01-02T03:04:05", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(parse_rfc3339(text), seconds, "{text}");
        }
    }

    #[test]
    fn ages_read_as_upstreams() {
        for (seconds, text) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (190, "3m10s"),
            (600, "10m"),
            (179 * 60, "179m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (9 * 3600, "9h"),
            (2 * 86400, "2d"),
            (2 * 86400 + 3 * 3600, "2d3h"),
            (8 * 86400, "8d"),
            (729 * 86400, "729d"),
            (730 * 86400, "2y"),
            (731 * 86400, "2y1d"),
            (9 * 365 * 86400, "9y"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn durations_are_as_go_writes_them() {
        for (text, milliseconds) in
            [("15s", 15_000), ("1m30s", 90_000), ("500ms", 500), ("1.5h", 5_400_000), ("0", 0)]
        {
            assert_eq!(go_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "15", "s", "1x", "-1s", "1 s", "1..2s"] {
            assert!(go_duration(text).is_err(), "{text}");
        }
    }
}

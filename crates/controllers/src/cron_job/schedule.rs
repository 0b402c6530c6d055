//! [`Schedule`]: when a CronJob is due, in upstream's dialect of cron.

use std::str::FromStr;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// Upstream: robfig/cron/v3 parser.go parseDescriptor
const NAMES: &[(&str, &str)] = &[
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];
/// A schedule that is not due within this time never is.
///
/// Upstream: robfig/cron/v3 spec.go Next
const HORIZON: SignedDuration = SignedDuration::from_hours(5 * 366 * 24);

#[derive(Debug)]
pub(crate) enum Schedule {
    Cron(Box<Cron>, TimeZone),
    Every(SignedDuration),
}

impl Schedule {
    /// Five fields, a name, or `@every` with a duration; a leading `TZ=` goes before the time zone given.
    pub fn parse(text: &str, zone: TimeZone) -> Result<Self, String> {
        let prefix = text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ="));
        let (text, zone) = match prefix {
            Some(rest) => {
                let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                let zone = TimeZone::get(name).map_err(|_| format!("provided bad location {name}"))?;
                (rest.trim(), zone)
            }
            None => (text, zone),
        };
        if let Some(duration) = text.strip_prefix("@every ") {
            let every = SignedDuration::from_str(duration)
                .map_err(|error| format!("failed to parse duration {text}: {error}"))?;
            return Ok(Schedule::Every(SignedDuration::from_secs(every.as_secs().max(1))));
        }
        let fields = match text.strip_prefix('@') {
            None => text,
            Some(_) => {
                let named = NAMES.iter().find(|(name, _)| *name == text);
                named.map(|(_, fields)| *fields).ok_or_else(|| format!("unrecognized descriptor: {text}"))?
            }
        };
        parse_fields(fields).map(|cron| Schedule::Cron(Box::new(cron), zone))
    }

    /// The first time after that one, if there is one.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match self {
            Schedule::Every(every) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(*every).ok()
            }
            Schedule::Cron(cron, zone) => {
                let next = cron.find_next_occurrence(&after.to_zoned(zone.clone()), false).ok()?.timestamp();
                (next.duration_since(after) <= HORIZON).then_some(next)
            }
        }
    }
}

/// Cron in upstream's dialect: of two restrictions of the day either is enough, unless one begins with a star.
fn parse_fields(text: &str) -> Result<Cron, String> {
    let fields: Vec<String> = text.split_whitespace().map(|field| field.replace('?', "*")).collect();
    let [_, _, day, _, weekday] = fields.as_slice() else {
        let shown = text.split_whitespace().collect::<Vec<_>>().join(" ");
        return Err(format!("expected exactly 5 fields, found {}: [{shown}]", fields.len()));
    };
    // What the parser knows beyond the dialect: last and nearest days, and days of a certain week.
    let foreign = |field: &str| field.contains(['#', '+']) || field.to_uppercase().contains('L');
    if day.contains(|c: char| c.is_ascii_alphabetic()) || foreign(day) || foreign(weekday) {
        return Err(format!("failed to parse int from {day} or {weekday}"));
    }
    let both = day.starts_with('*') || weekday.starts_with('*');
    let parser = CronParser::builder()
        .seconds(Seconds::Disallowed)
        .year(Year::Disallowed)
        .dom_and_dow(both)
        .sloppy_ranges(true)
        .build();
    parser.parse(&fields.join(" ")).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, zone: &str, after: &str) -> String {
        let schedule = Schedule::parse(schedule, TimeZone::get(zone).unwrap()).unwrap();
        schedule.next(after.parse().unwrap()).map_or_else(|| "never".to_owned(), |time| time.to_string())
    }

    #[test]
    fn the_next_time() {
        for (schedule, zone, after, expected) in [
            ("* * * * *", "UTC", "2026-01-01T00:00:30Z", "2026-01-01T00:01:00Z"),
            ("*/15 * * * *", "UTC", "2026-01-01T00:15:00Z", "2026-01-01T00:30:00Z"),
            ("5/20 * * * *", "UTC", "2026-01-01T00:06:00Z", "2026-01-01T00:25:00Z"),
            ("0 9-17/4 * * mon-fri", "UTC", "2026-01-02T17:00:00Z", "2026-01-05T09:00:00Z"),
            ("0 0 13 * 5", "UTC", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 13 * ?", "UTC", "2026-01-01T00:00:00Z", "2026-01-13T00:00:00Z"),
            ("0 0 */2 * 1", "UTC", "2026-01-01T00:00:00Z", "2026-01-05T00:00:00Z"),
            ("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 30 2 *", "UTC", "2026-01-01T00:00:00Z", "never"),
            ("0 9 * * *", "Europe/Berlin", "2026-07-01T00:00:00Z", "2026-07-01T07:00:00Z"),
            ("TZ=Asia/Tokyo 0 9 * * *", "UTC", "2026-07-01T00:00:01Z", "2026-07-02T00:00:00Z"),
            ("@hourly", "UTC", "2026-01-01T00:15:00Z", "2026-01-01T01:00:00Z"),
            ("@weekly", "UTC", "2026-01-01T00:15:00Z", "2026-01-04T00:00:00Z"),
            ("@every 1h30m", "UTC", "2026-01-01T00:15:00Z", "2026-01-01T01:45:00Z"),
        ] {
            assert_eq!(next(schedule, zone, after), expected, "{schedule} {zone} after {after}");
        }
    }

    #[test]
    fn what_is_no_schedule() {
        for bad in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "x * * * *",
            "0 0 L * *",
            "0 0 * * 1#2",
            "@never",
            "@every x",
            "TZ=No/Where * * * * *",
        ] {
            assert!(Schedule::parse(bad, TimeZone::UTC).is_err(), "{bad}");
        }
    }
}

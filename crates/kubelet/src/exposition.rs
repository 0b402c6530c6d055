//! Metrics in the text format that Prometheus reads.

use std::fmt::Write;

/// The upper bounds of a histogram's buckets, in seconds.
// Upstream: prometheus/client_golang DefBuckets
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

pub type LabelSet = Vec<(&'static str, String)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// How often a value fell into which bucket.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    buckets: [u64; BUCKETS.len()],
    sum: f64,
    count: u64,
}

impl Histogram {
    pub fn observe(&mut self, value: f64) {
        for (bound, bucket) in BUCKETS.iter().zip(&mut self.buckets) {
            *bucket += u64::from(value <= *bound);
        }
        self.sum += value;
        self.count += 1;
    }
}

/// One metric: what it is, and each of its values with its labels.
pub struct Family {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    /// What follows the name, the labels, the value.
    values: Vec<(&'static str, LabelSet, f64)>,
}

impl Family {
    pub fn new(name: &'static str, help: &'static str, kind: Kind) -> Self {
        Family { name, help, kind, values: Vec::new() }
    }

    /// A family with one value that has no labels.
    pub fn single(name: &'static str, help: &'static str, kind: Kind, value: f64) -> Self {
        let mut family = Family::new(name, help, kind);
        family.push(Vec::new(), value);
        family
    }

    pub fn push(&mut self, labels: LabelSet, value: f64) {
        self.values.push(("", labels, value));
    }

    pub fn push_histogram(&mut self, labels: &LabelSet, histogram: &Histogram) {
        let bounds = BUCKETS.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(histogram.buckets.iter().chain([&histogram.count])) {
            let mut labels = labels.clone();
            labels.push(("le", bound));
            self.values.push(("_bucket", labels, *count as f64));
        }
        self.values.push(("_sum", labels.clone(), histogram.sum));
        self.values.push(("_count", labels.clone(), histogram.count as f64));
    }
}

/// All families that have values, one after the other.
pub fn text(families: &[Family]) -> String {
    let mut out = String::new();
    for family in families.iter().filter(|family| !family.values.is_empty()) {
        let Family { name, help, kind, values } = family;
        writeln!(out, "# HELP {name} {help}").expect("writing to a String cannot fail");
        writeln!(out, "# TYPE {name} {}", kind.name()).expect("writing to a String cannot fail");
        for (suffix, labels, value) in values {
            let quoted = labels.iter().map(|(key, value)| format!("{key}={}", quote(value)));
            let labels = quoted.collect::<Vec<_>>().join(",");
            let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
            writeln!(out, "{name}{suffix}{labels} {value}").expect("writing to a String cannot fail");
        }
    }
    out
}

fn quote(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_with_their_type_and_quoted_labels() {
        let mut family = Family::new("a_total", "How many.", Kind::Counter);
        family.push(vec![("k", "x\"y\\\n".to_owned())], 2.0);
        let empty = Family::new("b", "Nothing.", Kind::Gauge);
        let single = Family::single("c", "One.", Kind::Gauge, 0.5);
        let want = "# HELP a_total How many.\n# TYPE a_total counter\na_total{k=\"x\\\"y\\\\\\n\"} 2\n\
                    # HELP c One.\n# TYPE c gauge\nc 0.5\n";
        assert_eq!(text(&[family, empty, single]), want);
    }
}

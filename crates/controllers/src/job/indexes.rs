//! [`Indexes`]: sets of completion indexes, written `0-3,5`.

use std::collections::BTreeSet;
use std::fmt;

use api::core::v1::Pod;

use crate::objects::annotation;

pub(crate) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// A set of indexes as intervals, ends included, in order and apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// What a text says, below `completions`. What cannot be read is left out.
    ///
    /// Upstream: pkg/controller/job/indexed_job_utils.go parseIndexesFromString
    pub fn parse(text: &str, completions: i32) -> Self {
        let read = |interval: &str| {
            let (first, last) = interval.split_once('-').unwrap_or((interval, interval));
            let (first, last) = (first.parse::<i32>().ok()?, last.parse::<i32>().ok()?.min(completions - 1));
            (0 <= first && first <= last).then_some((first, last))
        };
        Indexes::of(text.split(',').filter_map(read).collect())
    }

    fn of(mut intervals: Vec<(i32, i32)>) -> Self {
        intervals.sort_unstable();
        let mut merged: Vec<(i32, i32)> = Vec::with_capacity(intervals.len());
        for (first, last) in intervals {
            match merged.last_mut() {
                Some(before) if i64::from(first) <= i64::from(before.1) + 1 => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Indexes(merged)
    }

    pub fn union(&self, other: &Indexes) -> Self {
        Indexes::of(self.0.iter().chain(&other.0).copied().collect())
    }

    pub fn with(&self, more: impl IntoIterator<Item = i32>) -> Self {
        Indexes::of(self.0.iter().copied().chain(more.into_iter().map(|i| (i, i))).collect())
    }

    pub fn contains(&self, index: i32) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(at).is_some_and(|(first, _)| *first <= index)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn total(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// How many are in both.
    pub fn common(&self, other: &Indexes) -> i32 {
        let (mut i, mut j, mut common) = (0, 0, 0);
        while let (Some(a), Some(b)) = (self.0.get(i), other.0.get(j)) {
            common += (a.1.min(b.1) - a.0.max(b.0) + 1).max(0);
            if a.1 < b.1 { i += 1 } else { j += 1 }
        }
        common
    }

    /// The first that are not in the set, below `completions`.
    pub fn gaps(&self, completions: i32) -> impl Iterator<Item = i32> + '_ {
        let ends = self.0.iter().map(|(_, last)| *last).collect::<Vec<_>>();
        let starts = std::iter::once(0).chain(ends.into_iter().map(|last| last.saturating_add(1)));
        let stops = self.0.iter().map(|(first, _)| *first).chain([completions]);
        starts.zip(stops).flat_map(move |(start, stop)| start..stop.min(completions))
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match last - first {
                0 => write!(f, "{first}")?,
                1 => write!(f, "{first},{last}")?,
                _ => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// The index that a pod is for.
pub(crate) fn index_of(pod: &Pod) -> Option<i32> {
    annotation(pod, INDEX)?.parse().ok().filter(|index| *index >= 0)
}

pub(crate) fn indexes_of<'a>(pods: impl IntoIterator<Item = &'a std::sync::Arc<Pod>>) -> BTreeSet<i32> {
    pods.into_iter().filter_map(|pod| index_of(pod)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_and_written() {
        for (text, completions, expected, total) in [
            ("", 10, "", 0),
            ("1", 10, "1", 1),
            ("1,2", 10, "1,2", 2),
            ("0-3,5", 10, "0-3,5", 5),
            ("0-3,4", 10, "0-4", 5),
            ("0-9,12", 6, "0-5", 6),
            ("7,x,1-,-2", 10, "7", 1),
            ("99999999999", 10, "", 0),
        ] {
            let indexes = Indexes::parse(text, completions);
            assert_eq!((indexes.to_string().as_str(), indexes.total()), (expected, total), "{text}");
        }
    }

    #[test]
    fn sets_of_indexes() {
        let set = Indexes::parse("1-3,7", 10);
        assert_eq!(set.with([5, 4, 0]).to_string(), "0-5,7");
        assert_eq!(set.gaps(10).collect::<Vec<_>>(), [0, 4, 5, 6, 8, 9]);
        assert_eq!(Indexes::default().gaps(3).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!((set.contains(2), set.contains(5), set.contains(8)), (true, false, false));
        assert_eq!(set.common(&Indexes::parse("0-2,7-9", 10)), 3);
        assert_eq!(set.union(&Indexes::parse("4-6", 10)).to_string(), "1-7");
    }
}

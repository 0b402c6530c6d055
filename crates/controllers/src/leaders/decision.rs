//! Whether a Lease needs another holder, and who that is.

use std::cmp::Ordering;
use std::sync::Arc;

use api::Object;
use api::coordination::v1::{Lease, LeaseSpec};
use api::coordination::v1beta1::LeaseCandidate;
use api::meta::MicroTime;
use jiff::{SignedDuration, Timestamp};
use semver::Version;

/// How long candidates have to say that they are there, and how soon a Lease is looked at again.
///
/// Upstream: pkg/controlplane/controller/leaderelection/leaderelection_controller.go electionDuration
pub(super) const ELECTION: SignedDuration = SignedDuration::from_secs(5);
/// A candidate that has said nothing for so long is none any more.
pub(super) const CANDIDACY: SignedDuration = SignedDuration::from_mins(30);
const OLDEST: &str = "OldestEmulationVersion";

/// What to do about a Lease.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Nobody wants to hold it.
    Nothing,
    /// It is held by the best, or candidates have yet to answer.
    Wait,
    /// These are to be asked whether they are there.
    Ask(Vec<Arc<LeaseCandidate>>),
    /// A holder, unless the strategy leaves that to somebody else.
    Elect { strategy: String, holder: Option<String> },
}

fn renewed(candidate: &LeaseCandidate) -> Option<Timestamp> {
    candidate.spec.renew_time.as_ref().map(|at| at.0)
}

fn asked(candidate: &LeaseCandidate) -> Option<Timestamp> {
    candidate.spec.ping_time.as_ref().map(|at| at.0)
}

/// When a candidate is none any more, if it says nothing until then.
pub(super) fn expiry(candidate: &LeaseCandidate) -> Option<Timestamp> {
    renewed(candidate).map(|at| at + CANDIDACY)
}

/// Whether it was asked and has not answered.
pub(super) fn owes_answer(candidate: &LeaseCandidate) -> bool {
    renewed(candidate).zip(asked(candidate)).is_some_and(|(renewed, asked)| renewed < asked)
}

/// Whether the time lies no longer back than an election takes.
fn is_recent(time: Option<Timestamp>, now: Timestamp) -> bool {
    time.is_some_and(|at| at + ELECTION > now)
}

/// The version that it acts as, and the one that it is.
fn versions(candidate: &LeaseCandidate) -> Option<(Version, Version)> {
    let spec = &candidate.spec;
    Some((
        Version::parse(spec.emulation_version.as_deref()?).ok()?,
        Version::parse(&spec.binary_version).ok()?,
    ))
}

/// The candidate of the oldest version, of equal ones the one that was there first.
///
/// Upstream: election.go pickBestLeaderOldestEmulationVersion
fn oldest<'a>(candidates: impl Iterator<Item = &'a Arc<LeaseCandidate>>) -> Option<&'a str> {
    let with_versions = candidates.filter_map(|candidate| Some((versions(candidate)?, candidate)));
    let order = |a: &((Version, Version), &Arc<LeaseCandidate>),
                 b: &((Version, Version), &Arc<LeaseCandidate>)| {
        let ((acts_a, is_a), (acts_b, is_b)) = (&a.0, &b.0);
        let created =
            |candidate: &LeaseCandidate| candidate.metadata.creation_timestamp.as_ref().map(|t| t.0);
        let by_version = acts_a.cmp_precedence(acts_b).then(is_a.cmp_precedence(is_b));
        by_version.then_with(|| created(a.1).cmp(&created(b.1))).then_with(|| a.1.name().cmp(b.1.name()))
    };
    with_versions.min_by(order).map(|(_, candidate)| candidate.name())
}

/// What those of the newest version ask for; they must agree.
///
/// Upstream: election.go pickBestStrategy
fn strategy<'a>(
    candidates: impl Iterator<Item = &'a Arc<LeaseCandidate>>,
) -> Result<Option<&'a str>, String> {
    let mut best: Option<(Version, &LeaseCandidate, &str)> = None;
    for candidate in candidates {
        let spec = &candidate.spec;
        let version = Version::parse(&spec.binary_version).unwrap_or(Version::new(0, 0, 0));
        let order = best.as_ref().map_or(Ordering::Greater, |(newest, ..)| version.cmp_precedence(newest));
        match (order, &best) {
            (Ordering::Greater, _) => best = Some((version, candidate, &spec.strategy)),
            (Ordering::Equal, Some((_, other, wanted))) if *wanted != spec.strategy => {
                return Err(format!(
                    "candidates {:?}, {:?} at same binary version but received differing strategies {wanted}, {}",
                    other.name(),
                    candidate.name(),
                    spec.strategy
                ));
            }
            _ => {}
        }
    }
    Ok(best.map(|(_, _, wanted)| wanted))
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

fn has_lapsed(lease: &Lease, now: Timestamp) -> bool {
    let until = || {
        let spec = lease.spec.as_ref()?;
        let seconds = SignedDuration::from_secs(spec.lease_duration_seconds?.into());
        Some(spec.renew_time.as_ref()?.0 + seconds)
    };
    until().is_none_or(|until| until < now)
}

/// Whether somebody else should hold the Lease. Candidates that have been quiet for half of their time are asked
/// again, which is an election too.
///
/// Upstream: leaderelection_controller.go electionNeeded
fn needs_election(
    candidates: &[&Arc<LeaseCandidate>],
    lease: Option<&Lease>,
    now: Timestamp,
) -> Result<bool, String> {
    let Some(lease) = lease else { return Ok(true) };
    let Some(holder) = holder(lease).filter(|_| !has_lapsed(lease, now)) else { return Ok(true) };
    let is_quiet =
        |candidate: &&Arc<LeaseCandidate>| renewed(candidate).is_some_and(|at| at + CANDIDACY / 2 < now);
    if candidates.iter().any(is_quiet) {
        return Ok(true);
    }
    if strategy(candidates.iter().copied())? != Some(OLDEST) {
        return Ok(false);
    }
    Ok(oldest(candidates.iter().copied()).is_some_and(|best| best != holder))
}

/// What to do about a Lease with these candidates for it.
///
/// Upstream: leaderelection_controller.go reconcileElectionStep
pub(super) fn decide(
    candidates: &[Arc<LeaseCandidate>],
    lease: Option<&Lease>,
    now: Timestamp,
) -> Result<Step, String> {
    let is_there = |candidate: &&Arc<LeaseCandidate>| expiry(candidate).is_some_and(|until| until >= now);
    let candidates: Vec<&Arc<LeaseCandidate>> = candidates.iter().filter(is_there).collect();
    if candidates.is_empty() {
        return Ok(Step::Nothing);
    }
    if !needs_election(&candidates, lease, now)? {
        return Ok(Step::Wait);
    }
    let may_answer =
        |candidate: &Arc<LeaseCandidate>| owes_answer(candidate) && is_recent(asked(candidate), now);
    let is_unasked = |candidate: &&&Arc<LeaseCandidate>| {
        let has_answered = !owes_answer(candidate) && !is_recent(asked(candidate), now);
        !is_recent(renewed(candidate), now) && (asked(candidate).is_none() || has_answered)
    };
    let unasked: Vec<_> =
        candidates.iter().filter(is_unasked).map(|candidate| (*candidate).clone()).collect();
    if !unasked.is_empty() {
        return Ok(Step::Ask(unasked));
    }
    if candidates.iter().any(|candidate| may_answer(candidate)) {
        return Ok(Step::Wait);
    }
    let present = || candidates.iter().copied().filter(|candidate| is_recent(renewed(candidate), now));
    match strategy(present())? {
        None => Err("no available candidates".to_owned()),
        Some(OLDEST) => {
            let holder = oldest(present()).map(str::to_owned);
            Ok(Step::Elect { strategy: OLDEST.to_owned(), holder })
        }
        Some(other) => Ok(Step::Elect { strategy: other.to_owned(), holder: None }),
    }
}

/// The Lease with a new holder, or with the wish for one while its holder is alive; `None` where it says so already.
pub(super) fn elect(
    lease: Option<&Lease>,
    strategy: &str,
    holder_wanted: Option<&str>,
    now: Timestamp,
) -> Option<LeaseSpec> {
    let fresh = |old: &LeaseSpec| LeaseSpec {
        strategy: Some(strategy.to_owned()),
        holder_identity: holder_wanted.map(str::to_owned).or(old.holder_identity.clone()),
        renew_time: Some(MicroTime(now)),
        lease_duration_seconds: Some(ELECTION.as_secs() as i32),
        acquire_time: None,
        preferred_holder: None,
        ..old.clone()
    };
    let Some(lease) = lease else { return Some(fresh(&LeaseSpec::default())) };
    let old = lease.spec.clone().unwrap_or_default();
    let (held_by, lapsed) = (holder(lease), has_lapsed(lease, now));
    let mut new = LeaseSpec { strategy: Some(strategy.to_owned()), ..old.clone() };
    match holder_wanted {
        // Upstream leaves a lapsed Lease to its holder if that is chosen again, which waits for a term to renew.
        Some(_) if held_by.is_none() || lapsed => new = fresh(&old),
        Some(wanted) if held_by != Some(wanted) => new.preferred_holder = Some(wanted.to_owned()),
        _ => {}
    }
    (new != old).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: i64 = 10_000;

    fn at(second: i64) -> String {
        format!("{:.6}", Timestamp::from_second(second).unwrap())
    }

    /// `name version renewed asked`, the times as seconds before now; `-` for never.
    fn candidate(words: &str) -> Arc<LeaseCandidate> {
        let [name, version, renewed, asked] = words.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{words}")
        };
        let time = |ago: &str| ago.parse::<i64>().map_or(Value::Null, |ago| at(NOW - ago).into());
        let strategy = if name.starts_with("other") { "example.com/Other" } else { OLDEST };
        let candidate = json!({
            "metadata": {"name": name, "creationTimestamp": at(1).replace(".000000", "")},
            "spec": {"leaseName": "l", "binaryVersion": "1.36.0", "emulationVersion": version, "strategy": strategy,
                "renewTime": time(renewed), "pingTime": time(asked)},
        });
        Arc::new(LeaseCandidate::from_value(candidate).unwrap())
    }

    fn lease(holder: &str, renewed: i64) -> Lease {
        let spec =
            json!({"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": at(NOW - renewed)});
        Lease::from_value(json!({"metadata": {"name": "l"}, "spec": spec})).unwrap()
    }

    #[test]
    fn the_oldest_that_answers_is_elected() {
        let now = Timestamp::from_second(NOW).unwrap();
        let told = |candidates: &[&str], lease: Option<Lease>| {
            let candidates: Vec<_> = candidates.iter().map(|words| candidate(words)).collect();
            match decide(&candidates, lease.as_ref(), now) {
                Ok(Step::Nothing) => "nothing".to_owned(),
                Ok(Step::Wait) => "wait".to_owned(),
                Ok(Step::Ask(whom)) => {
                    format!("ask {}", whom.iter().map(|c| c.name()).collect::<Vec<_>>().join(" "))
                }
                Ok(Step::Elect { strategy, holder }) => {
                    format!(
                        "{} {}",
                        if strategy == OLDEST { "elect" } else { "leave" },
                        holder.unwrap_or_default()
                    )
                }
                Err(why) => why,
            }
        };
        for (candidates, held, expected) in [
            (&[] as &[&str], None, "nothing"),
            (&["a 1.36.0 1900 -"], None, "nothing"),
            (&["a 1.36.0 1 -"], None, "elect a"),
            (&["a 1.36.0 1 -", "b 1.35.0 1 -"], None, "elect b"),
            (&["a 1.36.0 1 -", "b 1.35.0 60 -"], None, "ask b"),
            (&["a 1.36.0 1 -", "b 1.35.0 60 3"], None, "wait"),
            (&["a 1.36.0 1 -", "b 1.35.0 60 6"], None, "elect a"),
            (&["a 1.36.0 60 90"], None, "ask a"),
            (&["a 1.36.0 60 6"], None, "no available candidates"),
            (&["a 1.36.0 1 -"], Some(("a", 1)), "wait"),
            (&["a 1.36.0 1 -"], Some(("gone", 16)), "elect a"),
            (&["a 1.36.0 1 -"], Some(("", 1)), "elect a"),
            (&["a 1.36.0 1 -", "b 1.35.0 1 -"], Some(("a", 1)), "elect b"),
            (&["a 1.36.0 60 -", "b 1.36.0 1000 -"], Some(("a", 1)), "ask a b"),
            (&["other 1.36.0 1 -"], None, "leave "),
            (&["other 1.36.0 1 -"], Some(("x", 1)), "wait"),
            (
                &["a 1.36.0 1 -", "other 1.35.0 1 -"],
                None,
                "candidates \"a\", \"other\" at same binary version but received differing strategies \
                 OldestEmulationVersion, example.com/Other",
            ),
        ] {
            let held = held.map(|(holder, renewed)| lease(holder, renewed));
            assert_eq!(told(candidates, held.clone()), expected, "{candidates:?} {held:?}");
        }
    }

    #[test]
    fn a_holder_that_lives_is_asked_to_go_and_a_lapsed_one_is_replaced() {
        let now = Timestamp::from_second(NOW).unwrap();
        let told = |lease: Option<Lease>, wanted: Option<&str>| {
            let spec = elect(lease.as_ref(), OLDEST, wanted, now)?;
            Some((spec.holder_identity.unwrap_or_default(), spec.preferred_holder.unwrap_or_default()))
        };
        let said = |holder: &str, preferred: &str| Some((holder.to_owned(), preferred.to_owned()));
        assert_eq!(told(None, Some("a")), said("a", ""));
        assert_eq!(told(Some(lease("", 1)), Some("a")), said("a", ""));
        assert_eq!(told(Some(lease("b", 16)), Some("a")), said("a", ""));
        assert_eq!(told(Some(lease("a", 16)), Some("a")), said("a", ""));
        assert_eq!(told(Some(lease("b", 1)), Some("a")), said("b", "a"));
        let mut settled = lease("a", 1);
        assert_eq!(told(Some(settled.clone()), Some("a")), said("a", ""));
        settled.spec.as_mut().unwrap().strategy = Some(OLDEST.into());
        assert_eq!(told(Some(settled.clone()), Some("a")), None);
        assert_eq!(told(Some(settled), None), None);
    }
}

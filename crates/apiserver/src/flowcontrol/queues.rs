//! The queues of one priority level: who runs now, who waits, and whose turn is next. A pure decider: it neither
//! waits nor knows the time; [`super::FlowControl`] does.
//!
//! Requests of one flow are dealt the same few of the level's queues (shuffle sharding), and wait in the shortest
//! of them, so that a flow that floods fills its own hand and leaves others room. Between queues goes first whose
//! next request would finish first on a clock that counts seats served (start-time fair queuing).
//!
//! What always holds: no more seats are taken than the limit, unless one request alone wants more; who was let
//! run or wait is ended exactly once, by [`QueueSet::finish`].
//!
//! Upstream: apiserver/pkg/util/flowcontrol/fairqueuing/queueset/queueset.go, pkg/util/shufflesharding

use std::collections::VecDeque;

/// How a level queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Zero for a level that rejects at once.
    pub queues: usize,
    pub hand_size: usize,
    pub length_limit: usize,
}

/// A request's place: what ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    id: u64,
    queue: Option<usize>,
    seats: u32,
}

/// What becomes of a request that arrives.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    Run(Place),
    Wait(Place),
    /// `queue-full` or `concurrency-limit`.
    Reject(&'static str),
}

struct Waiting<W> {
    place: Place,
    waiter: W,
}

struct Queue<W> {
    waiting: VecDeque<Waiting<W>>,
    executing: u32,
    /// When, on the clock of seats served, its next request would begin.
    next_start: f64,
}

impl<W> Queue<W> {
    fn new() -> Self {
        Queue { waiting: VecDeque::new(), executing: 0, next_start: 0.0 }
    }

    /// Seats that stand before a request that joins it.
    fn load(&self) -> u32 {
        self.executing + self.waiting.iter().map(|waiting| waiting.place.seats).sum::<u32>()
    }
}

/// All queues of one level.
pub struct QueueSet<W> {
    shape: Shape,
    limit: u32,
    seats: u32,
    executing: usize,
    queues: Vec<Queue<W>>,
    clock: f64,
    next_id: u64,
}

/// What is shown of a level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    pub executing: usize,
    pub seats: u32,
    pub waiting: usize,
    pub waiting_seats: u32,
    pub active_queues: usize,
    pub limit: u32,
}

impl<W> QueueSet<W> {
    pub fn new(shape: Shape, limit: u32) -> Self {
        let mut set = QueueSet {
            shape: Shape::default(),
            limit,
            seats: 0,
            executing: 0,
            queues: Vec::new(),
            clock: 0.0,
            next_id: 0,
        };
        set.reshape(shape);
        set
    }

    /// Takes another shape. Queues that are no longer dealt are still served until they are empty.
    pub fn reshape(&mut self, shape: Shape) {
        self.shape = shape;
        while self.queues.len() < shape.queues {
            self.queues.push(Queue::new());
        }
    }

    pub fn set_limit(&mut self, limit: u32) {
        self.limit = limit;
    }

    fn fits(&self, seats: u32) -> bool {
        // One that wants more than there is runs alone.
        self.seats == 0 || self.seats + seats <= self.limit
    }

    /// A request of a flow arrives; `waiter` is told when its turn comes.
    pub fn arrive(&mut self, flow: u64, seats: u32, waiter: impl FnOnce() -> W) -> Arrival {
        self.next_id += 1;
        let mut place = Place { id: self.next_id, queue: None, seats };
        if self.shape.queues == 0 {
            if !self.fits(seats) {
                return Arrival::Reject("concurrency-limit");
            }
            self.start(place);
            return Arrival::Run(place);
        }
        let chosen = self.shortest(flow);
        place.queue = Some(chosen);
        let nobody_waits = self.queues.iter().all(|queue| queue.waiting.is_empty());
        let clock = self.clock;
        let fits = self.fits(seats);
        let limit = self.shape.length_limit;
        let queue = &mut self.queues[chosen];
        if queue.waiting.is_empty() && queue.executing == 0 {
            queue.next_start = queue.next_start.max(clock);
        }
        if nobody_waits && fits {
            self.start(place);
            return Arrival::Run(place);
        }
        if queue.waiting.len() >= limit {
            return Arrival::Reject("queue-full");
        }
        queue.waiting.push_back(Waiting { place, waiter: waiter() });
        Arrival::Wait(place)
    }

    /// The least loaded queue of the flow's hand.
    fn shortest(&self, flow: u64) -> usize {
        let hand = deal(flow, self.shape.queues, self.shape.hand_size);
        hand.into_iter().min_by_key(|queue| self.queues[*queue].load()).unwrap_or(0)
    }

    fn start(&mut self, place: Place) {
        self.seats += place.seats;
        self.executing += 1;
        if let Some(queue) = place.queue {
            let queue = &mut self.queues[queue];
            self.clock = self.clock.max(queue.next_start);
            queue.executing += place.seats;
            queue.next_start += f64::from(place.seats);
        }
    }

    /// A request has ended, or its client has gone before its turn came.
    pub fn finish(&mut self, place: Place) {
        if let Some(queue) = place.queue {
            let queue = &mut self.queues[queue];
            if let Some(at) = queue.waiting.iter().position(|waiting| waiting.place.id == place.id) {
                queue.waiting.remove(at);
                return;
            }
            queue.executing -= place.seats;
        }
        self.seats -= place.seats;
        self.executing -= 1;
    }

    /// The next who may run, if there is room.
    pub fn next(&mut self) -> Option<W> {
        let head = |queue: &Queue<W>| {
            queue.waiting.front().map(|waiting| queue.next_start + f64::from(waiting.place.seats))
        };
        let turn = self.queues.iter().enumerate().filter_map(|(at, queue)| Some((head(queue)?, at)));
        let (_, at) = turn.min_by(|(a, _), (b, _)| a.total_cmp(b))?;
        let seats = self.queues[at].waiting.front()?.place.seats;
        if !self.fits(seats) {
            return None;
        }
        let waiting = self.queues[at].waiting.pop_front()?;
        self.start(waiting.place);
        Some(waiting.waiter)
    }

    pub fn digest(&self) -> Digest {
        let waiting = || self.queues.iter().flat_map(|queue| &queue.waiting);
        Digest {
            executing: self.executing,
            seats: self.seats,
            waiting: waiting().count(),
            waiting_seats: waiting().map(|waiting| waiting.place.seats).sum(),
            active_queues: self.queues.iter().filter(|queue| !queue.waiting.is_empty()).count(),
            limit: self.limit,
        }
    }

    /// For each queue: how many wait, seats in use, and when its next would begin.
    pub fn dump(&self) -> impl Iterator<Item = (usize, u32, f64)> + '_ {
        self.queues.iter().map(|queue| (queue.waiting.len(), queue.executing, queue.next_start))
    }
}

/// A hand of different cards out of a deck, the same for the same hash.
///
/// Upstream: apiserver/pkg/util/shufflesharding/dealer.go Deal
fn deal(mut hash: u64, deck: usize, hand: usize) -> Vec<usize> {
    let mut dealt: Vec<usize> = Vec::with_capacity(hand);
    for drawn in 0..hand.min(deck) {
        let left = (deck - drawn) as u64;
        let mut card = usize::try_from(hash % left).unwrap_or(0);
        hash /= left;
        let mut before = dealt.clone();
        before.sort_unstable();
        for other in before {
            if card >= other {
                card += 1;
            }
        }
        dealt.push(card);
    }
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(queues: usize, length_limit: usize, limit: u32) -> QueueSet<&'static str> {
        QueueSet::new(Shape { queues, hand_size: queues.min(2), length_limit }, limit)
    }

    fn arrive(set: &mut QueueSet<&'static str>, flow: u64, seats: u32, name: &'static str) -> Arrival {
        set.arrive(flow, seats, || name)
    }

    #[test]
    fn hands_hold_different_queues_and_depend_on_the_flow() {
        for flow in [0, 1, 12345, u64::MAX, 0x9E37_79B9_7F4A_7C15] {
            let mut hand = deal(flow, 64, 8);
            assert!(hand.iter().all(|card| *card < 64), "{hand:?}");
            hand.sort_unstable();
            hand.dedup();
            assert_eq!(hand.len(), 8);
        }
        assert_ne!(deal(1, 64, 8), deal(2, 64, 8));
        assert_eq!(deal(7, 3, 8).len(), 3);
    }

    #[test]
    fn a_level_without_queues_rejects_what_does_not_fit() {
        let mut set = set(0, 0, 2);
        let Arrival::Run(first) = arrive(&mut set, 1, 1, "a") else { panic!("there is room") };
        assert!(matches!(arrive(&mut set, 1, 1, "b"), Arrival::Run(_)));
        assert_eq!(arrive(&mut set, 1, 1, "c"), Arrival::Reject("concurrency-limit"));
        set.finish(first);
        assert!(matches!(arrive(&mut set, 1, 1, "d"), Arrival::Run(_)));
    }

    #[test]
    fn who_wants_more_than_the_limit_runs_alone() {
        let mut set = set(1, 5, 3);
        let Arrival::Run(wide) = arrive(&mut set, 1, 10, "wide") else { panic!("nobody else runs") };
        assert!(matches!(arrive(&mut set, 1, 1, "narrow"), Arrival::Wait(_)));
        assert_eq!(set.next(), None);
        set.finish(wide);
        assert_eq!(set.next(), Some("narrow"));
        assert_eq!(set.digest(), Digest { executing: 1, seats: 1, limit: 3, ..Digest::default() });
    }

    #[test]
    fn a_full_queue_rejects_and_who_goes_away_makes_room() {
        let mut set = set(1, 1, 1);
        assert!(matches!(arrive(&mut set, 1, 1, "a"), Arrival::Run(_)));
        let Arrival::Wait(waits) = arrive(&mut set, 1, 1, "b") else { panic!("the seat is taken") };
        assert_eq!(arrive(&mut set, 1, 1, "c"), Arrival::Reject("queue-full"));
        set.finish(waits);
        assert!(matches!(arrive(&mut set, 1, 1, "d"), Arrival::Wait(_)));
        assert_eq!(set.digest().waiting, 1);
    }

    #[test]
    fn a_flood_does_not_keep_a_trickle_waiting() {
        // Two queues with a hand of one each: the flood's and the trickle's.
        let mut set = QueueSet::new(Shape { queues: 2, hand_size: 1, length_limit: 50 }, 1);
        let Arrival::Run(mut running) = set.arrive(0, 1, || "flood") else { panic!("there is room") };
        for _ in 0..10 {
            assert!(matches!(set.arrive(0, 1, || "flood"), Arrival::Wait(_)));
        }
        assert!(matches!(set.arrive(1, 1, || "trickle"), Arrival::Wait(_)));
        let mut order = Vec::new();
        for _ in 0..3 {
            set.finish(running);
            let front = |queue: usize, set: &QueueSet<&'static str>| {
                set.queues[queue].waiting.front().map(|waiting| waiting.place)
            };
            let (flood, trickle) = (front(0, &set), front(1, &set));
            let next = set.next().expect("somebody waits");
            running = if next == "flood" { flood } else { trickle }.expect("it waited at the front");
            order.push(next);
        }
        assert!(order[..2].contains(&"trickle"), "{order:?}");
    }
}

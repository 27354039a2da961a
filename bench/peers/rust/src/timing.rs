//! The loops that are timed. There are no others.

use std::hint::black_box;
use std::iter::Cycle;
use std::slice::Iter;
use std::time::{Duration, Instant};

/// Nanoseconds of `count` operations and, where they ran in one loop, of the loop without them.
pub struct Timing {
    pub ns: u64,
    pub empty_ns: Option<u64>,
}

/// Keys in turn, without an end.
pub type Turn<'a> = Cycle<Iter<'a, String>>;

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).expect("a loop ends within 500 years")
}

/// Time `operation` in a plain loop, and the same loop around nothing.
///
/// What `operation` returns is summed, so that its result has to be there.
pub fn in_a_loop(keys: &[String], count: usize, operation: impl FnMut(&[u8]) -> usize) -> Timing {
    Timing {
        ns: walk(keys, count, operation),
        empty_ns: Some(walk(keys, count, |_key| 1)),
    }
}

fn walk(keys: &[String], count: usize, mut operation: impl FnMut(&[u8]) -> usize) -> u64 {
    let turn: Turn = keys.iter().cycle();
    let mut sum = 0usize;
    let start = Instant::now();
    for key in turn.take(count) {
        sum = sum.wrapping_add(black_box(operation(black_box(key.as_bytes()))));
    }
    black_box(sum);
    nanoseconds(start.elapsed())
}

/// Time `operation` where each repetition has to be prepared: the time is the sum of the
/// repetitions, each by itself, and with it what it costs to read the clock (some 25 ns).
pub fn one_by_one(
    keys: &[String],
    count: usize,
    mut prepare: impl FnMut(),
    mut operation: impl FnMut(&mut Turn) -> usize,
) -> Timing {
    let mut turn = keys.iter().cycle();
    let mut sum = 0usize;
    let mut time = Duration::ZERO;
    for _ in 0..count {
        prepare();
        let start = Instant::now();
        sum = sum.wrapping_add(black_box(operation(&mut turn)));
        time += start.elapsed();
    }
    black_box(sum);
    Timing {
        ns: nanoseconds(time),
        empty_ns: None,
    }
}

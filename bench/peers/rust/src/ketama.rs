//! The system `pingora ketama`: pingora_ketama::Continuum by itself, as crates other than
//! Pingora use it: a ring, and nothing around it.
//!
//! The ring is that of `Continuum::new`, "version 1": 160 points of 8 bytes for each unit of
//! weight. Version 2 (points of 6 bytes) is behind a feature that is off unless asked for.
//!
//! A changed list is a new ring, so `change` and `refresh` are `Continuum::new` and a pick.

use crate::allocation;
use crate::instances::{address, index, Instances};
use crate::system::{Moved, Operation, System, MAX_ITERATIONS};
use crate::timing::{in_a_loop, Timing};
use pingora_ketama::{Bucket, Continuum};
use std::collections::HashMap;
use std::hint::black_box;
use std::net::SocketAddr;

pub struct Ketama {
    instances: Instances,
    buckets: Vec<Bucket>,
    changed: Vec<Bucket>,
    ring: Continuum,
    /// Whether the last change has made the list the changed one.
    is_changed: bool,
}

fn buckets(weights: &[usize]) -> Vec<Bucket> {
    let bucket = |(index, &weight)| Bucket::new(address(index), weight as u32);
    weights.iter().enumerate().map(bucket).collect()
}

/// Something of the picked node, for the sum.
fn used(node: Option<SocketAddr>) -> usize {
    black_box(node).map_or(0, |node| node.port().into())
}

impl Ketama {
    pub fn new(instances: Instances) -> Self {
        let buckets_now = buckets(&instances.weights);
        Self {
            changed: buckets(&instances.changed()),
            ring: Continuum::new(&buckets_now),
            buckets: buckets_now,
            instances,
            is_changed: false,
        }
    }

    fn changes(&mut self, count: usize, picks: usize) -> Timing {
        let keys = &self.instances.keys;
        let mut turn = keys.iter().cycle();
        let lists = [&self.buckets, &self.changed];
        let mut ring = Continuum::new(lists[usize::from(self.is_changed)]);
        let mut is_changed = self.is_changed;
        let timing = in_a_loop(keys, count, |_key| {
            is_changed = !is_changed;
            ring = Continuum::new(black_box(lists[usize::from(is_changed)]));
            let some = turn.by_ref().take(picks);
            some.fold(0, |sum: usize, key| {
                sum.wrapping_add(used(ring.node(black_box(key.as_bytes()))))
            })
        });
        self.is_changed = is_changed;
        timing
    }

    /// Whom each key finds, the keys once.
    fn owners(&self, weights: &[usize]) -> Vec<i64> {
        let ring = Continuum::new(&buckets(weights));
        let owner = |key: &String| found(&ring, key);
        self.instances.keys.iter().map(owner).collect()
    }
}

fn found(ring: &Continuum, key: &str) -> i64 {
    ring.node(key.as_bytes()).map_or(-1, |node| index(&node))
}

impl System for Ketama {
    fn time(&mut self, operation: Operation, count: usize) -> Result<Timing, String> {
        let keys = &self.instances.keys;
        let (ring, buckets) = (&self.ring, &self.buckets);
        Ok(match operation {
            Operation::Pick => in_a_loop(keys, count, |key| used(ring.node(key))),
            Operation::Filtered => {
                // The way of the crate's own example, health_aware_selector.rs: walk on from
                // the key's point, and look each node up in a map by its address.
                let versions: HashMap<SocketAddr, &str> = (0..self.instances.weights.len())
                    .map(|index| (address(index), if index % 2 == 1 { "1" } else { "0" }))
                    .collect();
                let wanted = black_box("1");
                in_a_loop(keys, count, |key| {
                    let mut nodes = ring.node_iter(key).take(MAX_ITERATIONS);
                    used(
                        nodes
                            .find(|node| versions.get(node) == Some(&wanted))
                            .copied(),
                    )
                })
            }
            Operation::Build => in_a_loop(keys, count, |_key| {
                black_box(&Continuum::new(black_box(buckets)));
                1
            }),
            Operation::Change | Operation::Refresh => self.changes(count, 1),
            Operation::Change1000 => self.changes(count, 1000),
            Operation::Call => return Err("pingora ketama has no call: it is a ring alone".into()),
            Operation::Batch => return Err("pingora ketama has no batch".into()),
        })
    }

    fn picks(&self, count: usize) -> Vec<i64> {
        let ring = Continuum::new(&self.buckets);
        let keys = self.instances.keys.iter().cycle().take(count);
        keys.map(|key| found(&ring, key)).collect()
    }

    fn moved(&self) -> Result<Moved, String> {
        Ok(Moved {
            before: self.owners(&self.instances.weights),
            added: self.owners(&self.instances.with_one_more()),
        })
    }

    fn memory(&self, count: usize) -> i64 {
        allocation::held(|| {
            let ring = Box::new(Continuum::new(&self.buckets));
            for key in self.instances.keys.iter().cycle().take(count) {
                black_box(ring.node(key.as_bytes()));
            }
            ring
        })
    }
}

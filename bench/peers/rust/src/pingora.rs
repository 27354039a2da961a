//! Pingora behind the operations of the protocol.
//!
//! `Weighted<RoundRobin>` is not the smooth order of nginx: a list with each backend as often as
//! its weight, side by side, gone through by a counter. `select` clones the backend it returns:
//! that is Pingora's own way, and in its times.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::hint::black_box;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use pingora_ketama::{Bucket, Continuum};
use pingora_load_balancing::discovery::ServiceDiscovery;
use pingora_load_balancing::selection::{BackendIter, BackendSelection};
use pingora_load_balancing::{Backend, Backends, LoadBalancer};

use crate::counted;

const MOST_TRIED: usize = 256; // backends that a selection looks at, as in Pingora's examples
const BATCH: usize = 1_000;

/// What a picker is to be made of.
pub struct Task {
    weights: Vec<usize>,
    keys: Vec<String>,
    changes_members: bool,
    index: HashMap<String, i64>,
}

fn address(i: usize) -> String {
    format!("10.{}.{}.{}:8888", i >> 16 & 255, i >> 8 & 255, i & 255)
}

impl Task {
    pub fn new(algorithm: &str, weights: Vec<usize>, mut keys: Vec<String>) -> Self {
        if keys.is_empty() {
            keys.push(String::new());
        }
        let index = (0..=weights.len()).map(|i| (address(i), i as i64)).collect();
        let changes_members = matches!(algorithm, "round_robin" | "random" | "consistent_hash");
        Task { weights, keys, changes_members, index }
    }

    /// The weights, and as they are once one instance has changed.
    fn lists(&self) -> [Vec<usize>; 2] {
        let mut changed = self.weights.clone();
        if self.changes_members {
            changed.push(self.weights[0]);
        } else {
            let middle = changed.len() / 2;
            changed[middle] += 1;
        }
        [self.weights.clone(), changed]
    }

    fn index_of(&self, address: Option<String>) -> i64 {
        address.and_then(|one| self.index.get(&one).copied()).unwrap_or(-1)
    }
}

/// The version of a backend, in its extensions.
#[derive(Clone)]
struct Version(u8);

fn backends(weights: &[usize]) -> BTreeSet<Backend> {
    let made = weights.iter().enumerate().map(|(i, &weight)| {
        let mut backend = Backend::new_with_weight(&address(i), weight).expect("an address");
        backend.ext.insert(Version((i % 2) as u8));
        backend
    });
    made.collect()
}

/// Discovery that has two lists beforehand and finds the one that is said to be there.
struct Found {
    lists: [BTreeSet<Backend>; 2],
    at: Arc<AtomicUsize>,
}

#[async_trait]
impl ServiceDiscovery for Found {
    // The copy is what Pingora's own `Static` discovery makes too.
    async fn discover(&self) -> pingora_error::Result<Discovered> {
        Ok((self.lists[self.at.load(Relaxed)].clone(), HashMap::new()))
    }
}

type Discovered = (BTreeSet<Backend>, HashMap<u64, bool>);

/// Run what never waits: it is done at the first poll.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits"),
    }
}

/// What answers for one made picker.
pub trait System {
    fn run(&mut self, operation: &str, count: usize) -> Result<(), String>;
    fn task(&self) -> &Task;
    fn memory(&self, picks: usize) -> isize;
    fn picks(&self, count: usize) -> Vec<i64>;
    fn moved(&self) -> Result<(Vec<i64>, Vec<i64>), String>;

    /// The loop of all operations, without one.
    fn empty(&self, count: usize) {
        let keys = &self.task().keys;
        let mut at = 0;
        for _ in 0..count {
            black_box(black_box(&keys[at]).as_bytes());
            at = if at + 1 == keys.len() { 0 } else { at + 1 };
        }
    }
}

/// A `LoadBalancer`, and its kind of selection by itself.
pub struct Balanced<S: BackendSelection> {
    task: Task,
    lists: [BTreeSet<Backend>; 2],
    selection: Arc<S>,
    calls: LoadBalancer<S>, // nobody changes it
    changing: LoadBalancer<S>,
    at: Arc<AtomicUsize>, // the list that `changing` has
}

fn balancer<S>(lists: &[BTreeSet<Backend>; 2]) -> (LoadBalancer<S>, Arc<AtomicUsize>)
where
    S: BackendSelection + 'static,
    S::Iter: BackendIter,
{
    let at = Arc::new(AtomicUsize::new(0));
    let found = Found { lists: lists.clone(), at: at.clone() };
    let made = LoadBalancer::from_backends(Backends::new(Box::new(found)));
    now(made.update()).expect("an update");
    (made, at)
}

impl<S> Balanced<S>
where
    S: BackendSelection + 'static,
    S::Iter: BackendIter,
{
    pub fn new(task: Task) -> Self {
        let lists = task.lists().map(|weights| backends(&weights));
        let selection = Arc::new(S::build(&lists[0]));
        let (calls, _) = balancer(&lists);
        let (changing, at) = balancer(&lists);
        Balanced { task, lists, selection, calls, changing, at }
    }
}

/// The loop: once for each key in turn.
fn each(keys: &[String], count: usize, mut operation: impl FnMut(&[u8])) {
    let mut at = 0;
    for _ in 0..count {
        operation(black_box(&keys[at]).as_bytes());
        at = if at + 1 == keys.len() { 0 } else { at + 1 };
    }
}

impl<S> System for Balanced<S>
where
    S: BackendSelection + 'static,
    S::Iter: BackendIter,
{
    fn task(&self) -> &Task {
        &self.task
    }

    fn run(&mut self, operation: &str, count: usize) -> Result<(), String> {
        let keys = &self.task.keys;
        let (calls, changing, selection) = (&self.calls, &self.changing, &self.selection);
        match operation {
            // The selection alone, without what the balancer knows of health.
            "pick" => each(keys, count, |key| {
                black_box(selection.iter(key).next());
            }),
            "call" => each(keys, count, |key| {
                black_box(calls.select(key, MOST_TRIED));
            }),
            "filtered" => each(keys, count, |key| {
                black_box(calls.select_with(key, MOST_TRIED, |backend, is_healthy| {
                    is_healthy && backend.ext.get::<Version>().is_some_and(|version| version.0 == 1)
                }));
            }),
            "build" => each(keys, count, |_| {
                black_box(S::build(&self.lists[0]));
            }),
            // There is one way to tell a balancer: it looks at discovery again.
            "change" | "refresh" | "change_1000" => {
                let picks = if operation == "change_1000" { BATCH } else { 1 };
                each(keys, count, |key| {
                    self.at.store(1 - self.at.load(Relaxed), Relaxed);
                    now(changing.update()).expect("an update");
                    for _ in 0..picks {
                        black_box(changing.select(black_box(key), MOST_TRIED));
                    }
                });
            }
            _ => return Err(format!("pingora has no {operation}")),
        }
        Ok(())
    }

    fn memory(&self, picks: usize) -> isize {
        counted::held(|| {
            // Of the two lists one would be there anyway; the other is the bench's.
            let made = balancer::<S>(&[self.lists[0].clone(), BTreeSet::new()]).0;
            for k in 0..picks {
                black_box(made.select(self.task.keys[k % self.task.keys.len()].as_bytes(), 1));
            }
            made
        })
    }

    fn picks(&self, count: usize) -> Vec<i64> {
        let fresh = Arc::new(S::build(&self.lists[0]));
        let keys = self.task.keys.iter().cycle().take(count);
        keys.map(|key| self.task.index_of(owner(&fresh, key))).collect()
    }

    fn moved(&self) -> Result<(Vec<i64>, Vec<i64>), String> {
        let [before, added] = [0, 1].map(|which| {
            let made = Arc::new(S::build(&self.lists[which]));
            let keys = self.task.keys.iter();
            keys.map(|key| self.task.index_of(owner(&made, key))).collect()
        });
        Ok((before, added))
    }
}

fn owner<S>(selection: &Arc<S>, key: &str) -> Option<String>
where
    S: BackendSelection,
    S::Iter: BackendIter,
{
    selection.iter(key.as_bytes()).next().map(|backend| backend.addr.to_string())
}

/// The ring that `Consistent` is made of, by itself: version 1, nginx's points.
pub struct Ring {
    task: Task,
    lists: [Vec<Bucket>; 2],
    ring: Continuum,
    changed: Continuum,
    at: usize, // the list that `changed` has
}

impl Ring {
    pub fn new(task: Task) -> Self {
        let lists = task.lists().map(|weights| {
            let bucket = |(i, &weight): (usize, &usize)| {
                Bucket::new(address(i).parse().expect("an address"), weight as u32)
            };
            weights.iter().enumerate().map(bucket).collect::<Vec<_>>()
        });
        let (ring, changed) = (Continuum::new(&lists[0]), Continuum::new(&lists[0]));
        Ring { task, lists, ring, changed, at: 0 }
    }

    fn owners(&self, ring: &Continuum, count: usize) -> Vec<i64> {
        let keys = self.task.keys.iter().cycle().take(count);
        let owner = |key: &String| ring.node(key.as_bytes()).map(|one: SocketAddr| one.to_string());
        keys.map(|key| self.task.index_of(owner(key))).collect()
    }
}

impl System for Ring {
    fn task(&self) -> &Task {
        &self.task
    }

    fn run(&mut self, operation: &str, count: usize) -> Result<(), String> {
        let keys = &self.task.keys;
        match operation {
            "pick" => each(keys, count, |key| {
                black_box(self.ring.node(key));
            }),
            "build" => each(keys, count, |_| {
                black_box(Continuum::new(black_box(&self.lists[0])));
            }),
            "change" | "refresh" | "change_1000" => {
                let picks = if operation == "change_1000" { BATCH } else { 1 };
                let (at, changed, lists) = (&mut self.at, &mut self.changed, &self.lists);
                each(keys, count, |key| {
                    *at = 1 - *at;
                    *changed = Continuum::new(black_box(&lists[*at]));
                    for _ in 0..picks {
                        black_box(changed.node(black_box(key)));
                    }
                });
            }
            _ => return Err(format!("pingora ketama has no {operation}")),
        }
        Ok(())
    }

    fn memory(&self, _picks: usize) -> isize {
        counted::held(|| Continuum::new(&self.lists[0]))
    }

    fn picks(&self, count: usize) -> Vec<i64> {
        self.owners(&self.ring, count)
    }

    fn moved(&self) -> Result<(Vec<i64>, Vec<i64>), String> {
        let n = self.task.keys.len();
        Ok((self.owners(&self.ring, n), self.owners(&Continuum::new(&self.lists[1]), n)))
    }
}

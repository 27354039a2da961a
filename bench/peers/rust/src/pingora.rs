//! The system `pingora`: the crate pingora-load-balancing, by what it publishes.
//!
//! It has two layers. A *selector* (`selection::BackendSelection`) is made from a set of
//! backends and never changes: it is the picker that is held, and `pick`, `build`, `picks`,
//! `moved` and `memory` are of it. `LoadBalancer` holds a selector, discovery and health, and
//! its `select` is what a proxy calls for each request: `call`, `filtered` and the changes are
//! of it. There is nothing to give back after a call.
//!
//! What `select` does besides is Pingora's own: it hashes the backend (SipHash) for the set of
//! those seen, which it allocates, and again for its health, and it gives a clone of the backend.
//!
//! `RoundRobin` and `Random` hold an index of two bytes for each unit of weight, and take at most
//! 65,535 backends. The index stands in blocks: of weights 5, 1, 1 the round robin makes
//! a a a a a b c, not nginx's smooth order. The ring (`Consistent`) has 160 points of 8 bytes for
//! each unit of weight: it is that of pingora-ketama, and finds the backend by a map.

use crate::allocation;
use crate::instances::{address, index, Instances};
use crate::system::{Moved, Operation, System, MAX_ITERATIONS};
use crate::timing::{in_a_loop, one_by_one, Timing};
use async_trait::async_trait;
use pingora_load_balancing::discovery::ServiceDiscovery;
use pingora_load_balancing::selection::{BackendIter, BackendSelection};
use pingora_load_balancing::{Backend, Backends, LoadBalancer};
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

/// The version of an instance, as its user annotates a backend with it.
#[derive(Clone, PartialEq)]
struct Version(&'static str);

/// Backends with these weights. They are sorted by address, which is by index.
fn backends(weights: &[usize]) -> BTreeSet<Backend> {
    let backend = |(index, &weight): (usize, &usize)| {
        Backend::new_with_weight(&address(index).to_string(), weight)
            .expect("an address and a port are an address")
    };
    weights.iter().enumerate().map(backend).collect()
}

/// The same, those of an odd index of version 1, the others of version 0.
fn backends_of_versions(weights: &[usize]) -> BTreeSet<Backend> {
    let annotated = |(index, mut backend): (usize, Backend)| {
        let version = if index % 2 == 1 { "1" } else { "0" };
        backend.ext.insert(Version(version));
        backend
    };
    let plain = backends(weights).into_iter();
    plain.enumerate().map(annotated).collect()
}

/// Discovery that gives away the list that has come last.
///
/// `discover` has to give a set of its own. Here it is moved, so that no copy of it is in the
/// time of a change; Pingora's own `discovery::Static` would make one.
#[derive(Clone, Default)]
struct Latest(Arc<Mutex<BTreeSet<Backend>>>);

impl Latest {
    fn has_come(&self, backends: BTreeSet<Backend>) {
        *self.0.lock().expect("nobody panics with it") = backends;
    }
}

#[async_trait]
impl ServiceDiscovery for Latest {
    async fn discover(&self) -> pingora_error::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        let mut latest = self.0.lock().expect("nobody panics with it");
        Ok((std::mem::take(&mut *latest), HashMap::new()))
    }
}

/// A load balancer, and the discovery that it asks.
struct Client<S: BackendSelection> {
    balancer: LoadBalancer<S>,
    latest: Latest,
}

impl<S> Client<S>
where
    S: BackendSelection + 'static,
    S::Iter: BackendIter,
{
    fn new(backends: BTreeSet<Backend>) -> Self {
        let latest = Latest::default();
        let balancer = LoadBalancer::from_backends(Backends::new(Box::new(latest.clone())));
        let client = Self { balancer, latest };
        client.latest.has_come(backends);
        client.update();
        client
    }

    /// Run `LoadBalancer::update`, which waits for nothing but discovery, and ours is ready at
    /// once: polled one time it is done, and no executor is in the time.
    fn update(&self) {
        let update = pin!(self.balancer.update());
        match update.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result.expect("our discovery does not fail"),
            Poll::Pending => unreachable!("our discovery does not wait"),
        }
    }
}

pub struct Pingora<S: BackendSelection> {
    instances: Instances,
    by_key: bool,
    backends: BTreeSet<Backend>,
    /// The selector of `pick`.
    selector: Arc<S>,
    /// The balancer of `call`, of `filtered` and of the changes: each is made when first needed.
    calling: Option<Client<S>>,
    filtering: Option<Client<S>>,
    changing: Option<Client<S>>,
    /// Whether the last change has made the list the changed one.
    is_changed: bool,
}

/// Something of the picked backend, for the sum.
fn used(backend: Option<&Backend>) -> usize {
    black_box(backend).map_or(0, |backend| backend.weight)
}

/// Who is picked, by number.
fn found(backend: Option<&Backend>) -> i64 {
    backend.map_or(-1, |backend| {
        index(backend.as_inet().expect("backends have addresses of IP"))
    })
}

impl<S> Pingora<S>
where
    S: BackendSelection + 'static,
    S::Iter: BackendIter,
{
    pub fn new(instances: Instances, by_key: bool) -> Self {
        let backends = backends(&instances.weights);
        Self {
            selector: Arc::new(S::build(&backends)),
            backends,
            instances,
            by_key,
            calling: None,
            filtering: None,
            changing: None,
            is_changed: false,
        }
    }

    fn changes(&mut self, count: usize, picks: usize) -> Timing {
        let Self {
            backends: plain,
            instances,
            changing,
            is_changed,
            ..
        } = self;
        let lists = [plain.clone(), backends(&instances.changed())];
        let client = changing.get_or_insert_with(|| Client::new(plain.clone()));
        let prepare = || {
            *is_changed = !*is_changed;
            client
                .latest
                .has_come(lists[usize::from(*is_changed)].clone());
        };
        one_by_one(&instances.keys, count, prepare, |turn| {
            client.update();
            let some = turn.take(picks);
            some.fold(0, |sum: usize, key| {
                let picked = client
                    .balancer
                    .select(black_box(key.as_bytes()), MAX_ITERATIONS);
                sum.wrapping_add(used(picked.as_ref()))
            })
        })
    }

    /// Whom each key finds, the keys once.
    fn owners(&self, weights: &[usize]) -> Vec<i64> {
        let selector = Arc::new(S::build(&backends(weights)));
        let owner = |key: &String| found(selector.iter(key.as_bytes()).next());
        self.instances.keys.iter().map(owner).collect()
    }
}

impl<S> System for Pingora<S>
where
    S: BackendSelection + 'static,
    S::Iter: BackendIter,
{
    fn time(&mut self, operation: Operation, count: usize) -> Result<Timing, String> {
        let keys = &self.instances.keys;
        let (plain, weights) = (&self.backends, &self.instances.weights);
        Ok(match operation {
            Operation::Pick => {
                let selector = &self.selector;
                in_a_loop(keys, count, |key| used(selector.iter(key).next()))
            }
            Operation::Call => {
                let new = || Client::new(plain.clone());
                let balancer = &self.calling.get_or_insert_with(new).balancer;
                in_a_loop(keys, count, |key| {
                    used(balancer.select(key, MAX_ITERATIONS).as_ref())
                })
            }
            Operation::Filtered => {
                let new = || Client::new(backends_of_versions(weights));
                let balancer = &self.filtering.get_or_insert_with(new).balancer;
                let wanted = black_box(Version("1"));
                let accept = |backend: &Backend, healthy: bool| {
                    healthy && backend.ext.get::<Version>() == Some(&wanted)
                };
                in_a_loop(keys, count, |key| {
                    used(balancer.select_with(key, MAX_ITERATIONS, accept).as_ref())
                })
            }
            Operation::Build => in_a_loop(keys, count, |_key| {
                black_box(&Arc::new(S::build(black_box(plain))));
                1
            }),
            Operation::Change | Operation::Refresh => self.changes(count, 1),
            Operation::Change1000 => self.changes(count, 1000),
            Operation::Batch => return Err("pingora has no batch".into()),
        })
    }

    fn picks(&self, count: usize) -> Vec<i64> {
        let selector = Arc::new(S::build(&self.backends));
        let keys = self.instances.keys.iter().cycle().take(count);
        keys.map(|key| found(selector.iter(key.as_bytes()).next()))
            .collect()
    }

    fn moved(&self) -> Result<Moved, String> {
        if !self.by_key {
            return Err("keys move where instances are picked by key".into());
        }
        Ok(Moved {
            before: self.owners(&self.instances.weights),
            added: self.owners(&self.instances.with_one_more()),
        })
    }

    fn memory(&self, count: usize) -> i64 {
        self.picks(1); // the generator of `Random` belongs to the thread, and is there from now on
        allocation::held(|| {
            let selector = Arc::new(S::build(&self.backends));
            for key in self.instances.keys.iter().cycle().take(count) {
                black_box(selector.iter(key.as_bytes()).next());
            }
            selector
        })
    }
}

//! The peer of the benchmark that speaks for Pingora; ../PROTOCOL.md is what it answers to.

mod allocation;
mod instances;
mod ketama;
mod pingora;
mod system;
mod timing;

use instances::{Change, Instances};
use pingora_load_balancing::selection::{Consistent, Random, RoundRobin};
use serde::Deserialize;
use serde_json::{json, Value};
use std::io::{self, BufRead, Write};
use std::panic::{catch_unwind, AssertUnwindSafe};
use system::{Operation, System};

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;

/// The most instances that both crates can tell apart: they number them by 16 bits. Beyond, a
/// selector panics, and a ring silently gives the keys of one instance to another.
const MOST_INSTANCES: usize = 65_535;

/// The most picks before `memory` is read.
const MOST_PICKS: usize = 100_000;

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
enum Request {
    Describe,
    Make(Make),
    Time { operation: Operation, count: usize },
    Picks { count: usize },
    Moved,
    Memory,
    Simulate,
}

#[derive(Deserialize)]
struct Make {
    system: String,
    algorithm: String,
    weights: Vec<usize>,
    keys: Vec<String>,
}

/// A system, and the picks after which its memory is read.
struct Made {
    system: Box<dyn System>,
    period: usize,
}

fn make(request: Make) -> Result<Made, String> {
    let Make {
        system,
        algorithm,
        mut weights,
        mut keys,
    } = request;
    if weights.is_empty() || weights.len() > MOST_INSTANCES {
        let n = weights.len();
        return Err(format!(
            "Pingora tells 1 to {MOST_INSTANCES} instances apart, not {n}"
        ));
    }
    let change = match algorithm.as_str() {
        "weighted_round_robin" | "weighted_random" => Change::Weighs,
        _ => Change::Comes,
    };
    if change == Change::Comes {
        // In Pingora nobody is unweighted: equals are those of weight 1, as of Backend::new.
        if weights.iter().any(|&weight| weight != weights[0]) {
            return Err(format!("{algorithm} has weights that are all the same"));
        }
        weights.fill(1);
    }
    let period = match algorithm.as_str() {
        "round_robin" | "weighted_round_robin" => weights.iter().sum(),
        _ => MOST_PICKS,
    };
    if keys.is_empty() {
        keys.push(String::new()); // so that the loops have a key to go through
    }
    let instances = Instances {
        weights,
        keys,
        change,
    };
    let system: Box<dyn System> = match (system.as_str(), algorithm.as_str()) {
        ("pingora", "round_robin" | "weighted_round_robin") => {
            Box::new(pingora::Pingora::<RoundRobin>::new(instances, false))
        }
        ("pingora", "random" | "weighted_random") => {
            Box::new(pingora::Pingora::<Random>::new(instances, false))
        }
        ("pingora", "consistent_hash") => {
            Box::new(pingora::Pingora::<Consistent>::new(instances, true))
        }
        ("pingora ketama", "consistent_hash") => Box::new(ketama::Ketama::new(instances)),
        ("pingora" | "pingora ketama", _) => return Err(format!("{system} has no {algorithm}")),
        _ => return Err(format!("no system {system:?} here")),
    };
    Ok(Made {
        system,
        period: period.min(MOST_PICKS),
    })
}

fn answer(request: Request, made: &mut Option<Made>) -> Result<Value, String> {
    if let Request::Make(request) = request {
        *made = None; // the one before goes before the new one comes
        *made = Some(make(request)?);
        return Ok(json!({}));
    }
    let held = made.as_mut().ok_or("make something first");
    Ok(match request {
        Request::Make(_) => unreachable!("answered above"),
        Request::Describe => json!({
            "systems": {"pingora": env!("PINGORA"), "pingora ketama": env!("KETAMA")},
            "runtime": env!("RUNTIME"),
        }),
        Request::Time { operation, count } => {
            let timing = held?.system.time(operation, count)?;
            match timing.empty_ns {
                Some(empty_ns) => json!({"ns": timing.ns, "empty_ns": empty_ns}),
                None => json!({"ns": timing.ns}),
            }
        }
        Request::Picks { count } => json!({"picks": held?.system.picks(count)}),
        Request::Moved => {
            let moved = held?.system.moved()?;
            json!({"before": moved.before, "added": moved.added})
        }
        Request::Memory => {
            let Made { system, period } = held?;
            json!({"bytes": system.memory(*period)})
        }
        Request::Simulate => return Err("Pingora has no load-aware policy".into()),
    })
}

/// What a panic of a crate was about.
fn reason(panic: Box<dyn std::any::Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => panic
            .downcast::<&str>()
            .map_or("a panic".into(), |message| message.to_string()),
    }
}

fn main() -> io::Result<()> {
    let mut output = io::stdout().lock();
    let mut made = None;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let answered = match serde_json::from_str(&line) {
            Ok(request) => catch_unwind(AssertUnwindSafe(|| answer(request, &mut made)))
                .unwrap_or_else(|panic| {
                    made = None; // what has panicked may be half changed
                    Err(reason(panic))
                }),
            Err(error) => Err(error.to_string()),
        };
        let value = answered.unwrap_or_else(|error| json!({ "error": error }));
        writeln!(output, "{value}")?;
        output.flush()?;
    }
    Ok(())
}

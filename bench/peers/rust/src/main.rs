//! The peer of Pingora's load balancer and ring, as published, behind the protocol of
//! ../PROTOCOL.md.

mod counted;
mod pingora;

use std::io::{BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use pingora_load_balancing::selection::{Consistent, Random, RoundRobin};
use serde_json::{Value, json};

use crate::pingora::{Balanced, Ring, System, Task};

type Answer = Result<Value, String>;

const MOST_FOR_MEMORY: usize = 100_000; // picks after which memory is looked at

fn numbers(request: &Value, name: &str) -> Vec<usize> {
    let list = request[name].as_array().map(Vec::as_slice).unwrap_or(&[]);
    list.iter().map(|one| one.as_u64().unwrap_or(0) as usize).collect()
}

fn strings(request: &Value, name: &str) -> Vec<String> {
    let list = request[name].as_array().map(Vec::as_slice).unwrap_or(&[]);
    list.iter().map(|one| one.as_str().unwrap_or("").to_owned()).collect()
}

fn make(request: &Value) -> Result<Box<dyn System>, String> {
    let algorithm = request["algorithm"].as_str().unwrap_or("");
    let task = Task::new(algorithm, numbers(request, "weights"), strings(request, "keys"));
    // What Pingora refuses, it refuses by a panic: over 65,535 backends.
    let made = catch_unwind(AssertUnwindSafe(|| -> Option<Box<dyn System>> {
        Some(match (request["system"].as_str().unwrap_or(""), algorithm) {
            ("pingora", "round_robin" | "weighted_round_robin") => {
                Box::new(Balanced::<RoundRobin>::new(task))
            }
            ("pingora", "random" | "weighted_random") => Box::new(Balanced::<Random>::new(task)),
            ("pingora", "consistent_hash") => Box::new(Balanced::<Consistent>::new(task)),
            ("pingora ketama", "consistent_hash") => Box::new(Ring::new(task)),
            _ => return None,
        })
    }));
    match made {
        Ok(Some(system)) => Ok(system),
        Ok(None) => Err(format!("{} has no {algorithm}", request["system"])),
        Err(why) => Err(why.downcast_ref::<&str>().unwrap_or(&"it panics").to_string()),
    }
}

fn answer(made: &mut Option<Box<dyn System>>, request: &Value) -> Answer {
    match request["do"].as_str().unwrap_or("") {
        "describe" => {
            return Ok(json!({
                "systems": {
                    "pingora": env!("PINGORA_VERSION"),
                    "pingora ketama": env!("KETAMA_VERSION"),
                },
                "runtime": env!("COMPILER"),
            }));
        }
        "make" => {
            *made = None;
            *made = Some(make(request)?);
            return Ok(json!({}));
        }
        _ => {}
    }
    let system = made.as_mut().ok_or("nothing has been made")?;
    let count = request["count"].as_u64().unwrap_or(0) as usize;
    match request["do"].as_str().unwrap_or("") {
        "time" => {
            let operation = request["operation"].as_str().unwrap_or("");
            let began = Instant::now();
            system.run(operation, count)?;
            let ns = began.elapsed().as_nanos() as u64;
            let began = Instant::now();
            system.empty(count);
            Ok(json!({"ns": ns, "empty_ns": began.elapsed().as_nanos() as u64}))
        }
        "picks" => Ok(json!({"picks": system.picks(count)})),
        "moved" => {
            let (before, added) = system.moved()?;
            Ok(json!({"before": before, "added": added}))
        }
        "memory" => Ok(json!({"bytes": system.memory(MOST_FOR_MEMORY)})),
        other => Err(format!("pingora has no {other}")),
    }
}

fn main() {
    let mut made = None;
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        let answer = match serde_json::from_str(&line) {
            Ok(request) => answer(&mut made, &request),
            Err(error) => Err(error.to_string()),
        };
        let said = answer.unwrap_or_else(|error| json!({"error": error}));
        let mut out = std::io::stdout().lock();
        if writeln!(out, "{said}").and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}

//! Instances as the protocol numbers them, and how they change.

use std::net::{Ipv4Addr, SocketAddr};

const PORT: u16 = 8888;

/// What a change does, by the algorithm.
#[derive(Clone, Copy, PartialEq)]
pub enum Change {
    /// Instance number n comes and goes: weights are all the same.
    Comes,
    /// The weight of instance n // 2 grows and shrinks by one.
    Weighs,
}

/// The weights of instances 0 to n - 1, and the keys, of which there is at least one.
pub struct Instances {
    pub weights: Vec<usize>,
    pub keys: Vec<String>,
    pub change: Change,
}

impl Instances {
    /// The weights once instance n, of the weight of instance 0, has come.
    pub fn with_one_more(&self) -> Vec<usize> {
        let mut weights = self.weights.clone();
        weights.push(weights[0]);
        weights
    }

    /// The weights once the change of the protocol has happened.
    pub fn changed(&self) -> Vec<usize> {
        match self.change {
            Change::Comes => self.with_one_more(),
            Change::Weighs => {
                let mut weights = self.weights.clone();
                weights[self.weights.len() / 2] += 1;
                weights
            }
        }
    }
}

/// The address of instance `index`: its three low bytes after 10, highest first.
pub fn address(index: usize) -> SocketAddr {
    let [_, x, y, z] = u32::try_from(index)
        .expect("an index is below 2^24")
        .to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(10, x, y, z), PORT))
}

/// The instance that has `address`.
pub fn index(address: &SocketAddr) -> i64 {
    let SocketAddr::V4(v4) = address else {
        unreachable!("instances have addresses of IPv4");
    };
    let [_, x, y, z] = v4.ip().octets();
    i64::from(u32::from_be_bytes([0, x, y, z]))
}

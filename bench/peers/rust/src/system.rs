//! What the two systems of this peer have in common.

use crate::timing::Timing;
use serde::Deserialize;

#[derive(Deserialize, Clone, Copy, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    Pick,
    Call,
    Filtered,
    Batch,
    Build,
    Change,
    #[serde(rename = "change_1000")]
    Change1000,
    Refresh,
}

/// Who has each key, before and after one more instance has come.
pub struct Moved {
    pub before: Vec<i64>,
    pub added: Vec<i64>,
}

/// A system with the instances it was made of.
pub trait System {
    /// Do `operation` `count` times. Errors: what the system has not.
    fn time(&mut self, operation: Operation, count: usize) -> Result<Timing, String>;

    /// The instances that a fresh picker picks, -1 for nobody.
    fn picks(&self, count: usize) -> Vec<i64>;

    /// Errors: the system does not pick by key.
    fn moved(&self) -> Result<Moved, String>;

    /// Bytes that a fresh picker holds after `count` picks.
    fn memory(&self, count: usize) -> i64;
}

/// Candidates that a filter may refuse before nobody is picked. Both rings walk on clockwise;
/// half of the instances pass, so that this is never reached.
pub const MAX_ITERATIONS: usize = 256;

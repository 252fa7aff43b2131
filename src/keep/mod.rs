//! Retention: what goes by the rules of `[keep]`, and its removal. Everything that is decided is decided without a look at
//! anything, by [`planning`], from what was gathered into an [`inventory`]; a dry run prints that [`plan`], and a real run
//! carries it out.

pub mod choose;
pub mod compact;
mod delete;
mod execute;
mod expire;
mod gather;
pub mod inventory;
pub mod mirrors;
pub mod path;
pub mod plan;
pub mod planning;
pub mod policy;
pub mod ranges;
pub mod remain;
#[cfg(test)]
mod simulation;

pub use delete::plan_deletion;
pub use execute::Done;
pub use expire::{ExpiryPlan, carry_out, plan_expiry, system_of};
pub use gather::folders;
pub use policy::{Policy, Reason};

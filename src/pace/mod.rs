//! How fast long work goes: never faster than a person allows, and never so that the server beside it is crowded out.

mod cores;
mod crew;
mod priority;
mod throttle;

pub use cores::{Cores, Seat};
pub use crew::{Crew, Look, Member, Rule};
pub use priority::{InputOutput, lower};
pub use throttle::Throttle;

//! What people and their watchmen look at: sentences about what can be recovered, drawings of timelines, the state of a
//! cluster, metrics. Pure, what was gathered comes in and text goes out, but for [`look`], which gathers.
//!
//! A drawing is made in two steps. [`Scene`] puts everything into lanes, in time; [`text`], [`svg`] and [`html`] give it
//! a form.

pub mod archive_command;
pub mod doctor;
mod escape;
pub mod html;
pub mod lag;
pub mod look;
pub mod metrics;
mod scale;
mod scene;
pub mod status;
pub mod svg;
pub mod text;
#[cfg(test)]
mod trees;
pub mod words;

pub use escape::{plain, xml};
pub use scene::{Birth, Lane, Mark, Scene, Span, SpanKind};

//! What people look at: sentences about what can be recovered, drawings of timelines, the state of a cluster. Pure: what
//! was gathered comes in, text goes out.
//!
//! A drawing is made in two steps. [`Scene`] puts everything into lanes, in time; [`text`], [`svg`] and [`html`] give it
//! a form.

mod escape;
pub mod html;
mod scale;
mod scene;
pub mod status;
pub mod svg;
pub mod text;
#[cfg(test)]
mod trees;
pub mod words;

pub use escape::plain;
pub use scene::{Birth, Lane, Mark, Scene, Span, SpanKind};

//! What people look at: sentences about what can be recovered, drawings of timelines, the state of a cluster. Pure: what
//! was gathered comes in, text goes out.

pub mod words;

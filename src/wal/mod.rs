//! Reads WAL out of segments (PostgreSQL 14 to 19): pages, records, and what they say. Pure: bytes in, facts
//! out, no I/O, no panic whatever the bytes, and memory that does not grow with the segment.

pub mod check;
mod fields;
pub mod page;

pub use check::{SegmentCheck, SegmentEnd, SegmentFacts, check_segment};
pub use page::{PageHeader, SegmentHeader};

//! Reads WAL out of segments (PostgreSQL 14 to 19): pages, records, and what they say. Pure: bytes in, facts
//! out, no I/O, no panic whatever the bytes, and memory that does not grow with the segment.
//!
//! [`check`] judges one segment before it is archived. [`Reader`] walks the records of consecutive segments and
//! tells their [`Fact`]s. [`stop`] finds among these where recovery stops.

pub mod check;
pub mod contents;
mod decode;
pub mod fact;
mod fields;
mod image;
pub(crate) mod named;
pub mod page;
pub mod reader;
pub mod record;
mod runs;
pub mod stop;
pub mod summary;
#[cfg(test)]
pub(crate) mod testing;

pub use check::{SegmentCheck, SegmentEnd, SegmentFacts, check_segment};
pub use contents::{Contents, Inspector, ManagerCount};
pub use fact::{
    Change, Checkpoint, Dropped, Fact, Lock, Named, Parameters, Prepared, RelFile, Rows, TransactionEnd, WalLevel,
    widen_xid,
};
pub use page::{PageHeader, SegmentHeader};
pub use reader::{End, Reader, Records};
pub use record::Record;
pub use stop::{Ended, Seen, Stop, StopFinder, StopRule};
pub use summary::{Ending, Joined, Lead, List, Rest, RowCount, RowCounts, Summarizer, Summary, Tail, Told};

//! The proof that the segments of a plan are whole: each object's head is read, and must tell its name and the
//! length that the listing told.

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::{
    error::{Error, Result},
    postgres::{SegmentName, WalFile},
    repository::{System, wal_object},
};

/// Requests at a time.
const PARALLEL: usize = 16;

/// Proves every segment that was not read anyway.
pub async fn prove(system: &System, segments: &[SegmentName]) -> Result<()> {
    let one = |name: SegmentName| async move {
        let head = wal_object::read_head(&*system.store, &system.folder.segment(name)?).await?;
        if head.name == WalFile::Segment(name) && head.size == system.document.segment_size.bytes() {
            Ok(())
        } else {
            Err(Error::damaged(format!("the object of {name} says that it holds {} bytes of {}", head.size, head.name)))
        }
    };
    stream::iter(segments.iter().copied().map(one)).buffer_unordered(PARALLEL).try_collect().await
}

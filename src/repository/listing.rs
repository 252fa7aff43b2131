//! Which segments are in the archive. A listing gives a thousand names at a time, and only in their order; but the names
//! can be foreseen, so that a long timeline is listed in stretches side by side.

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{System, layout::piece_of, segment_of};
use crate::{
    error::Result,
    postgres::{SegmentName, TimelineId},
    store::{Key, Listed},
};

/// Names that are asked for at a time: the most that S3 gives.
const PAGE: usize = 1000;
/// Stretches that are listed at a time.
const PARALLEL: usize = 32;

/// How a segment is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// As one object, of so many bytes.
    Whole(u64),
    /// As pieces, because it is not complete: the bytes of their objects.
    Pieces(u64),
}

impl Stored {
    /// Bytes of its object, or of its pieces' objects.
    #[must_use]
    pub fn length(self) -> u64 {
        match self {
            Self::Whole(length) | Self::Pieces(length) => length,
        }
    }

    /// Whether it is there as pieces alone.
    #[must_use]
    pub fn is_in_pieces(self) -> bool {
        matches!(self, Self::Pieces(_))
    }
}

/// Segments, and how each is stored.
type Segments = Vec<(SegmentName, Stored)>;

impl System {
    /// The segments of a timeline that are whole in the archive with the lengths of their objects: from `first` (if given)
    /// to `last` (if given), both included, in the order of their LSNs.
    pub async fn segments(
        &self,
        timeline: TimelineId,
        first: Option<SegmentName>,
        last: Option<SegmentName>,
    ) -> Result<Vec<(SegmentName, u64)>> {
        let listed = self.segments_and_pieces(timeline, first, last).await?;
        let whole = listed.into_iter().filter(|(_, stored)| !stored.is_in_pieces());
        Ok(whole.map(|(name, stored)| (name, stored.length())).collect())
    }

    /// The same, and behind them the segment after the last one of the timeline, where there are pieces of it.
    pub async fn segments_and_pieces(
        &self,
        timeline: TimelineId,
        first: Option<SegmentName>,
        last: Option<SegmentName>,
    ) -> Result<Segments> {
        // Everything in the folder of an earlier log sorts before it; what remains of `first`'s own log is filtered.
        let begin = match first {
            Some(name) => Some(self.before_log(timeline, name.log)?),
            None => None,
        };
        let (mut segments, more) = self.page(timeline, begin, None, last).await?;
        if let Some(after) = more {
            for stretch in self.side_by_side(timeline, after, last).await? {
                stretch.into_iter().for_each(|segment| add(&mut segments, segment));
            }
        }
        if let Some(first) = first {
            segments.retain(|(name, _)| *name >= first);
        }
        self.keep_last_pieces(&mut segments);
        Ok(segments)
    }

    /// Pieces count of the segment after the last whole one alone.
    fn keep_last_pieces(&self, segments: &mut Segments) {
        let whole = segments.iter().rev().find(|(_, stored)| !stored.is_in_pieces()).map(|(name, _)| *name);
        let next = whole.map(|name| name.next(self.document.segment_size).ok());
        let mut taken = false;
        segments.retain(|(name, stored)| {
            let counts = !taken && next.is_none_or(|next| next == Some(*name));
            taken |= stored.is_in_pieces() && counts;
            !stored.is_in_pieces() || counts
        });
    }

    /// The segments after a key, in stretches.
    async fn side_by_side(&self, timeline: TimelineId, after: Key, last: Option<SegmentName>) -> Result<Vec<Segments>> {
        let folders = self.store.folders(&self.folder.timeline(timeline)).await?;
        let mut logs: Vec<u32> = folders.iter().filter_map(|name| u32::from_str_radix(name, 16).ok()).collect();
        let prefix = self.folder.timeline(timeline);
        logs.retain(|log| {
            let within = last.is_none_or(|last| *log <= last.log);
            within && after.as_str() < format!("{prefix}{log:08X}").as_str()
        });
        // A stretch of fewer logs would not fill a page.
        let full = PAGE / usize::try_from(self.document.segment_size.per_log()).unwrap_or(PAGE);
        let each = logs.len().div_ceil(PARALLEL).max(full).max(1);
        let begins: Vec<u32> = logs.iter().skip(each).step_by(each).copied().collect();
        // The stretches leave no room between them: what comes while they are listed is found as well.
        let mut stretches = Vec::with_capacity(begins.len() + 1);
        let mut from = after;
        for begin in begins {
            stretches.push((std::mem::replace(&mut from, self.before_log(timeline, begin)?), Some(begin)));
        }
        stretches.push((from, None));
        let list = |(after, until)| self.stretch(timeline, after, until, last);
        stream::iter(stretches.into_iter().map(list)).buffered(PARALLEL).try_collect().await
    }

    /// The segments after a key and before log `until`.
    async fn stretch(
        &self,
        timeline: TimelineId,
        after: Key,
        until: Option<u32>,
        last: Option<SegmentName>,
    ) -> Result<Segments> {
        let mut segments = Vec::new();
        let mut from = Some(after);
        while from.is_some() {
            let (page, more) = self.page(timeline, from, until, last).await?;
            page.into_iter().for_each(|segment| add(&mut segments, segment));
            from = more;
        }
        Ok(segments)
    }

    /// The segments on one page of the listing, and the key to go on after; none when nothing that is wanted follows.
    async fn page(
        &self,
        timeline: TimelineId,
        after: Option<Key>,
        until: Option<u32>,
        last: Option<SegmentName>,
    ) -> Result<(Segments, Option<Key>)> {
        let page = self.store.list(&self.folder.timeline(timeline), after.as_ref(), PAGE).await?;
        let mut end = if page.len() < PAGE { None } else { page.last().map(|l| l.key.clone()) };
        let mut segments = Segments::with_capacity(page.len());
        for Listed { key, length } in page {
            let piece = piece_of(&key).map(|(name, ..)| (name, Stored::Pieces(length)));
            let Some((name, stored)) = segment_of(&key).map(|name| (name, Stored::Whole(length))).or(piece) else {
                continue;
            };
            if last.is_some_and(|last| name > last) || until.is_some_and(|until| name.log >= until) {
                return Ok((segments, None));
            }
            add(&mut segments, (name, stored));
        }
        // Of a segment that is whole no piece matters, however many are left.
        if let (Some(key), Some((name, Stored::Whole(_)))) = (&mut end, segments.last())
            && piece_of(key).is_some_and(|(of, ..)| of == *name)
        {
            *key = self.folder.behind_pieces(*name)?;
        }
        Ok((segments, end))
    }

    /// A key after which everything of that log comes, and nothing of an earlier one.
    fn before_log(&self, timeline: TimelineId, log: u32) -> Result<Key> {
        Key::new(format!("{}{log:08X}/0", self.folder.timeline(timeline)))
    }

    /// The first segment of the same timeline after that one of which anything is in the archive, if there is any.
    pub async fn first_segment_after(&self, name: SegmentName) -> Result<Option<SegmentName>> {
        const PAGE: usize = 10;
        let prefix = self.folder.timeline(name.timeline);
        let mut after = self.folder.behind_pieces(name)?;
        loop {
            let page = self.store.list(&prefix, Some(&after), PAGE).await?;
            let piece = |key| piece_of(key).map(|(of, ..)| of);
            if let Some(later) = page.iter().find_map(|l| segment_of(&l.key).or_else(|| piece(&l.key))) {
                return Ok(Some(later));
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after = last.key.clone(),
                _ => return Ok(None),
            }
        }
    }
}

/// Adds a segment behind those that were listed before it, unless it is a piece of the last of them.
fn add(segments: &mut Segments, (name, stored): (SegmentName, Stored)) {
    match (segments.last_mut().filter(|(last, _)| *last == name), stored) {
        (Some((_, Stored::Pieces(sum))), Stored::Pieces(length)) => *sum += length,
        (Some(_), _) => {}
        (None, stored) => segments.push((name, stored)),
    }
}

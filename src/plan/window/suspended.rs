//! Why WAL is missing, where a person let it go: notes of suspended archiving laid beside what the listing tells.

use super::{Timelines, WindowEnd};
use crate::repository::GapNote;

impl Timelines {
    /// Takes the notes in, and gives their reason to the gaps that they explain.
    pub(super) fn explain(&mut self, notes: Vec<GapNote>) {
        let size = self.system.segment_size;
        for timeline in &mut self.timelines {
            for gap in &mut timeline.gaps {
                let note = notes.iter().find(|note| note.touches(gap.first, gap.last));
                gap.suspended = note.map(|note| note.suspended.clone());
            }
            for window in &mut timeline.windows {
                let beyond = window.last_segment.next(size).ok();
                if let WindowEnd::Missing { segment, suspended } = &mut window.end {
                    let note = notes.iter().find(|note| note.holds(*segment) || beyond.is_some_and(|n| note.holds(n)));
                    *suspended = note.map(|note| note.suspended.clone());
                }
            }
        }
        self.suspensions = notes;
    }

    /// Suspensions that no gap tells of: those that last, and those behind which nothing was archived yet.
    pub fn untold_suspensions(&self) -> impl Iterator<Item = &GapNote> {
        let told = |note: &GapNote| {
            let mut gaps = self.timelines.iter().flat_map(|timeline| &timeline.gaps);
            gaps.any(|gap| gap.suspended.as_ref().is_some_and(|told| told.id == note.suspended.id))
        };
        self.suspensions.iter().filter(move |note| note.is_gap() && !told(note))
    }
}

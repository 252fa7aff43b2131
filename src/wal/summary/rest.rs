//! What of the counts of rows is not listed, in sum.

use serde::{Deserialize, Serialize};

use super::{RowCount, RowCounts, is_none_of_them};

/// The counts of rows that were left out of a list, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    /// How many they are: pairs of file and transaction.
    pub pairs: u64,
    /// Rows inserted.
    #[serde(default, skip_serializing_if = "is_none_of_them")]
    pub inserted: u64,
    /// Rows updated.
    #[serde(default, skip_serializing_if = "is_none_of_them")]
    pub updated: u64,
    /// Rows deleted.
    #[serde(default, skip_serializing_if = "is_none_of_them")]
    pub deleted: u64,
    /// Pages written without rows.
    #[serde(default, skip_serializing_if = "is_none_of_them")]
    pub images: u64,
    /// The most rows that one of them updated and deleted.
    #[serde(default, skip_serializing_if = "is_none_of_them")]
    pub most: u64,
    /// The same of those that did not end in the segment; 0 when there are none, or they only inserted.
    #[serde(default, skip_serializing_if = "is_none_of_them")]
    pub most_unended: u64,
}

impl Rest {
    /// Adds one. `unended`: its transaction did not end in the segment.
    pub(super) fn add(&mut self, count: &RowCount, unended: bool) {
        let changed = count.changed();
        self.pairs = self.pairs.saturating_add(1);
        self.inserted = self.inserted.saturating_add(count.inserted);
        self.updated = self.updated.saturating_add(count.updated);
        self.deleted = self.deleted.saturating_add(count.deleted);
        self.images = self.images.saturating_add(count.images);
        self.most = self.most.max(changed);
        self.most_unended = self.most_unended.max(if unended { changed } else { 0 });
    }
}

impl RowCounts {
    /// Whether there is nothing to count.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && !self.cut
    }

    /// What is left for a reader that does not need it.
    #[must_use]
    pub fn emptied(&self) -> Self {
        Self { items: Vec::new(), cut: !self.is_empty(), rest: None }
    }

    /// Keeps as many from the front.
    pub fn truncate(&mut self, items: usize) {
        let mut rest = Rest::default();
        self.items.drain(items.min(self.items.len())..).for_each(|count| rest.add(&count, count.unended));
        self.leave_out(rest);
    }

    /// The most changes first.
    pub(super) fn sort(&mut self) {
        self.items.sort_unstable_by_key(|count| (std::cmp::Reverse(count.total()), count.lsn));
    }

    /// Adds to what is left out.
    pub(super) fn leave_out(&mut self, more: Rest) {
        if more.pairs == 0 {
            return;
        }
        // What an earlier cut left out is not known where it was not told.
        if let Some(rest) = &mut self.rest {
            rest.pairs = rest.pairs.saturating_add(more.pairs);
            rest.inserted = rest.inserted.saturating_add(more.inserted);
            rest.updated = rest.updated.saturating_add(more.updated);
            rest.deleted = rest.deleted.saturating_add(more.deleted);
            rest.images = rest.images.saturating_add(more.images);
            rest.most = rest.most.max(more.most);
            rest.most_unended = rest.most_unended.max(more.most_unended);
        } else if !self.cut {
            self.rest = Some(more);
        }
        self.cut = true;
    }
}

//! The kinds of objects that a repository consists of.

/// The kinds of objects that are tampered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Repository,
    System,
    Document,
    Tombstone,
    Manifest,
    Part,
    Catalogue,
    About,
    Extra,
    Intent,
    Segment,
    History,
    Label,
    Partial,
    Piece,
    RollUp,
    Restore,
    Pins,
    Condemned,
    Horizon,
    Damage,
    Gap,
    KitNote,
    Kit,
    Lease,
    Hold,
}

impl Kind {
    /// Without these nothing more is known: they go one by one.
    const HIDING: [Self; 5] = [Self::Repository, Self::System, Self::Document, Self::Manifest, Self::KitNote];
    /// These do not hide each other.
    const OTHERS: [Self; 21] = [
        Self::Tombstone,
        Self::Part,
        Self::Catalogue,
        Self::About,
        Self::Extra,
        Self::Intent,
        Self::Segment,
        Self::History,
        Self::Label,
        Self::Partial,
        Self::Piece,
        Self::RollUp,
        Self::Restore,
        Self::Pins,
        Self::Condemned,
        Self::Horizon,
        Self::Damage,
        Self::Gap,
        Self::Kit,
        Self::Lease,
        Self::Hold,
    ];

    /// All that there are, in groups that can be damaged at one time.
    pub fn groups() -> Vec<Vec<Self>> {
        [Self::HIDING.map(|kind| vec![kind]).to_vec(), vec![Self::OTHERS.to_vec()]].concat()
    }

    /// All of them.
    pub fn all() -> Vec<Self> {
        [&Self::HIDING[..], &Self::OTHERS].concat()
    }

    /// Why nobody looks for such an object by its name, so that its removal is not found.
    pub fn unmissed(self) -> Option<&'static str> {
        match self {
            Self::Tombstone => Some("the attempt counts as one that was killed, and an expiry gives it up again"),
            Self::Intent => Some("what it announced is in the document by now"),
            Self::Label => Some("no recovery reads it"),
            Self::Partial => Some("it is of a segment that the next timeline has"),
            Self::Piece => Some("the server still has what was not archived as a whole"),
            Self::RollUp => Some("plans read the heads of the segments instead"),
            Self::Restore => Some("nothing but estimates come of it"),
            Self::Pins => Some("as after walden unpin: who may remove objects could remove the backup itself"),
            Self::Condemned => Some("what an expiry has begun to remove is missing then, which is found"),
            Self::Damage => Some("the next deep look finds the damage again"),
            Self::Gap => Some("that segments are missing, the listing tells"),
            Self::KitNote => Some("a kit exists by its note alone"),
            _ => self.unread(),
        }
    }

    /// Why no verification reads it.
    pub fn unread(self) -> Option<&'static str> {
        match self {
            Self::Lease => Some("a damaged one is held by nobody, and nothing rests on it"),
            Self::Horizon => Some("its name tells all, and nothing is in it"),
            Self::Hold => Some("an expiry that cannot read it stops, and names it"),
            _ => None,
        }
    }

    /// Whether a restore may be refused for want of such an object.
    pub fn carries(self) -> bool {
        let found_in_data = matches!(self, Self::Manifest | Self::Part | Self::Extra | Self::Segment | Self::History);
        found_in_data || matches!(self, Self::Repository | Self::System | Self::Document)
    }

    /// Whether the object of that key is of this kind; `is_backup` of its folder, where it lies in that of a backup.
    pub fn is(self, key: &str, is_backup: bool) -> bool {
        let name = key.rsplit('/').next().unwrap();
        let in_wal = key.contains("/wal/");
        let note = |kind: &str| key.contains(&format!("/notes/{kind}/"));
        match self {
            Self::Repository => name == "walden.json",
            Self::System => name == "system.json",
            Self::Document => name.starts_with("backup-") && is_backup,
            Self::Tombstone => name.starts_with("backup-") && !is_backup,
            Self::Manifest => name.starts_with("manifest-"),
            Self::Part => name.starts_with("part-"),
            Self::Catalogue => name.starts_with("catalogue-"),
            Self::About => name.starts_with("about-"),
            Self::Extra => name.starts_with("extra-"),
            Self::Intent => name.starts_with("intent-"),
            Self::Segment => in_wal && name.len() == 24 && !key.contains('.'),
            Self::History => name.ends_with(".history"),
            Self::Label => name.ends_with(".backup"),
            Self::Partial => key.contains(".partial/"),
            Self::Piece => key.contains(".pieces/"),
            Self::RollUp => note("summaries"),
            Self::Restore => note("restores"),
            Self::Pins => note("pins"),
            Self::Condemned => note("condemned"),
            Self::Horizon => note("horizon"),
            Self::Damage => note("damage"),
            Self::Gap => note("gaps"),
            Self::KitNote => note("kits") && name.ends_with(".json"),
            Self::Kit => note("kits") && !name.ends_with(".json"),
            Self::Lease => key.contains("/lease/") && !key.contains("/lease/hold/"),
            Self::Hold => key.contains("/lease/hold/"),
        }
    }
}

//! What can be done to an object.

use std::path::{Path, PathBuf};

use crate::{kind::Kind, scene::Copy};

/// One way to damage an object.
pub struct Damage {
    /// What it is called.
    pub name: &'static str,
    /// Whether the object has another length then, or is gone.
    pub changes_length: bool,
    /// Whether it is gone.
    pub removes: bool,
    /// Whether no byte in it was changed, but one object as a whole.
    pub is_of_wholes: bool,
    how: How,
}

enum How {
    /// A bit at so many thousandths of the length, and so many bytes behind.
    Flip(usize, usize),
    /// A byte of the head, or of the first bytes.
    FlipHead(usize),
    /// A byte so far before the end.
    FlipTail(usize),
    /// Only so many thousandths are left.
    Cut(usize),
    /// The last byte goes.
    CutLast,
    /// Bytes are added.
    Extend(&'static [u8]),
    Empty,
    Remove,
    /// The bytes of another object of its kind.
    Exchange,
    /// That one gets its bytes as well.
    Swap,
    /// What was there under the number before.
    Older,
    /// As long as it was, of zeros.
    Zeros,
}

const fn flip(name: &'static str, how: How) -> Damage {
    Damage { name, changes_length: false, removes: false, is_of_wholes: false, how }
}

const fn longer(name: &'static str, how: How) -> Damage {
    Damage { changes_length: true, ..flip(name, how) }
}

const fn whole(name: &'static str, removes: bool, how: How) -> Damage {
    Damage { changes_length: removes, removes, is_of_wholes: true, ..flip(name, how) }
}

/// All of them.
pub const DAMAGES: [Damage; 26] = [
    flip("first byte", How::FlipHead(0)),
    flip("byte 4", How::FlipHead(4)),
    flip("byte 8", How::FlipHead(8)),
    flip("byte 20", How::FlipHead(20)),
    flip("byte 60", How::FlipHead(60)),
    flip("at an eighth", How::Flip(125, 0)),
    flip("at a quarter", How::Flip(250, 3)),
    flip("in the middle", How::Flip(500, 0)),
    flip("behind the middle", How::Flip(500, 7)),
    flip("at three quarters", How::Flip(750, 1)),
    flip("near the end", How::Flip(990, 0)),
    flip("64 bytes before the end", How::FlipTail(64)),
    flip("20 bytes before the end", How::FlipTail(20)),
    flip("9 bytes before the end", How::FlipTail(9)),
    flip("2 bytes before the end", How::FlipTail(2)),
    flip("last byte", How::FlipTail(1)),
    flip("zeros", How::Zeros),
    longer("cut in half", How::Cut(500)),
    longer("without its last byte", How::CutLast),
    longer("prolonged by a byte", How::Extend(b"\n")),
    // A skippable frame, which zstd passes over.
    longer("prolonged by a frame", How::Extend(&[0x50, 0x2A, 0x4D, 0x18, 2, 0, 0, 0, 1, 2])),
    longer("emptied", How::Empty),
    whole("removed", true, How::Remove),
    whole("another of its kind", false, How::Exchange),
    whole("swapped with another of its kind", false, How::Swap),
    whole("an older version of it", false, How::Older),
];

/// Objects that were damaged, each with what it was before.
pub type Done = Vec<(PathBuf, Vec<u8>)>;

/// Objects, and what each is to hold; nothing where it is to go.
type Changed = Vec<(PathBuf, Option<Vec<u8>>)>;

impl Damage {
    /// Does it to an object of that kind. Nothing where it cannot be done.
    pub fn apply(&self, copy: &Copy<'_>, kind: Kind) -> Done {
        let Some(object) = copy.object(kind) else { return Done::new() };
        let mut done = Done::new();
        for (object, bytes) in self.changed(copy, kind, &object).unwrap_or_default() {
            let before = copy.read(&object);
            match bytes {
                None => copy.remove(&object),
                // All horizons hold the same.
                Some(bytes) if bytes == before => continue,
                Some(bytes) => copy.put(&object, &bytes),
            }
            done.push((object, before));
        }
        done
    }

    fn changed(&self, copy: &Copy<'_>, kind: Kind, object: &Path) -> Option<Changed> {
        let mut bytes = copy.read(object);
        let length = bytes.len();
        match self.how {
            How::Flip(thousandths, behind) => *bytes.get_mut(length * thousandths / 1000 + behind)? ^= 0x10,
            How::FlipHead(at) => *bytes.get_mut(at)? ^= 0x01,
            How::FlipTail(before) => *bytes.get_mut(length.checked_sub(before)?)? ^= 0x04,
            How::Cut(thousandths) => bytes.truncate(length * thousandths / 1000),
            How::CutLast => bytes.truncate(length - 1),
            How::Extend(more) => bytes.extend_from_slice(more),
            How::Empty => bytes.clear(),
            How::Zeros => bytes.fill(0),
            How::Remove => return Some(vec![(object.to_path_buf(), None)]),
            How::Exchange => bytes = copy.read(&copy.another(kind, object)?),
            How::Swap => {
                let other = copy.another(kind, object)?;
                let theirs = copy.read(&other);
                return Some(vec![(object.to_path_buf(), Some(theirs)), (other, Some(bytes))]);
            }
            How::Older => return copy.older(kind).map(|(object, older)| vec![(object, Some(older))]),
        }
        Some(vec![(object.to_path_buf(), Some(bytes))])
    }
}

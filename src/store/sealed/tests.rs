//! Everybody above a sealed store sees the same as without it: names, lengths, ranges; and damage has a place.

use chrono::DateTime;
use proptest::prelude::*;

use super::*;
use crate::{
    clock::Random,
    seal::{
        age::{CHUNK, Identities, Recipients},
        blake3,
    },
    store::{dir::DirStore, list_all, read, read_range},
};

const RULES: Rules = Rules {
    sealed: |key| !key.as_str().ends_with(".json"),
    named: |key| key.as_str().ends_with(".zst"),
    declares: |front| front.starts_with(b"known").then(|| (blake3(front), 5)),
};

struct Place {
    folder: tempfile::TempDir,
    recipients: Recipients,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (text, recipient) = Identities::generate(DateTime::UNIX_EPOCH);
        let place = Self { folder, recipients: Recipients::parse(&[recipient]).unwrap() };
        std::fs::write(place.identity(), age_text(&text)).unwrap();
        let only_ours = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(place.identity(), only_ours).unwrap();
        place.raw();
        place
    }

    fn identity(&self) -> std::path::PathBuf {
        self.folder.path().join("identity")
    }

    fn raw(&self) -> Arc<dyn Store> {
        Arc::new(DirStore::create(self.folder.path().join("store"), Arc::new(Random::seeded(1))).unwrap())
    }

    fn with(&self, keys: Keys) -> Sealed {
        Sealed::new(self.raw(), RULES, keys)
    }

    /// Who writes and reads.
    fn full(&self) -> Sealed {
        self.with(Keys::new(self.recipients.clone(), Some(self.identity())))
    }

    /// Who only writes.
    fn writer(&self) -> Sealed {
        self.with(Keys::new(self.recipients.clone(), None))
    }

    fn bare(&self) -> Sealed {
        self.with(Keys::default())
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("store").join(name)
    }
}

fn age_text(text: &::age::secrecy::SecretString) -> &str {
    ::age::secrecy::ExposeSecret::expose_secret(text)
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn noise(length: usize) -> Bytes {
    (0..length).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect()
}

async fn names(store: &dyn Store) -> Vec<(String, u64)> {
    list_all(store, "").await.unwrap().into_iter().map(|l| (l.key.to_string(), l.length)).collect()
}

#[tokio::test]
async fn everybody_above_sees_the_same_as_without() {
    let place = Place::new();
    let store = place.full();
    let content = noise(3 * CHUNK + 5);
    for name in ["a/part.zst", "a/segment", "a/note.json"] {
        assert_eq!(store.put(&key(name), content.clone()).await.unwrap(), Put::Created);
        assert_eq!(store.put(&key(name), content.clone()).await.unwrap(), Put::Exists);
        assert_eq!(read(&store, &key(name), 1 << 30).await.unwrap(), content);
    }
    let mut upload = store.upload(&key("a/long.zst")).await.unwrap();
    for piece in content.chunks(1000) {
        upload.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    assert_eq!(upload.finish().await.unwrap(), Put::Created);
    assert_eq!(read(&place.full(), &key("a/long.zst"), 1 << 30).await.unwrap(), content);

    let length = content.len() as u64;
    let stored = age::sealed_length(HEADER, length);
    let owned = |names: [(&str, u64); 4]| names.map(|(name, length)| (name.to_owned(), length)).to_vec();
    let listed = [("a/long.zst", length), ("a/note.json", length), ("a/part.zst", length), ("a/segment", stored)];
    assert_eq!(names(&store).await, owned(listed));
    // Whoever compares a download with a listing finds the same.
    for (name, length) in names(&store).await {
        for range in [None, Some(0..0), Some(0..10), Some(7..70_000)] {
            let download = store.get(&key(&name), range).await.unwrap();
            assert_eq!((download.length, download.listed), (content.len() as u64, length), "{name}");
        }
    }
    let beneath =
        [("a/long.zst.age", stored), ("a/note.json", length), ("a/part.zst.age", stored), ("a/segment", stored)];
    assert_eq!(names(&*place.raw()).await, owned(beneath));
    store.delete(&key("a/part.zst")).await.unwrap();
    assert_eq!(store.get(&key("a/part.zst"), None).await.unwrap_err().kind(), Kind::NotFound);
    assert!(!place.path("a/part.zst.age").exists());
}

#[tokio::test]
async fn a_page_of_a_listing_goes_on_behind_the_last_name_of_the_one_before() {
    let place = Place::new();
    let (sealed, plain) = (place.full(), place.bare());
    for (number, store) in [&sealed, &plain, &sealed, &plain, &sealed].into_iter().enumerate() {
        store.put(&key(&format!("a/{number}.zst")), noise(10)).await.unwrap();
    }
    // Two of one name: not made by us.
    std::fs::copy(place.path("a/0.zst.age"), place.path("a/1.zst.age")).unwrap();
    for limit in 1..7 {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = sealed.list("a/", after.as_ref(), limit).await.unwrap();
            found.extend(page.iter().map(|l| l.key.to_string()));
            if page.len() < limit {
                break;
            }
            after = page.last().map(|l| l.key.clone());
        }
        assert_eq!(found, ["a/0.zst", "a/1.zst", "a/2.zst", "a/3.zst", "a/4.zst"], "{limit}");
    }
}

#[tokio::test]
async fn encryption_can_be_switched_on_and_off() {
    let place = Place::new();
    place.bare().put(&key("old.zst"), noise(10)).await.unwrap();
    place.bare().put(&key("old"), noise(11)).await.unwrap();
    let store = place.full();
    assert_eq!(store.put(&key("old.zst"), noise(10)).await.unwrap(), Put::Exists);
    assert_eq!(store.put(&key("old"), noise(11)).await.unwrap(), Put::Exists);
    let mut upload = store.upload(&key("old.zst")).await.unwrap();
    upload.write(noise(10)).await.unwrap();
    assert_eq!(upload.finish().await.unwrap(), Put::Exists);
    store.put(&key("new.zst"), noise(12)).await.unwrap();
    // Without recipients and with an identity: plain again, and all of it can be read.
    let off = place.with(Keys::new(Recipients::default(), Some(place.identity())));
    off.put(&key("newest.zst"), noise(13)).await.unwrap();
    for (name, length) in [("old.zst", 10), ("old", 11), ("new.zst", 12), ("newest.zst", 13)] {
        assert_eq!(read(&off, &key(name), 100).await.unwrap(), noise(length), "{name}");
        assert_eq!(read_range(&off, &key(name), 3..9).await.unwrap(), noise(length).slice(3..9), "{name}");
    }
    // Of two of one name the sealed one counts where anything is configured.
    std::fs::copy(place.path("new.zst.age"), place.path("old.zst.age")).unwrap();
    assert_eq!(read(&off, &key("old.zst"), 100).await.unwrap(), noise(12));
    assert_eq!(read(&place.bare(), &key("old.zst"), 100).await.unwrap(), noise(10));
}

#[tokio::test]
async fn without_an_identity_an_object_tells_what_it_declares_and_no_more() {
    let place = Place::new();
    let store = place.writer();
    let content = Bytes::from_static(b"known content");
    store.put(&key("segment"), content.clone()).await.unwrap();
    store.put(&key("other.zst"), noise(10)).await.unwrap();
    place.bare().put(&key("plain"), content.clone()).await.unwrap();
    let told = store.declared(&key("segment")).await.unwrap().unwrap();
    assert_eq!((told.blake3, told.size, told.length), (Some(blake3(&content)), Some(5), Some(13)));
    let told = store.declared(&key("other.zst")).await.unwrap().unwrap();
    assert_eq!((told.blake3, told.length), (None, Some(10)));
    assert_eq!(store.declared(&key("plain")).await.unwrap(), None);
    assert_eq!(store.declared(&key("none")).await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(read(&store, &key("plain"), 100).await.unwrap(), content);
    for store in [&store, &place.bare()] {
        for (name, range) in [("segment", None), ("segment", Some(0..9)), ("other.zst", None)] {
            let refused = store.get(&key(name), range).await.unwrap_err();
            assert_eq!(refused.kind(), Kind::Refused);
            let text = refused.to_string();
            assert!(text.contains(name) && text.contains(&place.recipients.short()[0]), "{text}");
            assert!(refused.hint_text().unwrap().contains("identity_file"), "{refused:?}");
        }
    }
    // An identity that is not there is no obstacle to who writes.
    let away = place.with(Keys::new(place.recipients.clone(), Some(place.folder.path().join("away"))));
    away.put(&key("later"), content).await.unwrap();
    let refused = away.get(&key("later"), None).await.unwrap_err();
    assert!(refused.kind() == Kind::Refused && refused.to_string().contains("is not there"), "{refused}");
    std::fs::copy(place.identity(), place.folder.path().join("away")).unwrap();
    assert!(away.get(&key("later"), None).await.is_ok());
}

#[tokio::test]
async fn damage_names_the_object_and_the_place() {
    let place = Place::new();
    let store = place.full();
    store.put(&key("x.zst"), noise(CHUNK + 100)).await.unwrap();
    let path = place.path("x.zst.age");
    let sound = std::fs::read(&path).unwrap();
    let told = async |bytes: &[u8]| {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let error = read(&place.full(), &key("x.zst"), 1 << 30).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged, "{error}");
        assert!(error.to_string().starts_with("x.zst is damaged: ") || error.to_string().starts_with("x.zst ends"));
        error.to_string()
    };
    let changed = |at: usize| {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        bytes
    };
    assert!(told(&changed(1000)).await.contains("bytes 0 to 2048"));
    let second = HEADER + NONCE + age::SEALED_CHUNK;
    assert!(told(&changed(second + 3)).await.contains(&format!("bytes {second} to {}", sound.len())));
    assert!(told(&sound[..1000]).await.contains("in the middle of its age header"));
    assert!(told(&sound[..HEADER + 3]).await.contains("in the middle"));
    assert!(told(&sound[..second]).await.contains("header says"));
    assert!(told(&[&sound[..], &[0; 40]].concat()).await.contains("header says"));
}

#[tokio::test]
async fn copies_are_the_bytes_that_are_stored() {
    let place = Place::new();
    let store = place.writer();
    store.put(&key("a.zst"), noise(10)).await.unwrap();
    store.put(&key("b"), noise(10)).await.unwrap();
    place.bare().put(&key("c.zst"), noise(10)).await.unwrap();
    let other = Place::new();
    let (from, to) = (store.as_stored().unwrap(), other.bare().as_stored().unwrap());
    for listed in list_all(&*from, "").await.unwrap() {
        let bytes = read(&*from, &listed.key, 1 << 20).await.unwrap();
        assert_eq!(from.get(&listed.key, None).await.unwrap().listed, listed.length);
        let mut upload = to.upload(&listed.key).await.unwrap();
        upload.write(bytes).await.unwrap();
        assert_eq!(upload.finish().await.unwrap(), Put::Created);
    }
    assert_eq!(names(&*place.raw()).await, names(&*other.raw()).await);
    let theirs = other.with(Keys::new(Recipients::default(), Some(place.identity())));
    for name in ["a.zst", "b", "c.zst"] {
        assert_eq!(read(&theirs, &key(name), 100).await.unwrap(), noise(10));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_range_is_the_slice(
        length in prop::sample::select(vec![0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 17]),
        ranges in prop::collection::vec((0..4 * CHUNK as u64, 0..3 * CHUNK as u64), 1..6),
        by_hand in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let place = Place::new();
            let content = noise(length);
            if by_hand {
                // By age itself, whose headers have other lengths.
                let recipient: ::age::x25519::Recipient = place.recipients.texts().next().unwrap().parse().unwrap();
                std::fs::write(place.path("x.zst.age"), ::age::encrypt(&recipient, &content).unwrap()).unwrap();
            } else {
                place.writer().put(&key("x.zst"), content.clone()).await.unwrap();
            }
            let store = place.full();
            for (start, count) in ranges {
                let download = store.get(&key("x.zst"), Some(start..start + count)).await.unwrap();
                assert_eq!(download.length, length as u64);
                let mut body = download.body;
                let mut found = Vec::new();
                while let Some(chunk) = body.chunk().await.unwrap() {
                    assert!(!chunk.is_empty());
                    found.extend_from_slice(&chunk);
                }
                let (start, end) = ((start as usize).min(length), ((start + count) as usize).min(length));
                assert!(found == content[start..end], "{start}..{end} of {length}");
            }
        });
    }
}

//! What every store must do, run over each of them: the comments of [`Store`], as tests.
//!
//! `WALDEN_TEST_S3_ENDPOINT`, `WALDEN_TEST_S3_BUCKET` and the usual `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`
//! name another S3 server to run them on. Every test writes below a prefix of its own. `WALDEN_TEST_S3_DEVIATES` names
//! the tests that this server is known to fail, between commas. SeaweedFS 4.48 fails `listings_continue_after_a_key` (it
//! lists folder by folder), `folders_have_something_below` (empty folders linger) and
//! `eight_racing_uploads_make_one` (completions of multipart uploads that race can both win, its puts cannot).
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{any::Any, future::Future, ops::Range, sync::Arc};

use bytes::Bytes;
use walden::{
    Error,
    clock::{Clock, Random, SystemClock},
    error::Kind,
    seal::age::{HEADER, Identities, Recipients, sealed_length},
    store::{
        Download, Key, Put, Store, Tag,
        dir::DirStore,
        list_all, read,
        s3::{Keys, S3Options, S3Store},
        sealed::{self, Rules, Sealed},
    },
};
use walden_testkit::s3::S3Server;

/// A fresh store to try, and one of the same kind whose root or bucket is not there.
struct Place {
    store: Arc<dyn Store>,
    /// Opening it may fail already; that error has to be the right one, too.
    gone: Result<Arc<dyn Store>, Error>,
    /// What must live as long as the store: a temporary folder, a server.
    _kept: Box<dyn Any>,
}

impl Place {
    /// The objects as they are stored: replaced are those alone, for a sealed one stays what it is but for its header.
    fn stored(&self) -> Arc<dyn Store> {
        self.store.as_stored().unwrap_or_else(|| self.store.clone())
    }

    /// What a listing tells of an object of so many bytes. The names of these do not say that they are sealed.
    fn listed(&self, length: usize) -> u64 {
        let length = length as u64;
        if self.store.encrypts() { sealed_length(HEADER, length) } else { length }
    }
}

mod places {
    use super::*;

    pub fn directory() -> Option<Place> {
        let folder = tempfile::tempdir().unwrap();
        let random = Arc::new(Random::from_system());
        let store = DirStore::create(folder.path().join("new/repository"), Arc::clone(&random)).unwrap();
        let gone = DirStore::open(folder.path().join("gone"), random).map(|s| Arc::new(s) as Arc<dyn Store>);
        Some(Place { store: Arc::new(store), gone, _kept: Box::new(folder) })
    }

    /// A directory whose objects are sealed.
    pub fn sealed_directory() -> Option<Place> {
        let Place { store, gone, _kept: folder } = directory()?;
        let path = tempfile::tempdir().unwrap();
        let (text, recipient) = Identities::generate(SystemClock.now());
        let identity = path.path().join("identity");
        std::fs::write(&identity, age::secrecy::ExposeSecret::expose_secret(&text)).unwrap();
        std::fs::set_permissions(&identity, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let rules = Rules { sealed: |_| true, named: |_| false, declares: |_| None };
        let sealed = |store| -> Arc<dyn Store> {
            let recipients = Recipients::parse(&[&recipient]).unwrap();
            Arc::new(Sealed::new(store, rules, sealed::Keys::new(recipients, Some(identity.clone()))))
        };
        Some(Place { store: sealed(store), gone: gone.map(sealed), _kept: Box::new((folder, path)) })
    }

    /// A directory store whose root vanished after it was opened.
    pub fn vanishing_directory() -> Option<Place> {
        let folder = tempfile::tempdir().unwrap();
        let random = Arc::new(Random::from_system());
        let store = DirStore::create(folder.path().join("here"), Arc::clone(&random)).unwrap();
        let gone = DirStore::create(folder.path().join("gone"), random).unwrap();
        std::fs::remove_dir_all(folder.path().join("gone")).unwrap();
        Some(Place { store: Arc::new(store), gone: Ok(Arc::new(gone)), _kept: Box::new(folder) })
    }

    fn bucket_of(server: &S3Server, bucket: &str, prefix: &str) -> Arc<dyn Store> {
        let mut options = S3Options::new(bucket, prefix);
        options.endpoint = Some(server.endpoint());
        let (id, secret) = (server.access_key().to_owned(), server.secret_key().to_owned());
        options.keys = Some(Keys { id, secret, session_token: None });
        open(options)
    }

    fn open(mut options: S3Options) -> Arc<dyn Store> {
        options.path_style = true;
        let opened = S3Store::open(options, Arc::new(Random::from_system()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Arc::new(runtime.block_on(opened).unwrap())
    }

    pub fn s3_elsewhere() -> Option<Place> {
        let endpoint = std::env::var("WALDEN_TEST_S3_ENDPOINT").ok()?;
        let bucket = std::env::var("WALDEN_TEST_S3_BUCKET").unwrap();
        let prefix = format!("walden-test/{}", Random::from_system().name());
        let options =
            |bucket: &str| S3Options { endpoint: Some(endpoint.clone()), ..S3Options::new(bucket, prefix.clone()) };
        let gone = open(options(&format!("{bucket}-gone")));
        Some(Place { store: open(options(&bucket)), gone: Ok(gone), _kept: Box::new(()) })
    }

    /// A server that lists few names at a time, so that every listing has several pages.
    pub fn s3() -> Option<Place> {
        let server = S3Server::start();
        server.set_page(2);
        let (store, gone) = (bucket_of(&server, server.bucket(), "some/prefix"), bucket_of(&server, "gone", ""));
        Some(Place { store, gone: Ok(gone), _kept: Box::new(server) })
    }

    pub fn s3_without_prefix() -> Option<Place> {
        let server = S3Server::start();
        let (store, gone) = (bucket_of(&server, server.bucket(), ""), bucket_of(&server, "gone", "p"));
        Some(Place { store, gone: Ok(gone), _kept: Box::new(server) })
    }
}

/// Runs `test` on the server that the environment names, unless it is known to fail it.
fn on_s3_elsewhere<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Place) -> F) {
    let deviates = std::env::var("WALDEN_TEST_S3_DEVIATES").unwrap_or_default();
    if !deviates.split(',').any(|known| known == name) {
        on(places::s3_elsewhere(), test);
    }
}

/// Runs `test` on a fresh place, unless the machine lacks it.
fn on<F: Future<Output = ()>>(place: Option<Place>, test: impl FnOnce(Place) -> F) {
    let Some(place) = place else { return };
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test(place));
}

macro_rules! conformance {
    ($($place:ident: $on:expr;)*) => { $(mod $place {
        #[allow(unused_imports, reason = "each place needs some of them")]
        use super::{on, on_s3_elsewhere, places, tests};
        conformance!(@ $on, an_object_that_is_not_there, put_makes_an_object_once, an_empty_object, ranges,
            eight_racing_puts_make_one, eight_racing_uploads_make_one, uploads_of_every_size, an_upload_over_an_object,
            a_dropped_upload_leaves_nothing, an_unfinished_upload_is_not_listed, listings_are_in_byte_order,
            listings_continue_after_a_key, folders_have_something_below, delete_can_be_repeated,
            a_missing_root_is_not_absence, a_big_object_comes_in_pieces, an_object_is_no_folder,
            an_object_is_replaced_only_as_it_was_seen, one_of_eight_replaces);
    })* };
    (@ $on:expr, $($test:ident),*) => { $(#[test] fn $test() { ($on)(stringify!($test), tests::$test); })* };
}

conformance! {
    directory: |_, test| on(places::directory(), test);
    opened_and_sealed: |_, test| on(places::sealed_directory(), test);
    s3: |_, test| on(places::s3(), test);
    s3_without_prefix: |_, test| on(places::s3_without_prefix(), test);
    s3_elsewhere: on_s3_elsewhere;
}

#[test]
fn a_root_that_vanishes_is_not_absence() {
    on(places::vanishing_directory(), tests::a_missing_root_is_not_absence);
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// Bytes that repeat nowhere near a chunk border.
fn pattern(length: usize) -> Bytes {
    (0..length).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

async fn collect(mut download: Download) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(chunk) = download.body.chunk().await.unwrap() {
        assert!(!chunk.is_empty());
        whole.extend_from_slice(&chunk);
    }
    whole
}

async fn part(store: &dyn Store, name: &str, range: Range<u64>) -> (u64, Vec<u8>) {
    let download = store.get(&key(name), Some(range)).await.unwrap();
    (download.length, collect(download).await)
}

async fn upload(store: &dyn Store, name: &str, pieces: &[Bytes]) -> Put {
    let mut upload = store.upload(&key(name)).await.unwrap();
    for piece in pieces {
        upload.write(piece.clone()).await.unwrap();
    }
    upload.finish().await.unwrap()
}

async fn names(store: &dyn Store, prefix: &str) -> Vec<String> {
    list_all(store, prefix).await.unwrap().into_iter().map(|l| l.key.to_string()).collect()
}

mod tests {
    use super::*;

    pub async fn an_object_that_is_not_there(place: Place) {
        for name in ["a", "a/b/c"] {
            let error = place.store.get(&key(name), None).await.unwrap_err();
            assert_eq!(error.kind(), Kind::NotFound, "{error}");
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(place.store.get(&key(name), Some(0..1)).await.unwrap_err().kind(), Kind::NotFound);
        }
        assert_eq!(names(&*place.store, "").await, Vec::<String>::new());
        assert_eq!(names(&*place.store, "a/").await, Vec::<String>::new());
        assert_eq!(place.store.folders("a/").await.unwrap(), Vec::<String>::new());
    }

    pub async fn put_makes_an_object_once(place: Place) {
        let (store, name) = (&*place.store, key("a/b/c"));
        assert_eq!(store.put(&name, Bytes::from("first")).await.unwrap(), Put::Created);
        assert_eq!(store.put(&name, Bytes::from("second")).await.unwrap(), Put::Exists);
        assert_eq!(store.put(&name, Bytes::from("first")).await.unwrap(), Put::Exists);
        assert_eq!(&read(store, &name, 100).await.unwrap()[..], b"first");
        assert_eq!(read(store, &name, 4).await.unwrap_err().kind(), Kind::Damaged);
    }

    pub async fn an_empty_object(place: Place) {
        let store = &*place.store;
        assert_eq!(store.put(&key("empty"), Bytes::new()).await.unwrap(), Put::Created);
        assert_eq!(read(store, &key("empty"), 0).await.unwrap().len(), 0);
        assert_eq!(part(store, "empty", 0..10).await, (0, Vec::new()));
        assert_eq!(list_all(store, "").await.unwrap()[0].length, place.listed(0));
    }

    pub async fn ranges(place: Place) {
        let (store, whole) = (&*place.store, pattern(3_000_000));
        store.put(&key("a"), whole.clone()).await.unwrap();
        for range in [0..1, 0..3_000_000, 1..2, 999_999..2_999_999, 2_999_999..3_000_000] {
            let wanted = &whole[range.start as usize..range.end as usize];
            let (length, got) = part(store, "a", range.clone()).await;
            assert!(got == wanted, "{range:?}");
            assert_eq!(length, 3_000_000);
        }
        assert!(part(store, "a", 2_999_990..4_000_000).await == (3_000_000, whole[2_999_990..].to_vec()));
        assert!(part(store, "a", 2_999_990..u64::MAX).await == (3_000_000, whole[2_999_990..].to_vec()));
        for nothing in [5..5, 3_000_000..3_000_001, 9_000_000..9_000_001] {
            assert_eq!(part(store, "a", nothing).await, (3_000_000, Vec::new()));
        }
    }

    pub async fn eight_racing_puts_make_one(place: Place) {
        let writers = (0..8).map(|i| {
            let store = Arc::clone(&place.store);
            tokio::spawn(async move { store.put(&key("a/b"), Bytes::from(vec![i; 100_000])).await.unwrap() })
        });
        winner(&place, writers.collect(), 100_000).await;
    }

    pub async fn eight_racing_uploads_make_one(place: Place) {
        let writers = (0..8).map(|i| {
            let store = Arc::clone(&place.store);
            tokio::spawn(async move { upload(&*store, "a/b", &vec![Bytes::from(vec![i; 6 << 20]); 2]).await })
        });
        winner(&place, writers.collect(), 12 << 20).await;
    }

    /// Exactly one of the writers, each of which wrote its own number, made the object `a/b`.
    async fn winner(place: &Place, writers: Vec<tokio::task::JoinHandle<Put>>, length: usize) {
        let mut created = Vec::new();
        for (i, writer) in writers.into_iter().enumerate() {
            if writer.await.unwrap() == Put::Created {
                created.push(u8::try_from(i).unwrap());
            }
        }
        assert_eq!(created.len(), 1, "{created:?}");
        assert!(read(&*place.store, &key("a/b"), 1 << 30).await.unwrap() == vec![created[0]; length]);
        assert_eq!(names(&*place.store, "").await, ["a/b"]);
    }

    pub async fn uploads_of_every_size(place: Place) {
        let mib = 1 << 20;
        for (i, length) in [0, 1, mib, 8 * mib - 1, 8 * mib, 8 * mib + 1, 20 * mib].into_iter().enumerate() {
            let (whole, name) = (pattern(length), format!("u/{i}"));
            let mut rest = whole.clone();
            let mut pieces = Vec::new();
            while !rest.is_empty() {
                pieces.push(rest.split_to(rest.len().min(700_001)));
            }
            assert_eq!(upload(&*place.store, &name, &pieces).await, Put::Created);
            assert!(read(&*place.store, &key(&name), 1 << 30).await.unwrap() == whole, "{length}");
        }
    }

    pub async fn an_upload_over_an_object(place: Place) {
        let store = &*place.store;
        for (name, length) in [("small", 10), ("big", 20 << 20)] {
            store.put(&key(name), Bytes::from("first")).await.unwrap();
            assert_eq!(upload(store, name, &[pattern(length)]).await, Put::Exists);
            assert_eq!(&read(store, &key(name), 100).await.unwrap()[..], b"first");
        }
    }

    pub async fn a_dropped_upload_leaves_nothing(place: Place) {
        for length in [10, 20 << 20] {
            let mut upload = place.store.upload(&key("a/b")).await.unwrap();
            upload.write(pattern(length)).await.unwrap();
            drop(upload);
            assert_eq!(names(&*place.store, "").await, Vec::<String>::new());
            assert_eq!(place.store.get(&key("a/b"), None).await.unwrap_err().kind(), Kind::NotFound);
        }
        assert_eq!(place.store.put(&key("a/b"), Bytes::from("x")).await.unwrap(), Put::Created);
    }

    pub async fn an_unfinished_upload_is_not_listed(place: Place) {
        let store = &*place.store;
        let mut upload = store.upload(&key("a/b")).await.unwrap();
        upload.write(pattern(20 << 20)).await.unwrap();
        assert_eq!(names(store, "").await, Vec::<String>::new());
        assert_eq!(store.folders("").await.unwrap(), Vec::<String>::new());
        assert_eq!(store.get(&key("a/b"), None).await.unwrap_err().kind(), Kind::NotFound);
        assert_eq!(upload.finish().await.unwrap(), Put::Created);
        assert_eq!(names(store, "").await, ["a/b"]);
    }

    /// In byte order. `-` and `.` sort before the slash, digits and letters after it.
    const NAMES: [&str; 12] =
        ["A/z", "a-b", "a.b/c", "a/b-c", "a/b.c", "a/b/c", "a/b/d/e", "a/b0", "a/c", "a0", "b/1", "b/10"];

    async fn fill(place: &Place) {
        for name in NAMES.iter().rev() {
            place.store.put(&key(name), Bytes::from(*name)).await.unwrap();
        }
    }

    pub async fn listings_are_in_byte_order(place: Place) {
        fill(&place).await;
        assert!(NAMES.is_sorted());
        assert_eq!(names(&*place.store, "").await, NAMES);
        assert_eq!(names(&*place.store, "a/").await, NAMES[3..9]);
        assert_eq!(names(&*place.store, "a/b/").await, NAMES[5..7]);
        for listed in list_all(&*place.store, "").await.unwrap() {
            assert_eq!(listed.length, place.listed(listed.key.as_str().len()));
        }
    }

    pub async fn listings_continue_after_a_key(place: Place) {
        fill(&place).await;
        // Every name, and some that are no objects: before all, between two, in the middle of a folder, after all.
        for after in NAMES.iter().chain(&["A", "a", "a/b", "a/b/", "a/b/d", "a/bb", "a-", "b/2", "zzz"]) {
            let Ok(after) = Key::new(*after) else { continue };
            for (prefix, limit) in [("", 1), ("", 3), ("", 100), ("a/", 2), ("a/b/", 1), ("a/b/", 2)] {
                let wanted: Vec<&str> = NAMES
                    .into_iter()
                    .filter(|name| name.starts_with(prefix) && *name > after.as_str())
                    .take(limit)
                    .collect();
                let page = place.store.list(prefix, Some(&after), limit).await.unwrap();
                assert_eq!(page.iter().map(|l| l.key.as_str()).collect::<Vec<_>>(), wanted, "{after} {prefix} {limit}");
            }
        }
        assert_eq!(place.store.list("", None, 2).await.unwrap().len(), 2);
        assert_eq!(place.store.list("", None, 0).await.unwrap().len(), 0);
    }

    pub async fn folders_have_something_below(place: Place) {
        fill(&place).await;
        let store = &*place.store;
        assert_eq!(store.folders("").await.unwrap(), ["A", "a", "a.b", "b"]);
        assert_eq!(store.folders("a/").await.unwrap(), ["b"]);
        assert_eq!(store.folders("a/b/").await.unwrap(), ["d"]);
        store.delete(&key("a/b/d/e")).await.unwrap();
        assert_eq!(store.folders("a/b/").await.unwrap(), Vec::<String>::new());
        store.delete(&key("a/b/c")).await.unwrap();
        assert_eq!(store.folders("a/").await.unwrap(), Vec::<String>::new());
        assert_eq!(store.folders("").await.unwrap(), ["A", "a", "a.b", "b"]);
    }

    pub async fn delete_can_be_repeated(place: Place) {
        let (store, name) = (&*place.store, key("a/b"));
        store.delete(&name).await.unwrap();
        for content in ["one", "two"] {
            assert_eq!(store.put(&name, Bytes::from(content)).await.unwrap(), Put::Created);
            assert_eq!(&read(store, &name, 10).await.unwrap()[..], content.as_bytes());
            store.delete(&name).await.unwrap();
            store.delete(&name).await.unwrap();
            assert_eq!(store.get(&name, None).await.unwrap_err().kind(), Kind::NotFound);
        }
    }

    pub async fn a_missing_root_is_not_absence(place: Place) {
        let check = |error: Error| {
            assert_eq!(error.kind(), Kind::Denied, "{error}");
            assert!(error.to_string().contains("gone") && error.hint_text().is_some(), "{error}");
        };
        let gone = match place.gone {
            Ok(gone) => gone,
            Err(error) => return check(error),
        };
        check(gone.get(&key("a"), None).await.unwrap_err());
        check(gone.get(&key("a"), Some(0..5)).await.unwrap_err());
        check(gone.list("", None, 10).await.unwrap_err());
        check(gone.list("a/", None, 10).await.unwrap_err());
        check(gone.folders("").await.unwrap_err());
        check(gone.put(&key("a"), Bytes::from("x")).await.unwrap_err());
        check(gone.delete(&key("a")).await.unwrap_err());
        let error = match gone.upload(&key("a")).await {
            Err(error) => error,
            Ok(upload) => upload.finish().await.unwrap_err(),
        };
        check(error);
    }

    pub async fn a_big_object_comes_in_pieces(place: Place) {
        let (store, name, mib) = (&*place.store, key("big"), 1 << 20);
        let piece = pattern(mib);
        assert_eq!(upload(store, "big", &vec![piece.clone(); 64]).await, Put::Created);
        let mut download = store.get(&name, None).await.unwrap();
        assert_eq!(download.length, 64 << 20);
        let mut at = 0;
        while let Some(chunk) = download.body.chunk().await.unwrap() {
            assert!(chunk.len() <= 8 * mib, "a chunk of {}", chunk.len());
            for byte in chunk.iter().step_by(997).zip((at..).step_by(997)) {
                assert_eq!(*byte.0, piece[byte.1 % mib]);
            }
            at += chunk.len();
        }
        assert_eq!(at, 64 << 20);
    }

    pub async fn an_object_is_replaced_only_as_it_was_seen(place: Place) {
        let (store, name) = (&*place.stored(), key("a/b"));
        assert_eq!(store.tag(&name).await.unwrap_err().kind(), Kind::NotFound);
        for length in [10, 20 << 20] {
            store.put(&name, Bytes::from("first")).await.unwrap();
            let first = store.tag(&name).await.unwrap();
            assert_eq!(store.tag(&name).await.unwrap(), first);
            assert_eq!(replace(store, "a/b", &first, pattern(length)).await.unwrap(), Put::Created);
            assert!(read(store, &name, 1 << 30).await.unwrap() == pattern(length));
            assert_eq!(names(store, "").await, ["a/b"]);
            let second = store.tag(&name).await.unwrap();
            assert_ne!(first, second);
            assert_eq!(replace(store, "a/b", &first, Bytes::from("stale")).await.unwrap(), Put::Exists);
            assert_eq!(replace(store, "a/b", &first, pattern(20 << 20)).await.unwrap(), Put::Exists);
            assert_eq!(store.tag(&name).await.unwrap(), second);
            // One that is dropped changes nothing.
            let mut dropped = store.replace(&name, &second).await.unwrap();
            dropped.write(pattern(20 << 20)).await.unwrap();
            drop(dropped);
            assert_eq!(store.tag(&name).await.unwrap(), second);
            store.delete(&name).await.unwrap();
            let gone = replace(store, "a/b", &second, pattern(length)).await.unwrap_err();
            assert_eq!(gone.kind(), Kind::NotFound, "{gone}");
            assert_eq!(names(store, "").await, Vec::<String>::new());
        }
    }

    pub async fn one_of_eight_replaces(place: Place) {
        let place = Place { store: place.stored(), ..place };
        place.store.put(&key("a/b"), Bytes::from("first")).await.unwrap();
        let first = place.store.tag(&key("a/b")).await.unwrap();
        let writers = (0..8).map(|i| {
            let (store, first) = (Arc::clone(&place.store), first.clone());
            tokio::spawn(async move { replace(&*store, "a/b", &first, Bytes::from(vec![i; 100_000])).await.unwrap() })
        });
        winner(&place, writers.collect(), 100_000).await;
    }

    async fn replace(store: &dyn Store, name: &str, tag: &Tag, bytes: Bytes) -> Result<Put, Error> {
        let mut upload = store.replace(&key(name), tag).await?;
        upload.write(bytes).await?;
        upload.finish().await
    }

    pub async fn an_object_is_no_folder(place: Place) {
        let store = &*place.store;
        store.put(&key("a/b"), Bytes::from("x")).await.unwrap();
        assert_eq!(store.get(&key("a"), None).await.unwrap_err().kind(), Kind::NotFound);
        assert_eq!(store.get(&key("a/b/c"), None).await.unwrap_err().kind(), Kind::NotFound);
        store.delete(&key("a/b/c")).await.unwrap();
        assert_eq!(names(store, "").await, ["a/b"]);
    }
}

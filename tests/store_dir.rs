//! What only a store on a file system can meet: a full disk, killed writers, files that are not ours.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use walden::{
    clock::Random,
    error::Kind,
    store::{Key, Put, Store, dir::DirStore, list_all, read},
};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn store_in(root: &Path) -> DirStore {
    DirStore::create(root.to_owned(), Arc::new(Random::from_system())).unwrap()
}

fn files_being_written(root: &Path) -> usize {
    fs::read_dir(root.join("~writing")).unwrap().count()
}

/// The name of this test, and of the variable that tells it that it runs inside a mount namespace of its own.
const FULL_DISK: &str = "a_full_disk_is_named_and_leaves_nothing_behind";

#[test]
fn a_full_disk_is_named_and_leaves_nothing_behind() {
    if let Some(root) = std::env::var_os(FULL_DISK) {
        return full_disk(Path::new(&root));
    }
    // A file system of one megabyte, which only this child sees and which is gone with it.
    let folder = tempfile::tempdir().unwrap();
    let inner = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-ec"])
        .arg("mount -t tmpfs -o size=1m tmpfs \"$1\"; exec \"$2\" --exact \"$3\" --nocapture")
        .arg("sh")
        .arg(folder.path())
        .arg(std::env::current_exe().unwrap())
        .args([FULL_DISK])
        .env(FULL_DISK, folder.path())
        .output();
    let Ok(inner) = inner else { return println!("not run: there is no unshare") };
    let said = String::from_utf8_lossy(&inner.stderr);
    if said.contains("unshare:") || said.contains("mount:") {
        return println!("not run: no file system can be mounted here: {said}");
    }
    assert!(inner.status.success(), "{said}{}", String::from_utf8_lossy(&inner.stdout));
}

#[tokio::main(flavor = "current_thread")]
async fn full_disk(root: &Path) {
    let store = store_in(root);
    let (small, big) = (Bytes::from(vec![1; 100_000]), Bytes::from(vec![2; 2_000_000]));
    assert_eq!(store.put(&key("a/small"), small.clone()).await.unwrap(), Put::Created);

    let error = store.put(&key("a/big"), big.clone()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Failed);
    assert!(error.to_string().contains("No space left"), "{error}");
    assert!(error.hint_text().unwrap().contains("free space"), "{error}");
    assert_eq!(files_being_written(root), 0);

    let mut upload = store.upload(&key("a/big")).await.unwrap();
    assert_eq!(upload.write(big).await.unwrap_err().kind(), Kind::Failed);
    drop(upload);
    assert_eq!(files_being_written(root), 0);

    assert_eq!(list_all(&store, "").await.unwrap().len(), 1);
    assert_eq!(read(&store, &key("a/small"), 1 << 20).await.unwrap(), small);
    assert_eq!(store.put(&key("a/another"), small).await.unwrap(), Put::Created);
}

#[tokio::test]
async fn what_killed_writers_left_is_swept_but_nothing_that_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_in(folder.path());
    let writing = folder.path().join("~writing");
    let two_days_ago = |file: &File| {
        let now = file.metadata().unwrap().modified().unwrap();
        file.set_modified(now - Duration::from_secs(2 * 24 * 3600)).unwrap();
    };
    two_days_ago(&File::create(writing.join("killed-long-ago")).unwrap());
    File::create(writing.join("killed-just-now")).unwrap();
    let held = File::create(writing.join("held")).unwrap();
    held.lock().unwrap();
    two_days_ago(&held);

    assert_eq!(list_all(&store, "").await.unwrap(), []);
    store.put(&key("a"), Bytes::from("x")).await.unwrap();
    assert_eq!(list_all(&store, "").await.unwrap().len(), 1);
    assert!(!writing.join("killed-long-ago").exists());
    assert!(writing.join("killed-just-now").exists());
    assert!(writing.join("held").exists());
    drop(held);
    store.put(&key("b"), Bytes::from("x")).await.unwrap();
    assert_eq!(files_being_written(folder.path()), 1);
}

#[tokio::test]
async fn files_that_are_not_ours_are_passed_over_or_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_in(folder.path());
    store.put(&key("a/b"), Bytes::from("x")).await.unwrap();
    fs::create_dir(folder.path().join("lost+found")).unwrap();
    fs::write(folder.path().join("a/what is this?"), "x").unwrap();
    assert_eq!(list_all(&store, "").await.unwrap().len(), 1);
    assert_eq!(store.folders("").await.unwrap(), ["a"]);

    // A link could hide a part of the archive, or lead out of it.
    symlink("b", folder.path().join("a/c")).unwrap();
    for error in [store.get(&key("a/c"), None).await.unwrap_err(), list_all(&store, "").await.unwrap_err()] {
        assert_eq!(error.kind(), Kind::Failed);
        assert!(error.to_string().contains("a/c is neither a file nor a folder"), "{error}");
    }
    assert_eq!(store.put(&key("a/c"), Bytes::from("x")).await.unwrap_err().kind(), Kind::Failed);
    assert_eq!(store.put(&key("a/b/c"), Bytes::from("x")).await.unwrap_err().kind(), Kind::Invalid);
    assert_eq!(store.put(&key("a"), Bytes::from("x")).await.unwrap_err().kind(), Kind::Invalid);
}

#[tokio::test]
async fn an_unmounted_file_system_is_not_an_empty_store() {
    let folder = tempfile::tempdir().unwrap();
    let error = DirStore::open(folder.path().to_owned(), Arc::new(Random::from_system())).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.hint_text().unwrap().contains("mounted"));
    fs::write(folder.path().join("file"), "x").unwrap();
    let error = DirStore::open(folder.path().join("file"), Arc::new(Random::from_system())).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
}

#[tokio::test]
async fn others_may_not_read_it_and_one_name_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_in(&folder.path().join("repository"));
    store.put(&key("a/b"), Bytes::from("x")).await.unwrap();
    let file = fs::metadata(folder.path().join("repository/a/b")).unwrap();
    assert_eq!(file.permissions().mode() & 0o137, 0);
    assert_eq!(file.nlink(), 1);
    assert_eq!(fs::metadata(folder.path().join("repository/a")).unwrap().permissions().mode() & 0o027, 0);
}

#[tokio::test]
async fn writers_and_a_deleter_of_one_folder_do_not_disturb_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(store_in(folder.path()));
    let tasks: Vec<_> = (0..4)
        .map(|i| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for round in 0..50 {
                    let name = key(&format!("deep/er/{i}-{round}"));
                    assert_eq!(store.put(&name, Bytes::from("x")).await.unwrap(), Put::Created);
                    store.delete(&name).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(!folder.path().join("deep").exists());
}

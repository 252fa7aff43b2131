//! What only a store on a network can meet: answers that are lost, cut, wrong, refused or never come.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use walden::{
    Error,
    clock::Random,
    error::Kind,
    store::{
        Key, Put, Store,
        check_then_put::CheckThenPut,
        dir::DirStore,
        probe::{Probe, put_if_absent, replace_if_unchanged},
        read,
        retry::Patience,
        s3::{Encryption, Keys, S3Options, S3Store},
    },
};
use walden_testkit::s3::{Conditions, Fault, S3Server, What};

/// Patience that a test can wait for.
const SHORT: Patience = Patience {
    attempt: Duration::from_millis(400),
    deadline: Duration::from_secs(2),
    first_pause: Duration::from_millis(5),
    longest_pause: Duration::from_millis(50),
};

fn options(server: &S3Server) -> S3Options {
    let mut options = S3Options::new(server.bucket(), "p");
    options.endpoint = Some(server.endpoint());
    options.path_style = true;
    options.keys =
        Some(Keys { id: server.access_key().into(), secret: server.secret_key().into(), session_token: None });
    options.patience = SHORT;
    options
}

async fn open(options: S3Options) -> Arc<dyn Store> {
    Arc::new(S3Store::open(options, Arc::new(Random::from_system())).await.unwrap())
}

async fn start() -> (S3Server, Arc<dyn Store>) {
    let server = S3Server::start();
    let store = open(options(&server)).await;
    (server, store)
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn pattern(length: usize) -> Bytes {
    (0..length).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

async fn upload(store: &dyn Store, name: &str, bytes: &Bytes) -> Result<Put, Error> {
    let mut upload = store.upload(&key(name)).await?;
    for piece in bytes.chunks(1 << 20) {
        upload.write(Bytes::copy_from_slice(piece)).await?;
    }
    upload.finish().await
}

/// Waits until the server holds no unfinished upload: aborting happens behind the back of whoever dropped it.
async fn no_uploads_remain(server: &S3Server) {
    for _ in 0..500 {
        if server.open_uploads() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} uploads were not aborted", server.open_uploads());
}

#[tokio::test]
async fn what_passes_is_tried_again() {
    let troubles = [
        What::Error(503, "SlowDown"),
        What::Error(500, "InternalError"),
        What::Error(409, "ConditionalRequestConflict"),
        What::Error(400, "RequestTimeout"),
        What::Error(403, "ExpiredToken"),
        What::Close,
        What::Stall,
        What::Delay(Duration::from_secs(1)),
    ];
    for what in troubles {
        let (server, store) = start().await;
        for operation in ["PutObject", "GetObject", "ListObjectsV2", "DeleteObject"] {
            server.fault(Fault::new(what.clone()).on(operation).times(1));
        }
        assert_eq!(store.put(&key("a"), Bytes::from("x")).await.unwrap(), Put::Created, "{what:?}");
        assert_eq!(&read(&*store, &key("a"), 9).await.unwrap()[..], b"x", "{what:?}");
        assert_eq!(store.list("", None, 9).await.unwrap().len(), 1, "{what:?}");
        store.delete(&key("a")).await.unwrap();
        assert_eq!(server.keys(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn what_passes_is_tried_again_in_every_step_of_an_upload() {
    let whole = pattern(20 << 20);
    for what in [What::Error(503, "SlowDown"), What::Error(403, "ExpiredToken"), What::Close, What::LoseAnswer] {
        let mut options = options(&S3Server::start());
        options.patience = Patience { attempt: Duration::from_secs(20), ..SHORT };
        let server = S3Server::start();
        options.endpoint = Some(server.endpoint());
        let store = open(options).await;
        for operation in ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"] {
            server.fault(Fault::new(what.clone()).on(operation).times(1));
        }
        assert_eq!(upload(&*store, "a", &whole).await.unwrap(), Put::Created, "{what:?}");
        assert!(read(&*store, &key("a"), u64::MAX).await.unwrap() == whole);
    }
}

#[tokio::test]
async fn a_put_whose_answer_was_lost_is_ours() {
    let (server, store) = start().await;
    server.fault(Fault::new(What::LoseAnswer).on("PutObject").times(1));
    assert_eq!(store.put(&key("a"), Bytes::from("ours")).await.unwrap(), Put::Created);
    assert_eq!(server.count("PutObject"), 2);

    // The same trouble over another's object: it stays another's.
    server.fault(Fault::new(What::LoseAnswer).on("PutObject").times(1));
    let other = open(options(&server)).await;
    assert_eq!(other.put(&key("a"), Bytes::from("theirs")).await.unwrap(), Put::Exists);
    assert_eq!(&read(&*store, &key("a"), 9).await.unwrap()[..], b"ours");
}

#[tokio::test]
async fn an_upload_whose_completion_was_lost_is_ours() {
    let (server, store) = start().await;
    let whole = pattern(9 << 20);
    server.fault(Fault::new(What::LoseAnswer).on("CompleteMultipartUpload").times(1));
    assert_eq!(upload(&*store, "a", &whole).await.unwrap(), Put::Created);
    assert_eq!(server.count("CompleteMultipartUpload"), 2);

    // Lost before it was carried out, while another writer got in between.
    server.fault(Fault::new(What::Close).on("CompleteMultipartUpload").times(1));
    assert_eq!(upload(&*store, "a", &whole).await.unwrap(), Put::Exists);
    no_uploads_remain(&server).await;
}

#[tokio::test]
async fn an_upload_that_the_store_dropped_is_named() {
    let (server, store) = start().await;
    server.fault(Fault::new(What::Error(404, "NoSuchUpload")).on("CompleteMultipartUpload"));
    let error = upload(&*store, "a", &pattern(9 << 20)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Failed);
    assert!(error.hint_text().unwrap().contains("lifecycle"), "{error}");
}

#[tokio::test]
async fn a_body_that_is_cut_is_resumed_where_it_broke() {
    let whole = pattern(5_000_000);
    for what in [What::CutBody, What::StallBody] {
        let (server, store) = start().await;
        store.put(&key("a"), whole.clone()).await.unwrap();
        server.fault(Fault::new(what.clone()).on("GetObject").times(3));
        assert!(read(&*store, &key("a"), u64::MAX).await.unwrap() == whole, "{what:?}");
        let gets: Vec<_> = server.requests().into_iter().filter(|r| r.operation == "GetObject").collect();
        assert_eq!(gets.len(), 4);
        assert_eq!(gets[1].headers["range"], "bytes=2500000-4999999");
        assert!(gets[1].headers.contains_key("if-match"));

        server.fault(Fault::new(what).on("GetObject").times(1));
        let mut download = store.get(&key("a"), Some(1000..9000)).await.unwrap();
        let mut got = Vec::new();
        while let Some(chunk) = download.body.chunk().await.unwrap() {
            got.extend_from_slice(&chunk);
        }
        assert!(got == whole[1000..9000]);
    }
}

#[tokio::test]
async fn a_body_that_never_gets_further_is_an_error_not_a_short_object() {
    let (server, store) = start().await;
    store.put(&key("a"), pattern(5_000_000)).await.unwrap();
    server.fault(Fault::new(What::CutBody).on("GetObject").times(1));
    server.fault(Fault::new(What::Error(503, "SlowDown")).on("GetObject"));
    let error = read(&*store, &key("a"), u64::MAX).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
}

#[tokio::test]
async fn an_object_that_is_replaced_while_it_is_read_is_noticed() {
    let (server, store) = start().await;
    store.put(&key("a"), pattern(5_000_000)).await.unwrap();
    server.fault(Fault::new(What::CutBody).on("GetObject").times(1));
    let mut download = store.get(&key("a"), None).await.unwrap();
    store.delete(&key("a")).await.unwrap();
    store.put(&key("a"), pattern(5_000_000)).await.unwrap();
    let error = loop {
        match download.body.chunk().await {
            Ok(chunk) => assert!(chunk.is_some(), "it ended as if nothing had happened"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), Kind::Damaged, "{error}");
}

#[tokio::test]
async fn a_flipped_bit_is_found() {
    let (server, store) = start().await;
    store.put(&key("a"), pattern(100_000)).await.unwrap();
    server.fault(Fault::new(What::FlipBit).on("GetObject").times(1));
    let error = read(&*store, &key("a"), u64::MAX).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged);
    assert!(error.to_string().contains("get a in s3://walden-test/p: the content does not match"), "{error}");
}

#[tokio::test]
async fn a_refusal_is_neither_absence_nor_tried_again() {
    let refusals = [
        (403, "AccessDenied", "refused access"),
        (403, "InvalidAccessKeyId", "refused the credentials"),
        (404, "NoSuchBucket", "there is no bucket walden-test"),
        (404, "", "does not answer as S3 does"),
        (301, "PermanentRedirect", "another region"),
        (403, "InvalidObjectState", "archive class"),
        (501, "NotImplemented", "cannot do this"),
    ];
    for (status, code, text) in refusals {
        let (server, store) = start().await;
        server.fault(Fault::new(What::Error(status, code)));
        let errors = [
            store.get(&key("a/b"), None).await.unwrap_err(),
            store.put(&key("a/b"), Bytes::from("x")).await.unwrap_err(),
            store.list("a/b/", None, 9).await.unwrap_err(),
            upload(&*store, "a/b", &pattern(9 << 20)).await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), Kind::Denied, "{error}");
            let said = error.to_string();
            assert!(said.contains(text) && said.contains("a/b") && said.contains("s3://walden-test/p"), "{error}");
            assert!(error.hint_text().is_some(), "{error}");
        }
        assert_eq!(server.requests().len(), 4, "{code}");
    }
}

#[tokio::test]
async fn credentials_that_stay_old_are_refused_with_the_mend() {
    for (code, mend) in [("ExpiredToken", "renew"), ("RequestTimeTooSkewed", "clock")] {
        let (server, store) = start().await;
        server.fault(Fault::new(What::Error(403, code)));
        let error = store.put(&key("a"), Bytes::from("x")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
        assert!(error.hint_text().unwrap().contains(mend), "{error}");
        assert_eq!(server.count("PutObject"), 2);
    }
}

#[tokio::test]
async fn a_wrong_secret_is_refused_and_not_told() {
    let server = S3Server::start();
    let mut options = options(&server);
    options.keys = Some(Keys { id: server.access_key().into(), secret: "my-secret".into(), session_token: None });
    let store = open(options).await;
    let error = store.put(&key("a"), Bytes::from("x")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied, "{error}");
    assert!(!format!("{error} {error:?} {store:?}").contains("my-secret"));
}

#[tokio::test]
async fn a_delete_marker_is_doubt() {
    let (server, store) = start().await;
    server.fault(Fault::new(What::DeleteMarker).on("GetObject"));
    let error = store.get(&key("a"), None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged);
    assert!(error.to_string().contains("deleted"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_unavailable_and_named() {
    let server = S3Server::start();
    let (options, endpoint) = (options(&server), server.endpoint());
    drop(server);
    let error = open(options).await.get(&key("a"), None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    let said = error.to_string();
    assert!(said.starts_with("gave up after") && said.contains(&endpoint) && said.contains("refused"), "{said}");

    let mut nowhere = S3Options::new("b", "");
    nowhere.endpoint = Some("http://nowhere.invalid:1".into());
    nowhere.keys = Some(Keys { id: "a".into(), secret: "b".into(), session_token: None });
    nowhere.patience = SHORT;
    let error = open(nowhere).await.list("", None, 1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(error.to_string().contains("nowhere.invalid"), "{error}");
}

#[tokio::test]
async fn silence_ends_in_time() {
    let (server, store) = start().await;
    server.fault(Fault::new(What::Stall));
    let error = store.put(&key("a"), Bytes::from("x")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("no answer from http://127.0.0.1"), "{error}");
}

#[tokio::test]
async fn an_upload_waits_while_the_store_is_busy_and_is_aborted_when_dropped() {
    let server = S3Server::start();
    let mut options = options(&server);
    options.patience = Patience::default();
    let store = open(options).await;
    server.fault(Fault::new(What::Stall).on("UploadPart"));
    let mut upload = store.upload(&key("a")).await.unwrap();
    let mut taken = 0;
    while let Ok(written) = tokio::time::timeout(Duration::from_secs(1), upload.write(pattern(1 << 20))).await {
        written.unwrap();
        taken += 1;
        assert!(taken <= 32, "more is held than three parts of 8 MiB");
    }
    assert!(taken >= 16);
    drop(upload);
    no_uploads_remain(&server).await;
    assert_eq!(server.count("AbortMultipartUpload"), 1);
}

#[tokio::test]
async fn an_upload_that_fails_is_aborted() {
    let (server, store) = start().await;
    server.fault(Fault::new(What::Error(403, "AccessDenied")).on("UploadPart"));
    assert_eq!(upload(&*store, "a", &pattern(40 << 20)).await.unwrap_err().kind(), Kind::Denied);
    no_uploads_remain(&server).await;
    assert_eq!(server.keys(), Vec::<String>::new());
}

#[tokio::test]
async fn storage_class_and_encryption_are_asked_for() {
    let server = S3Server::start();
    let mut options = options(&server);
    options.storage_class = Some("STANDARD_IA".into());
    options.encryption = Encryption::Kms(Some("the-key".into()));
    let store = open(options).await;
    store.put(&key("small"), Bytes::from("x")).await.unwrap();
    upload(&*store, "big", &pattern(9 << 20)).await.unwrap();
    for name in ["p/small", "p/big"] {
        let object = server.object(name).unwrap();
        assert_eq!(object.storage_class.as_deref(), Some("STANDARD_IA"));
        assert_eq!(object.encryption, (Some("aws:kms".into()), Some("the-key".into())));
    }
}

#[tokio::test]
async fn bodies_are_signed_unless_the_owner_says_otherwise() {
    for (unsigned, sent) in [(None, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"), (Some(true), "UNSIGNED-PAYLOAD")] {
        let server = S3Server::start();
        let mut options = options(&server);
        options.unsigned_payload = unsigned;
        let store = open(options).await;
        store.put(&key("a"), pattern(100_000)).await.unwrap();
        let put = server.requests().pop().unwrap();
        let way = put.headers["x-amz-content-sha256"].to_str().unwrap().to_owned();
        assert!(way == sent || (unsigned.is_none() && way.len() == 64), "{way}");
        let checksum = put.headers.keys().any(|name| name.as_str().starts_with("x-amz-checksum-"));
        assert!(checksum || put.headers.contains_key("x-amz-trailer"), "no checksum was sent");
    }
}

#[tokio::test]
async fn over_tls_the_server_must_be_known_and_bodies_go_unsigned() {
    let server = S3Server::start_https();
    let mut options = options(&server);
    options.patience = Patience::default();
    let error = open(options.clone()).await.put(&key("a"), Bytes::from("x")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied, "{error}");
    assert!(error.hint_text().unwrap().contains("ca_file"), "{error}");

    options.ca_file = Some(S3Server::authority().to_owned());
    let (store, whole) = (open(options.clone()).await, pattern(9 << 20));
    assert_eq!(store.put(&key("a"), whole.clone()).await.unwrap(), Put::Created);
    assert_eq!(upload(&*store, "b", &whole).await.unwrap(), Put::Created);
    for name in ["a", "b"] {
        assert!(read(&*store, &key(name), u64::MAX).await.unwrap() == whole);
    }
    for seen in server.requests().iter().filter(|r| ["PutObject", "UploadPart"].contains(&r.operation)) {
        assert!(seen.headers["x-amz-content-sha256"].to_str().unwrap().contains("UNSIGNED"), "{seen:?}");
    }

    options.ca_file = Some("/nowhere/authority.pem".into());
    let error = S3Store::open(options, Arc::new(Random::from_system())).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/authority.pem"), "{error}");
}

/// The name of this test, and of the variable that tells it what the environment of its process is like.
const CREDENTIALS: &str = "credentials_come_from_the_environment_or_a_profile";

#[test]
fn credentials_come_from_the_environment_or_a_profile() {
    if let Ok(endpoint) = std::env::var(CREDENTIALS) {
        return put_with_what_the_chain_gives(endpoint);
    }
    let server = S3Server::start();
    let folder = tempfile::tempdir().unwrap();
    let profile = folder.path().join("credentials");
    let (id, secret) = (server.access_key(), server.secret_key());
    let text = format!("[backup]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
    std::fs::write(&profile, text).unwrap();
    let profile = profile.to_str().unwrap();
    // The environment of the process cannot be changed from within, so that each case is a process of its own.
    for (environment, outcome) in [
        (vec![("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)], "Created"),
        (vec![("AWS_SHARED_CREDENTIALS_FILE", profile), ("AWS_PROFILE", "backup")], "Created"),
        (vec![("AWS_SHARED_CREDENTIALS_FILE", profile), ("AWS_PROFILE", "another")], "Denied"),
        (vec![], "Denied"),
    ] {
        let inner = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", CREDENTIALS, "--nocapture"])
            .env_clear()
            .env("HOME", folder.path())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env(CREDENTIALS, server.endpoint())
            .envs(environment.clone())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&inner.stdout).into_owned();
        assert!(said.contains(&format!("outcome: {outcome}")), "{environment:?}: {said}");
        assert!(!said.contains(secret));
    }
}

#[expect(clippy::print_stdout, reason = "the test that started this process reads it")]
#[tokio::main(flavor = "current_thread")]
async fn put_with_what_the_chain_gives(endpoint: String) {
    let mut options = S3Options::new("walden-test", "p");
    (options.endpoint, options.path_style) = (Some(endpoint), true);
    let name = key(&Random::from_system().name());
    match open(options).await.put(&name, Bytes::from("x")).await {
        Ok(put) => println!("outcome: {put:?}"),
        Err(error) => println!("outcome: {:?}: {error}, hint: {:?}", error.kind(), error.hint_text().unwrap()),
    }
}

#[tokio::test]
async fn the_probe_tells_who_honours_put_if_absent() {
    let folder = tempfile::tempdir().unwrap();
    let random = Arc::new(Random::from_system());
    let directory = DirStore::create(folder.path().to_owned(), Arc::clone(&random)).unwrap();
    assert_eq!(put_if_absent(&directory, "a/", &random).await.unwrap(), Probe::Honoured);
    assert_eq!(replace_if_unchanged(&directory, "a/", &random).await.unwrap(), Probe::Honoured);

    for (conditions, honoured) in
        [(Conditions::Honoured, true), (Conditions::Ignored, false), (Conditions::Racy, false)]
    {
        let (server, store) = start().await;
        server.set_conditions(conditions);
        let found = put_if_absent(&*store, "a/", &random).await.unwrap();
        assert_eq!(found == Probe::Honoured, honoured, "{conditions:?}: {found:?}");
        // Whoever replaces goes by another condition; nobody races for it there.
        let found = replace_if_unchanged(&*store, "a/", &random).await.unwrap();
        assert_eq!(found == Probe::Honoured, conditions != Conditions::Ignored, "{conditions:?}: {found:?}");
        assert_eq!(server.keys(), Vec::<String>::new());
    }
    let (server, store) = start().await;
    server.fault(Fault::new(What::Error(403, "AccessDenied")));
    assert_eq!(put_if_absent(&*store, "", &random).await.unwrap_err().kind(), Kind::Denied);
}

#[tokio::test]
async fn check_then_put_keeps_what_is_there() {
    let server = S3Server::start();
    server.set_conditions(Conditions::Ignored);
    let mut options = options(&server);
    options.conditional_writes = false;
    let store = CheckThenPut::new(open(options).await);
    let big = pattern(9 << 20);
    assert_eq!(store.put(&key("a"), Bytes::from("first")).await.unwrap(), Put::Created);
    assert_eq!(store.put(&key("a"), Bytes::from("second")).await.unwrap(), Put::Exists);
    assert_eq!(upload(&store, "a", &big).await.unwrap(), Put::Exists);
    assert_eq!(upload(&store, "b", &big).await.unwrap(), Put::Created);
    let random = Random::from_system();
    assert_eq!(replace_if_unchanged(&store, "", &random).await.unwrap(), Probe::Honoured);
    assert_eq!(&read(&store, &key("a"), 9).await.unwrap()[..], b"first");
    assert!(server.requests().iter().all(|r| !r.headers.contains_key("if-none-match")));
    no_uploads_remain(&server).await;

    // Doubt is not absence: nothing is written on it.
    server.fault(Fault::new(What::Error(403, "AccessDenied")).on("GetObject"));
    assert_eq!(store.put(&key("a"), Bytes::from("third")).await.unwrap_err().kind(), Kind::Denied);
}

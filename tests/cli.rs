//! The real `walden` as scripts and PostgreSQL meet it: exit codes, what goes to which stream, where its
//! configuration is looked for.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{
    fs::{self, File},
    io::Read as _,
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

fn walden(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walden"));
    command.args(arguments).current_dir(directory);
    std::env::vars_os()
        .filter(|(name, _)| name.to_string_lossy().starts_with("WALDEN_"))
        .for_each(|(name, _)| _ = command.env_remove(name));
    command
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    walden(directory, arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn wrong_usage_is_answered_in_the_codes_of_whoever_calls() {
    let here = TempDir::new().unwrap();
    for (arguments, code) in [
        (&[][..], 2),
        (&["--bogus"], 2),
        (&["frobnicate"], 2),
        (&["completions", "tcsh"], 2),
        (&["wal", "push", "--bogus"], 2),
        (&["wal", "fetch"], 200),
        (&["--config", "x", "wal", "fetch", "--bogus", "a", "b"], 200),
        (&["--help"], 0),
        (&["--version"], 0),
        (&["help", "config"], 0),
    ] {
        let ended = run(here.path(), arguments);
        assert_eq!(ended.status.code(), Some(code), "{arguments:?}");
        assert_eq!(ended.stdout.is_empty(), code != 0, "{arguments:?}: what goes wrong is told on standard error");
    }
    assert!(stderr(&run(here.path(), &["--bogus"])).starts_with("walden: unexpected argument '--bogus'"));
}

#[test]
fn an_error_is_told_once_as_words_or_as_json() {
    let here = TempDir::new().unwrap();
    fs::write(here.path().join("walden.toml"), "[repository]\nurll = \"x\"\n").unwrap();
    let ended = run(here.path(), &["config"]);
    assert_eq!(ended.status.code(), Some(2));
    let path = here.path().join("walden.toml");
    let words = format!(
        "walden: {}:2: there is no key in [repository] called \"urll\"\nhint: did you mean \"url\"?\n",
        path.display()
    );
    assert_eq!(stderr(&ended), words);
    let ended = run(here.path(), &["config", "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&ended.stderr).unwrap();
    assert_eq!(told["error"]["kind"], "invalid");
    assert_eq!(told["error"]["hint"], "did you mean \"url\"?");
    assert!(ended.stdout.is_empty());
}

#[test]
fn the_file_is_looked_for_in_order() {
    let here = TempDir::new().unwrap();
    let file = |name: &str, url: &str| {
        let path = here.path().join(name);
        fs::write(&path, format!("[repository]\nurl = \"{url}\"\n")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    file("walden.toml", "file:///local");
    let (named, by_variable) = (file("named.toml", "file:///named"), file("variable.toml", "file:///variable"));
    let url = |arguments: &[&str], variable: Option<&str>| {
        let mut command = walden(here.path(), &[&["config", "--json"], arguments].concat());
        let ended = command.envs(variable.map(|v| ("WALDEN_CONFIG", v))).output().unwrap();
        let document: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
        document["settings"]["repository.url"]["value"].as_str().map(str::to_owned)
    };
    assert_eq!(url(&[], None).as_deref(), Some("file:///local"));
    assert_eq!(url(&[], Some(&by_variable)).as_deref(), Some("file:///variable"));
    assert_eq!(url(&["--config", &named], Some(&by_variable)).as_deref(), Some("file:///named"));
    if !Path::new("/etc/walden/walden.toml").exists() {
        assert_eq!(url(&["--no-local-config"], None), None);
    }
}

#[test]
fn a_reader_that_stops_reading_is_no_error_and_a_full_disk_is() {
    let here = TempDir::new().unwrap();
    let mut child =
        walden(here.path(), &["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!((child.wait().unwrap().code(), told.as_str()), (Some(0), ""));
    let full = File::options().write(true).open("/dev/full").unwrap();
    let ended = walden(here.path(), &["completions", "bash"]).stdout(full).output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(stderr(&ended).starts_with("walden: write to standard output: "), "{}", stderr(&ended));
}

#[test]
fn manual_pages_are_written_to_a_folder() {
    let here = TempDir::new().unwrap();
    let ended = run(here.path(), &["man", "pages/man1"]);
    assert_eq!(ended.status.code(), Some(0), "{}", stderr(&ended));
    let page = fs::read_to_string(here.path().join("pages/man1/walden-config.1")).unwrap();
    assert!(page.contains(".TH WALDEN-CONFIG 1"), "{page}");
}

/// A server that takes the connection and never answers, and somebody who will not wait for it.
#[test]
fn an_interruption_ends_the_work_and_says_so() {
    let here = TempDir::new().unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", server.local_addr().unwrap());
    for signal in ["INT", "TERM"] {
        let child = walden(here.path(), &["init"])
            .envs([("WALDEN_REPOSITORY_URL", "s3://bucket"), ("WALDEN_REPOSITORY_ENDPOINT", endpoint.as_str())])
            .envs([
                ("AWS_ACCESS_KEY_ID", "key"),
                ("AWS_SECRET_ACCESS_KEY", "hush"),
                ("WALDEN_CLUSTER_MAIN_PGDATA", "/x"),
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let connection = server.accept().unwrap();
        let killed = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let ended = child.wait_with_output().unwrap();
        assert_eq!((ended.status.code(), stderr(&ended).as_str()), (Some(130), "walden: interrupted\n"), "{signal}");
        drop(connection);
    }
}

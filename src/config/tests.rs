//! The configuration as a user meets it: layers, mistakes, secrets.

use std::{ffi::OsString, path::PathBuf};

use super::*;

fn config(text: &str, variables: &[(&str, &str)]) -> Result<Config> {
    let variables: Vec<(OsString, OsString)> = variables.iter().map(|(n, v)| (n.into(), v.into())).collect();
    Config::of(Some((PathBuf::from("/etc/walden.toml"), text.into())), variables.into_iter(), &[])
}

fn mistake(text: &str) -> (String, String) {
    let error = config(text, &[]).expect_err(text);
    assert_eq!(error.kind(), crate::error::Kind::Invalid, "{text}");
    (error.to_string(), error.hint_text().expect("a mend").to_owned())
}

const SMALLEST: &str = r#"
[repository]
url = "s3://backups/prod"
[cluster.main]
pgdata = "/data"
connection = "host=/run user=postgres password=hush"
"#;

#[test]
fn the_smallest_file_works() {
    let config = config(SMALLEST, &[]).unwrap();
    assert_eq!(config.repository().unwrap().url.to_string(), "s3://backups/prod");
    let main = config.cluster(None).unwrap();
    assert_eq!((main.name.as_str(), main.incarnation), ("main", 1));
    assert_eq!(main.pgdata().unwrap(), Path::new("/data"));
    assert_eq!(config.archive.timeout, Duration::from_secs(60));
    assert!(!config.repository().unwrap().check_then_put);
}

#[test]
fn flags_stand_above_the_environment_and_that_above_the_file() {
    let variables = [
        ("WALDEN_REPOSITORY_URL", "file:///env"),
        ("WALDEN_CLUSTER_MAIN_PGDATA", "/env"),
        ("WALDEN_CLUSTER_MAIN_INCARNATION", "2"),
        ("WALDEN_ARCHIVE_PARALLEL", ""),
    ];
    let flag = Override {
        flag: "--pgdata",
        table: "cluster",
        cluster: Some("main".parse().unwrap()),
        name: "pgdata",
        value: "/flag".into(),
    };
    let config = Config::of(
        Some((PathBuf::from("/w.toml"), SMALLEST.into())),
        variables.map(|(n, v)| (n.into(), v.into())).into_iter(),
        &[flag],
    )
    .unwrap();
    let origin = |path: &str| {
        let setting = config.settings().iter().find(|s| s.path == path).unwrap();
        format!("{} {}", setting.value, setting.origin)
    };
    assert_eq!(origin("repository.url"), "file:///env $WALDEN_REPOSITORY_URL");
    assert_eq!(origin("cluster.main.pgdata"), "/flag --pgdata");
    assert_eq!(origin("cluster.main.incarnation"), "2 $WALDEN_CLUSTER_MAIN_INCARNATION");
    assert_eq!(origin("cluster.main.connection"), "host=/run user=postgres password=******** /w.toml:6");
    assert_eq!(origin("archive.compression"), "zstd:1..3 default");
    assert_eq!(config.cluster(None).unwrap().pgdata().unwrap(), Path::new("/flag"));
}

#[test]
fn the_environment_alone_is_enough() {
    let variables = [("WALDEN_REPOSITORY_URL", "file:///r"), ("WALDEN_CLUSTER_MY_DB_PGDATA", "/d")];
    let config = Config::of(None, variables.map(|(n, v)| (n.into(), v.into())).into_iter(), &[]).unwrap();
    assert_eq!(config.cluster(None).unwrap().name.as_str(), "my_db");
    assert!(config.repository().is_ok());
    // A recovery on a new host: the repository is all that is known.
    let bare = Config::of(None, std::iter::empty(), &[]).unwrap();
    assert_eq!(bare.cluster(Some("prod")).unwrap().name.as_str(), "prod");
    assert!(bare.cluster(None).is_err() && bare.repository().is_err());
}

#[test]
fn every_mistake_names_file_line_key_and_mend() {
    for (text, message, hint) in [
        (
            "[repository]\nurl = \"s3://b\"\nendpont = \"x\"",
            "/etc/walden.toml:3: there is no key in [repository] called \"endpont\"",
            "did you mean \"endpoint\"?",
        ),
        (
            "[repo]\nurl = \"s3://b\"",
            "/etc/walden.toml:1: there is no table \"repo\"",
            "known are repository, encryption, cluster, archive, agent, receive, backup, restore, keep, goals, kit",
        ),
        (
            "[cluster.main]\npgdat = \"/d\"",
            "/etc/walden.toml:2: there is no key in [cluster.main] called \"pgdat\"",
            "did you mean \"pgdata\"?",
        ),
        (
            "[cluster]\npgdata = \"/d\"",
            "/etc/walden.toml:2: cluster.pgdata: a cluster has a name and a table of its own",
            "write [cluster.main] above pgdata",
        ),
        (
            "[cluster.\"a b\"]",
            "/etc/walden.toml:1: \"a b\" cannot be the name of a cluster",
            "use 1 to 64 letters, digits, - and _",
        ),
        (
            "\n\n[backup]\nparallel = \"4\"",
            "/etc/walden.toml:4: backup.parallel: it is a text",
            "write a whole number from 1 to 64",
        ),
        (
            "[archive]\ntimeout = 60",
            "/etc/walden.toml:2: archive.timeout: it is a number",
            "write a length of time like \"60s\" (units: ms, s, min, h, d)",
        ),
        (
            "[repository]\nurl = \"/var\"",
            "/etc/walden.toml:2: repository.url: it is not a URL",
            "write s3://bucket/prefix or file:///absolute/path",
        ),
        ("repository = 1", "/etc/walden.toml:1: repository is a table", "write [repository]"),
        (
            "[keep]\nzone = \"CEST\"",
            "/etc/walden.toml:2: keep.zone: \"CEST\" is not a time zone",
            "write a time zone like \"UTC\" or \"Europe/Berlin\"",
        ),
        (
            "[schedule]",
            "/etc/walden.toml:1: [schedule] is not in this version of walden, and is not ignored silently",
            "remove [schedule]",
        ),
    ] {
        assert_eq!(mistake(text), (message.to_owned(), hint.to_owned()));
    }
}

#[test]
fn a_broken_file_names_its_line_and_quotes_nothing_of_it() {
    for text in [
        "[cluster.main]\nconnection = \"password=hush",
        "[cluster.main]\nconnection = password=hush",
        "[cluster.main]\nconnection = \"a\"\nconnection = \"password=hush\"",
    ] {
        let (message, _) = mistake(text);
        assert!(message.starts_with("/etc/walden.toml:") && !message.contains("hush"), "{message}");
    }
}

#[test]
fn a_secret_is_shown_nowhere() {
    let config = config(SMALLEST, &[]).unwrap();
    let shown =
        config.settings().iter().map(|s| format!("{s:?} {} {}", s.value, s.value.to_json())).collect::<String>();
    assert!(!shown.contains("hush") && !format!("{config:?}").contains("hush"));
    assert!(config.cluster(None).unwrap().connection().unwrap().reveal().contains("hush"));
}

#[test]
fn several_clusters_need_a_choice() {
    let config = config("[cluster.main]\n[cluster.billing]", &[]).unwrap();
    assert_eq!(config.cluster(None).unwrap_err().hint_text(), Some("choose one with --cluster: billing, main"));
    assert_eq!(config.cluster(Some("mian")).unwrap_err().hint_text(), Some("did you mean \"main\"?"));
    let main = config.cluster(Some("main")).unwrap();
    assert!(main.pgdata().unwrap_err().hint_text().unwrap().contains("WALDEN_CLUSTER_MAIN_PGDATA"));
}

/// Proves that no key of the table is forgotten, or misnamed, where the typed configuration is made.
#[test]
fn every_key_changes_the_configuration() {
    let always = [("WALDEN_REPOSITORY_URL", "s3://bucket"), ("WALDEN_CLUSTER_MAIN_PGDATA", "/data")];
    let typed = |more: Option<(&str, &str)>| {
        let config = config("", &[always.as_slice(), more.as_slice()].concat()).unwrap();
        format!(
            "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
            config.keep,
            config.kit,
            config.archive,
            config.agent,
            config.receive,
            config.backup,
            config.restore,
            config.goals,
            config.repository,
            config.clusters
        )
    };
    let before = typed(None);
    for key in keys::KEYS {
        let number;
        let sample = match key.kind {
            value::Kind::Paths => "/sample",
            value::Kind::Recipients => "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa",
            value::Kind::Text | value::Kind::List | value::Kind::Connection => "sample",
            value::Kind::Url => "file:///other",
            value::Kind::Endpoint => "http://localhost:9000",
            value::Kind::Listen => "127.0.0.1:9187",
            value::Kind::Path => "/other",
            value::Kind::Switch if matches!(key.default, keys::Fallback::Is("true")) => "false",
            value::Kind::Switch => "true",
            value::Kind::Whole(from, to) => {
                number = 57.clamp(from, to).to_string();
                &number
            }
            value::Kind::Size => "57MB",
            value::Kind::Time => "57min",
            value::Kind::Zone => "Europe/Berlin",
            value::Kind::Choice(words) => words[words.len() - 1],
            value::Kind::Compression | value::Kind::Compressions => "zstd:17",
        };
        let variable = environment::name(key, (key.table == "cluster").then_some("main"));
        assert_ne!(typed(Some((&variable, sample))), before, "{variable}");
    }
}

#[test]
fn a_named_file_must_be_there_and_the_usual_ones_need_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("walden.toml");
    let named = Lookup { named: Some(path.clone()), skip_local: true };
    assert_eq!(named.find(None).unwrap_err().kind(), crate::error::Kind::Invalid);
    std::fs::write(&path, SMALLEST).unwrap();
    assert_eq!(named.find(None).unwrap(), Some((path.clone(), SMALLEST.into())));
    let by_variable = Lookup::default().find(Some(&path.clone().into())).unwrap();
    assert_eq!(by_variable, Some((path, SMALLEST.into())));
    let wrong_flag = Lookup { named: Some("/nowhere/walden.toml".into()), skip_local: false };
    assert!(wrong_flag.find(Some(&OsString::from("/dev/null"))).is_err());
}

#[test]
fn other_repositories_have_tables_and_variables_of_their_own() {
    let text = format!(
        "{SMALLEST}[repository.offsite]\nurl = \"s3://elsewhere/prod\"\nprofile = \"away\"\n[archive]\nwait_for = \"first\"\n"
    );
    let variables =
        [("WALDEN_REPOSITORY_OFFSITE_REGION", "eu-north-1"), ("WALDEN_REPOSITORY_THIRD_URL", "file:///third")];
    let config = config(&text, &variables).unwrap();
    let mirrors = config.mirrors().iter().map(|(name, c)| format!("{name} {}", c.url)).collect::<Vec<_>>();
    assert_eq!(mirrors, ["offsite s3://elsewhere/prod", "third file:///third"]);
    let (_, offsite) = &config.mirrors()[0];
    assert_eq!((offsite.profile.as_deref(), offsite.region.as_deref()), (Some("away"), Some("eu-north-1")));
    assert_eq!(config.repository().unwrap().profile, None);
    assert_eq!(offsite.deadline, Duration::from_secs(60));
    assert_eq!(config.archive.wait_for, WaitFor::First);
    assert!(config.settings().iter().any(|s| s.path == "repository.offsite.url"));
}

#[test]
fn a_repository_that_is_no_other_place_is_a_mistake() {
    for (table, what) in [
        ("[repository.offsite]\nregion = \"x\"", "repository.offsite.url is not configured"),
        ("[repository.offsite]\nurl = \"s3://backups/prod\"", "is the place of repository.url"),
        ("[repository.offsite]\nurl = \"s3://backups/prod/b\"", "is the place of repository.url"),
        (
            "[repository.a]\nurl = \"file:///r/a\"\n[repository.b]\nurl = \"file:///r\"",
            "is the place of repository.a.url",
        ),
        ("[repository.first]\nurl = \"file:///r\"", "is that of the first"),
        ("[repository.\"a b\"]\nurl = \"file:///r\"", "cannot be the name of a repository"),
        ("[repository.offsite]\nurll = \"file:///r\"", "no key in [repository.offsite] called \"urll\""),
        ("[archive]\nwait_for = \"second\"", "archive.wait_for"),
    ] {
        let (told, _) = mistake(&format!("{SMALLEST}{table}\n"));
        assert!(told.contains(what), "{told}");
    }
    // Servers of one's own may well call their buckets alike.
    let elsewhere = "[repository.offsite]\nurl = \"s3://backups/prod\"\nendpoint = \"https://elsewhere:9000\"\n";
    assert_eq!(config(&format!("{SMALLEST}{elsewhere}"), &[]).unwrap().mirrors().len(), 1);
}

//! The agent, a second repository, expiry and compaction on a host without an identity.

use std::fs;

use walden_testkit::{agent::Agent, postgres::any, protected::Place, run::run};

use crate::scene::{Keyless, SECRET, bytes_below, holds, until};

/// A host whose agent archives into two repositories.
fn two() -> Keyless {
    let k = Keyless::with(any(), Place::Directory, "parallel = 3\n", |b| b.setting("wal_keep_size", "1GB"));
    let p = &k.p;
    p.cluster.psql("alter system set archive_command = 'false'");
    p.cluster.reload();
    let text = fs::read_to_string(&p.config).unwrap();
    let offsite = format!("[repository.offsite]\nurl = \"file://{}\"\n\n", p.scene.path().join("offsite").display());
    let text = text.replace("[cluster.main]", &format!("{offsite}[cluster.main]"));
    p.scene.write("walden.toml", format!("{text}\n[agent]\nsocket = \"{}\"\n", p.socket().display()));
    p.walden(["init"]).expect_code(0);
    k
}

#[test]
fn the_agent_ships_ahead_into_two_repositories_and_expiry_goes_on_where_compaction_cannot() {
    let k = two();
    let p = &k.p;
    k.write(1, 30_000);
    let names: Vec<String> = (0..6).map(|_| p.cluster.switch_wal()).collect();
    let agent = Agent::start(p);
    // A first call of the server sets going what it will ask for later.
    p.cluster.psql(&format!("copy (select) to program '{} pg_wal/{}'", p.agent_command(), names[0]));
    let shipped =
        |name: &String| bytes_below(&p.scene.path().join("state")).iter().any(|(path, _)| path.ends_with(name));
    until("the agent has shipped ahead", || names[1..].iter().all(shipped));
    p.archive_through_agent();
    p.archive();
    for name in &names[1..] {
        assert!(agent.says(&format!("{name} was shipped before")), "{name}\n{}", agent.log());
    }
    let first = k.backup("first");
    // Most of what the first backup holds is needed no more.
    p.cluster.psql(&format!("delete from {SECRET} where n > 100; vacuum full {SECRET}; checkpoint"));
    let second = k.backup("second");
    p.archive();
    p.walden(["sync"]).expect_code(0);

    let before = bytes_below(&p.repository);
    let refused = p.walden(["compact"]);
    refused.expect_code(4);
    for said in ["compaction reads", "no identity is given here", "hint: "] {
        assert!(refused.stderr.contains(said), "{said}: {refused}");
    }
    assert!(before == bytes_below(&p.repository), "a compaction that is refused changes nothing");
    let text = fs::read_to_string(&p.config).unwrap();
    p.scene.write("walden.toml", format!("{text}\n[keep]\nlast = 1\ncompact = 60\n"));
    let expired = p.walden(["expire"]);
    expired.expect_code(0);
    assert!(
        expired.stderr.contains("nothing is written anew: ") && expired.stderr.contains("no identity"),
        "{expired}"
    );
    let listed = p.walden(["list"]);
    assert!(!listed.ok().contains(&first.id) && listed.stdout.contains(&second.id), "{listed}");
    // Whoever holds the identity writes anew what this host could not.
    let owner = k.host_with(&k.identity);
    run(&mut p.elsewhere(&owner, ["compact"])).expect_code(0);
    p.walden(["expire"]).expect_code(0);
    p.walden(["sync"]).expect_code(0);
    let third = k.backup("third");
    k.owner(&["verify", "--deep"]).expect_code(0);
    p.archive();
    p.walden(["sync"]).expect_code(0);
    assert!(third.stored < first.stored, "{}", third.said);

    let offsite = p.scene.path().join("offsite");
    for (path, bytes) in [bytes_below(&p.repository), bytes_below(&offsite)].concat() {
        assert!(!holds(&bytes, SECRET), "{}", path.display());
        assert!(path.extension().is_some_and(|e| e == "json") || bytes.starts_with(b"age-encryption.org/v1\n"));
    }
    // The first one is lost.
    fs::rename(&p.repository, p.scene.path().join("gone")).unwrap();
    fs::rename(&offsite, &p.repository).unwrap();
    let text = fs::read_to_string(&p.config).unwrap();
    let (start, rest) = text.split_once("[repository.offsite]").unwrap();
    let (_, rest) = rest.split_once("[cluster.main]").unwrap();
    p.scene.write("walden.toml", format!("{start}[cluster.main]{rest}"));
    assert_eq!(k.rows_by(&k.identity, "from-offsite"), "100");
}

//! What is written from the table of keys: docs/CONFIGURATION.md, and a first `walden.toml`.

use super::{
    environment,
    keys::{self, Fallback, KEYS, Key, LATER},
};
use crate::repository::ClusterName;

/// A first `walden.toml` with what is needed and nothing more.
#[must_use]
pub fn first_file(url: &str, cluster: &ClusterName, pgdata: &str, connection: &str) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    format!(
        "# Walden's configuration. `walden config` shows what holds and where it came from.\n\n\
         [repository]\nurl = {}\n\n[cluster.{cluster}]\npgdata = {}\nconnection = {}\n",
        quoted(url),
        quoted(pgdata),
        quoted(connection),
    )
}

/// docs/CONFIGURATION.md: every key, in Markdown.
#[must_use]
pub fn reference() -> String {
    let mut page = String::from(concat!(
        "# Configuration\n\n",
        "<!-- Made from src/config/keys.rs: `walden config --reference` prints it. -->\n\n",
        "Walden reads the file of `--config`, else that of `$WALDEN_CONFIG`, else `./walden.toml` (not when PostgreSQL runs it),\n",
        "else `/etc/walden/walden.toml`. A key can also be set in the environment, by its path; the environment is above the\n",
        "file, and flags are above both. `walden config` shows every value that holds and where it came from.\n\n",
        "It is strict: an unknown key, table or variable is an error. The smallest file that works:\n\n```toml\n",
    ));
    if let Ok(main) = "main".parse() {
        let connection = "host=/var/run/postgresql dbname=postgres user=postgres";
        page.push_str(&first_file("s3://backups/prod", &main, "/var/lib/postgresql/17/main", connection));
    }
    page.push_str("```\n\nSizes are written `256MB` (units `B kB MB GB TB`, 1 kB = 1024 bytes), times `60s` (units `ms s min h d`);\n");
    page.push_str("in the environment, items of a list are separated by commas. S3 credentials come from the standard AWS chain\n");
    page.push_str("(environment, profile, web identity, instance role), or from `credentials_file`.\n");
    for table in keys::tables() {
        let header = if table == "cluster" { "cluster.NAME" } else { table };
        page.push_str(&format!("\n## [{header}]\n\n| key | takes | default | |\n|---|---|---|---|\n"));
        KEYS.iter().filter(|key| key.table == table).for_each(|key| page.push_str(&row(key)));
        let example = KEYS.iter().find(|key| key.table == table);
        let variable = example.map(|key| environment::name(key, (table == "cluster").then_some("main")));
        page.push_str(&format!("\nIn the environment: `{}` and so on.\n", variable.unwrap_or_default()));
        if table == "repository" {
            page.push_str(OTHERS);
        }
        if table == "cluster" {
            page.push_str("A cluster's name is made of letters, digits, `-` and `_`; in a variable it stands in capitals, with `_` for `-`.\n");
        }
    }
    page.push_str(&format!(
        "\n## Later\n\nThe tables {} belong to a later version and are refused until then.\n",
        later_tables()
    ));
    page
}

/// What is said of repositories besides the first.
const OTHERS: &str = "\n## [repository.NAME]\n\n\
    Any number of other repositories, each with a table of its own and the same keys; `[repository]` is the first, and its\n\
    name is `first`. They hold the same objects as the first. `walden init` makes them; `[archive] wait_for` says which of\n\
    them a segment waits for. Nothing is inherited from `[repository]`: where one is in another account, give it its\n\
    `profile`.\n\n\
    ```toml\n[repository.offsite]\nurl = \"s3://backups-elsewhere/prod\"\nregion = \"eu-north-1\"\nprofile = \"offsite\"\n```\n\n\
    In the environment: `WALDEN_REPOSITORY_OFFSITE_URL` and so on; a name stands in capitals, with `_` for `-`.\n";

fn row(key: &Key) -> String {
    let default = match key.default {
        Fallback::Nothing => String::new(),
        Fallback::Is(text) => format!("`{text}`"),
        Fallback::Processors => "the number of processors, at most 8".into(),
    };
    format!("| `{}` | {} | {default} | {} |\n", key.name, key.kind.wanted(), key.doc)
}

fn later_tables() -> String {
    LATER.map(|table| format!("`[{table}]`")).join(", ")
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{super::file, *};

    #[test]
    fn the_reference_page_is_up_to_date() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/CONFIGURATION.md");
        let stands = fs::read_to_string(&path).unwrap_or_default();
        assert!(stands == reference(), "run walden config --reference > docs/CONFIGURATION.md");
    }

    #[test]
    fn a_first_file_can_be_read_whatever_stands_in_it() {
        let odd = "/data/a \"b\" \\c";
        let text = first_file("file:///r", &"my-db".parse().unwrap(), odd, "host='x y'");
        let entries = file::read(Path::new("walden.toml"), &text).unwrap();
        let raws: Vec<_> = entries.iter().filter(|e| e.name == Some("pgdata")).map(|e| e.raw.clone()).collect();
        assert_eq!(raws, [super::super::Raw::Text(odd.into())]);
    }
}

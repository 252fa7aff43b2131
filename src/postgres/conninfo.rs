//! Connection strings in libpq's two forms (`host=/run/postgresql user=postgres`, `postgresql://user@host/db`),
//! completed from service files, the `PG*` environment variables and the password file as libpq does it
//! (`src/interfaces/libpq/fe-connect.c`). Passwords never appear in errors or in what is displayed.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use tokio_postgres::config::{Config, SslMode};

use super::{
    Account,
    service::service,
    tls::{Tls, Verification},
};
use crate::error::{Error, Result};

/// How long connecting may take when the string does not say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// After how long without a word the other host is asked whether it is still there, when the string does not say: a
/// backup must not wait hours for one that has vanished.
const KEEPALIVES_IDLE: Duration = Duration::from_secs(60);

/// Where PostgreSQL's socket lies when no host is given: Debian's and Red Hat's place, then PostgreSQL's own.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Keywords and the environment variables that stand in for them.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("service", "PGSERVICE"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("options", "PGOPTIONS"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
];

/// Further keywords that are handed on as they are.
const HANDED_ON: &[&str] = &[
    "application_name",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "tcp_user_timeout",
    "load_balance_hosts",
    "sslnegotiation",
];

/// Keywords without meaning here, taken for the sake of strings that also serve other programs.
const IGNORED: &[&str] = &["client_encoding", "fallback_application_name", "gssencmode", "sslcompression", "sslsni"];

/// Where and how to connect to a server.
#[derive(Clone)]
pub struct Conninfo {
    pub(super) config: Config,
    pub(super) tls: Tls,
    /// How long connecting may take in all.
    pub(super) timeout: Option<Duration>,
    /// What the password file has for the database "replication".
    replication_password: Option<String>,
    shown: String,
}

impl fmt::Display for Conninfo {
    /// Host, port, database and user; no password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conninfo({})", self.shown)
    }
}

impl FromStr for Conninfo {
    type Err = Error;

    /// Reads a connection string, with this process's environment.
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text, &|name| std::env::var(name).ok())
    }
}

impl Conninfo {
    /// The role to connect as.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.config.get_user()
    }

    /// The password for replication connections: libpq looks them up by the database "replication".
    pub(super) fn replication_password(&self) -> Option<&[u8]> {
        self.replication_password.as_deref().map(str::as_bytes).or(self.config.get_password())
    }

    /// The same server and role, another database.
    #[must_use]
    pub fn to_database(&self, name: &str) -> Self {
        let mut other = self.clone();
        other.config.dbname(name);
        let others = self.shown.split(' ').filter(|part| !part.starts_with("dbname="));
        other.shown = others.chain([format!("dbname={name}").as_str()]).collect::<Vec<_>>().join(" ");
        other
    }

    /// The same server and role, under another `application_name`.
    #[must_use]
    pub fn named(&self, application: &str) -> Self {
        let mut other = self.clone();
        other.config.application_name(application);
        other
    }

    /// Reads a connection string. `environment` answers for `PG*` and `HOME`.
    pub fn parse(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let mut given =
            if let Some(rest) = text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
                from_uri(rest)
            } else {
                from_keywords(text)
            }?;
        let home = environment("HOME").map(PathBuf::from);
        if let Some(name) = given.get("service").map(str::to_owned).or_else(|| environment("PGSERVICE")) {
            // What the string itself says is above the service, and the service above the environment.
            let defaults = service(&name, environment, home.as_deref())?;
            let unsaid: Vec<_> = defaults.into_iter().filter(|(keyword, _)| given.get(keyword).is_none()).collect();
            given.0.extend(unsaid);
        }
        for (keyword, _) in &given.0 {
            check_keyword(keyword)?;
        }
        for (keyword, variable) in ENVIRONMENT {
            if let (None, Some(value)) = (given.get(keyword), environment(variable).filter(|v| !v.is_empty())) {
                given.0.push(((*keyword).to_owned(), value));
            }
        }
        let replication_password = complete(&mut given, home.as_deref());
        let verification = Verification::from_sslmode(given.get("sslmode").unwrap_or("prefer"))?;
        let tls = Tls::new(verification, |keyword| given.get(keyword).map(str::to_owned), home.as_deref());
        let mut config = config_of(&given)?;
        config.ssl_mode(verification.map_or(SslMode::Disable, Verification::mode));
        let timeout = config.get_connect_timeout().copied();
        Ok(Self { config, tls, timeout, replication_password, shown: shown(&given) })
    }
}

/// Keywords and values in the order given; of equal ones the last counts.
#[derive(Default)]
struct Given(Vec<(String, String)>);

impl Given {
    fn get(&self, keyword: &str) -> Option<&str> {
        self.0.iter().rev().find(|(k, v)| k == keyword && !v.is_empty()).map(|(_, v)| v.as_str())
    }

    fn add(&mut self, keyword: &str, value: impl Into<String>) {
        self.0.push((keyword.to_owned(), value.into()));
    }
}

fn invalid(why: impl fmt::Display) -> Error {
    Error::invalid(format!("the connection string {why}"))
        .hint("it should look like \"host=/var/run/postgresql user=postgres dbname=postgres\"")
}

fn check_keyword(keyword: &str) -> Result<()> {
    let known = ENVIRONMENT.iter().any(|(k, _)| *k == keyword);
    if known || HANDED_ON.contains(&keyword) || IGNORED.contains(&keyword) {
        return Ok(());
    }
    // The keyword may be a piece of an unquoted password, and is not repeated unless it is one of libpq's.
    const OTHERS: &[&str] = &["sslcrl", "sslcrldir", "sslpassword", "replication", "require_auth", "krbsrvname"];
    Err(match OTHERS.iter().find(|other| **other == keyword) {
        Some(other) => invalid(format!("uses {other}, which Walden does not know")),
        None => invalid("has a keyword that is none of libpq's"),
    })
}

/// `keyword = value` pairs; values with blanks stand in single quotes; a backslash precedes quotes and backslashes.
fn from_keywords(text: &str) -> Result<Given> {
    let mut given = Given::default();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(given);
        }
        let mut keyword = String::new();
        while let Some(c) = chars.next_if(|c| !c.is_whitespace() && *c != '=') {
            keyword.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next_if_eq(&'=').is_none() {
            return Err(invalid("has a word without \"=\""));
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match chars.next() {
                None if quoted => return Err(invalid("has a quote that does not end")),
                None => break,
                Some('\'') if quoted => break,
                Some(c) if !quoted && c.is_whitespace() => break,
                Some('\\') => value.extend(chars.next()),
                Some(c) => value.push(c),
            }
        }
        given.add(&keyword, value);
    }
}

/// `[user[:password]@][host[:port],...][/dbname][?keyword=value&...]`, without the scheme.
fn from_uri(rest: &str) -> Result<Given> {
    let mut given = Given::default();
    let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, dbname) = rest.split_once('/').unwrap_or((rest, ""));
    let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = match host.strip_prefix('[').and_then(|h| h.split_once(']')) {
            Some((name, port)) => (name, port.strip_prefix(':').unwrap_or(port)),
            None => host.rsplit_once(':').unwrap_or((host, "")),
        };
        names.push(unescape(name)?);
        ports.push(if port.is_empty() { "5432" } else { port });
    }
    if names.iter().any(|name| !name.is_empty()) {
        given.add("host", names.join(","));
    }
    if hosts.contains(':') {
        given.add("port", ports.join(","));
    }
    for (keyword, value) in [("user", user), ("password", password), ("dbname", dbname)] {
        given.add(keyword, unescape(value)?);
    }
    for parameter in parameters.split('&').filter(|p| !p.is_empty()) {
        let (keyword, value) = parameter.split_once('=').ok_or_else(|| invalid("has a parameter without \"=\""))?;
        match (keyword, value) {
            ("ssl", "true") => given.add("sslmode", "require"),
            _ => given.add(&unescape(keyword)?, unescape(value)?),
        }
    }
    Ok(given)
}

/// Resolves `%XX`.
fn unescape(text: &str) -> Result<String> {
    let bad = || invalid("has a \"%\" that is not followed by two hexadecimal digits");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = rest.get(..2).and_then(|d| std::str::from_utf8(d).ok()).ok_or_else(bad)?;
        let plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
        bytes.push(if plain { u8::from_str_radix(digits, 16).map_err(|_| bad())? } else { return Err(bad()) });
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| invalid("is not UTF-8"))
}

/// Fills in what libpq would: host, port, user, database and the password file's password. Gives the password that the
/// file has for replication connections.
fn complete(given: &mut Given, home: Option<&Path>) -> Option<String> {
    match (given.get("host"), given.get("hostaddr")) {
        (None, Some(address)) => {
            // The name that a certificate is held against.
            let address = address.to_owned();
            given.add("host", address);
        }
        (None, None) => {
            let there = SOCKET_DIRECTORIES.iter().find(|d| Path::new(d).is_dir());
            given.add("host", *there.unwrap_or(&SOCKET_DIRECTORIES[0]));
        }
        _ => {}
    }
    if given.get("port").is_none() {
        given.add("port", "5432");
    }
    if given.get("user").is_none()
        && let Some(user) = Some(Account::own().name)
    {
        given.add("user", user);
    }
    if let (None, Some(user)) = (given.get("dbname"), given.get("user").map(str::to_owned)) {
        given.add("dbname", user);
    }
    if given.get("password").is_some() {
        return None;
    }
    let file = given.get("passfile").map(PathBuf::from).or_else(|| home.map(|h| h.join(".pgpass")))?;
    let of = |database: &str| password_from(&file, given, database);
    let (own, replication) = (given.get("dbname").and_then(of), of("replication"));
    if let Some(password) = own {
        given.add("password", password);
    }
    replication
}

/// The password for this connection in a password file (`host:port:database:user:password`, `*` for any). A file
/// that others may read is passed over, as libpq does it.
fn password_from(file: &Path, given: &Given, database: &str) -> Option<String> {
    let metadata = fs::metadata(file).ok()?;
    if !metadata.is_file() || metadata.mode() & 0o077 != 0 {
        return None;
    }
    let host = match given.get("host") {
        Some(host) if SOCKET_DIRECTORIES.contains(&host) => "localhost",
        other => other.unwrap_or("localhost"),
    };
    let wanted = [host, given.get("port")?, database, given.get("user")?];
    let text = fs::read_to_string(file).ok()?;
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut fields = password_fields(line);
        let password = (fields.len() == 5).then(|| fields.pop()).flatten()?;
        fields.iter().zip(wanted).all(|(field, value)| field == "*" || field == value).then_some(password)
    })
}

/// The fields of a line of the password file; a backslash precedes colons and backslashes.
fn password_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let c = match c {
            ':' if fields.len() < 5 => {
                fields.push(String::new());
                continue;
            }
            '\\' => chars.next().unwrap_or('\\'),
            c => c,
        };
        if let Some(last) = fields.last_mut() {
            last.push(c);
        }
    }
    fields
}

/// What tokio-postgres needs to know; it reads the same strings, but not all keywords, and of repeated hosts and ports
/// it takes all.
fn config_of(given: &Given) -> Result<Config> {
    let own = ["service", "password", "passfile", "sslmode", "sslrootcert", "sslcert", "sslkey"];
    let mut whole = String::new();
    for keyword in ENVIRONMENT.iter().map(|(keyword, _)| keyword).chain(HANDED_ON).filter(|k| !own.contains(k)) {
        if let Some(value) = given.get(keyword) {
            let part = format!("{keyword}='{}' ", value.replace('\\', "\\\\").replace('\'', "\\'"));
            Config::from_str(&part).map_err(|_| invalid(format!("has a value for {keyword} that is none")))?;
            whole.push_str(&part);
        }
    }
    let mut config = Config::from_str(&whole).map_err(|_| invalid("is not understood"))?;
    if given.get("application_name").is_none() {
        config.application_name("walden");
    }
    if given.get("keepalives_idle").is_none() {
        config.keepalives_idle(KEEPALIVES_IDLE);
    }
    if given.get("connect_timeout").is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if let Some(password) = given.get("password") {
        config.password(password);
    }
    Ok(config)
}

fn shown(given: &Given) -> String {
    let parts = ["host", "port", "dbname", "user"].map(|k| given.get(k).map(|v| format!("{k}={v}")));
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn parse(text: &str) -> Result<Conninfo> {
        Conninfo::parse(text, &|_| None)
    }

    #[test]
    fn both_forms_say_the_same() {
        let uri = parse("postgresql://an%20a:p%40ss@[::1]:5433,db.example/ba%2Fse?connect_timeout=3").unwrap();
        let words =
            parse(r"host=::1,db.example port=5433,5432 user='an a' dbname = ba/se password=p\@ss connect_timeout=3");
        let words = words.unwrap();
        assert_eq!(uri.to_string(), "host=::1,db.example port=5433,5432 dbname=ba/se user=an a");
        assert_eq!(uri.config, words.config);
        assert_eq!(uri.config.get_password(), Some("p@ss".as_bytes()));
        assert_eq!(uri.timeout, Some(Duration::from_secs(3)));
        assert!(parse("host='/run/it''s'").is_err());
        assert_eq!(parse(r"host='/run/it\'s' user=a").unwrap().to_string(), "host=/run/it's port=5432 dbname=a user=a");
    }

    #[test]
    fn the_environment_and_the_defaults_fill_in() {
        let environment = |name: &str| match name {
            "PGHOST" => Some("db1".to_owned()),
            "PGUSER" => Some("ann".to_owned()),
            "PGPASSWORD" => Some("secret".to_owned()),
            _ => None,
        };
        let conninfo = Conninfo::parse("user=bob", &environment).unwrap();
        assert_eq!(conninfo.to_string(), "host=db1 port=5432 dbname=bob user=bob");
        assert_eq!(conninfo.config.get_password(), Some("secret".as_bytes()));
        assert_eq!(conninfo.config.get_application_name(), Some("walden"));
        assert!(parse("").unwrap().to_string().starts_with("host=/"));
    }

    #[test]
    fn a_service_stands_between_the_string_and_the_environment() {
        let home = tempfile::tempdir().unwrap();
        let text = "[prod]\nhost=h\nport=6000\nuser=ann\npassword=s\n[odd]\nkrbsrvname=x\n";
        fs::write(home.path().join(".pg_service.conf"), text).unwrap();
        let environment = |name: &str| match name {
            "HOME" => Some(home.path().to_str().unwrap().to_owned()),
            "PGPORT" => Some("7000".to_owned()),
            "PGDATABASE" => Some("d".to_owned()),
            _ => None,
        };
        let conninfo = Conninfo::parse("service=prod user=bob", &environment).unwrap();
        assert_eq!(conninfo.to_string(), "host=h port=6000 dbname=d user=bob");
        assert_eq!(conninfo.config.get_password(), Some(&b"s"[..]));
        let error = Conninfo::parse("service=odd", &environment).unwrap_err();
        assert!(error.to_string().contains("krbsrvname"), "{error}");
        assert!(Conninfo::parse("service=none", &environment).is_err());
    }

    #[test]
    fn no_password_in_any_text() {
        let conninfo = parse("host=h user=u password=hunter2").unwrap();
        assert!(!format!("{conninfo} {conninfo:?}").contains("hunter2"));
        for text in [
            "password=hunter2 nonsense",
            "password=hun ter2=x",
            "postgresql://u:p?hunter2=x@h/d",
            "password='hunter2",
            "password=hunter2 port=x",
            "password=hunter2 service=s",
            "postgresql://u:hunter2%zz@h",
            "password=hunter2 sslmode=maybe",
        ] {
            let error = parse(text).unwrap_err();
            assert!(!format!("{error}{error:?}").contains("ter2"), "{error:?}");
            assert!(error.hint_text().is_some());
        }
    }

    #[test]
    fn the_password_file_must_be_private() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join(".pgpass");
        fs::write(&file, "# c\nother:*:*:*:no\nlocalhost:5432:*:ann:a\\:b\n*:*:*:*:any\n").unwrap();
        let environment = |name: &str| (name == "HOME").then(|| home.path().to_str().unwrap().to_owned());
        let password = |text: &str| {
            let conninfo = Conninfo::parse(text, &environment).unwrap();
            conninfo.config.get_password().map(|p| String::from_utf8(p.to_vec()).unwrap())
        };
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(password("host=/tmp user=ann"), None);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(password("host=/tmp user=ann").as_deref(), Some("a:b"));
        assert_eq!(password("host=h user=ann").as_deref(), Some("any"));
        assert_eq!(password("host=h user=ann password=own").as_deref(), Some("own"));
        // A line for the database "replication" is for replication alone.
        fs::write(&file, "*:*:replication:*:repl\n*:*:ann:*:sql\n").unwrap();
        let conninfo = Conninfo::parse("host=h user=ann", &environment).unwrap();
        assert_eq!(conninfo.replication_password(), Some(&b"repl"[..]));
        assert_eq!(conninfo.config.get_password(), Some(&b"sql"[..]));
    }
}

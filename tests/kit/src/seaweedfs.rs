//! SeaweedFS: an S3 server that we did not write, for end-to-end tests and benchmarks.
//!
//! Starting it takes seconds, so `scripts/test` starts one for all tests by way of `with-seaweedfs` and names it in
//! [`ENDPOINT`], [`BUCKET`] and the usual AWS variables. Each test stays below a prefix of its own.

use std::{
    env,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    postgres::tools,
    run::{Ran, run_with_input},
};

/// The variable that names the server's URL.
pub const ENDPOINT: &str = "WALDEN_TEST_S3_ENDPOINT";
/// The variable that names the bucket.
pub const BUCKET: &str = "WALDEN_TEST_S3_BUCKET";
/// The variable that names the URL over TLS, which [`S3Server::authority`](crate::s3::S3Server::authority) vouches for.
pub const HTTPS_ENDPOINT: &str = "WALDEN_TEST_S3_HTTPS_ENDPOINT";
/// The variable that names what the store's conformance suite need not ask of the server.
const DEVIATES: &str = "WALDEN_TEST_S3_DEVIATES";
/// It lists folder by folder, lets empty folders linger, and of racing completions of uploads two can win.
const KNOWN_DEVIATIONS: [&str; 3] =
    ["listings_continue_after_a_key", "folders_have_something_below", "eight_racing_uploads_make_one"];
/// `required` makes a missing server a failure, `no` leaves its tests out.
const WANTED: &str = "WALDEN_TEST_SEAWEEDFS";

/// The policies of docs/policies, each of which an identity has. Their keys end with the name.
const ROLES: [(&str, &str); 3] = [
    ("writer", include_str!("../../../docs/policies/writer.json")),
    ("expirer", include_str!("../../../docs/policies/expirer.json")),
    ("restorer", include_str!("../../../docs/policies/restorer.json")),
];
/// The bucket with object lock.
const LOCKED: &str = "walden-locked";

const ACCESS_KEY: &str = "TESTACCESSKEY";
const SECRET_KEY: &str = "test/secret+key";
const START: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(100);

/// An S3 server and a bucket on it, ours to fill.
#[derive(Debug)]
pub struct SeaweedFs {
    /// The URL, buckets being part of the path.
    pub endpoint: String,
    /// The same over TLS. Absent where the environment named a server without it.
    pub https_endpoint: Option<String>,
    /// A bucket that is there.
    pub bucket: String,
    /// The id of a key that may read, write, list and delete.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    _server: Option<Server>,
}

/// The process, which ends when this is dropped, and all that it stored.
#[derive(Debug)]
struct Server {
    child: Child,
    folder: TempDir,
    /// Sockets in `/tmp`, which no option moves and which it leaves behind.
    sockets: Vec<PathBuf>,
}

/// Where a server that was just started is found.
struct Started {
    child: Child,
    http: u16,
    https: u16,
    sockets: Vec<PathBuf>,
}

impl SeaweedFs {
    /// This server as somebody with the policy of that name in `docs/policies` sees it, for prefixes that begin with
    /// `walden-`. Only of a server that was [started](Self::start) by the test: it goes on for as long as `self`.
    #[must_use]
    pub fn seen_by(&self, role: &str) -> Self {
        Self {
            endpoint: self.endpoint.clone(),
            https_endpoint: self.https_endpoint.clone(),
            bucket: self.bucket.clone(),
            access_key: format!("{ACCESS_KEY}-{role}"),
            secret_key: format!("{SECRET_KEY}-{role}"),
            _server: None,
        }
    }

    /// The same for the server's bucket that has object lock.
    #[must_use]
    pub fn locked_seen_by(&self, role: &str) -> Self {
        Self { bucket: LOCKED.to_owned(), ..self.seen_by(&format!("locked-{role}")) }
    }

    /// The server that the environment names, or else one that is started now and ends when this is dropped. `None`,
    /// said plainly, where SeaweedFS is not on this machine or was left out.
    ///
    /// # Panics
    /// When it does not start, and when it is missing although `WALDEN_TEST_SEAWEEDFS=required`.
    #[must_use]
    pub fn for_test() -> Option<Self> {
        let wanted = env::var(WANTED).unwrap_or_default();
        if wanted == "no" {
            eprintln!("SeaweedFS was left out: this part of the test did not run");
            return None;
        }
        if let Ok(endpoint) = env::var(ENDPOINT) {
            let named = |name: &str| env::var(name).unwrap_or_else(|_| panic!("{ENDPOINT} is set, but not {name}"));
            return Some(Self {
                endpoint,
                https_endpoint: env::var(HTTPS_ENDPOINT).ok(),
                bucket: named(BUCKET),
                access_key: named("AWS_ACCESS_KEY_ID"),
                secret_key: named("AWS_SECRET_ACCESS_KEY"),
                _server: None,
            });
        }
        let started = Self::start();
        if started.is_none() {
            assert!(wanted != "required", "SeaweedFS was not found: run scripts/test");
            eprintln!("SeaweedFS was not found: this part of the test did not run");
        }
        started
    }

    /// Starts a server of its own, when the program is on this machine.
    ///
    /// # Panics
    /// With the end of its log, when it does not start.
    #[must_use]
    pub fn start() -> Option<Self> {
        let weed = find()?;
        let folder = tempfile::Builder::new().prefix("walden-s3-").tempdir().expect("a temporary folder");
        // Somebody may take a free port before SeaweedFS does.
        for _ in 0..4 {
            if let Some(Started { child, http, https, sockets }) = try_start(&weed, &folder) {
                return Some(Self {
                    endpoint: format!("http://127.0.0.1:{http}"),
                    https_endpoint: Some(format!("https://127.0.0.1:{https}")),
                    bucket: "walden-test".to_owned(),
                    access_key: ACCESS_KEY.to_owned(),
                    secret_key: SECRET_KEY.to_owned(),
                    _server: Some(Server { child, folder, sockets }),
                });
            }
        }
        panic!("SeaweedFS did not start\n{}", log_tail(folder.path()));
    }

    /// The variables that make [`for_test`](Self::for_test), and every AWS tool, use this server.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![
            (ENDPOINT, self.endpoint.clone()),
            (BUCKET, self.bucket.clone()),
            ("AWS_ACCESS_KEY_ID", self.access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.secret_key.clone()),
            ("AWS_REGION", "us-east-1".to_owned()),
            (DEVIATES, KNOWN_DEVIATIONS.join(",")),
        ];
        variables.extend(self.https_endpoint.clone().map(|url| (HTTPS_ENDPOINT, url)));
        variables
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for socket in &self.sockets {
            let _ = fs::remove_file(socket);
        }
        let _ = fs::remove_dir_all(self.folder.path());
    }
}

/// The program: in the folder of tools, else on PATH.
fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    [tools().join("seaweedfs")]
        .into_iter()
        .chain(env::split_paths(&path))
        .map(|folder| folder.join("weed"))
        .find(|weed| weed.is_file())
}

/// Starts the program and makes the bucket. `None` when the program ended.
fn try_start(weed: &Path, folder: &TempDir) -> Option<Started> {
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("data")).expect("a folder in our own");
    // No "Admin": for one, SeaweedFS makes every bucket that is written to.
    let actions = r#"["Read","Write","List","Tagging"]"#;
    let keys = format!(r#"{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET_KEY}"}}"#);
    let with_policy = |name: &str| identity(name, &format!(r#""policyNames":["{name}"]"#));
    let locked = |role: &str| format!("locked-{role}");
    let roles = ROLES.map(|(role, _)| [with_policy(role), with_policy(&locked(role))].join(",")).join(",");
    let both = |(role, policy)| [policy_of(role, policy, "walden-test"), policy_of(&locked(role), policy, LOCKED)];
    let policies = ROLES.map(|role| both(role).join(",")).join(",");
    let identities = format!(
        r#"{{"identities":[{{"name":"test","credentials":[{keys}],"actions":{actions}}},{roles}],"policies":[{policies}]}}"#
    );
    fs::write(at("identities.json"), identities).expect("a file in our own folder");
    let tls = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/s3/tls"));
    let [master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc, https] = free_ports();
    let log = File::create(at("log")).expect("a file in our own folder");
    let mut command = Command::new(weed);
    // It takes keys that it finds in its environment for an administrator's.
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    command.args(["-logtostderr", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]);
    command.args(["-s3.allowDeleteBucketNotEmpty=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
    command.args(["-master.volumeSizeLimitMB=256", "-volume.max=100"]);
    for (flag, port) in [
        ("master.port", master),
        ("master.port.grpc", master_grpc),
        ("volume.port", volume),
        ("volume.port.grpc", volume_grpc),
        ("filer.port", filer),
        ("filer.port.grpc", filer_grpc),
        ("s3.port", s3),
        ("s3.port.grpc", s3_grpc),
        ("s3.port.https", https),
    ] {
        command.arg(format!("-{flag}={port}"));
    }
    for (flag, path) in [
        ("dir", at("data")),
        ("s3.config", at("identities.json")),
        ("s3.localSocket", at("s3.sock")),
        ("filer.localSocket", at("filer.sock")),
        ("s3.cert.file", tls.join("server.pem")),
        ("s3.key.file", tls.join("server.key")),
    ] {
        command.arg(format!("-{flag}={}", path.display()));
    }
    // It leaves sockets in the folder for temporary files.
    command.current_dir(folder.path()).env("TMPDIR", folder.path()).stdin(Stdio::null());
    command.stdout(log.try_clone().expect("another handle of the log")).stderr(log);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", weed.display()));

    let begun = Instant::now();
    let mut shell = Command::new(weed);
    shell.current_dir(folder.path()).env("TMPDIR", folder.path()).args(["-logtostderr", "shell"]);
    shell.arg(format!("-master=127.0.0.1:{master}.{master_grpc}"));
    shell.arg(format!("-filer=127.0.0.1:{filer}.{filer_grpc}"));
    let mut made = false;
    while !(made && answers(s3)) {
        if child.try_wait().ok().flatten().is_some() {
            return None;
        }
        if begun.elapsed() > START {
            let _ = child.kill();
            let _ = child.wait();
            panic!("SeaweedFS was not ready after {} s\n{}", START.as_secs(), log_tail(folder.path()));
        }
        // The shell waits for a master by itself, for ever.
        let listening = [master, filer, s3].iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok());
        if listening && !made {
            let buckets = format!(
                "s3.bucket.create -name walden-test\ns3.bucket.create -name {LOCKED} -withLock\ns3.bucket.list\n"
            );
            made = bucket_is_there(&run_with_input(&mut shell, &buckets));
        }
        sleep(PAUSE);
    }
    let grpc = [("master", master_grpc), ("volume", volume_grpc), ("filer", filer_grpc), ("s3", s3_grpc)];
    let sockets = grpc.map(|(part, port)| format!("/tmp/seaweedfs-{part}-grpc-{port}.sock").into()).to_vec();
    Some(Started { child, http: s3, https, sockets })
}

/// An identity with keys of its own, and what it may do.
fn identity(name: &str, may: &str) -> String {
    let keys = format!(r#"{{"accessKey":"{ACCESS_KEY}-{name}","secretKey":"{SECRET_KEY}-{name}"}}"#);
    format!(r#"{{"name":"{name}","credentials":[{keys}],{may}}}"#)
}

/// A policy for a bucket and our prefixes, as text in JSON.
fn policy_of(name: &str, policy: &str, bucket: &str) -> String {
    let policy = policy.replace("BUCKET", bucket).replace("PREFIX", "walden-*");
    let plain: Vec<&str> = policy.lines().map(str::trim).collect();
    format!(r#"{{"name":"{name}","content":"{}"}}"#, plain.concat().replace('"', "\\\""))
}

/// Whether the shell's list of buckets has ours. The shell ends well whatever its commands did.
fn bucket_is_there(shell: &Ran) -> bool {
    shell.stdout.lines().any(|line| line.trim_start().starts_with("walden-test"))
}

/// Whether S3 gives a whole answer to a request without a signature.
fn answers(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let mut answer = String::new();
    stream.write_all(b"GET /walden-test HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.")
        && answer.contains(" 403 ")
}

fn free_ports<const N: usize>() -> [u16; N] {
    // All are held until the last is chosen, so that they differ.
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port to listen on"));
    listeners.map(|listener| listener.local_addr().expect("the port that was chosen").port())
}

fn log_tail(folder: &Path) -> String {
    let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

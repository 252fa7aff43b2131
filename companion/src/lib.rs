//! What `walden-archive` and `walden-restore` share: how they find `walden`, and how they speak to its agent. Nothing
//! but the standard library, so that they start in a millisecond.
//!
//! # The words on the socket
//!
//! The program sends one [`Request`] and closes its half: the line [`PROTOCOL`], then fields, each ended by a zero byte.
//! The agent sends a zero byte a second while it is at work ([`AT_WORK`]), and then the answer: the exit status in
//! decimal and a newline, then what belongs on standard error. A `-` instead of the status means "not for me": the
//! agent is of another version, or the configuration is wrong. Whatever else comes, or nothing, means that there is no
//! agent, and `walden` itself is run.
//!
//! To a `fetch` the agent answers 0 with the path of a file that is ready, whole and proven, instead of words. The
//! program puts it where PostgreSQL wants it: an agent that was stopped in between could come too late, and PostgreSQL
//! would take one segment for the next.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileTypeExt, MetadataExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

/// Where the agent's socket is unless something else is said.
pub const SOCKET: &str = "/run/walden/agent.sock";
/// Says where it is instead.
pub const SOCKET_VARIABLE: &str = "WALDEN_AGENT_SOCKET";
/// Says where the configuration file is.
const FILE_VARIABLE: &str = "WALDEN_CONFIG";
/// The first field of a request.
pub const PROTOCOL: &str = "walden-agent 1";
/// What the agent sends every second while it is at work.
pub const AT_WORK: u8 = 0;
/// How long the agent may say nothing before it counts as gone.
const SILENCE: Duration = Duration::from_secs(10);
/// A request longer than this is none.
pub const LONGEST_REQUEST: u64 = 64 << 10;

/// What is asked of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `push` or `fetch`.
    pub verb: OsString,
    /// The program's working directory, from which relative paths go.
    pub cwd: PathBuf,
    /// The configuration file, where one is named.
    pub config: Option<PathBuf>,
    /// `--cluster`.
    pub cluster: Option<OsString>,
    /// `%p`.
    pub path: PathBuf,
    /// `%f` of a fetch.
    pub file: Option<OsString>,
    /// `--until` of a fetch.
    pub until: Option<OsString>,
    /// The variables of the environment whose names begin with `WALDEN_`: they are part of the configuration.
    pub environment: Vec<(OsString, OsString)>,
}

/// What the agent answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The exit status.
    pub status: u8,
    /// What belongs on standard error; of a fetch that succeeded, where the file is.
    pub text: Vec<u8>,
}

impl Request {
    /// As it is sent.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut field = |name: &str, value: &OsStr| {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        };
        field(PROTOCOL, OsStr::new(""));
        field("verb=", &self.verb);
        field("cwd=", self.cwd.as_os_str());
        self.config.iter().for_each(|config| field("config=", config.as_os_str()));
        self.cluster.iter().for_each(|cluster| field("cluster=", cluster));
        field("path=", self.path.as_os_str());
        self.file.iter().for_each(|file| field("file=", file));
        self.until.iter().for_each(|until| field("until=", until));
        for (name, value) in &self.environment {
            let mut pair = name.clone();
            pair.push("=");
            pair.push(value);
            field("environment=", &pair);
        }
        bytes
    }

    /// Reads what was sent; `None` for anything else, and for a field that this version does not know.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut fields = bytes.strip_suffix(&[0])?.split(|byte| *byte == 0);
        if fields.next()? != PROTOCOL.as_bytes() {
            return None;
        }
        let mut request = Self::default();
        for field in fields {
            let (name, value) = split(field)?;
            let value = OsString::from_vec(value.to_vec());
            match name {
                b"verb" => request.verb = value,
                b"cwd" => request.cwd = value.into(),
                b"config" => request.config = Some(value.into()),
                b"cluster" => request.cluster = Some(value),
                b"path" => request.path = value.into(),
                b"file" => request.file = Some(value),
                b"until" => request.until = Some(value),
                b"environment" => {
                    let (name, value) = split(value.as_bytes())?;
                    let pair = (OsStr::from_bytes(name).to_owned(), OsStr::from_bytes(value).to_owned());
                    request.environment.push(pair);
                }
                _ => return None,
            }
        }
        Some(request)
    }
}

fn split(field: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = field.iter().position(|byte| *byte == b'=')?;
    Some((&field[..at], &field[at + 1..]))
}

impl Answer {
    /// As it is sent; `None` is "not for me".
    #[must_use]
    pub fn to_bytes(answer: Option<&Self>) -> Vec<u8> {
        match answer {
            None => b"-\n".to_vec(),
            Some(Self { status, text }) => [format!("{status}\n").as_bytes(), text].concat(),
        }
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let status = str::from_utf8(&bytes[..end]).ok()?.parse().ok()?;
        Some(Self { status, text: bytes[end + 1..].to_vec() })
    }
}

/// Asks the agent; `None` where there is none, or none for this request.
#[must_use]
pub fn ask(socket: &Path, request: &Request) -> Option<Answer> {
    ours(socket).then(|| exchange(socket, request).ok()).flatten()
}

/// The agent's socket: that of a flag, of the environment, or the usual one.
#[must_use]
pub fn socket(flag: Option<OsString>) -> PathBuf {
    let variable = || env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
    flag.or_else(variable).map_or_else(|| SOCKET.into(), PathBuf::from)
}

/// The configuration file: that of a flag, or of the environment.
#[must_use]
pub fn configuration(flag: Option<OsString>) -> Option<PathBuf> {
    flag.or_else(|| env::var_os(FILE_VARIABLE).filter(|path| !path.is_empty())).map(PathBuf::from)
}

/// The variables that the configuration may be made from besides its file.
#[must_use]
pub fn environment() -> Vec<(OsString, OsString)> {
    env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"WALDEN_") && name != SOCKET_VARIABLE).collect()
}

/// Whether it is a socket of this user or of root's: nobody else may say that a segment is safe.
fn ours(socket: &Path) -> bool {
    let us = || fs::metadata("/proc/self").map(|this| this.uid());
    fs::metadata(socket).is_ok_and(|found| {
        found.file_type().is_socket() && (found.uid() == 0 || us().is_ok_and(|us| us == found.uid()))
    })
}

fn exchange(socket: &Path, request: &Request) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.write_all(&request.to_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        let working = buffer[..count].iter().take_while(|byte| answer.is_empty() && **byte == AT_WORK).count();
        answer.extend_from_slice(&buffer[working..count]);
    }
    Answer::from_bytes(&answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What the arguments of a small program ask for.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    /// Its work, with these flags and names.
    Work(Vec<(&'static str, OsString)>, Vec<OsString>),
    /// `--help`.
    Help,
    /// `--version`.
    Version,
}

/// Reads the arguments of a small program, whose flags are `known`; all take a value. What is wrong otherwise.
pub fn parse(known: &[&'static str], mut arguments: impl Iterator<Item = OsString>) -> Result<Wish, String> {
    let (mut flags, mut names) = (Vec::new(), Vec::new());
    while let Some(argument) = arguments.next() {
        let (flag, value) = match argument.to_str() {
            Some("--help" | "-h") => return Ok(Wish::Help),
            Some("--version" | "-V") => return Ok(Wish::Version),
            Some("") => return Err("an argument is empty".into()),
            Some(text) if text.starts_with('-') => match text.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(OsString::from(value))),
                None => (text.to_owned(), None),
            },
            _ => {
                names.push(argument);
                continue;
            }
        };
        let known = known.iter().find(|known| **known == flag).ok_or_else(|| format!("unknown option {flag}"))?;
        flags.push((*known, value.or_else(|| arguments.next()).ok_or_else(|| format!("{flag} needs a value"))?));
    }
    Ok(Wish::Work(flags, names))
}

/// The value of a flag; the last one counts.
#[must_use]
pub fn value(flags: &[(&'static str, OsString)], flag: &str) -> Option<OsString> {
    flags.iter().rev().find(|(name, _)| *name == flag).map(|(_, value)| value.clone())
}

/// Writes what was asked for to standard output.
pub fn tell(text: &str) {
    // A reader that went away has seen enough.
    _ = io::stdout().write_all(text.as_bytes());
}

/// The program of that name beside this one, with which it was installed; else the one on PATH.
#[must_use]
pub fn companion(name: &str) -> PathBuf {
    let beside = env::current_exe().ok().map(|this| this.with_file_name(name));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| name.into())
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;

    fn request() -> Request {
        Request {
            verb: "push".into(),
            cwd: "/var/lib/postgresql/17/main".into(),
            config: Some("/etc/walden/a=b.toml".into()),
            cluster: None,
            path: OsString::from_vec(b"pg_wal/\xff0000".to_vec()).into(),
            file: Some("00000002.history".into()),
            until: None,
            environment: vec![("WALDEN_REPOSITORY_URL".into(), "s3://b/p?x=y".into())],
        }
    }

    #[test]
    fn a_request_arrives_as_it_was_sent() {
        assert_eq!(Request::from_bytes(&request().to_bytes()), Some(request()));
        let mut unknown = request().to_bytes();
        unknown.extend_from_slice(b"colour=red\0");
        let cut = &request().to_bytes()[..40];
        for bytes in [&unknown, cut, b"walden-agent 2\0verb=push\0", b""] {
            assert_eq!(Request::from_bytes(bytes), None);
        }
    }

    /// What the program hears from an agent that sends these bytes.
    fn heard(bytes: &'static [u8]) -> Option<Answer> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut sent = Vec::new();
            stream.read_to_end(&mut sent).unwrap();
            assert_eq!(Request::from_bytes(&sent), Some(request()));
            stream.write_all(bytes).unwrap();
        });
        let heard = ask(&path, &request());
        agent.join().unwrap();
        heard
    }

    #[test]
    fn arguments_are_read() {
        let read = |line: &str| parse(&["--config", "--agent"], line.split_terminator(' ').map(OsString::from));
        let Ok(Wish::Work(flags, names)) = read("--config a x --agent= --config=b=c y") else { panic!("work") };
        assert_eq!((value(&flags, "--config"), value(&flags, "--agent")), (Some("b=c".into()), Some("".into())));
        assert_eq!((value(&flags, "--until"), names), (None, vec!["x".into(), "y".into()]));
        assert_eq!((read("--help"), read("-x -V")), (Ok(Wish::Help), Err("unknown option -x".into())));
        for wrong in ["--config", "--conf x", "a  b"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn only_a_whole_answer_is_one() {
        assert_eq!(heard(b"\0\0\x000\n"), Some(Answer { status: 0, text: vec![] }));
        let refused = Answer { status: 4, text: b"walden: no\n".to_vec() };
        assert_eq!(heard(b"4\nwalden: no\n"), Some(refused.clone()));
        assert_eq!(Answer::from_bytes(&Answer::to_bytes(Some(&refused))), Some(refused));
        for none in [&b"-\n"[..], b"", b"\0\0", b"0", b"300\n", b"ok\n"] {
            assert_eq!(heard(none), None, "{none:?}");
        }
    }

    #[test]
    fn what_is_no_socket_is_not_asked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "0\n").unwrap();
        assert_eq!(ask(&file, &request()), None);
        assert_eq!(ask(&folder.path().join("none"), &request()), None);
    }
}

//! Puts a kit's files onto a host. First it is found out what would be done, and whether it may be; then it is done in
//! an order that leaves of each file the old or the new one, whenever it is stopped, and that the same command finishes.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use super::{
    manifest::{CONFIGURATION, Contents, Member, Purpose},
    merge::{self, Merged},
};
use crate::{
    config::{Config, SYSTEM, Value, rewrite},
    error::{Error, Result},
    postgres::account::Account,
};

/// Where a kit's files go: one folder, and the name of the configuration in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    configuration: PathBuf,
    folder: PathBuf,
}

/// What becomes of files that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// They are not touched: other ones are an error.
    Untouched,
    /// They are replaced, and kept beside under another name.
    Overwrite,
    /// What they lack is added to them.
    Merge,
}

/// What is done with a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "deed")]
pub enum Deed {
    /// It is written.
    Write,
    /// It is there already.
    Keep,
    /// It is written in place of another.
    Replace {
        /// Where the other one is kept.
        kept: PathBuf,
    },
    /// It is written with what both have.
    Merge {
        /// What was added.
        added: Vec<String>,
        /// Where the one before is kept.
        kept: PathBuf,
    },
}

/// What is done with one file of a kit.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The file.
    pub path: PathBuf,
    /// What is done with it.
    #[serde(flatten)]
    pub deed: Deed,
    /// Whether only its owner may read it.
    pub secret: bool,
    #[serde(skip)]
    content: Vec<u8>,
}

/// Contents are secret.
impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Step").field("path", &self.path).field("deed", &self.deed).finish_non_exhaustive()
    }
}

/// Who is to own secret files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub account: Account,
    /// Whether files are handed over to it.
    pub hand_over: bool,
}

impl Owner {
    /// The user of that name, else the one that archived on the kit's host, where there is one here. Only root can hand
    /// files over. The second is a remark where the kit's user is not on this host.
    pub fn choose(wanted: Option<&str>, of_kit: &str) -> Result<(Self, Option<String>)> {
        let own = Account::own();
        let chosen = match wanted {
            Some(name) => Account::named(name)?,
            None if !own.is_root() => own.clone(),
            None => match Account::named(of_kit) {
                Ok(account) => account,
                Err(_) => {
                    let remark = format!(
                        "there is no user {of_kit} on this host: secrets belong to root. Where another user restores: --owner USER"
                    );
                    return Ok((Self { account: own, hand_over: false }, Some(remark)));
                }
            },
        };
        if !own.is_root() && chosen.uid != own.uid {
            return Err(Error::invalid(format!("only root can write files that belong to {}", chosen.name)));
        }
        Ok((Self { hand_over: chosen.uid != own.uid, account: chosen }, None))
    }
}

impl Target {
    /// The configuration of that name, with the others beside it.
    pub fn configuration(path: &Path) -> Result<Self> {
        let configuration = std::path::absolute(path).map_err(|e| Error::io("find", path, e))?;
        match (configuration.parent(), configuration.file_name()) {
            (Some(folder), Some(_)) => Ok(Self { folder: folder.to_owned(), configuration }),
            _ => Err(Error::invalid(format!("{} cannot be the configuration's file", path.display()))),
        }
    }

    /// That folder.
    pub fn folder(path: &Path) -> Result<Self> {
        Self::configuration(&path.join(CONFIGURATION))
    }

    /// Where the system looks for it.
    pub fn system() -> Result<Self> {
        Self::configuration(Path::new(SYSTEM))
    }

    /// The configuration's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.configuration
    }

    fn of(&self, member: &Member) -> Result<PathBuf> {
        if member.purpose == Purpose::Configuration {
            return Ok(self.configuration.clone());
        }
        let path = self.folder.join(&member.name);
        if path == self.configuration {
            return Err(Error::invalid(format!("the configuration cannot be called {}", member.name))
                .hint("that is the name of another file of the kit"));
        }
        Ok(path)
    }
}

/// What would be done, the configuration last. Nothing is changed.
pub fn plan(contents: &Contents, target: &Target, how: How, now: DateTime<Utc>) -> Result<Vec<Step>> {
    let text = configuration(contents, target)?;
    let (mut steps, mut other, mut contradictions) = (Vec::new(), Vec::new(), Vec::new());
    let configuration_last = |member: &Member| member.purpose == Purpose::Configuration;
    let mut members: Vec<(&Member, &[u8])> = contents.members().collect();
    members.sort_by_key(|(member, _)| configuration_last(member));
    for (member, content) in members {
        let path = target.of(member)?;
        let content = if configuration_last(member) { text.as_bytes() } else { content };
        let Some(there) = there(&path)? else {
            steps.push(Step { path, deed: Deed::Write, secret: member.secret, content: content.to_vec() });
            continue;
        };
        let kept = free_name(&path, now);
        let (deed, content) = match how {
            _ if there == content => (Deed::Keep, content.to_vec()),
            How::Untouched => {
                other.push(path);
                continue;
            }
            How::Overwrite => (Deed::Replace { kept }, content.to_vec()),
            How::Merge => {
                let of = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                match merge::merge(member.purpose, &of(&there), &of(content)).map_err(|e| e.context(path.display()))? {
                    Merged::Same => (Deed::Keep, there),
                    Merged::More(text, added) => (Deed::Merge { added, kept }, text.into_bytes()),
                    Merged::Contradiction(told) => {
                        contradictions.push(format!("{}: {}", path.display(), told.join("; ")));
                        continue;
                    }
                }
            }
        };
        steps.push(Step { path, deed, secret: member.secret, content });
    }
    let names = |paths: &[PathBuf]| paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
    if !other.is_empty() {
        return Err(Error::refused(format!("other files are there already: {}", names(&other)))
            .hint("--overwrite replaces them and keeps the old ones beside, --merge adds what they lack, --to DIR writes elsewhere"));
    }
    if !contradictions.is_empty() {
        return Err(Error::refused(format!("the kit contradicts what is there: {}", contradictions.join("; ")))
            .hint("make them agree by hand, or replace the files with --overwrite"));
    }
    Ok(steps)
}

/// The configuration with the places that the kit's other files get; proven to be one.
fn configuration(contents: &Contents, target: &Target) -> Result<String> {
    let mut text = contents.configuration()?.to_owned();
    let read = |text: &str| Config::of(Some((target.configuration.clone(), text.to_owned())), std::iter::empty(), &[]);
    read(&text).map_err(|e| e.context("the kit's walden.toml"))?;
    for member in &contents.manifest.members {
        let identity = (member.purpose == Purpose::Identity).then(|| "encryption.identity_file".to_owned());
        for key in member.named_by.iter().cloned().chain(identity) {
            let value = Value::Text(target.of(member)?.display().to_string());
            text = rewrite::set(&text, &key, &value);
            rewrite::prove(&text, &key, &value)?;
        }
    }
    Ok(text)
}

/// What is in a file, if there is one.
fn there(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("look for", path, e)),
        Ok(found) if !found.is_file() => {
            Err(Error::refused(format!("{} is there, and is not a plain file", path.display()))
                .hint("move it away, or write elsewhere with --to DIR"))
        }
        Ok(_) => fs::read(path).map(Some).map_err(|e| Error::io("read", path, e)),
    }
}

/// The name under which an old file is kept.
fn free_name(path: &Path, now: DateTime<Utc>) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stamped = format!("{name}.{}", now.format("%Y%m%dT%H%M%SZ"));
    let numbered = (2..).map(|number| format!("{stamped}-{number}"));
    let names = std::iter::once(stamped.clone()).chain(numbered).map(|name| path.with_file_name(name));
    names.into_iter().find(|path| fs::symlink_metadata(path).is_err()).unwrap_or_else(|| path.with_file_name(&stamped))
}

/// Does it. `before` is asked before each change of the disk, and stops everything with its error.
pub fn carry_out(steps: &[Step], owner: &Owner, before: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    let Some(folder) = steps.first().and_then(|step| step.path.parent()) else { return Ok(()) };
    before()?;
    make_folder(folder)?;
    let held = File::open(folder).map_err(|e| Error::io("open", folder, e))?;
    flock(&held, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        Error::refused(format!("another import writes into {}", folder.display())).hint("wait until it is done")
    })?;
    for step in steps {
        before()?;
        stage(step, owner)?;
    }
    for step in steps.iter().filter(|step| step.deed != Deed::Keep) {
        if let Deed::Replace { kept } | Deed::Merge { kept, .. } = &step.deed {
            before()?;
            fs::hard_link(&step.path, kept).map_err(|e| Error::io("keep the old file as", kept, e))?;
            sync(&held, folder)?;
        }
        before()?;
        appear(step)?;
        sync(&held, folder)?;
    }
    Ok(())
}

/// A file as it is written before it gets its name.
fn staged(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.kit-import", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// Writes a file under its temporary name, and clears away what an import that was stopped has left of that name.
fn stage(step: &Step, owner: &Owner) -> Result<()> {
    let path = staged(&step.path);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", &path, e)),
        _ => {}
    }
    if step.deed == Deed::Keep {
        return Ok(());
    }
    let mode = if step.secret { 0o600 } else { 0o644 };
    let written = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(&step.content)?;
        if step.secret && owner.hand_over {
            fchown(&file, Some(owner.account.uid), Some(owner.account.gid))?;
        }
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()
    };
    written().map_err(|e| Error::io("write", &path, e))
}

/// Gives a file its name: in place of the one that is there, or only if none is.
fn appear(step: &Step) -> Result<()> {
    let staged = staged(&step.path);
    if !matches!(step.deed, Deed::Write) {
        return fs::rename(&staged, &step.path).map_err(|e| Error::io("replace", &step.path, e));
    }
    fs::hard_link(&staged, &step.path).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::refused(format!("{} has just been written by somebody else", step.path.display()))
        }
        _ => Error::io("write", &step.path, e),
    })?;
    fs::remove_file(&staged).map_err(|e| Error::io("remove", &staged, e))
}

/// Writes a new file that only its owner may read; one of that name is refused.
pub fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    let path = std::path::absolute(path).map_err(|e| Error::io("find", path, e))?;
    if fs::symlink_metadata(&path).is_ok() {
        return Err(Error::refused(format!("{} exists already", path.display())).hint("choose another name"));
    }
    let step = Step { path, deed: Deed::Write, secret: true, content: content.to_vec() };
    stage(&step, &Owner { account: Account::own(), hand_over: false })?;
    appear(&step)?;
    let folder = step.path.parent().unwrap_or(Path::new("/"));
    let handle = File::open(folder).map_err(|e| Error::io("open", folder, e))?;
    sync(&handle, folder)
}

fn make_folder(folder: &Path) -> Result<()> {
    let mut missing: Vec<&Path> = folder.ancestors().take_while(|path| !path.exists()).collect();
    while let Some(path) = missing.pop() {
        DirBuilder::new().mode(0o755).create(path).map_err(|e| Error::io("make", path, e))?;
        let parent = path.parent().unwrap_or(path);
        let handle = File::open(parent).map_err(|e| Error::io("open", parent, e))?;
        sync(&handle, parent)?;
    }
    Ok(())
}

fn sync(handle: &File, folder: &Path) -> Result<()> {
    handle.sync_all().map_err(|e| Error::io("sync", folder, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Kind,
        kit::manifest::{FORMAT, Manifest},
    };

    const TOML: &str = "# ours\n[repository]\nurl = \"s3://b/p\"\nca_file = \"/etc/ssl/our ca.pem\"\n";
    const KEYS: &str = "[default]\naws_access_key_id = A\naws_secret_access_key = hush\n";

    fn contents(toml: &str) -> Contents {
        let files = [
            ("credentials", Purpose::Credentials, KEYS),
            ("walden.toml", Purpose::Configuration, toml),
            ("ca.pem", Purpose::Certificates, "CA\n"),
        ];
        let member = |(name, purpose, text): &(&str, Purpose, &str)| {
            let secret = *purpose == Purpose::Credentials;
            let named_by = if *name == "ca.pem" { vec!["repository.ca_file".to_owned()] } else { Vec::new() };
            Member { named_by, ..Member::of(*name, *purpose, secret, text.as_bytes()) }
        };
        Contents {
            manifest: Manifest {
                format: FORMAT,
                walden: "0.1.0".into(),
                made: DateTime::UNIX_EPOCH,
                host: "db1".into(),
                account: "postgres".into(),
                repositories: Vec::new(),
                clusters: Vec::new(),
                recipients: Vec::new(),
                identity: false,
                credentials: true,
                missing: Vec::new(),
                members: files.iter().map(member).collect(),
            },
            files: files.iter().map(|(_, _, text)| text.as_bytes().to_vec()).collect(),
        }
    }

    fn owner() -> Owner {
        Owner { account: Account::own(), hand_over: false }
    }

    fn import(contents: &Contents, folder: &Path, how: How) -> Result<Vec<Step>> {
        let steps = plan(contents, &Target::folder(folder)?, how, DateTime::UNIX_EPOCH)?;
        carry_out(&steps, &owner(), &mut || Ok(()))?;
        Ok(steps)
    }

    /// Every file of a folder by its name.
    fn files(folder: &Path) -> Vec<(String, String)> {
        let read =
            |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap());
        let mut files: Vec<_> = fs::read_dir(folder).into_iter().flatten().map(|entry| read(entry.unwrap())).collect();
        files.sort();
        files
    }

    #[test]
    fn files_come_where_the_configuration_then_says_they_are() {
        let scene = tempfile::tempdir().unwrap();
        let folder = scene.path().join("etc/walden");
        let steps = import(&contents(TOML), &folder, How::Untouched).unwrap();
        assert!(steps.last().unwrap().path.ends_with("walden.toml"), "the configuration comes last");
        let names: Vec<String> = files(&folder).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["ca.pem", "credentials", "walden.toml"]);
        let text = fs::read_to_string(folder.join("walden.toml")).unwrap();
        assert!(
            text.starts_with("# ours\n") && text.contains(&format!("ca_file = \"{}/ca.pem\"", folder.display())),
            "{text}"
        );
        let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("credentials"), mode("walden.toml")), (0o600, 0o644));
        // The same again changes nothing.
        assert!(import(&contents(TOML), &folder, How::Untouched).unwrap().iter().all(|step| step.deed == Deed::Keep));
    }

    #[test]
    fn what_is_there_is_not_touched_unless_asked() {
        let scene = tempfile::tempdir().unwrap();
        fs::write(scene.path().join("walden.toml"), "[repository]\nurl = \"s3://mine\"\n").unwrap();
        let before = files(scene.path());
        for how in [How::Untouched, How::Merge] {
            let error = import(&contents(TOML), scene.path(), how).unwrap_err();
            assert_eq!(error.kind(), Kind::Refused);
            assert!(error.to_string().contains("walden.toml"), "{error}");
            assert_eq!(files(scene.path()), before);
        }
        import(&contents(TOML), scene.path(), How::Overwrite).unwrap();
        let kept = scene.path().join("walden.toml.19700101T000000Z");
        assert_eq!(fs::read_to_string(kept).unwrap(), "[repository]\nurl = \"s3://mine\"\n");
        assert_eq!(fs::read_to_string(scene.path().join("credentials")).unwrap(), KEYS);
    }

    #[test]
    fn merging_adds_what_is_missing() {
        let scene = tempfile::tempdir().unwrap();
        fs::write(scene.path().join("walden.toml"), "# mine\n[archive]\nparallel = 3\n").unwrap();
        let steps = import(&contents(TOML), scene.path(), How::Merge).unwrap();
        let Deed::Merge { added, .. } = &steps.last().unwrap().deed else { panic!("{steps:?}") };
        assert_eq!(added, &["repository.url", "repository.ca_file"]);
        let text = fs::read_to_string(scene.path().join("walden.toml")).unwrap();
        assert!(text.starts_with("# mine\n[archive]\nparallel = 3\n") && text.contains("s3://b/p"), "{text}");
    }

    #[test]
    fn stopped_anywhere_each_file_is_the_old_or_the_new_and_the_same_again_finishes() {
        for how in [How::Untouched, How::Overwrite, How::Merge] {
            for stop in 0.. {
                let scene = tempfile::tempdir().unwrap();
                let folder = scene.path().join("walden");
                let old = "[archive]\nparallel = 3\n";
                if how != How::Untouched {
                    fs::create_dir(&folder).unwrap();
                    fs::write(folder.join("walden.toml"), old).unwrap();
                }
                let target = Target::folder(&folder).unwrap();
                let steps = plan(&contents(TOML), &target, how, DateTime::UNIX_EPOCH).unwrap();
                let mut left = stop;
                let stopped = carry_out(&steps, &owner(), &mut || match left {
                    0 => Err(Error::internal("stopped")),
                    _ => {
                        left -= 1;
                        Ok(())
                    }
                });
                for step in &steps {
                    match fs::read(&step.path) {
                        Ok(there) if there == step.content => {}
                        Ok(there) => assert_eq!(there, old.as_bytes(), "{how:?} {stop}"),
                        Err(_) => assert_eq!(step.deed, Deed::Write, "{how:?} {stop}"),
                    }
                }
                import(&contents(TOML), &folder, how).unwrap();
                for step in &steps {
                    assert_eq!(fs::read(&step.path).unwrap(), step.content, "{how:?} {stop}");
                }
                let left_over = files(&folder).into_iter().any(|(name, _)| name.starts_with('.'));
                assert!(!left_over, "{how:?} {stop}");
                if stopped.is_ok() {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_link_or_a_folder_in_the_way_is_refused() {
        let scene = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", scene.path().join("credentials")).unwrap();
        let error = import(&contents(TOML), scene.path(), How::Overwrite).unwrap_err();
        assert!(error.to_string().contains("not a plain file"), "{error}");
    }
}

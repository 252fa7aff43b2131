//! The file of a kit: tar in a zstd frame, a sum behind it, and age around both where it is locked. All of it is proven
//! before any of it is believed.

use std::io::{Read as _, Write as _};

use age::secrecy::SecretString;
use sha2::{Digest, Sha256};

use super::{
    manifest::{Contents, MANIFEST, Manifest},
    paper,
    passphrase::Passphrase,
};
use crate::{
    error::{Error, Result},
    seal::sha256,
};

/// How a kit is locked.
#[derive(Clone, Debug)]
pub enum Lock {
    /// Not at all: there is no secret in it.
    Open,
    /// With a passphrase.
    Passphrase(Passphrase),
    /// To these public recipients.
    Recipients(Vec<String>),
}

/// What opens a kit, as far as its first lines tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// Nothing is needed.
    Open,
    /// A passphrase.
    Passphrase,
    /// An identity.
    Recipients,
}

/// What somebody has to open a kit with.
#[derive(Clone, Debug)]
pub enum Key {
    /// Nothing.
    None,
    /// A passphrase.
    Passphrase(Passphrase),
    /// The text of an identity file.
    Identity(String),
}

/// A kit that was opened and proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// What is in it.
    pub contents: Contents,
    /// How it was locked.
    pub locked: Locked,
}

/// No kit is longer than this many bytes: a configuration, certificates, keys.
pub const LIMIT: usize = 4 << 20;

/// scrypt's work factor: 128 MiB and about half a second, below what Walden may take of a small machine.
const WORK: u8 = 17;
/// The most work that a kit may ask for: that of one that was locked by hand (`age -p`) on a fast machine.
const MOST_WORK: u8 = 20;
/// What the passphrases of tests are worth.
#[cfg(test)]
const TEST_WORK: u8 = 2;

const AGE: &[u8] = b"age-encryption.org/";
const ZSTD: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// The skippable frame that holds the SHA-256 of everything before it. `zstd -d` passes over it.
const SUM: [u8; 8] = [0x53, 0x2A, 0x4D, 0x18, 32, 0, 0, 0];

/// The file of a kit. A kit that holds a secret is refused without a lock.
pub fn seal(contents: &Contents, lock: &Lock) -> Result<Vec<u8>> {
    seal_with(contents, lock, WORK)
}

fn seal_with(contents: &Contents, lock: &Lock, work: u8) -> Result<Vec<u8>> {
    let plain = packed(contents)?;
    let failed = |_: age::EncryptError| Error::internal("the kit cannot be encrypted");
    let encryptor = match lock {
        Lock::Open if contents.is_secret() => {
            return Err(Error::refused("the kit holds a secret: it is not written without a passphrase")
                .hint("add --passphrase-file FILE or --generate-passphrase, or run it at a terminal"));
        }
        Lock::Open => return Ok(plain),
        Lock::Passphrase(passphrase) => {
            let mut recipient = age::scrypt::Recipient::new(SecretString::from(passphrase.reveal().to_owned()));
            recipient.set_work_factor(work);
            age::Encryptor::with_recipients(std::iter::once(&recipient as _)).map_err(failed)?
        }
        Lock::Recipients(recipients) => {
            let recipients = recipients.iter().map(|r| recipient(r)).collect::<Result<Vec<_>>>()?;
            age::Encryptor::with_recipients(recipients.iter().map(|r| r as _)).map_err(failed)?
        }
    };
    let encrypted = |to| -> std::io::Result<Vec<u8>> {
        let mut writer = encryptor.wrap_output(to)?;
        writer.write_all(&plain)?;
        writer.finish()
    };
    encrypted(Vec::new()).map_err(|e| Error::internal("encrypt the kit").source(e))
}

fn recipient(text: &str) -> Result<age::x25519::Recipient> {
    text.parse().map_err(|e| Error::invalid(format!("\"{text}\" is not a public recipient: {e}")))
}

/// The bytes of a kit, whatever form it was given in: the file itself, or the text of a printed page.
pub fn bytes_of(given: Vec<u8>) -> Result<Vec<u8>> {
    if given.len() > 4 * LIMIT {
        return Err(Error::invalid("this is too long to be a recovery kit"));
    }
    if given.starts_with(AGE) || given.starts_with(&ZSTD) {
        return Ok(given);
    }
    match String::from_utf8(given) {
        Ok(text) if paper::is_paper(&text) => paper::read(&text),
        _ => Err(Error::damaged("this is no recovery kit, or its first bytes are damaged")
            .hint("a kit is what walden kit export wrote, or the text of its printed page")),
    }
}

/// What it takes to open a kit.
pub fn locked(bytes: &[u8]) -> Result<Locked> {
    if !bytes.starts_with(AGE) {
        return Ok(Locked::Open);
    }
    let decryptor = age::Decryptor::new_buffered(bytes).map_err(damaged)?;
    let header = String::from_utf8_lossy(&bytes[..bytes.len().min(16 << 10)]);
    match decryptor.is_scrypt() {
        true => Ok(Locked::Passphrase),
        false if header.lines().any(|line| line.starts_with("-> X25519 ")) => Ok(Locked::Recipients),
        false => Err(Error::damaged("the kit's first lines tell of no lock that this Walden knows")),
    }
}

/// Opens a kit and proves all of it.
pub fn open(bytes: &[u8], key: &Key) -> Result<Opened> {
    let locked = locked(bytes)?;
    let contents = match (locked, key) {
        (Locked::Open, _) => unpacked(bytes)?,
        (Locked::Passphrase, Key::Passphrase(passphrase)) => {
            let mut identity = age::scrypt::Identity::new(SecretString::from(passphrase.reveal().to_owned()));
            identity.set_max_work_factor(MOST_WORK);
            let wrong = || {
                Error::denied("the passphrase is not the kit's, or the kit's first lines are damaged")
                    .hint("capitals, blanks and dashes count")
            };
            unpacked(&decrypted(bytes, &[&identity], wrong)?)?
        }
        (Locked::Recipients, Key::Identity(text)) => {
            let identities = identities(text)?;
            let identities: Vec<&dyn age::Identity> = identities.iter().map(|i| i as _).collect();
            let wrong = || {
                Error::denied("the kit is not locked to this identity, or its first lines are damaged")
                    .hint("give the identity of one of its recipients: --identity FILE")
            };
            unpacked(&decrypted(bytes, &identities, wrong)?)?
        }
        (Locked::Passphrase, _) => {
            return Err(Error::invalid("the kit is locked with a passphrase")
                .hint("add --passphrase-file FILE, or run it at a terminal"));
        }
        (Locked::Recipients, _) => {
            return Err(Error::invalid("the kit is locked to recipients").hint("add --identity FILE"));
        }
    };
    Ok(Opened { contents, locked })
}

/// The identities in the text of an identity file.
pub fn identities(text: &str) -> Result<Vec<age::x25519::Identity>> {
    let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let read = |(number, line): (usize, &str)| {
        // The line itself is a secret.
        line.parse().map_err(|_| Error::invalid(format!("line {} of the identity file is no identity", number + 1)))
    };
    let found = lines.map(read).collect::<Result<Vec<_>>>()?;
    if found.is_empty() {
        return Err(Error::invalid("there is no identity in the identity file").hint("age-keygen writes one"));
    }
    Ok(found)
}

fn decrypted(bytes: &[u8], identities: &[&dyn age::Identity], wrong: impl Fn() -> Error) -> Result<Vec<u8>> {
    use age::DecryptError::{DecryptionFailed, ExcessiveWork, KeyDecryptionFailed, NoMatchingKeys};
    let decryptor = age::Decryptor::new_buffered(bytes).map_err(damaged)?;
    let reader = decryptor.decrypt(identities.iter().copied()).map_err(|e| match e {
        DecryptionFailed | KeyDecryptionFailed | NoMatchingKeys => wrong(),
        ExcessiveWork { required, .. } => Error::damaged(format!(
            "the kit asks for 2^{required} steps of work to open it, where at most 2^{MOST_WORK} make sense"
        )),
        other => damaged(other),
    })?;
    limited(reader)
}

/// In words of our own: those of the crate are read from files, where it was not built for release.
fn damaged(error: age::DecryptError) -> Error {
    let what = match error {
        age::DecryptError::InvalidMac => "its first lines are not those that were written",
        age::DecryptError::UnknownFormat => "it is of another version of age",
        _ => "its first lines cannot be read",
    };
    Error::damaged(format!("the kit is cut short or damaged: {what}")).hint(ANOTHER)
}

const ANOTHER: &str = "nothing was changed; take another copy of it";

fn limited(reader: impl std::io::Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = reader.take(LIMIT as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|e| Error::damaged("the kit is cut short or damaged").source(e).hint(ANOTHER))?;
    if bytes.len() > LIMIT {
        return Err(Error::damaged(format!("the kit holds more than {LIMIT} bytes")));
    }
    Ok(bytes)
}

/// Members as tar, in one zstd frame, with the sum behind it.
fn packed(contents: &Contents) -> Result<Vec<u8>> {
    let failed = |e: std::io::Error| Error::internal("write the kit").source(e);
    let manifest = contents.manifest.to_json()?;
    let mtime = u64::try_from(contents.manifest.made.timestamp()).unwrap_or_default();
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, secret: bool, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_path(name)?;
        header.set_size(content.len() as u64);
        header.set_mode(if secret { 0o600 } else { 0o644 });
        header.set_mtime(mtime);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        tar.append(&header, content)
    };
    add(MANIFEST, false, &manifest).map_err(failed)?;
    for (member, content) in contents.members() {
        add(&member.name, member.secret, content).map_err(failed)?;
    }
    let tar = tar.into_inner().map_err(failed)?;
    if tar.len() > LIMIT {
        return Err(Error::invalid(format!("the kit would hold more than {LIMIT} bytes"))
            .hint("does the configuration name a certificate file that is something else?"));
    }
    let mut bytes = zstd::bulk::compress(&tar, 19).map_err(failed)?;
    let sum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&SUM);
    bytes.extend_from_slice(&sum);
    Ok(bytes)
}

fn unpacked(bytes: &[u8]) -> Result<Contents> {
    let damaged = |what: &str| Error::damaged(format!("the kit is cut short or damaged: {what}")).hint(ANOTHER);
    let at = bytes.len().checked_sub(SUM.len() + 32).ok_or_else(|| damaged("it is too short"))?;
    let (frame, sum) = bytes.split_at(at);
    if sum[..SUM.len()] != SUM || sum[SUM.len()..] != *Sha256::digest(frame) {
        return Err(damaged("its sum at the end does not fit"));
    }
    let decoder = zstd::Decoder::new(frame).map_err(|e| Error::internal("start the zstd decoder").source(e))?;
    let tar = limited(decoder)?;
    let mut members = Vec::new();
    let mut archive = tar::Archive::new(&tar[..]);
    let unreadable = |e: std::io::Error| damaged(&e.to_string());
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(damaged(&format!("member \"{}\" is not a file", name.escape_debug())));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(unreadable)?;
        members.push((name, content));
    }
    let mut members = members.into_iter();
    let first = members.next().filter(|(name, _)| name == MANIFEST).ok_or_else(|| damaged("it has no manifest"))?;
    let manifest = Manifest::read(&first.1)?;
    let mut files = Vec::new();
    for member in &manifest.members {
        let (name, content) = members.next().ok_or_else(|| damaged(&format!("{} is missing", member.name)))?;
        if name != member.name || content.len() as u64 != member.bytes || sha256(&content) != member.sha256 {
            return Err(damaged(&format!("{} is not the file that its manifest tells of", member.name)));
        }
        files.push(content);
    }
    match members.next() {
        Some((name, _)) => Err(damaged(&format!("its manifest tells of no \"{}\"", name.escape_debug()))),
        None => Ok(Contents { manifest, files }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Kind,
        kit::manifest::{FORMAT, Member, Purpose},
    };

    fn contents(secret: bool) -> Contents {
        let files: Vec<(&str, Purpose, &[u8])> = vec![
            ("walden.toml", Purpose::Configuration, b"[repository]\nurl = \"s3://b\"\n"),
            ("credentials", Purpose::Credentials, b"[default]\naws_access_key_id = A\naws_secret_access_key = hush\n"),
            ("ca.pem", Purpose::Certificates, b"-----BEGIN CERTIFICATE-----\n"),
        ];
        let member = |(name, purpose, content): &(&str, Purpose, &[u8])| {
            Member::of(*name, *purpose, secret && *purpose == Purpose::Credentials, content)
        };
        Contents {
            manifest: Manifest {
                format: FORMAT,
                walden: "0.1.0".into(),
                made: "2026-11-21T22:00:00Z".parse().unwrap(),
                host: "db1".into(),
                account: "postgres".into(),
                repositories: Vec::new(),
                clusters: vec!["main".into()],
                recipients: Vec::new(),
                identity: false,
                credentials: secret,
                missing: Vec::new(),
                members: files.iter().map(member).collect(),
            },
            files: files.iter().map(|(_, _, content)| content.to_vec()).collect(),
        }
    }

    fn phrase(text: &str) -> Passphrase {
        Passphrase::new(text)
    }

    #[test]
    fn what_was_sealed_is_opened_by_its_key_alone() {
        let identity = age::x25519::Identity::generate();
        let recipient = identity.to_public().to_string();
        let identity =
            Key::Identity(format!("# ours\n{}\n", age::secrecy::ExposeSecret::expose_secret(&identity.to_string())));
        let stranger = age::x25519::Identity::generate();
        let stranger = Key::Identity(age::secrecy::ExposeSecret::expose_secret(&stranger.to_string()).to_owned());
        let right = || Key::Passphrase(phrase("right"));
        let wrong = || Key::Passphrase(phrase("wrong"));
        for (lock, locked, key, others) in [
            (Lock::Open, Locked::Open, Key::None, vec![]),
            (
                Lock::Passphrase(phrase("right")),
                Locked::Passphrase,
                right(),
                vec![(wrong(), Kind::Denied), (Key::None, Kind::Invalid)],
            ),
            (
                Lock::Recipients(vec![recipient]),
                Locked::Recipients,
                identity,
                vec![(stranger, Kind::Denied), (wrong(), Kind::Invalid)],
            ),
        ] {
            let made = contents(!matches!(lock, Lock::Open));
            let bytes = seal_with(&made, &lock, TEST_WORK).unwrap();
            assert_eq!(open(&bytes, &key).unwrap(), Opened { contents: made, locked });
            for (other, kind) in others {
                assert_eq!(open(&bytes, &other).unwrap_err().kind(), kind, "{lock:?} {other:?}");
            }
        }
        assert_eq!(seal(&contents(true), &Lock::Open).unwrap_err().kind(), Kind::Refused);
    }

    #[test]
    fn a_bit_that_is_changed_anywhere_is_found() {
        for lock in [Lock::Open, Lock::Passphrase(phrase("right"))] {
            let key = match lock {
                Lock::Open => Key::None,
                _ => Key::Passphrase(phrase("right")),
            };
            let bytes = seal_with(&contents(false), &lock, TEST_WORK).unwrap();
            for at in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << (at % 8);
                let error = bytes_of(changed).and_then(|changed| open(&changed, &key)).expect_err("a change");
                let told = matches!(error.kind(), Kind::Damaged | Kind::Denied);
                assert!(told, "{lock:?} byte {at}: {error}");
            }
            for length in (0..bytes.len()).step_by(5) {
                let cut = bytes[..length].to_vec();
                let error = bytes_of(cut).and_then(|cut| open(&cut, &key)).expect_err("a cut");
                assert_eq!(error.kind(), Kind::Damaged, "{lock:?} {length} bytes: {error}");
            }
        }
    }

    #[test]
    fn a_member_that_is_another_or_leads_elsewhere_is_refused() {
        let refused = |change: &dyn Fn(&mut Contents), what: &str| {
            let mut made = contents(false);
            change(&mut made);
            let error = open(&packed(&made).unwrap(), &Key::None).expect_err(what);
            assert_eq!(error.kind(), Kind::Damaged, "{error}");
            assert!(error.to_string().contains(what), "{error}");
        };
        refused(
            &|c| c.files[1] = b"[default]\naws_access_key_id = B\naws_secret_access_key = gone\n".to_vec(),
            "credentials is not",
        );
        refused(&|c| c.files.swap(0, 2), "walden.toml is not");
        refused(&|c| drop(c.files.pop()), "ca.pem is missing");
    }

    #[test]
    fn every_member_has_the_name_of_a_plain_file_and_its_own() {
        for name in
            ["../ca.pem", "/etc/passwd", "a/b", "..", ".profile", "", "credentials", "manifest.json", "walden.toml"]
        {
            let mut manifest = contents(false).manifest;
            manifest.members[2].name = name.into();
            let error = Manifest::read(&manifest.to_json().unwrap()).expect_err(name);
            assert_eq!(error.kind(), Kind::Damaged, "{error}");
            assert!(error.to_string().contains(&format!("\"{name}\"")), "{error}");
        }
        let unknown =
            String::from_utf8(contents(false).manifest.to_json().unwrap()).unwrap().replace("certificates", "hooks");
        assert_eq!(Manifest::read(unknown.as_bytes()).unwrap_err().kind(), Kind::Damaged);
    }

    #[test]
    fn a_kit_of_the_future_is_told_apart_from_damage() {
        let mut made = contents(false);
        made.manifest.format = FORMAT + 1;
        assert_eq!(open(&packed(&made).unwrap(), &Key::None).unwrap_err().kind(), Kind::Refused);
    }
}

//! The format against the `age` crate, both ways round; and what is changed, cut or foreign is found out.

use std::io::{Read, Write};

use age::x25519;
use chrono::DateTime;
use proptest::prelude::*;

use super::*;
use crate::{error::Kind, seal::blake3};

/// An identity, and its recipient.
fn pair() -> (Identities, Recipients) {
    let (text, recipient) = Identities::generate(DateTime::UNIX_EPOCH);
    let identities = Identities::parse(secret(&text), "a test").unwrap();
    (identities, Recipients::parse(&[recipient]).unwrap())
}

fn secret(text: &age::secrecy::SecretString) -> &str {
    age::secrecy::ExposeSecret::expose_secret(text)
}

fn declared(content: &[u8]) -> Declared {
    Declared { blake3: Some(blake3(content)), size: Some(7), ..Declared::default() }
}

/// Opens a whole file.
fn open(sealed: &[u8], identities: &Identities) -> crate::Result<Vec<u8>> {
    let header = Header::parse(sealed)?.ok_or_else(|| crate::Error::damaged("half a header"))?;
    let short = || crate::Error::damaged("no nonce");
    let nonce = sealed.get(header.length()..).and_then(|rest| rest.first_chunk()).ok_or_else(short)?;
    let opened = Opened::new(&header, identities, nonce, sealed.len() as u64)?;
    let mut content = Vec::new();
    for chunk in opened.all() {
        let place = opened.place(&(chunk..chunk + 1));
        let mut bytes = sealed[place.start as usize..place.end as usize].to_vec();
        let count = opened.open(chunk, &mut bytes)?;
        content.extend_from_slice(&bytes[..count]);
    }
    Ok(content)
}

fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect()
}

const LENGTHS: [usize; 9] = [0, 1, 15, 16, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 17];

#[test]
fn the_age_crate_opens_what_is_sealed_here_and_the_other_way_round() {
    let (text, recipient) = Identities::generate(DateTime::UNIX_EPOCH);
    let ours = Identities::parse(secret(&text), "a test").unwrap();
    let theirs: x25519::Identity = secret(&text).lines().last().unwrap().parse().unwrap();
    for length in LENGTHS {
        let content = noise(length);
        let recipients = Recipients::parse(&[recipient.as_str()]).unwrap();
        let sealed = Sealer::seal(&recipients, declared(&content), &content).unwrap();
        assert_eq!(sealed.len() as u64, sealed_length(HEADER, length as u64));
        assert_eq!(content_length(HEADER, sealed.len() as u64), Some(length as u64));
        let decryptor = age::Decryptor::new(&sealed[..]).unwrap();
        let mut read = Vec::new();
        decryptor.decrypt(std::iter::once(&theirs as _)).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == content, "{length}");

        let other: x25519::Recipient = theirs.to_public();
        let encryptor = age::Encryptor::with_recipients(std::iter::once(&other as _)).unwrap();
        let mut sealed = Vec::new();
        let mut writer = encryptor.wrap_output(&mut sealed).unwrap();
        writer.write_all(&content).unwrap();
        writer.finish().unwrap();
        assert!(open(&sealed, &ours).unwrap() == content, "{length}");
    }
}

#[test]
fn pieces_of_any_length_give_the_same_file() {
    let (identities, recipients) = pair();
    let content = noise(2 * CHUNK + 5);
    for piece in [1000, CHUNK - 1, CHUNK, CHUNK + 1, content.len()] {
        let mut sealed = Vec::new();
        let mut sealer = Sealer::new(&recipients, Declared::default(), &mut sealed).unwrap();
        content.chunks(piece).for_each(|piece| sealer.update(piece, &mut sealed).unwrap());
        sealer.finish(&mut sealed).unwrap();
        assert!(open(&sealed, &identities).unwrap() == content, "{piece}");
    }
}

#[test]
fn a_header_tells_what_was_declared_and_is_of_one_length() {
    let several: Vec<(Identities, Recipients)> = (0..RECIPIENTS).map(|_| pair()).collect();
    for count in [1, 2, RECIPIENTS] {
        let texts: Vec<String> = several[..count].iter().flat_map(|(_, recipients)| recipients.texts()).collect();
        let recipients = Recipients::parse(&texts).unwrap();
        let sealed = Sealer::seal(&recipients, declared(b"content"), b"content").unwrap();
        assert!(Header::parse(&sealed[..HEADER - 1]).unwrap().is_none());
        let header = Header::parse(&sealed).unwrap().unwrap();
        assert_eq!(header.length(), HEADER);
        let told = Declared { length: Some(7), sealed: Some(blake3(&sealed[HEADER..])), ..declared(b"content") };
        assert_eq!(header.declared(), told);
        assert_eq!(header.recipients(), recipients.short());
        for (identities, _) in &several[..count] {
            assert_eq!(open(&sealed, identities).unwrap(), b"content");
        }
    }
    let (_, one_more) = pair();
    let all = several.iter().map(|(_, recipients)| recipients).chain([&one_more]);
    let texts: Vec<String> = all.flat_map(Recipients::texts).collect();
    assert!(Recipients::parse(&texts).unwrap_err().contains("at most"));
}

#[test]
fn a_header_can_be_made_anew_for_others_and_the_rest_stays() {
    let ((old, recipients), (new, others)) = (pair(), pair());
    let content = noise(CHUNK + 9);
    let mut sealed = Sealer::seal(&recipients, declared(&content), &content).unwrap();
    let header = Header::parse(&sealed).unwrap().unwrap();
    let rewrapped = header.rewrapped(&old, &others).unwrap();
    assert_eq!(rewrapped.len(), HEADER);
    sealed[..HEADER].copy_from_slice(&rewrapped);
    assert!(open(&sealed, &new).unwrap() == content);
    assert_eq!(open(&sealed, &old).unwrap_err().kind(), Kind::Refused);
    assert_eq!(Header::parse(&sealed).unwrap().unwrap().declared(), header.declared());
    assert_eq!(header.rewrapped(&new, &others).unwrap_err().kind(), Kind::Refused);
}

#[test]
fn a_foreign_identity_is_told_from_damage() {
    let ((identities, recipients), (stranger, _)) = (pair(), pair());
    let sealed = Sealer::seal(&recipients, declared(b"x"), b"x").unwrap();
    let refused = open(&sealed, &stranger).unwrap_err();
    assert_eq!(refused.kind(), Kind::Refused);
    let short = &recipients.short()[0];
    assert!(refused.to_string().contains(&format!("age1{short}...")), "{refused}");
    // Byte by byte: in the version, in the recipient's stanza, in the facts, in the MAC, in nonce and chunk.
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        if changed[at] == b'\n' || sealed[at] == b'\n' {
            changed[at] = b'?';
        }
        let Err(error) = open(&changed, &identities) else { panic!("byte {at}") };
        assert_eq!(error.kind(), Kind::Damaged, "byte {at}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_cut_changed_or_longer_is_found_out(
        length in prop::sample::select(&LENGTHS[..]),
        at in any::<prop::sample::Index>(),
        how in 0..4_u8,
        known in any::<bool>(),
    ) {
        let (identities, recipients) = pair();
        let content = noise(length);
        let mut sealed = Vec::new();
        if known {
            sealed = Sealer::seal(&recipients, declared(&content), &content).unwrap();
        } else {
            let mut sealer = Sealer::new(&recipients, Declared::default(), &mut sealed).unwrap();
            sealer.update(&content, &mut sealed).unwrap();
            sealer.finish(&mut sealed).unwrap();
        }
        let place = HEADER + at.index(sealed.len() - HEADER);
        match how {
            0 => sealed[place] ^= 0x40,
            1 => sealed.truncate(place),
            2 => sealed.extend_from_slice(&noise(at.index(200_000) + 1)),
            // Two chunks change places.
            _ if length > 2 * CHUNK => {
                let begin = HEADER + NONCE;
                let (first, second) = sealed[begin..begin + 2 * SEALED_CHUNK].split_at_mut(SEALED_CHUNK);
                first.swap_with_slice(second);
            }
            _ => sealed.truncate(HEADER + NONCE),
        }
        let error = open(&sealed, &identities).unwrap_err();
        prop_assert_eq!(error.kind(), Kind::Damaged);
    }
}

#[test]
fn a_header_that_makes_no_sense_is_an_error_and_never_a_panic() {
    let (_, recipients) = pair();
    let sealed = Sealer::seal(&recipients, Declared::default(), b"x").unwrap();
    let text = String::from_utf8(sealed[..HEADER].to_vec()).unwrap();
    for (from, to, kind) in [
        // The hash in it is that of version 1; what has none, or does not look like this, may be of a later one.
        ("org/v1", "org/v9", Kind::Damaged),
        ("org/v1\n", "org/v9\n-- another form\n", Kind::Refused),
        ("-> X25519", "=> X25519", Kind::Damaged),
        ("-> X25519 ", "-> X25519  ", Kind::Damaged),
        ("-> walden.app/facts", "-> walden.app/facts\t", Kind::Damaged),
        ("--- ", "--- %", Kind::Damaged),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_eq!(Header::parse(changed.as_bytes()).unwrap_err().kind(), kind, "{to}");
    }
    let endless = format!("age-encryption.org/v1\n-> X {}", "0".repeat(HEADER_LIMIT));
    assert_eq!(Header::parse(endless.as_bytes()).unwrap_err().kind(), Kind::Damaged);
}

#[test]
fn recipients_and_identity_files_are_read_strictly() {
    let (text, recipient) = Identities::generate(DateTime::UNIX_EPOCH);
    let text = secret(&text);
    let identity = text.lines().last().unwrap();
    for wrong in ["", "age1", "age1xyz", &recipient[..61], "ssh-ed25519 AAAA", "age1pq1qqqq"] {
        assert!(Recipients::parse(&[wrong]).is_err(), "{wrong}");
    }
    let told = Recipients::parse(&[identity]).unwrap_err();
    assert!(told.contains("secret") && !told.contains(&identity[20..]), "{told}");
    assert!(Recipients::parse(&[&recipient, &recipient]).unwrap_err().contains("twice"));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let read = |text: &str, mode: u32| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        Identities::read(&path)
    };
    let found = read(text, 0o600).unwrap();
    assert!(found.recipients().texts().eq([recipient.as_str()]));
    assert!(!format!("{found:?}").contains(&identity[20..]));
    for (text, mode, what) in [
        (text.to_owned(), 0o644, "can be read by others"),
        (text.to_owned(), 0o602, "can be read by others"),
        ("# nothing\n\n".to_owned(), 0o600, "holds no identity"),
        (recipient.clone(), 0o600, "line 1"),
        (format!("# x\n{}\n", &identity[..40]), 0o600, "line 2"),
        ("age-encryption.org/v1\n".to_owned(), 0o600, "itself encrypted"),
    ] {
        let error = read(&text, mode).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.to_string().contains(what) && error.to_string().contains("key"), "{error}");
        assert!(!error.to_string().contains(&identity[20..40]), "{error}");
        assert!(error.hint_text().is_some(), "{error}");
    }
    let missing = Identities::read(&folder.path().join("none")).unwrap_err();
    assert!(missing.to_string().contains("is not there"), "{missing}");
}

//! Where the passphrase or the identity comes from. Never from an argument: those are seen by everybody on the host.

use std::{fs, path::PathBuf};

use crate::{
    cli::Context,
    error::{Error, Result},
    kit::{self, Key, Locked, passphrase::Passphrase},
};

/// The variable that may hold the passphrase.
pub const VARIABLE: &str = "WALDEN_KIT_PASSPHRASE";

/// The flags that say what opens a kit.
#[derive(Debug, clap::Args)]
pub struct Unlock {
    /// The file that holds the passphrase; else $WALDEN_KIT_PASSPHRASE, else it is asked for
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// The file of the identity, for a kit that is locked to recipients
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
}

impl Unlock {
    /// What opens a kit that is locked so.
    pub async fn key(&self, locked: Locked, context: &Context) -> Result<Key> {
        match (locked, &self.identity) {
            (Locked::Passphrase, _) => {}
            (Locked::Recipients, Some(path)) => {
                let text = fs::read_to_string(path).map_err(|e| Error::io("read the identity in", path, e))?;
                return Ok(Key::Identity(text));
            }
            _ => return Ok(Key::None),
        }
        if let Some(given) = given(self.passphrase_file.as_ref())? {
            return Ok(Key::Passphrase(Passphrase::new(given)));
        }
        let asked = context.output.ask_hidden("passphrase of the kit").await?;
        Ok(asked.map_or(Key::None, |text| Key::Passphrase(Passphrase::new(text))))
    }
}

/// The passphrase of the file, else of the environment.
pub fn given(file: Option<&PathBuf>) -> Result<Option<String>> {
    let Some(file) = file else {
        return match std::env::var(VARIABLE) {
            Ok(text) if !text.is_empty() => Ok(Some(text)),
            Err(std::env::VarError::NotUnicode(_)) => Err(Error::invalid(format!("{VARIABLE} is not UTF-8"))),
            _ => Ok(None),
        };
    };
    let text = fs::read_to_string(file).map_err(|e| Error::io("read the passphrase in", file, e))?;
    let mut lines = text.lines();
    match (lines.next().filter(|line| !line.is_empty()), lines.next()) {
        (Some(line), None) => Ok(Some(line.to_owned())),
        (Some(_), Some(_)) => {
            Err(Error::invalid(format!("{} holds several lines", file.display()))
                .hint("the passphrase is its only line"))
        }
        (None, _) => Err(Error::invalid(format!("{} holds no passphrase", file.display()))),
    }
}

/// How a passphrase for a new kit is come by.
#[derive(Debug)]
pub struct Choice<'a> {
    /// The file that has it, or gets the generated one.
    pub file: Option<&'a PathBuf>,
    /// Whether one is to be made.
    pub generate: bool,
    /// Words that whoever finds the kit knows.
    pub known: &'a [String],
}

impl Choice<'_> {
    /// The passphrase that was given or is generated; `None` when nothing says so.
    pub fn given(&self, context: &Context) -> Result<Option<Passphrase>> {
        if self.generate {
            return generated(self.file, context).map(Some);
        }
        given(self.file)?.map(|text| Passphrase::to_lock(text, self.known)).transpose()
    }

    /// The passphrase that somebody types twice; `None` where there is no terminal.
    pub async fn asked(&self, context: &Context) -> Result<Option<Passphrase>> {
        let out = &context.output;
        let Some(text) = out.ask_hidden("passphrase for the kit (empty: one is made and shown)").await? else {
            return Ok(None);
        };
        if text.is_empty() {
            return generated(None, context).map(Some);
        }
        let passphrase = Passphrase::to_lock(text, self.known)?;
        let again = out.ask_hidden("the same again").await?.map(Passphrase::new);
        if again.as_ref() == Some(&passphrase) {
            Ok(Some(passphrase))
        } else {
            Err(Error::invalid("the two passphrases differ").hint("nothing was written; try again"))
        }
    }
}

/// A new one, in a file of its own or before somebody's eyes: nowhere else.
fn generated(file: Option<&PathBuf>, context: &Context) -> Result<Passphrase> {
    let out = &context.output;
    let passphrase = Passphrase::generate()?;
    match file {
        Some(path) => {
            kit::write_new(path, format!("{}\n", passphrase.reveal()).as_bytes())?;
            out.remark(format_args!("wrote the passphrase to {}: keep it apart from the kit", path.display()));
        }
        None if out.is_terminal() && !out.json => {
            out.line(format_args!("passphrase: {}", passphrase.reveal()));
            out.remark("write it down, and keep it apart from the kit: without it nobody opens the kit");
        }
        None => {
            return Err(Error::invalid("nobody would see the passphrase that is generated")
                .hint("add --passphrase-file FILE: it is written there"));
        }
    }
    Ok(passphrase)
}

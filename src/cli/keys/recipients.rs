//! The recipients in walden.toml.

use std::path::PathBuf;

use serde_json::json;

use crate::{
    cli::{Align, Context, Paint, Table, exit::End},
    config::{self, Origin},
    error::{Error, Result},
    human,
    keys::{self, SealedTo, Survey},
    seal::age::{Identities, Recipients},
};

/// Where they stand.
const TABLE: &str = "encryption";
const NAME: &str = "recipients";

/// A change of the recipients in walden.toml.
pub struct Edit {
    file: PathBuf,
    /// As they are.
    pub recipients: Vec<String>,
}

impl Edit {
    /// Reads them. An error where the file is not what holds.
    pub fn begin(context: &Context) -> Result<Self> {
        let config = context.config()?;
        let file = config.file.clone().ok_or_else(|| {
            Error::invalid("there is no walden.toml to change").hint("walden init writes one, or name it with --config")
        })?;
        let path = format!("{TABLE}.{NAME}");
        let origin = config.settings().iter().find(|setting| setting.path == path).map(|setting| &setting.origin);
        if let Some(origin @ (Origin::Environment(_) | Origin::Flag(_))) = origin {
            return Err(Error::invalid(format!(
                "the recipients are set by {origin}, which is above {}",
                file.display()
            ))
            .hint("change them there"));
        }
        Ok(Self { file, recipients: config.encryption.recipients.texts().collect() })
    }

    /// Writes them, and proves that they hold.
    pub fn finish(self, new: Vec<String>, context: &Context) -> Result<PathBuf> {
        let wanted = Recipients::parse(&new).map_err(Error::invalid)?;
        config::set_list(&self.file, TABLE, NAME, &new)?;
        match context.load(&[])?.encryption.recipients == wanted {
            true => Ok(self.file),
            false => Err(Error::internal(format!("{} does not say what was written to it", self.file.display()))),
        }
    }
}

/// An error for a recipient that is not among those.
pub fn stranger(recipient: &str, known: &[String]) -> Error {
    let error = Error::invalid(format!("{} is not among the recipients", shown(recipient)));
    match known {
        [] => error.hint("there are none: nothing is encrypted"),
        known => error.hint(format!("they are {}", known.join(", "))),
    }
}

/// What was typed, unless it is a secret.
fn shown(recipient: &str) -> &str {
    if recipient.to_ascii_uppercase().contains("SECRET") { "an identity, which is secret," } else { recipient }
}

pub fn add(recipient: &str, context: &Context) -> Result<End> {
    let recipient = one(recipient)?;
    let edit = Edit::begin(context)?;
    let first = edit.recipients.is_empty();
    let (mut new, known) = (edit.recipients.clone(), edit.recipients.contains(&recipient));
    if !known {
        new.push(recipient.clone());
    }
    let file = edit.finish(new, context)?;
    let out = &context.output;
    out.remark(match (known, first) {
        (true, _) => format!("{}: {recipient} is a recipient already", file.display()),
        (_, true) => format!("{}: from now on new objects are encrypted, to {recipient}", file.display()),
        _ => format!("{}: new objects are encrypted to {recipient} as well", file.display()),
    });
    if !known {
        out.remark(
            "what is stored already stays as it is: walden keys rewrap has what is encrypted be for all recipients",
        );
    }
    tell(context)
}

pub fn remove(recipient: &str, last: bool, context: &Context) -> Result<End> {
    let edit = Edit::begin(context)?;
    if !edit.recipients.iter().any(|known| known == recipient) {
        return Err(stranger(recipient, &edit.recipients));
    }
    if edit.recipients.len() == 1 && !last {
        return Err(Error::refused(format!("{recipient} is the last recipient: nothing would be encrypted any more"))
            .hint("add another first, or say --last"));
    }
    let new = edit.recipients.iter().filter(|known| *known != recipient).cloned().collect();
    let file = edit.finish(new, context)?;
    let out = &context.output;
    out.remark(format_args!("{}: new objects are not encrypted to {recipient} any more", file.display()));
    out.remark("its identity opens what was stored before, until: walden keys rewrap");
    tell(context)
}

fn one(text: &str) -> Result<String> {
    let recipients = Recipients::parse(&[text]).map_err(Error::invalid)?;
    recipients.texts().next().ok_or_else(|| Error::invalid("a recipient is missing"))
}

/// The recipients as they are now.
fn tell(context: &Context) -> Result<End> {
    let recipients: Vec<String> = context.load(&[])?.encryption.recipients.texts().collect();
    if context.output.json {
        context.output.document(&json!({ "recipients": recipients }));
    } else {
        recipients.iter().for_each(|recipient| context.output.line(recipient));
    }
    Ok(End::Done)
}

pub async fn list(objects: bool, context: &Context) -> Result<End> {
    let encryption = &context.config()?.encryption;
    let recipients: Vec<String> = encryption.recipients.texts().collect();
    let opens = encryption.identity_file.as_deref().map(|file| {
        (file, Identities::read(file).map(|identities| identities.recipients().texts().collect::<Vec<_>>()))
    });
    let survey = if objects { Some(keys::survey(&context.store().await?).await?) } else { None };
    let out = &context.output;
    if out.json {
        let opens = opens.as_ref().map(|(file, read)| {
            json!({
                "file": file,
                "recipients": read.as_ref().ok(),
                "error": read.as_ref().err().map(ToString::to_string),
            })
        });
        out.document(&json!({ "recipients": recipients, "identity": opens, "objects": survey.as_ref().map(document) }));
        return Ok(End::Done);
    }
    if recipients.is_empty() {
        out.line("nothing is encrypted: there are no recipients");
    }
    let opened = |recipient: &str| {
        opens.as_ref().is_some_and(|(_, read)| read.as_ref().is_ok_and(|own| own.iter().any(|one| one == recipient)))
    };
    for recipient in &recipients {
        out.line(format_args!(
            "{recipient}{}",
            if opened(recipient) { "  (its identity is on this host)" } else { "" }
        ));
    }
    match &opens {
        None => out.line("this host holds no identity"),
        Some((_, Err(error))) => out.line(format_args!("{} {error}", out.paint(Paint::Bad, "identity:"))),
        Some((file, Ok(own))) => {
            for other in own.iter().filter(|own| !recipients.contains(own)) {
                out.line(format_args!("{} also opens what is encrypted to {other}", file.display()));
            }
        }
    }
    if let Some(survey) = survey {
        out.line(format_args!("\n{}", table(&survey, &recipients)));
    }
    Ok(End::Done)
}

fn document(survey: &Survey) -> serde_json::Value {
    let sealed = survey.sealed.iter();
    let sealed: Vec<_> = sealed
        .map(|(to, SealedTo { objects, bytes })| json!({ "to": to, "objects": objects, "bytes": bytes }))
        .collect();
    json!({ "encrypted": sealed, "plain": survey.plain })
}

fn table(survey: &Survey, recipients: &[String]) -> Table {
    let mut table = Table::new([("ENCRYPTED TO", Align::Left), ("OBJECTS", Align::Right), ("SIZE", Align::Right)]);
    let name = |short: &String| {
        let begin = format!("age1{short}");
        if recipients.iter().any(|known| known.starts_with(&begin)) {
            begin
        } else {
            format!("{begin} (not a recipient)")
        }
    };
    for (to, SealedTo { objects, bytes }) in &survey.sealed {
        let to = match to.as_slice() {
            [] => "not told".to_owned(),
            to => to.iter().map(name).collect::<Vec<_>>().join(", "),
        };
        table.row([to, objects.to_string(), human::size(*bytes)]);
    }
    let SealedTo { objects, bytes } = survey.plain;
    table.row(["not encrypted".to_owned(), objects.to_string(), human::size(bytes)]);
    table
}

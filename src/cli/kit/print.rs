//! A kit on paper.

use std::{ffi::OsStr, path::Path};

use crate::{
    cli::Context,
    error::{Error, Result},
    kit::{self, page::Sheet},
};

/// An error where printing to `to` cannot go with what else was asked for.
pub fn prove(to: Option<&Path>, context: &Context) -> Result<()> {
    if to == Some(Path::new("-")) && context.output.json {
        return Err(Error::invalid("--print - and --json would both write to standard output")
            .hint("print to a file: --print FILE"));
    }
    Ok(())
}

/// Prints to a new file, or to standard output.
pub fn print(sheet: &Sheet<'_>, to: &Path, context: &Context) -> Result<()> {
    prove(Some(to), context)?;
    if to == Path::new("-") {
        context.output.raw(sheet.text()?.as_bytes());
        return Ok(());
    }
    let page = to.extension() == Some(OsStr::new("html"));
    let text = if page { sheet.html()? } else { sheet.text()? };
    kit::write_new(to, text.as_bytes())?;
    context.output.remark(format_args!("wrote {}", to.display()));
    Ok(())
}

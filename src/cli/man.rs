//! `walden man`: one roff page for each command of the tree.

use std::{fs, io, path::PathBuf};

use super::{Context, exit::End};
use crate::error::{Error, Result};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write one file a page into this directory, made if it is missing; without it walden(1) is printed
    directory: Option<PathBuf>,
}

pub fn run(args: &Args, context: &Context) -> Result<End> {
    let pages = pages(&super::command()).map_err(|e| Error::internal("render the manual").source(e))?;
    let Some(directory) = &args.directory else {
        pages.first().into_iter().for_each(|(_, page)| context.output.raw(page));
        return Ok(End::Done);
    };
    fs::create_dir_all(directory).map_err(|e| Error::io("make the directory", directory, e))?;
    for (name, page) in &pages {
        let path = directory.join(name);
        fs::write(&path, page).map_err(|e| Error::io("write", &path, e))?;
    }
    context.output.remark(format_args!("{} pages in {}", pages.len(), directory.display()));
    Ok(End::Done)
}

/// Each page's file name and text, the tree's root first.
fn pages(command: &clap::Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name.to_uppercase()).render(&mut text)?;
    let mut all = vec![(format!("{name}.1"), text)];
    for below in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        all.extend(pages(below)?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let pages = pages(&super::super::command()).unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[0], "walden.1");
        assert!(names.contains(&"walden-completions.1"), "{names:?}");
        for (name, page) in &pages {
            assert!(String::from_utf8_lossy(page).contains("EXIT STATUS"), "{name}");
        }
    }
}

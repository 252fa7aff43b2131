//! `walden timeline`.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use serde_json::json;

use super::{Context, Paint, exit::End, list};
use crate::{
    error::{Error, Result},
    plan::window::{Depth, Timelines},
    report::{
        html, svg,
        text::{self, Ink},
        words,
    },
    repository::System,
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write the drawing to this file as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write the drawing and tables to this file as one HTML page that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Look at every segment, not only at the ends of each unbroken row of them
    #[arg(long)]
    deep: bool,
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    let cluster = context.cluster()?;
    let store = context.reading().await?;
    let depth = if args.deep { Depth::Records } else { Depth::Ends };
    let mut systems = Vec::new();
    for system in System::all(&store, &cluster.name).await? {
        systems.push(list::timelines(&system, depth, &cluster, context).await?);
    }
    let now = context.clock.now();
    let out = &context.output;
    let page = html::Page { cluster: cluster.name.as_str(), repository: &store.url(), systems: &systems, now };
    if let Some(path) = &args.svg {
        write(path, &svg::draw(&systems, now, cluster.name.as_str()))?;
    }
    if let Some(path) = &args.html {
        write(path, &html::page(&page))?;
    }
    if out.json {
        out.document(&json!({
            "repository": store.url(),
            "cluster": cluster.name,
            "now": now,
            "systems": systems,
        }));
    } else if args.svg.is_none() && args.html.is_none() {
        if systems.is_empty() {
            out.line(format_args!("cluster {} is not in {} yet; begin with: walden init", cluster.name, store.url()));
        } else {
            show(&systems, context);
        }
    } else {
        for path in args.svg.iter().chain(&args.html) {
            out.remark(format_args!("wrote {}", path.display()));
        }
    }
    Ok(End::Done)
}

fn show(systems: &[Timelines], context: &Context) {
    let (out, now) = (&context.output, context.clock.now());
    // The last system is the one that the cluster is now.
    if let Some(live) = systems.last().and_then(Timelines::live) {
        let paint = if live.windows.is_empty() { Paint::Bad } else { Paint::Strong };
        out.line(out.paint(paint, words::recoverable(live, now)));
        systems.last().iter().for_each(|system| list::tell_suspensions(system, out));
        systems.last().iter().for_each(|system| list::tell_unread(system, out));
        out.line("");
    }
    for line in text::draw(systems, now, out.terminal()) {
        let painted: String = line
            .into_iter()
            .map(|(ink, text)| match ink {
                Ink::Plain => text,
                Ink::Good => out.paint(Paint::Good, text),
                Ink::Warning => out.paint(Paint::Warning, text),
                Ink::Bad => out.paint(Paint::Bad, text),
                Ink::Strong => out.paint(Paint::Strong, text),
                Ink::Faint => out.paint(Paint::Faint, text),
            })
            .collect();
        out.line(painted.trim_end());
    }
}

/// Writes a drawing where the user wants it, over an older one too: whole or not at all.
fn write(path: &Path, content: &str) -> Result<()> {
    let failed = |e| Error::io("write", path, e);
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| Error::invalid(format!("{} names no file", path.display())))?;
    // What is no ordinary file (a pipe, /dev/stdout) cannot be replaced by one.
    if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return fs::write(path, content).map_err(failed);
    }
    let temporary = folder.join(format!(".{}.{}.new", name.to_string_lossy(), std::process::id()));
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(content.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The error that is told is the one that mattered.
        _ = fs::remove_file(&temporary);
    }
    written.map_err(failed)
}

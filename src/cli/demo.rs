//! `walden demo`.

use std::{cell::Cell, path::PathBuf};

use super::{Context, Output, Paint, exit::End};
use crate::{
    demo::{self, Audience, DemoRequest},
    error::{Error, Result},
    postgres::Version,
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keep the repository in a bucket: s3://bucket/prefix, with the credentials of the environment
    #[arg(long, value_name = "URL")]
    s3: Option<String>,
    /// The S3 server's address, when it is not Amazon's
    #[arg(long, value_name = "URL", requires = "s3")]
    endpoint: Option<String>,
    /// The bucket's region
    #[arg(long, requires = "s3", default_value = "us-east-1")]
    region: String,
    /// The major version of PostgreSQL [default: the newest that is installed]
    #[arg(long, value_name = "MAJOR")]
    postgres: Option<u32>,
    /// How much data: pgbench's scale, about 15 MB each
    #[arg(long, default_value_t = 5)]
    scale: u32,
    /// Leave the server and the repository where they are
    #[arg(long)]
    keep: bool,
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    let own = std::env::current_exe().map_err(|e| Error::failed("find this program's own file").source(e))?;
    let mut settings = String::new();
    if let Some(endpoint) = &args.endpoint {
        settings.push_str(&format!("endpoint = \"{endpoint}\"\npath_style = true\n"));
    }
    if args.s3.is_some() {
        settings.push_str(&format!("region = \"{}\"\n", args.region));
    }
    let request = DemoRequest {
        repository: args.s3.clone(),
        repository_settings: settings,
        version: args.postgres.map(Version),
        scale: args.scale,
        keep: args.keep,
        programs: own.parent().map(PathBuf::from).unwrap_or_default(),
    };
    let audience = Printed { output: &context.output, steps: Cell::new(0), width: Cell::new(0) };
    context.output.line(context.output.paint(Paint::Strong, "Walden: a table is dropped by mistake, and comes back\n"));
    tokio::task::block_in_place(|| demo::demo(&request, &audience, &context.interrupt()))?;
    Ok(End::Done)
}

/// The show in lines on a terminal: a step, and behind it what came of it and how long it took.
struct Printed<'a> {
    output: &'a Output,
    steps: Cell<u32>,
    width: Cell<usize>,
}

/// Where the results stand.
const COLUMN: usize = 48;

impl Audience for Printed<'_> {
    fn step(&self, text: &str) {
        self.steps.set(self.steps.get() + 1);
        let line = format!("{:>2}  {text}", self.steps.get());
        self.width.set(line.chars().count());
        self.output.raw(line.as_bytes());
        self.output.flush();
    }

    fn done(&self, result: &str, seconds: f64) {
        let pad = if self.width.get() < COLUMN { " ".repeat(COLUMN - self.width.get()) } else { "  ".into() };
        let time = if seconds < 0.05 { String::new() } else { format!("{seconds:.1} s") };
        let gap = if result.is_empty() || time.is_empty() { "" } else { " · " };
        self.output.line(format_args!("{pad}{}", self.output.paint(Paint::Faint, format_args!("{result}{gap}{time}"))));
    }

    fn quote(&self, text: &str) {
        let indented: Vec<String> = text.lines().map(|line| format!("      {line}")).collect();
        self.output.line(format_args!("\n{}\n", indented.join("\n")));
    }

    fn close(&self, text: &str) {
        self.output.line(format_args!("\n{}", self.output.paint(Paint::Good, text)));
    }
}

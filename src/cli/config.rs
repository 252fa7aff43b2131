//! `walden config`.

use serde_json::{Map, Value, json};

use super::{Align, Context, Paint, Table, exit::End};
use crate::{
    config::{self, Config, Origin},
    error::Result,
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the page that describes every key, in Markdown, instead
    #[arg(long)]
    reference: bool,
}

pub fn run(args: &Args, context: &Context) -> Result<End> {
    if args.reference {
        context.output.raw(config::reference().as_bytes());
        return Ok(End::Done);
    }
    let config = context.config()?;
    if context.output.json {
        context.output.document(&document(config));
    } else {
        context.output.line(table(config, context));
        if config.file.is_none() {
            context.output.remark(format_args!("no configuration file: neither ./walden.toml nor {}", config::SYSTEM));
        }
    }
    Ok(End::Done)
}

fn table(config: &Config, context: &Context) -> Table {
    let mut table = Table::new([("KEY", Align::Left), ("VALUE", Align::Left), ("FROM", Align::Left)]);
    for setting in config.settings() {
        let from = match &setting.origin {
            Origin::Default => context.output.paint(Paint::Faint, &setting.origin),
            set => set.to_string(),
        };
        table.row([setting.path.clone(), setting.value.to_string(), from]);
    }
    table
}

fn document(config: &Config) -> Value {
    let from = |origin: &Origin| match origin {
        Origin::Default => json!({ "kind": "default" }),
        Origin::File(path, line) => json!({ "kind": "file", "file": path, "line": line }),
        Origin::Environment(variable) => json!({ "kind": "environment", "variable": variable }),
        Origin::Flag(flag) => json!({ "kind": "flag", "flag": flag }),
    };
    let settings: Map<String, Value> = config
        .settings()
        .iter()
        .map(|s| (s.path.clone(), json!({ "value": s.value.to_json(), "from": from(&s.origin) })))
        .collect();
    json!({ "file": config.file, "settings": settings })
}

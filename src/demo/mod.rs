//! The show: a table is dropped by mistake, and comes back. Everything in it is real: a PostgreSQL server of its own
//! in a temporary folder, `archive_command`, a backup, a plan, a restore, all by the very programs that are installed.

mod stage;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use self::stage::Stage;
use crate::{
    error::{Error, Result},
    interrupt::Interrupt,
    postgres::Version,
};

/// How the show is to be given.
#[derive(Clone, Debug)]
pub struct DemoRequest {
    /// Where the repository is to be; a directory of the show's own when absent.
    pub repository: Option<String>,
    /// More lines for `[repository]` in walden.toml, such as an endpoint.
    pub repository_settings: String,
    /// The version of PostgreSQL; the newest there is when absent.
    pub version: Option<Version>,
    /// pgbench's scale: 1 is about 15 MB.
    pub scale: u32,
    /// Leave everything where it is at the end.
    pub keep: bool,
    /// The folder with `walden`, `walden-archive` and `walden-restore`.
    pub programs: PathBuf,
}

/// Whoever watches.
pub trait Audience {
    /// A step begins.
    fn step(&self, text: &str);
    /// It is over: what came of it, and how many seconds it took.
    fn done(&self, result: &str, seconds: f64);
    /// Output of a program, as it is.
    fn quote(&self, text: &str);
    /// The last words.
    fn close(&self, text: &str);
}

/// Gives the show.
pub fn demo(request: &DemoRequest, audience: &dyn Audience, interrupt: &Interrupt) -> Result<()> {
    let mut stage = Stage::new(request)?;
    let begun = Instant::now();
    let mut show = Show { audience, interrupt };
    show.act(&format!("a PostgreSQL {} server, archiving", stage.version()), || stage.build())?;
    show.act("an application: pgbench, a table of orders", || stage.fill())?;
    show.act("walden backup", || stage.backup())?;
    show.act("work goes on", || stage.work())?;
    let orders = stage.count_orders()?;
    let mishap = stage.drop_orders()?;
    show.act("the mishap: DROP TABLE orders", || Ok(format!("{orders} orders are gone, by transaction {mishap}")))?;
    show.act("nobody notices, work goes on", || stage.work())?;
    let target = format!("before:xid:{mishap}");
    let wished = Instant::now();
    let mut plan = String::new();
    show.act(&format!("walden plan --to {target}"), || {
        plan = stage.plan(&target)?;
        Ok(String::new())
    })?;
    audience.quote(&plan);
    show.act("walden restore --start --then promote", || stage.restore(&target))?;
    let back = stage.count_orders()?;
    let took = wished.elapsed();
    if back != orders {
        return Err(Error::damaged(format!("{back} orders came back, where {orders} were before the mishap")));
    }
    audience.close(&format!(
        "all {back} orders are back: {:.1} s from the wish to the running server, {:.1} s in all",
        took.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    ));
    if request.keep {
        audience.close(&kept(stage.keep(), &target));
    }
    Ok(())
}

fn kept(folder: &Path, target: &str) -> String {
    let folder = folder.display();
    format!(
        "kept: the server runs on {folder}/restored; try\n  {folder}/bin/walden --config {folder}/walden.toml plan --to {target}"
    )
}

struct Show<'a> {
    audience: &'a dyn Audience,
    interrupt: &'a Interrupt,
}

impl Show<'_> {
    fn act(&mut self, text: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
        self.interrupt.check()?;
        self.audience.step(text);
        let begun = Instant::now();
        let result = work()?;
        self.audience.done(&result, begun.elapsed().as_secs_f64());
        Ok(())
    }
}

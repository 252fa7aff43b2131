//! Ends a server the hard way, and clears what the kernel keeps of it.

use std::{fs, path::PathBuf, process::Command, thread::sleep, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

const PAUSE: Duration = Duration::from_millis(5);

/// Kills a process and all that descend from it with SIGKILL, none of them warned, and waits until they are dead.
///
/// The first is stopped before the others are looked for, so that none is born meanwhile.
pub(super) fn kill_tree(root: Pid) {
    let _ = kill_process(root, Signal::STOP);
    let mut doomed = vec![root];
    // A descendant may be forking right now: look again until nobody new turns up.
    loop {
        let born = children(&doomed);
        if born.is_empty() {
            break;
        }
        for pid in &born {
            let _ = kill_process(*pid, Signal::STOP);
        }
        doomed.extend(born);
    }
    for pid in &doomed {
        let _ = kill_process(*pid, Signal::KILL);
    }
    // A process that is still dying still holds its shared memory, and a new postmaster would refuse to start.
    while doomed.iter().any(|pid| stat(*pid).is_some_and(|(state, _)| state != "Z")) {
        sleep(PAUSE);
    }
}

/// The state and the parent of a process.
fn stat(pid: Pid) -> Option<(String, Pid)> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?;
    // The name of the program, in brackets, may hold anything: the fields start after the last bracket.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), Pid::from_raw(fields.next()?.parse().ok()?)?))
}

/// The processes whose parent is among these, and that are not among them.
fn children(parents: &[Pid]) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            let (_, parent) = stat(pid)?;
            (parents.contains(&parent) && !parents.contains(&pid)).then_some(pid)
        })
        .collect()
}

/// The shared memory of a postmaster, which outlives it when it is killed.
#[derive(Debug, Default)]
pub(super) struct SharedMemory {
    system_v: Vec<String>,
    posix: Vec<PathBuf>,
}

impl SharedMemory {
    /// What a process has mapped.
    pub(super) fn of(pid: Pid) -> Self {
        let maps = fs::read_to_string(format!("/proc/{}/maps", pid.as_raw_pid())).unwrap_or_default();
        let mut memory = Self::default();
        for line in maps.lines() {
            // Fields: addresses, rights, offset, device, inode, path. For System V the inode is the id.
            let mut fields = line.split_whitespace();
            match (fields.nth(4), fields.next()) {
                (Some(id), Some(path)) if path.starts_with("/SYSV") => memory.system_v.push(id.to_owned()),
                (Some(_), Some(path)) if path.starts_with("/dev/shm/PostgreSQL.") => memory.posix.push(path.into()),
                _ => {}
            }
        }
        memory
    }

    /// Gives it back to the kernel.
    pub(super) fn remove(self) {
        for id in self.system_v {
            let _ = Command::new("ipcrm").args(["-m", &id]).output();
        }
        for path in self.posix {
            let _ = fs::remove_file(path);
        }
    }
}

//! Giving way to others: how nice this program is, and when its reads and writes come.
//!
//! Linux keeps both for each thread, and a new thread begins with what the one has that makes it: all threads that are
//! there are lowered, best before there are many.

use std::{fs, process::Command};

use rustix::process::{Pid, getpriority_process, setpriority_process};

/// When reads and writes come, seen from those of others (ioprio_set(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputOutput {
    /// The last of those that are served by turns: best effort, level 7.
    Low,
    /// When nobody else has any.
    Idle,
}

/// Lowers this program's priorities. What cannot be had is told in words: no work fails for it.
#[must_use]
pub fn lower(nice: Option<i32>, input_output: Option<InputOutput>) -> Vec<String> {
    let mut told = Vec::new();
    if let Some(Err(why)) = nice.map(be_nice) {
        told.push(format!("nice: {why}"));
    }
    if let Some(Err(why)) = input_output.map(come_last) {
        told.push(format!("io_priority: {why}"));
    }
    told
}

/// The threads of this program.
fn threads() -> Result<Vec<Pid>, String> {
    let listed = fs::read_dir("/proc/self/task").map_err(|e| format!("list this program's threads: {e}"))?;
    Ok(listed.flatten().filter_map(|t| Pid::from_raw(t.file_name().to_str()?.parse().ok()?)).collect())
}

fn be_nice(nice: i32) -> Result<(), String> {
    for thread in threads()? {
        // Whoever was started nicer stays so; nobody may go back.
        match getpriority_process(Some(thread)) {
            Ok(now) if now >= nice => {}
            Ok(_) => match setpriority_process(Some(thread), nice) {
                // It has ended meanwhile.
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(e) => return Err(e.to_string()),
            },
            Err(rustix::io::Errno::SRCH) => {}
            Err(e) => return Err(e.to_string()),
        }
    }
    Ok(())
}

/// By way of ionice(1), which every Linux has: the system call has no safe wrapper.
fn come_last(input_output: InputOutput) -> Result<(), String> {
    let class: &[&str] = match input_output {
        InputOutput::Low => &["-c", "2", "-n", "7"],
        InputOutput::Idle => &["-c", "3"],
    };
    let threads = threads()?.into_iter().map(|thread| thread.as_raw_nonzero().to_string());
    let ran = Command::new("ionice").args(class).arg("-p").args(threads).output();
    match ran {
        Ok(ran) if ran.status.success() => Ok(()),
        Ok(ran) => Err(format!("ionice says: {}", String::from_utf8_lossy(&ran.stderr).trim())),
        Err(e) => Err(format!("run ionice: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gives_way_and_those_it_makes_as_well() {
        // This changes the whole test program, which does it no harm: a little nicer than it is.
        let before = getpriority_process(None).unwrap();
        assert_eq!(lower(Some((before + 1).min(19)), None), Vec::<String>::new());
        let after = std::thread::spawn(|| getpriority_process(None).unwrap()).join().unwrap();
        assert_eq!(after, (before + 1).min(19));
        assert_eq!(lower(Some(before), None), Vec::<String>::new());
        assert_eq!(getpriority_process(None).unwrap(), after);
    }
}

//! The command lines that PostgreSQL is given: absolute paths, quoted for its shell.

use std::path::{Path, PathBuf};

use crate::{
    config::{ClusterConfig, Config, SYSTEM},
    error::{Error, Result},
    postgres::SegmentName,
    repository::ClusterName,
};

/// The program `name` beside this one, else on the path.
pub fn find(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(|e| Error::failed("find this program's own file").source(e))?;
    let beside = own.with_file_name(name);
    if beside.is_file() {
        return Ok(beside);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file()).ok_or_else(|| {
        Error::failed(format!("{name} is neither beside {} nor on PATH", own.display()))
            .hint(format!("install {name} beside walden"))
    })
}

/// `archive_command`, with PostgreSQL's `%p`.
pub fn archive_command(config: &Config, cluster: &ClusterName) -> Result<String> {
    let program = find("walden-archive")?;
    Ok(format!("{}{} %p", quoted(&program), options(config, cluster)?))
}

/// `restore_command`, with PostgreSQL's `%f` and `%p`, for the plan that ends with the segment `until` of that
/// incarnation.
pub fn restore_command(
    config: &Config,
    cluster: &ClusterConfig,
    incarnation: u32,
    until: SegmentName,
) -> Result<String> {
    let mut command = String::new();
    if incarnation != cluster.incarnation {
        // The plan leads into an older archive of this cluster than the configuration names.
        let name = cluster.name.as_str().to_ascii_uppercase().replace('-', "_");
        command.push_str(&format!("WALDEN_CLUSTER_{name}_INCARNATION={incarnation} "));
    }
    command.push_str(&quoted(&find("walden-restore")?));
    if let Some(file) = config.file.as_deref() {
        command.push_str(&format!(" --config {}", quoted(file)));
    }
    if config.agent.socket != Path::new(walden_companion::SOCKET) {
        command.push_str(&format!(" --agent {}", quoted(&config.agent.socket)));
    }
    Ok(format!("{command} --cluster {} --until {until} \"%f\" \"%p\"", cluster.name))
}

/// The flags by which a small program finds this configuration and this cluster again.
pub fn options(config: &Config, cluster: &ClusterName) -> Result<String> {
    let mut options = String::new();
    if let Some(file) = config.file.as_deref().filter(|file| *file != Path::new(SYSTEM)) {
        options.push_str(&format!(" --config {}", quoted(file)));
    }
    if config.clusters().len() != 1 {
        options.push_str(&format!(" --cluster {cluster}"));
    }
    Ok(options)
}

/// A path as a word of the shell, its percent signs doubled for PostgreSQL.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy().replace('%', "%%");
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-%+".contains(&b);
    if text.bytes().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_one_word() {
        assert_eq!(quoted(Path::new("/usr/bin/walden-archive")), "/usr/bin/walden-archive");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
        assert_eq!(quoted(Path::new("/100%")), "/100%%");
    }
}

//! A disk that can lose power: a file system in a file. What was not synced is not in the file yet, and so not in a copy
//! of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::run::run;

/// Its size in bytes.
const SIZE: u64 = 256 << 20;

/// A disk with an ext4 file system, as hard on whoever does not sync as ext4 can be.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    folder: PathBuf,
}

impl Disk {
    /// A new one, mounted on a folder. `None`, and a word why, where this machine does not let us mount one.
    #[must_use]
    pub fn mount(folder: &Path) -> Option<Self> {
        let image = folder.with_extension("image");
        fs::File::create(&image).and_then(|file| file.set_len(SIZE)).expect("make the image");
        run(Command::new("mkfs.ext4").arg("-q").arg(&image)).expect_code(0);
        Self::mounted(image, folder)
    }

    /// The disk as it is found after its machine lost power in this instant, mounted on a folder.
    #[must_use]
    pub fn after_power_loss(&self, folder: &Path) -> Self {
        let image = folder.with_extension("image");
        fs::copy(&self.image, &image).expect("copy the image");
        Self::mounted(image, folder).expect("what could be mounted once")
    }

    fn mounted(image: PathBuf, folder: &Path) -> Option<Self> {
        fs::create_dir_all(folder).expect("make the folder");
        // Nothing is written by itself for five minutes, and a name may come without its content.
        let options = "loop,commit=300,data=writeback,noauto_da_alloc";
        let mount = run(Command::new("mount").args(["-t", "ext4", "-o", options]).arg(&image).arg(folder));
        if mount.code == Some(0) {
            return Some(Self { image, folder: folder.to_owned() });
        }
        eprintln!("not run: no file system can be mounted here: {mount}");
        None
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(&self.folder));
    }
}

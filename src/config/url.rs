//! A repository's address.

use std::{fmt, path::PathBuf};

/// Where a repository lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepositoryUrl {
    /// `file:///path`: a directory, by its absolute path.
    File(PathBuf),
    /// `s3://bucket/prefix`.
    S3 {
        /// The bucket.
        bucket: String,
        /// What every key begins with: segments separated by `/`, without one at either end; empty for none.
        prefix: String,
    },
}

impl RepositoryUrl {
    /// Reads it, or says what is wrong with it.
    pub fn read(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or("it is not a URL")?;
        let place = rest.split('/').next().unwrap_or_default();
        if place.contains('@') {
            // Not repeated: what stands before the @ is a secret.
            return Err("credentials do not belong into the URL; they come from the standard AWS chain".into());
        }
        if text.contains(['?', '#', '\n']) {
            return Err("it has a query, a fragment or a line break, which mean nothing here".into());
        }
        let names = |path: &str| -> Result<String, String> {
            let path = path.trim_matches('/');
            let odd = path.split('/').find(|name| matches!(*name, "" | "." | ".."));
            if odd.is_some() && !path.is_empty() {
                Err("its path has an empty, . or .. segment".into())
            } else {
                Ok(path.into())
            }
        };
        match scheme {
            "file" if !rest.starts_with('/') => {
                Err("a directory is named by its absolute path, with three slashes".into())
            }
            "file" => match names(rest)?.as_str() {
                "" => Err("the root of the file system cannot be a repository".into()),
                path => Ok(Self::File(PathBuf::from(format!("/{path}")))),
            },
            "s3" => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
                if bucket.is_empty() || !bucket.chars().all(plain) {
                    return Err(format!("\"{bucket}\" cannot be a bucket"));
                }
                let prefix = names(prefix)?;
                match prefix.chars().find(|c| !plain(*c) && *c != '/') {
                    Some(odd) => Err(format!("its prefix holds '{odd}', where letters, digits and -_. are allowed")),
                    None => Ok(Self::S3 { bucket: bucket.into(), prefix }),
                }
            }
            other => Err(format!("\"{other}\" is not a kind of repository")),
        }
    }
}

impl RepositoryUrl {
    /// Whether one lies in the other, as far as the addresses tell.
    #[must_use]
    pub fn touches(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(one), Self::File(other)) => one.starts_with(other) || other.starts_with(one),
            (Self::S3 { bucket, prefix }, Self::S3 { bucket: other_bucket, prefix: other }) => {
                let below = |one: &str, other: &str| {
                    other.is_empty()
                        || one == other
                        || one.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'))
                };
                bucket == other_bucket && (below(prefix, other) || below(other, prefix))
            }
            _ => false,
        }
    }
}

impl fmt::Display for RepositoryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file://{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_written_back() {
        for (text, again) in [
            ("s3://backups", "s3://backups"),
            ("s3://backups/", "s3://backups"),
            ("s3://backups/prod/eu/", "s3://backups/prod/eu"),
            ("file:///var/lib/walden/", "file:///var/lib/walden"),
            ("file:///srv/my repo", "file:///srv/my repo"),
        ] {
            assert_eq!(RepositoryUrl::read(text).unwrap().to_string(), again);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_telling_a_secret() {
        for text in [
            "",
            "/var/lib/walden",
            "file://var/lib",
            "file:///",
            "file://",
            "file:///a/../b",
            "file:///a//b",
            "gs://b/p",
            "s3://",
            "s3:///p",
            "s3://b/a//c",
            "s3://b/a b",
            "s3://b?x=1",
            "S3://b",
        ] {
            assert!(RepositoryUrl::read(text).is_err(), "{text:?}");
        }
        let told = RepositoryUrl::read("s3://AKIAKEY:hush@bucket/p").unwrap_err();
        assert!(!told.contains("hush") && !told.contains("AKIAKEY"), "{told}");
    }
}

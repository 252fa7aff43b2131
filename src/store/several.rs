//! Several stores that hold the same objects, read as one: what the first does not answer, does not have or has damaged
//! is taken from the next. For reading alone; who has something to write asks [`Store::to_write`] where.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::OnceCell;

use super::{Answer, Download, Key, Listed, Put, Store, Upload};
use crate::error::{Error, Kind, Result, Told};

/// How long one that did not answer is not asked again.
const AWAY: Duration = Duration::from_secs(30);

/// Opens a store, and proves that it is the one that is meant.
pub type Open = Box<dyn Fn() -> Answer<'static, Arc<dyn Store>> + Send + Sync>;

/// Stores that hold the same.
pub struct Several {
    members: Vec<Member>,
    to_write: Open,
    /// For each object which of them had a damaged copy.
    damaged: Mutex<HashMap<Key, BTreeSet<usize>>>,
}

/// One of them.
struct Member {
    name: String,
    url: String,
    open: Open,
    store: OnceCell<Arc<dyn Store>>,
    /// When it failed last, and how, unless it has answered since.
    away: Mutex<Option<(Instant, Told)>>,
}

impl std::fmt::Debug for Several {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Several").field("url", &self.url()).finish_non_exhaustive()
    }
}

impl Several {
    /// Stores by name and URL, in the order in which they are asked. `to_write` opens the one that is written to.
    #[must_use]
    pub fn new(members: Vec<(String, String, Open)>, to_write: Open) -> Self {
        let member = |(name, url, open)| Member { name, url, open, store: OnceCell::new(), away: Mutex::default() };
        Self { members: members.into_iter().map(member).collect(), to_write, damaged: Mutex::default() }
    }

    /// What each that answers has said. An error when none did, or when one says what no other can mend.
    fn those_that_answer<T>(asked: Vec<Result<T>>) -> Result<Vec<T>> {
        let (mut answers, mut silent) = (Vec::new(), None);
        for answer in asked {
            match answer {
                Ok(answer) => answers.push(answer),
                Err(error) if is_away(&error) => silent = silent.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        match silent {
            Some(error) if answers.is_empty() => Err(error),
            _ => Ok(answers),
        }
    }

    /// Their numbers, those last whose copy of that object is damaged.
    fn in_order(&self, key: &Key) -> Vec<usize> {
        let damaged = lock(&self.damaged).get(key).cloned().unwrap_or_default();
        let (worse, better): (Vec<_>, Vec<_>) = (0..self.members.len()).partition(|at| damaged.contains(at));
        better.into_iter().chain(worse).collect()
    }
}

impl Member {
    async fn store(&self) -> Result<&Arc<dyn Store>> {
        if let Some(told) = self.is_left_alone() {
            return Err(told.again());
        }
        self.store.get_or_try_init(|| (self.open)()).await
    }

    /// Why it is not asked at present.
    fn is_left_alone(&self) -> Option<Told> {
        lock(&self.away).as_ref().filter(|(at, _)| at.elapsed() < AWAY).map(|(_, told)| told.clone())
    }

    /// Takes note of whether it answered.
    fn heard<T>(&self, answer: Result<T>) -> Result<T> {
        if self.is_left_alone().is_some() {
            return answer;
        }
        let answer = answer.map_err(|error| match error.kind() {
            Kind::NotFound => error,
            _ => error.context(format_args!("repository {}", self.name)),
        });
        let mut away = lock(&self.away);
        match &answer {
            Err(error) if is_away(error) => {
                if away.is_none() {
                    tracing::warn!("{error}; what it has is looked for in the other repositories");
                }
                *away = Some((Instant::now(), Told::of(error)));
            }
            _ => *away = None,
        }
        answer
    }
}

/// Whether another can be asked instead. Not what is refused: that is for a person.
fn is_away(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unavailable | Kind::Denied | Kind::Failed | Kind::Invalid)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_only<T>() -> Result<T> {
    Err(Error::internal("several repositories that are read as one cannot be written to"))
}

impl Store for Several {
    fn url(&self) -> String {
        self.members.iter().map(|member| member.url.as_str()).collect::<Vec<_>>().join(" and ")
    }

    fn put<'a>(&'a self, _: &'a Key, _: Bytes) -> Answer<'a, Put> {
        Box::pin(async { read_only() })
    }

    fn upload<'a>(&'a self, _: &'a Key) -> Answer<'a, Box<dyn Upload>> {
        Box::pin(async { read_only() })
    }

    fn delete<'a>(&'a self, _: &'a Key) -> Answer<'a, ()> {
        Box::pin(async { read_only() })
    }

    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> Answer<'a, Download> {
        Box::pin(async move {
            let (mut damaged, mut absent, mut silent) = (None, None, None);
            for at in self.in_order(key) {
                let member = &self.members[at];
                let got = match member.store().await {
                    Ok(store) => store.get(key, range.clone()).await,
                    Err(error) => Err(error),
                };
                match member.heard(got) {
                    Err(error) if error.kind() == Kind::NotFound => absent = absent.or(Some(error)),
                    Err(error) if is_away(&error) => silent = silent.or(Some(error)),
                    // One that is sealed shows damage before its first byte.
                    Err(error) if error.kind() == Kind::Damaged => damaged = damaged.or(Some(error)),
                    answer => return answer,
                }
            }
            Err(damaged.or(absent).or(silent).unwrap_or_else(|| Error::internal("no repository to read from")))
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>, limit: usize) -> Answer<'a, Vec<Listed>> {
        Box::pin(async move {
            let asked = self.members.iter().map(|member| async move {
                let listed = async { member.store().await?.list(prefix, after, limit).await };
                member.heard(listed.await)
            });
            let lists = Self::those_that_answer(join_all(asked).await)?;
            // The first that has it tells the length. Each has given as many as were asked for from where it began, so
            // that nothing is missing before the last of those that are given.
            let mut all: BTreeMap<Key, u64> = BTreeMap::new();
            for listed in lists.into_iter().flatten() {
                all.entry(listed.key).or_insert(listed.length);
            }
            Ok(all.into_iter().take(limit).map(|(key, length)| Listed { key, length }).collect())
        })
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<String>> {
        Box::pin(async move {
            let asked = self.members.iter().map(|member| async move {
                let found = async { member.store().await?.folders(prefix).await };
                member.heard(found.await)
            });
            let all = Self::those_that_answer(join_all(asked).await)?;
            Ok(all.into_iter().flatten().collect::<BTreeSet<_>>().into_iter().collect())
        })
    }

    fn has_copies(&self) -> bool {
        self.members.len() > 1
    }

    fn set_aside(&self, key: &Key) -> bool {
        let mut damaged = lock(&self.damaged);
        let aside = damaged.entry(key.clone()).or_default();
        let answers = |at: &usize| lock(&self.members[*at].away).is_none();
        let mut left = (0..self.members.len()).filter(|at| !aside.contains(at)).filter(answers);
        // The one that was read, and the one to read next.
        match (left.next(), left.next()) {
            (Some(at), Some(_)) => {
                aside.insert(at);
                tracing::warn!(
                    "{key} in repository {} is damaged; another repository's is read",
                    self.members[at].name
                );
                true
            }
            _ => false,
        }
    }

    fn all_answer(&self) -> Result<()> {
        match self.members.iter().find_map(|member| lock(&member.away).as_ref().map(|(_, told)| told.again())) {
            Some(error) => Err(Error::unavailable(format!("what is absent elsewhere may be there: {error}"))),
            None => Ok(()),
        }
    }

    fn to_write(&self) -> Option<Answer<'static, Arc<dyn Store>>> {
        Some((self.to_write)())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Random,
        store::{dir::DirStore, read},
    };

    struct Two {
        folder: tempfile::TempDir,
        both: Several,
    }

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    /// Two stores, of which the first has `a` and `b`, the second `b` and `c`.
    async fn two() -> Two {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &'static str| -> Open {
            let path = folder.path().join(name);
            Box::new(move || {
                let path = path.clone();
                Box::pin(async move {
                    let store = DirStore::open(path, Arc::new(Random::from_system()))?;
                    Ok(Arc::new(store) as Arc<dyn Store>)
                })
            })
        };
        for (name, keys) in [("first", ["x/a", "x/b"]), ("second", ["x/b", "x/c"])] {
            let store = DirStore::create(folder.path().join(name), Arc::new(Random::from_system())).unwrap();
            for text in keys {
                store.put(&key(text), format!("{name} {text}").into()).await.unwrap();
            }
        }
        let member = |name: &'static str| (name.to_owned(), format!("file:///{name}"), open(name));
        let both = Several::new(vec![member("first"), member("second")], open("first"));
        Two { folder, both }
    }

    async fn text(store: &Several, name: &str) -> Result<String> {
        read(store, &key(name), 100).await.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    #[tokio::test]
    async fn what_one_has_not_another_gives() {
        let Two { both, folder: _folder } = two().await;
        assert_eq!(text(&both, "x/a").await.unwrap(), "first x/a");
        assert_eq!(text(&both, "x/b").await.unwrap(), "first x/b");
        assert_eq!(text(&both, "x/c").await.unwrap(), "second x/c");
        assert_eq!(text(&both, "x/d").await.unwrap_err().kind(), Kind::NotFound);
        let listed = async |after: Option<&str>, limit| {
            let after = after.map(key);
            let listed = both.list("x/", after.as_ref(), limit).await.unwrap();
            listed.iter().map(|l| l.key.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(listed(None, 9).await, ["x/a", "x/b", "x/c"]);
        assert_eq!(listed(None, 2).await, ["x/a", "x/b"]);
        assert_eq!(listed(Some("x/a"), 2).await, ["x/b", "x/c"]);
        assert_eq!(both.folders("").await.unwrap(), ["x"]);
        assert!(both.put(&key("x/e"), Bytes::new()).await.is_err() && both.delete(&key("x/a")).await.is_err());
    }

    #[tokio::test]
    async fn one_that_is_away_is_done_without_and_its_silence_is_doubt() {
        let Two { both, folder } = two().await;
        assert!(both.all_answer().is_ok());
        std::fs::rename(folder.path().join("first"), folder.path().join("gone")).unwrap();
        assert_eq!(text(&both, "x/b").await.unwrap(), "second x/b");
        assert_eq!(both.list("x/", None, 9).await.unwrap().len(), 2);
        assert_eq!(text(&both, "x/a").await.unwrap_err().kind(), Kind::NotFound);
        assert_eq!(both.all_answer().unwrap_err().kind(), Kind::Unavailable);
        std::fs::rename(folder.path().join("second"), folder.path().join("gone too")).unwrap();
        assert_eq!(text(&both, "x/b").await.unwrap_err().kind(), Kind::Denied);
        assert!(both.list("x/", None, 9).await.is_err() && !both.set_aside(&key("x/b")));
    }

    #[tokio::test]
    async fn a_damaged_copy_is_read_only_where_there_is_no_other() {
        let Two { both, folder: _folder } = two().await;
        assert_eq!(text(&both, "x/b").await.unwrap(), "first x/b");
        assert!(both.set_aside(&key("x/b")));
        assert_eq!(text(&both, "x/b").await.unwrap(), "second x/b");
        assert!(!both.set_aside(&key("x/b")), "there is no third");
        // What nobody else has is better damaged than absent.
        assert!(both.set_aside(&key("x/a")));
        assert_eq!(text(&both, "x/a").await.unwrap(), "first x/a");
        assert!(!both.set_aside(&key("x/a")));
    }
}

//! Frames that several threads compress, in their order: whoever hands the content over, and helpers beside it.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender, SyncSender},
    },
    thread,
};

use super::{FRAME_CONTENT, frame::FrameMaker, is_zeros};

/// Makes frames and writes them on. Like [`FrameWriter`](super::FrameWriter), but each piece that it is given becomes a
/// frame of its own.
#[derive(Debug)]
pub struct FrameTeam<W> {
    inner: W,
    maker: FrameMaker,
    helpers: Option<Helpers>,
    /// Frames from the first on that was not written yet; `None` where a helper has not ended.
    ahead: VecDeque<Option<Vec<u8>>>,
    /// How many were written.
    done: usize,
    written: u64,
    /// The frame of a whole piece of zeros, once there was one.
    zeros: Option<Vec<u8>>,
}

/// The number of a frame, and its content.
type Job = (usize, Vec<u8>);
/// The same with the frame.
type Made = (usize, Vec<u8>, io::Result<Vec<u8>>);

/// How the helpers are spoken to.
#[derive(Debug)]
struct Helpers {
    jobs: SyncSender<Job>,
    queue: Arc<Mutex<Receiver<Job>>>,
    made: Receiver<Made>,
    /// Buffers that came back.
    buffers: Vec<Vec<u8>>,
}

impl<W: Write> FrameTeam<W> {
    /// Has `feed` hand over pieces, compresses them at zstd's `level` with so many helpers, and writes the frames into
    /// `inner`. Gives back what `feed` gave, the inner writer, and how many bytes went out. `failed` makes an error of one
    /// of the encoder's or of `inner`'s.
    pub fn run<T, E>(
        inner: W,
        level: i32,
        helpers: usize,
        failed: impl Fn(io::Error) -> E,
        feed: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<(T, W, u64), E> {
        thread::scope(|scope| {
            let mut team = Self {
                inner,
                maker: FrameMaker::new(level).map_err(&failed)?,
                helpers: None,
                ahead: VecDeque::new(),
                done: 0,
                written: 0,
                zeros: None,
            };
            let (jobs, queue) = mpsc::sync_channel(helpers);
            let (made, results) = mpsc::channel();
            let queue = Arc::new(Mutex::new(queue));
            for _ in 0..helpers {
                let (queue, made) = (queue.clone(), made.clone());
                let maker = FrameMaker::new(level).map_err(&failed)?;
                scope.spawn(move || help(maker, &queue, &made));
            }
            if helpers > 0 {
                team.helpers = Some(Helpers { jobs, queue, made: results, buffers: Vec::new() });
            }
            drop(made);
            let fed = feed(&mut team)?;
            let (inner, written) = team.finish().map_err(&failed)?;
            Ok((fed, inner, written))
        })
    }

    /// Makes a frame of the next piece, of at most [`FRAME_CONTENT`] bytes.
    pub fn frame(&mut self, content: &[u8]) -> io::Result<()> {
        if content.len() == FRAME_CONTENT && is_zeros(content) {
            let frame = match &self.zeros {
                Some(frame) => frame.clone(),
                None => self.zeros.insert(self.maker.make(content)?.to_vec()).clone(),
            };
            self.ahead.push_back(Some(frame));
        } else if !self.hand_over(content) {
            self.ahead.push_back(Some(self.maker.make(content)?.to_vec()));
        }
        while let Some(made) = self.helpers.as_ref().and_then(|helpers| helpers.made.try_recv().ok()) {
            self.take(made)?;
        }
        self.write_on()
    }

    /// Gives it to a helper, if one has nothing else to do.
    fn hand_over(&mut self, content: &[u8]) -> bool {
        let Some(helpers) = &mut self.helpers else { return false };
        let mut buffer = helpers.buffers.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(content);
        match helpers.jobs.try_send((self.done + self.ahead.len(), buffer)) {
            Ok(()) => self.ahead.push_back(None),
            Err(mpsc::TrySendError::Full((_, buffer)) | mpsc::TrySendError::Disconnected((_, buffer))) => {
                helpers.buffers.push(buffer);
                return false;
            }
        }
        true
    }

    fn take(&mut self, (number, buffer, frame): Made) -> io::Result<()> {
        if let Some(helpers) = &mut self.helpers {
            helpers.buffers.push(buffer);
        }
        let place = number.checked_sub(self.done).and_then(|at| self.ahead.get_mut(at));
        *place.ok_or_else(|| io::Error::other("a frame that nobody asked for"))? = Some(frame?);
        Ok(())
    }

    fn write_on(&mut self) -> io::Result<()> {
        while let Some(Some(frame)) = self.ahead.front() {
            self.inner.write_all(frame)?;
            self.written += frame.len() as u64;
            self.done += 1;
            self.ahead.pop_front();
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<(W, u64)> {
        if self.done + self.ahead.len() == 0 {
            // zstd takes no bytes at all for a truncated file.
            self.frame(&[])?;
        }
        while !self.ahead.is_empty() {
            let made = match self.left_over() {
                Some((number, content)) => {
                    let frame = self.maker.make(&content).map(<[u8]>::to_vec);
                    Some((number, content, frame))
                }
                None => self.helpers.as_ref().and_then(|helpers| helpers.made.recv().ok()),
            };
            self.take(made.ok_or_else(|| io::Error::other("a thread that compresses has stopped"))?)?;
            self.write_on()?;
        }
        Ok((self.inner, self.written))
    }

    /// A job that no helper has begun.
    fn left_over(&self) -> Option<Job> {
        // Whoever holds the lock waits for a job: there is none.
        self.helpers.as_ref()?.queue.try_lock().ok()?.try_recv().ok()
    }
}

fn help(mut maker: FrameMaker, jobs: &Mutex<Receiver<Job>>, made: &Sender<Made>) {
    loop {
        // An error means that there will be no more.
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((number, content)) = job else { return };
        let frame = maker.make(&content).map(<[u8]>::to_vec);
        if made.send((number, content, frame)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealed(pieces: &[Vec<u8>], helpers: usize) -> Vec<u8> {
        let feed = |team: &mut FrameTeam<Vec<u8>>| pieces.iter().try_for_each(|piece| team.frame(piece));
        let ((), frames, written) = FrameTeam::run(Vec::new(), 1, helpers, |e| e, feed).unwrap();
        assert_eq!(written, frames.len() as u64);
        frames
    }

    #[test]
    fn zeros_are_compressed_once_and_come_back() {
        let mut pieces = vec![vec![0; FRAME_CONTENT]; 5];
        pieces.insert(1, b"between".to_vec());
        pieces.push(vec![0; 100]);
        for helpers in [0, 2] {
            let frames = sealed(&pieces, helpers);
            assert!(zstd::decode_all(&frames[..]).unwrap() == pieces.concat());
        }
        assert!(zstd::decode_all(&sealed(&[], 1)[..]).unwrap().is_empty());
    }

    #[test]
    fn an_error_ends_it_and_its_helpers() {
        let feed = |team: &mut FrameTeam<Vec<u8>>| {
            team.frame(b"one")?;
            Err::<(), _>(io::Error::other("no more"))
        };
        assert_eq!(FrameTeam::run(Vec::new(), 1, 3, |e| e, feed).unwrap_err().to_string(), "no more");
    }

    proptest! {
        #[test]
        fn any_number_of_helpers_makes_the_same(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 0..20), helpers in 1..4_usize) {
            let alone = sealed(&pieces, 0);
            prop_assert_eq!(&sealed(&pieces, helpers), &alone);
            prop_assert_eq!(zstd::decode_all(&alone[..]).unwrap(), pieces.concat());
        }
    }
}

//! Batches of an epoch, made by threads ahead of whoever takes them.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::batch::Batch;
use super::dataset::{DatasetConfig, Split};
use super::labels::Labels;
use super::make::Maker;
use super::order::{Order, rectangular, square};
use super::pictures::{Pictures, available_memory, bytes_kept};
use super::set::Dataset;
use crate::{Error, Hyp, Result};

/// Batches that a worker may have ready.
const AHEAD: usize = 2;
/// Of the memory that can be had, what pictures may take where the user wants them there, ...
const MEMORY_SHARE: f64 = 0.8;
/// ... and where nothing was said.
const SMALL_SHARE: f64 = 0.1;
/// Larger inputs and batches are a slip of the hand.
const MAX_SIZE: u32 = 16_384;
const MAX_BATCH: usize = 65_536;
const MAX_WORKERS: usize = 256;

/// Where decoded pictures are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PictureCache {
    /// In memory where they take little of what is free, else nowhere.
    #[default]
    Auto,
    /// Nowhere: they are decoded again each time.
    None,
    /// In memory, at the network's size, from their first use on.
    Ram,
    /// Beside the pictures, at their own size, as `.npy` files that YOLOv5 can read.
    Disk,
}

/// What masks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaskOptions {
    /// Input pixels a mask pixel; divides the stride.
    pub ratio: u32,
    /// One map of indices a picture, instead of a mask an object.
    pub overlap: bool,
}

impl Default for MaskOptions {
    /// As YOLOv5 trains.
    fn default() -> Self {
        Self { ratio: 4, overlap: true }
    }
}

/// How a [`Loader`] makes batches.
#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// The longer side of pictures, and both sides of square batches, in pixels; a multiple of the stride.
    pub size: u32,
    /// The network's largest stride in pixels.
    pub stride: u32,
    /// Pictures a batch; the last one may have fewer.
    pub batch: usize,
    /// Change pictures by chance, as strongly as `hyp` says. Otherwise pictures are only fitted, as for validation: averaged
    /// when they shrink, and not enlarged by the letterbox.
    pub augment: bool,
    /// Strengths of the changes.
    pub hyp: Hyp,
    /// Batches of pictures of like proportions, in the order of these, without mosaics. Takes no shuffling and no weights.
    pub rect: bool,
    /// Where decoded pictures are kept.
    pub cache: PictureCache,
    /// How often each picture comes, in proportion; none for once an epoch each. See [`Loader::set_image_weights`].
    pub image_weights: Option<Vec<f64>>,
    /// Take all classes for one.
    pub single_class: bool,
    /// Threads that make batches; with 0, they are made when they are asked for.
    pub workers: usize,
    /// What chance depends on, with the epoch and the place in it.
    pub seed: u64,
    /// Strides to spare around the pictures of rectangular batches.
    pub pad: f64,
    /// Make masks.
    pub segments: Option<MaskOptions>,
    /// Another order each epoch.
    pub shuffle: bool,
}

impl LoaderOptions {
    /// As YOLOv5's train.py has it: square batches, shuffled, changed as `hyp` says.
    #[must_use]
    pub fn training(size: u32, batch: usize, hyp: Hyp) -> Self {
        Self {
            size,
            stride: 32,
            batch,
            augment: true,
            hyp,
            rect: false,
            cache: PictureCache::Auto,
            image_weights: None,
            single_class: false,
            workers: 1,
            seed: 0,
            pad: 0.0,
            segments: None,
            shuffle: true,
        }
    }

    /// As YOLOv5's val.py has it: rectangular batches with half a stride to spare, nothing left to chance.
    #[must_use]
    pub fn validation(size: u32, batch: usize) -> Self {
        Self {
            augment: false,
            rect: true,
            pad: 0.5,
            shuffle: false,
            ..Self::training(size, batch, Hyp::default().without_augmentation())
        }
    }

    fn check(&self) -> Result<()> {
        let fail = |argument, problem: String| Err(Error::Argument { argument, problem });
        let Self { size, stride, batch, workers, .. } = *self;
        if stride == 0 || size == 0 || size > MAX_SIZE || !size.is_multiple_of(stride) {
            return fail("size", format!("{size} is no multiple of the stride {stride} up to {MAX_SIZE}"));
        }
        if batch == 0 || batch > MAX_BATCH {
            return fail("batch", format!("{batch} pictures a batch: expected 1 to {MAX_BATCH}"));
        }
        if workers > MAX_WORKERS {
            return fail("workers", format!("{workers} threads: expected 0 to {MAX_WORKERS}"));
        }
        if !(0.0..=16.0).contains(&self.pad) {
            return fail("pad", format!("{} strides: expected 0 to 16", self.pad));
        }
        if let Some(MaskOptions { ratio, .. }) = self.segments
            && (ratio == 0 || !stride.is_multiple_of(ratio))
        {
            return fail("mask ratio", format!("{ratio} does not divide the stride {stride}"));
        }
        Ok(())
    }
}

/// Makes the batches of a data set, the same for the same seed, whatever the number of workers.
pub struct Loader {
    maker: Arc<Maker>,
    weights: Option<Vec<f64>>,
    warnings: Vec<String>,
}

impl Loader {
    /// Opens a split of a data set and its loader; `progress` as for [`Dataset::open`].
    ///
    /// # Errors
    /// As [`Dataset::open`] and [`Loader::new`].
    pub fn open(
        config: &DatasetConfig,
        split: Split,
        options: LoaderOptions,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Self> {
        options.check()?;
        Self::new(Dataset::open(config, split, options.single_class, progress)?, options)
    }

    /// A loader of a data set, which was opened with the same `single_class`.
    ///
    /// # Errors
    /// Where an option is out of its range, weights do not fit the pictures, or pictures are to be changed by chance (which is
    /// for training) and there is no object on any of them.
    pub fn new(set: Dataset, mut options: LoaderOptions) -> Result<Self> {
        options.check()?;
        if options.augment && set.objects() == 0 {
            let counts = set.counts();
            return Err(Error::Training(format!(
                "{}: no labels: {} pictures without a label file, {} with an empty one; a network cannot learn from that. \
                 A picture .../images/x.jpg has its labels in .../labels/x.txt",
                set.name(),
                counts.missing,
                counts.empty
            )));
        }
        let mut warnings = Vec::new();
        options.cache = place_cache(&set, &options, &mut warnings);
        if options.rect && options.shuffle {
            options.shuffle = false;
            warnings.push("rectangular batches are not shuffled".into());
        }
        let paths = set.labels().iter().map(|labels| labels.picture.clone()).collect();
        let pictures = Pictures::new(paths, options.size, !options.augment, options.cache);
        let weights = options.image_weights.take();
        let mut loader = Self { maker: Arc::new(Maker { set, pictures, options }), weights: None, warnings };
        loader.set_image_weights(weights)?;
        Ok(loader)
    }

    /// How often each picture comes from the next epoch on, in proportion; an epoch keeps its length. Rectangular batches take
    /// no weights.
    ///
    /// # Errors
    /// Where there is not one weight a picture, one is negative or no number, or all are 0.
    pub fn set_image_weights(&mut self, weights: Option<Vec<f64>>) -> Result<()> {
        if let Some(weights) = &weights {
            let count = self.labels().len();
            let total: f64 = weights.iter().sum();
            let sane = weights.iter().all(|&weight| weight >= 0.0) && total > 0.0 && total.is_finite();
            if weights.len() != count || !sane {
                let problem = format!("expected {count} numbers of at least 0, not all of them 0");
                return Err(Error::Argument { argument: "image weights", problem });
            }
        }
        self.weights = weights;
        Ok(())
    }

    /// The data set.
    #[must_use]
    pub fn dataset(&self) -> &Dataset {
        &self.maker.set
    }

    /// The labels of all pictures.
    #[must_use]
    pub fn labels(&self) -> &[Labels] {
        self.maker.set.labels()
    }

    /// How batches are made; without the weights.
    #[must_use]
    pub fn options(&self) -> &LoaderOptions {
        &self.maker.options
    }

    /// What is done otherwise than asked for, a sentence each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Batches an epoch; never 0.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a data set has at least one picture")]
    pub fn len(&self) -> usize {
        self.labels().len().div_ceil(self.options().batch)
    }

    /// The batches of epoch number `epoch`, in their order. Workers begin at once, and end with the iterator.
    #[must_use]
    pub fn epoch(&self, epoch: usize) -> Epoch {
        let options = self.options();
        let order = if options.rect {
            rectangular(self.labels(), options.batch, options.size, options.stride, options.pad)
        } else {
            let key = (options.seed, epoch as u64);
            let count = self.labels().len();
            square(count, options.batch, options.size, options.shuffle, self.weights.as_deref(), key)
        };
        Epoch::start(self.maker.clone(), order, epoch as u64)
    }
}

/// Where pictures are kept, with the memory there is in view.
fn place_cache(set: &Dataset, options: &LoaderOptions, warnings: &mut Vec<String>) -> PictureCache {
    let needed = || bytes_kept(set.labels().iter().map(|labels| labels.size), options.size);
    match (options.cache, available_memory()) {
        (PictureCache::Auto, Some(free)) if needed() as f64 <= SMALL_SHARE * free as f64 => PictureCache::Ram,
        (PictureCache::Auto, _) => PictureCache::None,
        (PictureCache::Ram, Some(free)) if needed() as f64 > MEMORY_SHARE * free as f64 => {
            let gigabytes = |bytes: u64| bytes as f64 / 1e9;
            warnings.push(format!(
                "pictures are not kept in memory: they take {:.1} GB, and {:.1} GB are free",
                gigabytes(needed()),
                gigabytes(free)
            ));
            PictureCache::None
        }
        (cache, _) => cache,
    }
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("set", &self.maker.set.name()).finish_non_exhaustive()
    }
}

/// The batches of an epoch.
pub struct Epoch {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    next: usize,
}

struct Shared {
    maker: Arc<Maker>,
    order: Order,
    epoch: u64,
    /// Batches that may be under way or ready at once.
    ahead: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The first batch that no worker has begun.
    begun: usize,
    /// The batch that is asked for next.
    wanted: usize,
    ready: BTreeMap<usize, Result<Batch>>,
    /// Nobody asks any more.
    over: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that could panic runs under the lock: what it guards is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let count = self.order.shapes.len();
        loop {
            let mut state = self.lock();
            while !state.over && state.begun < count && state.begun >= state.wanted + self.ahead {
                state = self.wait(state);
            }
            if state.over || state.begun >= count {
                return;
            }
            let index = state.begun;
            state.begun += 1;
            drop(state);
            let made = self.make(index);
            self.lock().ready.insert(index, made);
            self.changed.notify_all();
        }
    }

    /// A batch; a panic while it is made is an error, for whoever waits must not wait for ever.
    fn make(&self, index: usize) -> Result<Batch> {
        let make = || self.maker.batch(&self.order, self.epoch, index);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(make)).unwrap_or_else(|_| {
            Err(Error::Training(format!("batch {index} of epoch {} could not be made: a worker panicked", self.epoch)))
        })
    }
}

impl Epoch {
    fn start(maker: Arc<Maker>, order: Order, epoch: u64) -> Self {
        let threads = maker.options.workers.min(order.shapes.len());
        let ahead = threads * AHEAD;
        let shared = Arc::new(Shared {
            maker,
            order,
            epoch,
            ahead,
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        });
        let workers = (0..threads)
            .filter_map(|index| {
                let shared = shared.clone();
                // With fewer threads than wanted it only takes longer; with none, batches are made when they are asked for.
                std::thread::Builder::new().name(format!("loader {index}")).spawn(move || shared.work()).ok()
            })
            .collect();
        Self { shared, workers, next: 0 }
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.next;
        if index >= self.shared.order.shapes.len() {
            return None;
        }
        self.next += 1;
        if self.workers.is_empty() {
            return Some(self.shared.make(index));
        }
        let mut state = self.shared.lock();
        loop {
            if let Some(batch) = state.ready.remove(&index) {
                state.wanted = index + 1;
                drop(state);
                self.shared.changed.notify_all();
                return Some(batch);
            }
            state = self.shared.wait(state);
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.shared.order.shapes.len() - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Epoch {}

impl Drop for Epoch {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
        for worker in self.workers.drain(..) {
            // It caught its own panics.
            let _ended = worker.join();
        }
    }
}

impl std::fmt::Debug for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Epoch").field("epoch", &self.shared.epoch).field("next", &self.next).finish_non_exhaustive()
    }
}

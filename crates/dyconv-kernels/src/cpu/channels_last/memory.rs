//! Memory of a program: cache lines, and where in it maps lie.

use std::io::{self, ErrorKind};

use memmap2::MmapMut;

/// As many values as a cache line holds.
pub const LINE: usize = 16;

/// A cache line of values.
#[repr(align(64))]
#[derive(Debug, Clone, Copy)]
struct Line(#[allow(dead_code, reason = "read through pointers to values")] [f32; LINE]);

/// Values that begin at a cache line. Many of them lie in pages that are as large as the system gives: a network's maps and
/// kernels are walked through in strides that would otherwise miss the table of pages all the time.
#[derive(Debug, Default)]
pub(super) struct Lines {
    memory: Memory,
    len: usize,
}

#[derive(Debug)]
enum Memory {
    Lines(Vec<Line>),
    Pages(MmapMut),
}

impl Default for Memory {
    fn default() -> Self {
        Self::Lines(Vec::new())
    }
}

/// Bytes from which values get pages of their own: those of a large page.
const LARGE: usize = 2 << 20;

impl Lines {
    /// `len` zeros, for what is small beside a network's maps.
    pub(super) fn zeros(len: usize) -> Self {
        Self::granted(len).expect("more values than the memory has room for")
    }

    /// `len` zeros.
    ///
    /// # Errors
    /// Of kind [`ErrorKind::OutOfMemory`] where the system does not give so much.
    pub(super) fn granted(len: usize) -> io::Result<Self> {
        let refused = || io::Error::from(ErrorKind::OutOfMemory);
        let bytes = len.checked_mul(size_of::<f32>()).filter(|bytes| *bytes <= isize::MAX as usize);
        if let Some(pages) = pages(bytes.ok_or_else(refused)?) {
            return Ok(Self { memory: Memory::Pages(pages), len });
        }
        let (mut lines, count) = (Vec::new(), len.div_ceil(LINE));
        lines.try_reserve_exact(count).map_err(|_| refused())?;
        lines.resize(count, Line([0.0; LINE]));
        Ok(Self { memory: Memory::Lines(lines), len })
    }

    /// Makes room for `len` values. Where there was less, all of them are zeros then.
    pub(super) fn grow(&mut self, len: usize) {
        if len > self.len {
            *self = Self::zeros(len);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn as_ptr(&self) -> *const f32 {
        match &self.memory {
            Memory::Lines(lines) => lines.as_ptr().cast(),
            Memory::Pages(pages) => pages.as_ptr().cast(),
        }
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut f32 {
        match &mut self.memory {
            Memory::Lines(lines) => lines.as_mut_ptr().cast(),
            Memory::Pages(pages) => pages.as_mut_ptr().cast(),
        }
    }

    pub(super) fn values(&self) -> &[f32] {
        // SAFETY: lines and pages are values without gaps, at least `len` of them, and any bits are a value.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.len) }
    }
}

impl Clone for Lines {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.len);
        copy.values_mut().copy_from_slice(self.values());
        copy
    }
}

/// Zeros in pages of their own, where there are enough of them and the system gives them.
fn pages(bytes: usize) -> Option<MmapMut> {
    if bytes < LARGE || cfg!(miri) {
        return None;
    }
    let pages = MmapMut::map_anon(bytes).ok()?;
    // A wish: where it is not granted, pages are small.
    #[cfg(target_os = "linux")]
    let _ = pages.advise(memmap2::Advice::HugePage);
    Some(pages)
}

/// A map `[batch, height, width, channels]` in a program's memory, which has places for values of f32; channels lie next to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Place of the first value.
    pub offset: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// Channels.
    pub channels: usize,
    /// Values from a pixel to the next; more than `channels` where other channels lie between.
    pub pixel: usize,
    /// Whether its values are bf16, two in the place of one: what only convolutions read that would round it anyway.
    pub bf16: bool,
}

impl View {
    /// A map without gaps.
    pub fn dense(offset: usize, height: usize, width: usize, channels: usize) -> Self {
        Self { offset, height, width, channels, pixel: channels, bf16: false }
    }

    /// Bytes of a value.
    pub(super) fn value(&self) -> usize {
        if self.bf16 { size_of::<u16>() } else { size_of::<f32>() }
    }

    /// Places from a sample to the next.
    pub fn sample(&self) -> usize {
        (self.height * self.width * self.pixel * self.value()).div_ceil(size_of::<f32>())
    }

    /// One past the last place of `batch` samples.
    pub fn end(&self, batch: usize) -> usize {
        let pixels = self.height * self.width;
        if batch * pixels == 0 {
            return self.offset;
        }
        let last = ((pixels - 1) * self.pixel + self.channels) * self.value();
        self.offset + (batch - 1) * self.sample() + last.div_ceil(size_of::<f32>())
    }

    /// Whether `batch` samples lie within `len` places; no size is too large to be asked about.
    pub(super) fn fits(&self, batch: usize, len: usize) -> bool {
        let sizes = [batch, self.height, self.width, self.pixel.max(self.channels), self.value()];
        // No sum or product of `end` is larger.
        let most = sizes.iter().try_fold(1usize, |all, size| all.checked_mul(*size));
        let most = most.and_then(|most| most.checked_add(batch)?.checked_add(self.offset));
        most.is_some() && self.end(batch) <= len
    }

    /// Channels `first..first + count` of it; of a map in bf16 `first` must be even.
    pub fn channels(&self, first: usize, count: usize) -> Self {
        assert!(!self.bf16 || first.is_multiple_of(2), "a pair of bf16 would be cut");
        Self { offset: self.offset + first * self.value() / size_of::<f32>(), channels: count, ..*self }
    }
}

/// A map that is read, each of its pixels for a square of `1 << shift` pixels: enlarged without being copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Where it lies.
    pub view: View,
    /// Binary logarithm of the enlargement.
    pub shift: u32,
}

impl Part {
    /// Height and width of what is read.
    pub fn size(&self) -> (usize, usize) {
        (self.view.height << self.shift, self.view.width << self.shift)
    }
}

impl From<View> for Part {
    fn from(view: View) -> Self {
        Self { view, shift: 0 }
    }
}

/// A program's memory while several threads work in it.
///
/// Methods of kernels take it for granted that the program was checked: every view lies inside, and what a step writes no
/// other task of the step reads or writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arena {
    start: *mut f32,
    len: usize,
}

// SAFETY: the threads of a team write disjoint places of it, which the checks of a program see to.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    pub(super) fn new(lines: &mut Lines) -> Self {
        Self { start: lines.as_mut_ptr(), len: lines.len() }
    }

    /// The value at `offset`.
    #[inline(always)]
    pub(super) fn at(&self, offset: usize) -> *mut f32 {
        debug_assert!(offset <= self.len);
        // Not `add`: a pointer to a value that is masked out may lie outside.
        self.start.wrapping_add(offset)
    }
}

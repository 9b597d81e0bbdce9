//! Memory of a program: cache lines, and where in it maps lie.

/// As many values as a cache line holds.
pub(super) const LINE: usize = 16;

/// A cache line of values.
#[repr(align(64))]
#[derive(Debug, Clone, Copy)]
struct Line(#[allow(dead_code, reason = "read through pointers to values")] [f32; LINE]);

/// Values that begin at a cache line.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines {
    lines: Vec<Line>,
    len: usize,
}

impl Lines {
    /// `len` zeros.
    pub(super) fn zeros(len: usize) -> Self {
        Self { lines: vec![Line([0.0; LINE]); len.div_ceil(LINE)], len }
    }

    /// Makes room for `len` values, zeros where there are new ones.
    pub(super) fn grow(&mut self, len: usize) {
        if len > self.len {
            *self = Self::zeros(len);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn as_ptr(&self) -> *const f32 {
        self.lines.as_ptr().cast()
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.lines.as_mut_ptr().cast()
    }

    pub(super) fn values(&self) -> &[f32] {
        // SAFETY: a line is an array of values without gaps, and there are at least `len`.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.len) }
    }
}

/// A map `[batch, height, width, channels]` in a program's memory; channels lie next to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// First value.
    pub offset: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// Channels.
    pub channels: usize,
    /// Values from a pixel to the next; more than `channels` where other channels lie between.
    pub pixel: usize,
}

impl View {
    /// A map without gaps.
    pub fn dense(offset: usize, height: usize, width: usize, channels: usize) -> Self {
        Self { offset, height, width, channels, pixel: channels }
    }

    /// Values from a sample to the next.
    pub fn sample(&self) -> usize {
        self.height * self.width * self.pixel
    }

    /// One past the last value of `batch` samples.
    pub fn end(&self, batch: usize) -> usize {
        let pixels = batch * self.height * self.width;
        if pixels == 0 { self.offset } else { self.offset + (pixels - 1) * self.pixel + self.channels }
    }

    /// Channels `first..first + count` of it.
    pub fn channels(&self, first: usize, count: usize) -> Self {
        Self { offset: self.offset + first, channels: count, ..*self }
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

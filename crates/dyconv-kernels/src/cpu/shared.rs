//! A result that several threads write, each its own parts.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Memory that is handed out in parts; at first nothing needs to have been written there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shared<'a> {
    start: *mut f32,
    length: usize,
    memory: PhantomData<&'a mut [f32]>,
}

// SAFETY: `part` is unsafe to call, and its callers see to it that no two threads have a part in common.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(memory: &'a mut [MaybeUninit<f32>]) -> Self {
        Self { start: memory.as_mut_ptr().cast(), length: memory.len(), memory: PhantomData }
    }

    /// Memory that holds values already.
    pub(super) fn filled(memory: &'a mut [f32]) -> Self {
        Self { start: memory.as_mut_ptr(), length: memory.len(), memory: PhantomData }
    }

    /// `count` values from `first` on.
    ///
    /// # Safety
    /// No other reference to any of these values may be alive, and they must be written before they are read.
    #[inline(always)]
    pub(super) unsafe fn part(&self, first: usize, count: usize) -> &'a mut [f32] {
        assert!(first <= self.length && count <= self.length - first);
        // SAFETY: the part lies inside the slice that `start` came from; the caller promises that it is not shared, nor read
        // before it is written.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), count) }
    }
}

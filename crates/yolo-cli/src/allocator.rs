//! The allocator, and for how long it keeps what it got back.
#![allow(unsafe_code, reason = "the allocator's settings are functions of C")]

use libmimalloc_sys::{mi_collect, mi_option_set_default, mi_option_t};

/// Training steps and pictures on their way ask for large buffers and give them back all the time; an allocator that keeps their pages
/// saves a sixth of a step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h, versions 2 and 3, which the binding does not name.
const PURGE_DELAY: mi_option_t = 15;

/// Milliseconds that pages without a user are kept: longer than a training step and than a picture's way, so that the next one finds
/// them. mimalloc's 10 gives them to the system and asks for them again, cleared, each time.
const KEPT: std::ffi::c_long = 10_000;

/// Lets the allocator keep its pages, unless the environment (`MIMALLOC_PURGE_DELAY`) says for how long. To be called before other
/// threads are.
pub(crate) fn keep_pages() {
    // SAFETY: the function writes an entry of mimalloc's table of options, which has this one; no other thread runs yet.
    unsafe { mi_option_set_default(PURGE_DELAY, KEPT) }
}

/// Gives pages without a user to the system at once: what was needed to get ready will not be needed again.
pub(crate) fn give_back() {
    // SAFETY: the function may be called at any time, from any thread.
    unsafe { mi_collect(true) }
}

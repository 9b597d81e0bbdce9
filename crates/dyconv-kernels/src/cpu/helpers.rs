//! Threads of Rayon's pool as helpers of a caller that works itself.
//!
//! A parallel loop of Rayon's, called from outside its pool, puts the caller to sleep, wakes one of the pool's threads, which wakes the
//! others, and at the end wakes the caller: where processors are virtual, each can take as long as a small convolution. A scope of
//! Rayon's waits for helpers that have not begun, too.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::channels_last::team::wait;

/// What all do, by their numbers.
type Work<'a> = dyn Fn(usize) + Sync + 'a;

/// Where helpers come in while the door is open.
struct Room {
    work: *const Work<'static>,
    /// Helpers that have come in; with [`CLOSED`], and no more can.
    entered: AtomicUsize,
    left: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

const CLOSED: usize = 1 << (usize::BITS - 1);

/// Calls for help that a thread leaves unheard, at most, for each helper it would have: where all threads of the pool are at tasks that
/// do not end, none is ever heard.
const UNHEARD: usize = 4;

thread_local! {
    /// This thread's calls for help that no thread of the pool has come upon yet.
    static CALLS: Arc<AtomicUsize> = Arc::default();
}

// SAFETY: `work` points to something that may be used from all threads.
unsafe impl Send for Room {}
// SAFETY: as above.
unsafe impl Sync for Room {}

impl Room {
    fn help(&self) {
        let enter = |entered: usize| (entered & CLOSED == 0).then_some(entered + 1);
        let Ok(before) = self.entered.fetch_update(Ordering::AcqRel, Ordering::Relaxed, enter) else { return };
        // SAFETY: who has come in before the door was closed is waited for.
        let work = unsafe { &*self.work };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(before + 1))) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        self.left.fetch_add(1, Ordering::Release);
    }
}

/// Runs `work(0)` here and `work` of further numbers below `members` on threads of the pool, each once, as soon as they come; who has
/// not come when `work(0)` returns is not waited for.
///
/// # Panics
/// Where the work does, on any thread.
pub(super) fn together(members: usize, work: &Work<'_>) {
    // SAFETY: the lifetime is only erased: helpers use the pointer between coming in and leaving, and this function waits for all that
    // have come in, whether the work panics or not.
    let erased = unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(std::ptr::from_ref(work)) };
    let room = Room { work: erased, entered: AtomicUsize::new(0), left: AtomicUsize::new(0), panic: Mutex::new(None) };
    let room = Arc::new(room);
    let calls = CALLS.with(Arc::clone);
    for _ in 1..members {
        if calls.load(Ordering::Relaxed) >= UNHEARD * members {
            break;
        }
        calls.fetch_add(1, Ordering::Relaxed);
        let (room, calls) = (room.clone(), calls.clone());
        rayon::spawn(move || {
            calls.fetch_sub(1, Ordering::Relaxed);
            room.help();
        });
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| work(0)));
    let entered = room.entered.fetch_or(CLOSED, Ordering::AcqRel);
    let mut looks = 0;
    while room.left.load(Ordering::Acquire) < entered {
        wait(&mut looks);
    }
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
    let panic = room.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn each_number_is_given_once_and_nobody_waits_for_helpers_that_do_not_come() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        for round in 0..if cfg!(miri) { 4 } else { 200 } {
            let seen: [AtomicUsize; 3] = std::array::from_fn(|_| AtomicUsize::new(0));
            let (late, came_late) = (AtomicBool::new(false), AtomicUsize::new(0));
            pool.install(|| {
                together(3, &|number| {
                    came_late.fetch_add(late.load(Ordering::Relaxed).into(), Ordering::Relaxed);
                    seen[number].fetch_add(1, Ordering::Relaxed);
                    if number == 0 {
                        (0..round * 10).for_each(|_| std::hint::spin_loop());
                    }
                });
                // Two threads, one of them the caller's: a second helper comes when the work is over, if at all.
                late.store(true, Ordering::Relaxed);
            });
            // Whoever was called is heard before this is.
            pool.broadcast(|_| ());
            assert_eq!(came_late.into_inner(), 0);
            assert_eq!(seen[0].load(Ordering::Relaxed), 1);
            assert!(seen[1..].iter().all(|seen| seen.load(Ordering::Relaxed) <= 1));
        }
    }

    #[test]
    fn nobody_calls_on_and_on_for_helpers_that_cannot_come() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        pool.spawn(move || held.recv().unwrap_or_default());
        let unheard = pool.install(|| {
            (0..100).for_each(|_| together(2, &|_| ()));
            CALLS.with(|calls| calls.load(Ordering::Relaxed))
        });
        assert_eq!(unheard, 2 * UNHEARD);
        drop(release);
        let come = AtomicBool::new(false);
        let work = |number| {
            come.fetch_or(number > 0, Ordering::Relaxed);
            while !come.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
        };
        pool.install(|| together(2, &work));
    }

    #[test]
    fn who_has_come_is_waited_for() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let (begun, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        let work = |number| {
            if number == 0 {
                while !begun.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            } else {
                begun.store(true, Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(20));
                ended.store(true, Ordering::Relaxed);
            }
        };
        pool.install(|| together(2, &work));
        assert!(ended.into_inner());
    }

    #[test]
    fn a_panic_of_a_helper_reaches_the_caller() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        for panicking in 0..2 {
            let run = || {
                let begun = AtomicUsize::new(0);
                together(2, &|number| {
                    begun.fetch_add(1, Ordering::Relaxed);
                    while begun.load(Ordering::Relaxed) < 2 {
                        std::thread::yield_now();
                    }
                    assert!(number != panicking, "on purpose");
                });
            };
            assert!(catch_unwind(AssertUnwindSafe(|| pool.install(run))).is_err());
        }
    }
}

//! Parallel loops without sleep: the caller takes part, and where each loop needs all of the one before, threads are woken once for all.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::channels_last::team::{Counter, wait};
use super::helpers;

/// Threads that take part, at most: each has a counter on the caller's stack.
const MOST: usize = 32;

/// Runs `task` for the numbers `0..tasks`, on the caller's thread and those of the pool, up to [`MOST`].
pub(super) fn share(tasks: usize, task: impl Fn(usize) + Sync) {
    phases(1, tasks, |_, number| task(number), |_| ());
}

/// The same for runs of `run` numbers, the last one perhaps of fewer: where each number alone is not worth a task.
pub(super) fn share_runs(count: usize, run: usize, task: impl Fn(Range<usize>) + Sync) {
    let run = run.max(1);
    share(count.div_ceil(run), |number| task(number * run..((number + 1) * run).min(count)));
}

/// Runs `task(number, chunk)` for chunks of `size` values, the last one perhaps of fewer.
pub(super) fn share_chunks<T: Send>(values: &mut [T], size: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    struct Start<T>(*mut T);
    // SAFETY: tasks take disjoint parts of values that may be sent to other threads.
    unsafe impl<T: Send> Sync for Start<T> {}
    impl<T> Start<T> {
        fn at(&self, index: usize) -> *mut T {
            self.0.wrapping_add(index)
        }
    }
    let start = Start(values.as_mut_ptr());
    share_runs(values.len(), size, |range| {
        // SAFETY: runs are disjoint parts of `values`, which is borrowed until all tasks are done.
        task(range.start / size.max(1), unsafe { std::slice::from_raw_parts_mut(start.at(range.start), range.len()) });
    });
}

/// Runs `task(phase, number)` for the numbers `0..tasks` of each phase, on as many threads as the pool has, up to [`MOST`], and after each phase
/// `between(phase)` once. A thread begins with a share of neighbours, the same in every phase; then it takes what others have left.
///
/// The caller is one of the threads, also where it is none of the pool's: it begins at once, and need not be woken at the end. A thread
/// waits only for tasks that another is at: where the pool gives none, the caller does everything.
pub(super) fn phases(phases: usize, tasks: usize, task: impl Fn(usize, usize) + Sync, between: impl Fn(usize) + Sync) {
    let members = rayon::current_num_threads().clamp(1, MOST).min(tasks);
    if members <= 1 {
        for phase in 0..if tasks > 0 { phases } else { 0 } {
            (0..tasks).for_each(|number| task(phase, number));
            between(phase);
        }
        return;
    }
    let taken: [Counter; MOST] = std::array::from_fn(|_| Counter::default());
    // Tasks that are done and phases that are over, in all.
    let (done, over) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let broken = AtomicBool::new(false);
    let first = |member: usize| member * tasks / members;
    let take_part = |index: usize| {
        let _panics = SetWhenPanicking(&broken);
        for phase in 0..phases {
            let mut own = 0;
            for offset in 0..members {
                let member = (index + offset) % members;
                let (start, len) = (first(member), first(member + 1) - first(member));
                while let Ok(next) = claim(&taken[member].0, (phase + 1) * len) {
                    task(phase, start + next - phase * len);
                    own += 1;
                }
            }
            // Once a thread and phase, for the others look at the counter's cache line.
            if own > 0 && done.fetch_add(own, Ordering::AcqRel) + own == (phase + 1) * tasks {
                between(phase);
                over.store(phase + 1, Ordering::Release);
            }
            let mut looks = 0;
            while over.load(Ordering::Acquire) <= phase {
                if broken.load(Ordering::Relaxed) {
                    // The panic itself reaches the caller.
                    return;
                }
                wait(&mut looks);
            }
        }
    };
    helpers::together(members, &take_part);
}

/// The counter's value before it was raised, if it was below `end`.
fn claim(counter: &AtomicUsize, end: usize) -> Result<usize, usize> {
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| (next < end).then_some(next + 1))
}

/// Tells the others not to wait for a thread that panics.
struct SetWhenPanicking<'a>(&'a AtomicBool);

impl Drop for SetWhenPanicking<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{phases, share_chunks};

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    #[test]
    fn every_task_is_done_once_and_phases_do_not_overlap() {
        for threads in [1, 2, 5] {
            for (count, tasks) in [(0, 3), (1, 1), (3, 2), (20, 7), (2, 100), (3, 0)] {
                let done: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                let between = AtomicUsize::new(0);
                pool(threads).install(|| {
                    phases(
                        count,
                        tasks,
                        |phase, task| {
                            // So long that others come before one has done everything.
                            std::thread::sleep(std::time::Duration::from_micros(30));
                            assert_eq!(between.load(Ordering::Relaxed), phase);
                            assert_eq!(done[task].fetch_add(1, Ordering::Relaxed), phase);
                        },
                        |phase| {
                            assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == phase + 1));
                            assert_eq!(between.fetch_add(1, Ordering::Relaxed), phase);
                        },
                    );
                });
                assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == count));
                assert_eq!(between.into_inner(), if tasks > 0 { count } else { 0 });
            }
        }
    }

    #[test]
    fn chunks_are_all_values_each_once() {
        for (len, size) in [(0, 3), (1, 3), (3, 3), (100, 7), (64, 1)] {
            let mut values: Vec<usize> = (0..len).collect();
            pool(3).install(|| {
                share_chunks(&mut values, size, |number, chunk| {
                    assert!(chunk[0] == number * size && chunk.len() == size.min(len - number * size));
                    chunk.iter_mut().for_each(|value| *value += len);
                });
            });
            assert!(values.into_iter().eq(len..2 * len));
        }
    }

    /// From outside a pool, too.
    #[test]
    fn a_panic_reaches_the_caller() {
        let run = || {
            let fail = |phase, task| assert!((phase, task) != (1, 3), "on purpose");
            pool(2).install(|| phases(3, 10, fail, |_| ()));
        };
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        for panicking in 0..if cfg!(miri) { 2 } else { 100 } {
            let run = || phases(1, 100, |_, task| assert!(task != panicking, "on purpose"), |_| ());
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        }
    }
}

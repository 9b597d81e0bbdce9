//! A team of threads that walks through a program together: woken once a run, it meets at a barrier after each step.
//!
//! A pool that is handed one parallel loop after the other wakes its threads for each; a network has a hundred of them, each
//! as short as a wake-up. A member of the team waits for the others by looking, and sleeps only between runs.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, Thread};

/// Looks at a barrier before the processor is offered to others: some microseconds. An interpreter runs one thread at a time.
const LOOKS: u32 = if cfg!(miri) { 1 } else { 2_000 };
/// Looks for the next run before a member sleeps.
const LOOKS_BETWEEN_RUNS: u32 = 10 * LOOKS;

/// A counter in a cache line of its own.
#[repr(align(128))]
#[derive(Default)]
pub(in crate::cpu) struct Counter(pub(in crate::cpu) AtomicUsize);

/// What all members run.
type Work<'a> = dyn Fn(&Member<'_>) + Sync + 'a;

/// A pointer to the work of a run, erased of its lifetime.
#[derive(Clone, Copy)]
struct WorkPointer(*const Work<'static>);

// SAFETY: it points to something that may be used from all threads.
unsafe impl Send for WorkPointer {}

struct Shared {
    members: usize,
    /// Number of the run.
    run: Counter,
    /// Members that have finished the run.
    finished: Counter,
    /// Members at the barrier.
    arrived: Counter,
    /// Number of barriers passed.
    passed: Counter,
    /// Of each member's share of the step's tasks, how many have been taken.
    taken: Vec<Counter>,
    /// A member has panicked: nobody shall wait for it.
    broken: AtomicBool,
    ended: AtomicBool,
    work: std::cell::UnsafeCell<Option<WorkPointer>>,
}

// SAFETY: `work` is written by the leader before `run` changes, with release, and read by the others after they have seen the
// change, with acquire; the leader writes it again only when all have finished.
unsafe impl Sync for Shared {}

/// Threads that work together, the caller's own among them.
pub(super) struct Team {
    shared: Arc<Shared>,
    others: Vec<JoinHandle<()>>,
    sleepers: Vec<Thread>,
}

/// One of a team, inside a run.
pub(super) struct Member<'a> {
    shared: &'a Shared,
    /// Which one, from 0.
    pub(super) index: usize,
}

impl Member<'_> {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.shared.members
    }

    /// Hands out tasks `0..count`; returns when all are done. Each member begins with a share of neighbours, the same part of the
    /// map in every step, so that it finds in its own cache what it wrote in the step before; then it takes what others have left.
    ///
    /// All members must call it with the same count.
    #[inline(always)]
    pub(super) fn share(&self, count: usize, mut task: impl FnMut(usize)) {
        let members = self.shared.members;
        let first = |member: usize| member * count / members;
        for offset in 0..members {
            let member = (self.index + offset) % members;
            let (start, len) = (first(member), first(member + 1) - first(member));
            let taken = &self.shared.taken[member].0;
            // A look first: others' counters are not written to without need.
            while taken.load(Ordering::Relaxed) < len {
                let next = taken.fetch_add(1, Ordering::Relaxed);
                if next >= len {
                    break;
                }
                task(start + next);
            }
        }
        self.meet();
    }

    /// Waits until all members are here.
    pub(super) fn meet(&self) {
        let shared = self.shared;
        let reset = || shared.taken.iter().for_each(|taken| taken.0.store(0, Ordering::Relaxed));
        if shared.members == 1 {
            reset();
            return;
        }
        let passed = shared.passed.0.load(Ordering::Relaxed);
        if shared.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == shared.members {
            shared.arrived.0.store(0, Ordering::Relaxed);
            reset();
            shared.passed.0.store(passed.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut looks = 0;
        while shared.passed.0.load(Ordering::Acquire) == passed {
            assert!(!shared.broken.load(Ordering::Relaxed), "another thread of the team has panicked");
            wait(&mut looks);
        }
    }
}

/// Waits a moment for another thread; `looks` counts how often.
pub(in crate::cpu) fn wait(looks: &mut u32) {
    *looks += 1;
    if *looks < LOOKS {
        std::hint::spin_loop();
    } else {
        thread::yield_now();
    }
}

impl Team {
    /// A team of `members` threads, at least one.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub(super) fn new(members: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            members: members.max(1),
            run: Counter::default(),
            finished: Counter::default(),
            arrived: Counter::default(),
            passed: Counter::default(),
            taken: (0..members.max(1)).map(|_| Counter::default()).collect(),
            broken: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            work: std::cell::UnsafeCell::new(None),
        });
        let mut team = Self { shared, others: Vec::new(), sleepers: Vec::new() };
        for index in 1..members {
            let shared = team.shared.clone();
            let thread = thread::Builder::new().name(format!("yolo-{index}")).spawn(move || follow(&shared, index))?;
            team.sleepers.push(thread.thread().clone());
            team.others.push(thread);
        }
        Ok(team)
    }

    /// Runs `work` on all members at once and returns when all have finished.
    ///
    /// # Panics
    /// Where the work does, on any member.
    pub(super) fn run(&mut self, work: &Work<'_>) {
        let shared = &*self.shared;
        assert!(!shared.broken.load(Ordering::Relaxed), "a thread of the team has panicked in an earlier run");
        // SAFETY: the lifetime is only erased: no member uses the pointer after this function, which waits for all of them,
        // whether the work panics or not. `work` is written while all others wait for the run to begin.
        unsafe {
            let work = std::mem::transmute::<*const Work<'_>, *const Work<'static>>(std::ptr::from_ref(work));
            *shared.work.get() = Some(WorkPointer(work));
        }
        shared.finished.0.store(0, Ordering::Relaxed);
        shared.run.0.fetch_add(1, Ordering::Release);
        self.sleepers.iter().for_each(Thread::unpark);
        let outcome = catch_unwind(AssertUnwindSafe(|| work(&Member { shared, index: 0 })));
        if outcome.is_err() {
            shared.broken.store(true, Ordering::Relaxed);
        }
        let mut looks = 0;
        while shared.finished.0.load(Ordering::Acquire) < shared.members - 1 {
            wait(&mut looks);
        }
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        assert!(!shared.broken.load(Ordering::Relaxed), "another thread of the team has panicked");
    }
}

/// What a member does that is not the caller.
fn follow(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let mut looks = 0;
        while shared.run.0.load(Ordering::Acquire) == seen {
            looks += 1;
            if shared.ended.load(Ordering::Acquire) {
                return;
            }
            if looks < LOOKS_BETWEEN_RUNS {
                std::hint::spin_loop();
            } else {
                thread::park();
            }
        }
        seen = seen.wrapping_add(1);
        // SAFETY: the leader has written it before the run began, and waits for this member before it writes again.
        if let Some(WorkPointer(work)) = unsafe { *shared.work.get() } {
            // SAFETY: as above: what it points to lives until this member has finished.
            let work = unsafe { &*work };
            if catch_unwind(AssertUnwindSafe(|| work(&Member { shared, index }))).is_err() {
                shared.broken.store(true, Ordering::Relaxed);
            }
        }
        shared.finished.0.fetch_add(1, Ordering::AcqRel);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.sleepers.iter().for_each(Thread::unpark);
        for thread in self.others.drain(..) {
            // A member that panicked has said so where it did.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Team;

    #[test]
    fn every_task_is_done_once_and_steps_do_not_overlap() {
        for members in [1, 2, 5] {
            let mut team = Team::new(members).unwrap();
            for tasks in [0, 1, 3, 100] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                team.run(&|member| {
                    for step in 0..3 {
                        member.share(tasks, |task| {
                            let before = counts[task].fetch_add(1, Ordering::Relaxed);
                            assert_eq!(before, step);
                        });
                    }
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 3));
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        for index in 0..2 {
            let mut team = Team::new(2).unwrap();
            let run = std::panic::AssertUnwindSafe(|| {
                team.run(&|member| {
                    assert!(member.index != index, "on purpose");
                    member.meet();
                });
            });
            assert!(std::panic::catch_unwind(run).is_err());
        }
    }
}

//! Work on a stream of items in several threads, whose results come in the order of the items.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::Scope;

/// Spawns `threads` threads that put `work` to each item and gives an iterator over the results, in the order of the items.
///
/// An item is taken when a thread is free for it and no more than `threads` results before it wait for the reader. Dropping
/// the iterator ends the threads as soon as they are through with the items in hand.
pub(super) fn in_order<'scope, T, R, I, F>(
    scope: &'scope Scope<'scope, '_>,
    threads: usize,
    items: I,
    work: F,
) -> impl Iterator<Item = R> + Send + use<T, R, I, F>
where
    T: Send + 'scope,
    R: Send + 'scope,
    I: Iterator<Item = T> + Send + 'scope,
    F: Fn(T) -> R + Send + Sync + Clone + 'scope,
{
    let threads = threads.max(1);
    // A result is promised when its item is taken, under one lock: so the promises are in the order of the items.
    let (promise, promises) = sync_channel(threads - 1);
    let taker = Arc::new(Mutex::new(Some(Taker { items, promise })));
    for _ in 0..threads {
        let (taker, work) = (Arc::clone(&taker), work.clone());
        scope.spawn(move || {
            // A lock is poisoned where another thread panicked while it took an item: the scope tells of it.
            let take = || {
                let mut taker = taker.lock().ok()?;
                let taken = taker.as_mut()?.take();
                if taken.is_none() {
                    // Whoever makes the items learns at once that no more are wanted.
                    *taker = None;
                }
                taken
            };
            while let Some((item, result)) = take() {
                // Where the reader has gone, the next item is not given out any more.
                let _ = result.send(work(item));
            }
        });
    }
    promises.into_iter().map_while(|promised: Receiver<R>| promised.recv().ok())
}

/// What gives out items and keeps the order of their results.
struct Taker<I, R> {
    items: I,
    promise: SyncSender<Receiver<R>>,
}

impl<I: Iterator, R> Taker<I, R> {
    /// The next item and where its result goes; `None` where there are no more, or nobody wants results any more.
    fn take(&mut self) -> Option<(I::Item, SyncSender<R>)> {
        let item = self.items.next()?;
        let (result, promised) = sync_channel(1);
        self.promise.send(promised).ok()?;
        Some((item, result))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn results_come_in_order_however_long_each_takes() {
        for threads in [1, 2, 5] {
            let results: Vec<u64> = thread::scope(|scope| {
                in_order(scope, threads, 0..40, |item: u64| {
                    thread::sleep(Duration::from_micros(item * 7919 % 400));
                    item * 10
                })
                .collect()
            });
            assert_eq!(results, (0..40).map(|item| item * 10).collect::<Vec<_>>());
        }
    }

    #[test]
    fn little_is_taken_ahead_and_nothing_after_the_reader_has_gone() {
        let taken = AtomicUsize::new(0);
        thread::scope(|scope| {
            let items = (0..1000).inspect(|_| {
                taken.fetch_add(1, Ordering::SeqCst);
            });
            let mut results = in_order(scope, 3, items, |item| item);
            assert_eq!(results.next(), Some(0));
            thread::sleep(Duration::from_millis(50));
            drop(results);
        });
        let taken = taken.into_inner();
        assert!(taken <= 3 + 1, "{taken} items were taken for one result");
    }
}

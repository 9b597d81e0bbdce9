//! When training gets no better any more.

/// Remembers the best epoch, and says when it is too long ago.
#[derive(Debug, Clone, PartialEq)]
pub struct EarlyStopping {
    best_fitness: f64,
    best_epoch: usize,
    patience: usize,
}

impl EarlyStopping {
    /// Stops after `patience` epochs without a better one; 0 never stops.
    #[must_use]
    pub fn new(patience: usize) -> Self {
        Self { best_fitness: 0.0, best_epoch: 0, patience: if patience == 0 { usize::MAX } else { patience } }
    }

    /// Takes up where another run stopped.
    #[must_use]
    pub fn resumed(patience: usize, best_fitness: f64, best_epoch: usize) -> Self {
        Self { best_fitness, best_epoch, ..Self::new(patience) }
    }

    /// Notes an epoch's fitness; true where training should stop. Equally good is not better.
    pub fn update(&mut self, epoch: usize, fitness: f64) -> bool {
        if fitness > self.best_fitness {
            self.best_fitness = fitness;
            self.best_epoch = epoch;
        }
        epoch.saturating_sub(self.best_epoch) >= self.patience
    }

    /// The best epoch so far.
    #[must_use]
    pub fn best_epoch(&self) -> usize {
        self.best_epoch
    }

    /// Its fitness; 0 where no epoch was better than nothing.
    #[must_use]
    pub fn best_fitness(&self) -> f64 {
        self.best_fitness
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_from_the_best_epoch() {
        let mut stopping = EarlyStopping::new(3);
        let stops: Vec<bool> = [0.1, 0.3, 0.2, 0.3, 0.1]
            .iter()
            .enumerate()
            .map(|(epoch, fitness)| stopping.update(epoch, *fitness))
            .collect();
        assert_eq!(stops, [false, false, false, false, true]);
        assert_eq!((stopping.best_epoch(), stopping.best_fitness()), (1, 0.3));
    }

    #[test]
    fn no_patience_never_stops() {
        let mut stopping = EarlyStopping::new(0);
        assert!((0..100_000).all(|epoch| !stopping.update(epoch, 0.0)));
    }
}

//! Whole runs, looked at from within.

use std::fs;

use super::*;
use crate::Hyp;
use crate::data::shapes;

const NETWORK: &str = "
nc: 5
depth_multiple: 1.0
width_multiple: 1.0
anchors: [[10, 10, 16, 24], [40, 40, 60, 50]]
dynamic: {routing: softmax, temperature: {start: 30, end: 1, epochs: 2}}
backbone:
  - [-1, 1, Conv, [8, 6, 4, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, DynamicConv, [8, 3, 2]]
head: [[[1, 2], 1, Detect, [nc, anchors]]]
";

/// A data set and a network in a folder, and the options of a short run in it.
fn place() -> (tempfile::TempDir, TrainOptions) {
    let folder = tempfile::tempdir().unwrap();
    let shapes = shapes::Options { images: 9, seed: 3, size: 64, val_fraction: 0.34 };
    shapes::generate(&folder.path().join("data"), &shapes, &|| {}).unwrap();
    let network = folder.path().join("network.yaml");
    fs::write(&network, NETWORK).unwrap();
    let mut options = TrainOptions::new(folder.path().join("data").join("data.yaml"), folder.path().join("run"));
    options.cfg = Some(network.to_string_lossy().into_owned());
    options.epochs = 3;
    options.batch_size = 3;
    options.imgsz = 64;
    options.workers = 1;
    options.noplots = true;
    (folder, options)
}

/// Everything that a listener is told in words.
#[derive(Default)]
struct Told(Vec<String>);

impl Told {
    fn listen(&mut self, event: &Event<'_>) {
        if let Event::Notice(text) | Event::Warning(text) = event {
            self.0.push(text.clone());
        }
    }

    fn has(&self, words: &str) -> bool {
        self.0.iter().any(|text| text.contains(words))
    }
}

/// A trainer, and what is told while it is set up.
fn start(options: &TrainOptions) -> (Trainer, Told) {
    let mut told = Told::default();
    let trainer =
        Trainer::new(options.clone(), Hyp::default(), &Device::Cpu, &mut |event: Event<'_>| told.listen(&event));
    (trainer.unwrap(), told)
}

fn run(trainer: &mut Trainer) -> (Result<Outcome>, Told) {
    let mut told = Told::default();
    let outcome = trainer.run(&Stop::default(), &mut |event: Event<'_>| told.listen(&event));
    (outcome, told)
}

/// What lies in a folder that is used again is not of this run.
#[test]
fn weights_of_an_earlier_run_in_the_folder_are_not_taken_for_this_ones() {
    let (_folder, mut options) = place();
    options.epochs = 1;
    let (outcome, told) = run(&mut start(&options).0);
    assert!(outcome.is_ok() && told.has("best.safetensors..."), "{:?}", told.0);
    let best = options.save_dir.join("weights").join("best.safetensors");
    let earlier = fs::read(&best).unwrap();

    // The last epoch, the only one that is saved, is worse than one before.
    options.nosave = true;
    let worse = |trainer: &mut Trainer| {
        trainer.state.validated = true;
        trainer.state.best_fitness = Exact(2.0);
    };
    let mut trainer = start(&options).0;
    worse(&mut trainer);
    let (outcome, told) = run(&mut trainer);
    assert!(outcome.is_ok());
    assert!(told.has("Validating") && told.has("last.safetensors..."), "{:?}", told.0);
    assert!(told.has("best.safetensors is of an earlier run"), "{:?}", told.0);
    assert!(!told.0.iter().any(|text| text.contains("Weights saved as") && text.contains("best")), "{:?}", told.0);
    assert_eq!(fs::read(&best).unwrap(), earlier);
    drop(trainer);

    // Nor is it a comfort to a run that cannot save its own.
    let last = options.save_dir.join("weights").join("last.safetensors");
    fs::remove_file(&last).unwrap();
    let mut trainer = start(&options).0;
    worse(&mut trainer);
    fs::create_dir(&last).unwrap();
    let error = run(&mut trainer).0.unwrap_err().to_string();
    assert!(error.contains("last.safetensors") && error.ends_with("nothing was saved yet"), "{error}");
}

/// Weights run at the temperature that the annealing leads to.
#[test]
fn epochs_that_end_before_the_annealing_are_told() {
    let (_folder, mut options) = place();
    let sentence = "is 15.5 still in the last of 2 epochs, and the saved weights run at 1";
    assert!(!start(&options).1.has("temperature"));
    options.epochs = 2;
    let told = start(&options).1;
    assert!(told.has(sentence), "{:?}", told.0);
}

/// Cut after the last epoch, while the best weights are validated.
#[test]
fn a_run_that_stopped_early_does_not_train_on_when_it_is_resumed() {
    let (folder, mut options) = place();
    options.epochs = 9;
    options.patience = 1;
    let left = folder.path().join("left");
    let mut stopped = false;
    let mut listener = |event: Event<'_>| match event {
        Event::Notice(text) if text.starts_with("Stopping training early") => stopped = true,
        Event::Validation { .. } if stopped => {
            fs::create_dir_all(left.join("weights")).unwrap();
            for name in ["opt.yaml", "hyp.yaml", "results.csv", "weights/resume.safetensors"]
                .into_iter()
                .chain(["weights/last.safetensors", "weights/best.safetensors"])
            {
                fs::copy(options.save_dir.join(name), left.join(name)).unwrap();
            }
        }
        _ => {}
    };
    let mut trainer = start(&options).0;
    // No epoch is better than the first.
    trainer.state.best_fitness = Exact(2.0);
    trainer.stopping = EarlyStopping::resumed(options.patience, 2.0, 0);
    let outcome = trainer.run(&Stop::default(), &mut listener).unwrap();
    let Outcome::Finished(whole) = outcome else { panic!("{outcome:?}") };
    assert!(whole.epochs == 2 && left.is_dir());

    let mut trainer = Trainer::resume(&left, |_| Ok(Device::Cpu), &mut |_: Event<'_>| {}).unwrap();
    let mut batches = 0;
    let outcome =
        trainer.run(&Stop::default(), &mut |event: Event<'_>| batches += usize::from(matches!(event, Event::Batch(_))));
    let Outcome::Finished(resumed) = outcome.unwrap() else { panic!("interrupted") };
    assert_eq!((batches, resumed.epochs, resumed.best_epoch), (0, whole.epochs, whole.best_epoch));
    for name in ["results.csv", "weights/last.safetensors", "weights/best.safetensors"] {
        assert!(fs::read(left.join(name)).unwrap() == fs::read(options.save_dir.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn pictures_are_of_two_strides_at_least() {
    let (_folder, mut options) = place();
    for (asked, expected) in [(1, 64), (32, 64), (64, 64), (65, 96)] {
        options.imgsz = asked;
        let (trainer, told) = start(&options);
        assert_eq!(trainer.options().imgsz, expected, "{asked}");
        assert_eq!(told.has(&format!("--imgsz {asked} must be")), asked != expected, "{:?}", told.0);
    }
}

/// With a nominal batch of more pictures than an epoch has, the first batch of all is the only one that a step is taken after.
#[test]
fn gradients_left_without_a_step_end_with_their_epoch() {
    let (_folder, mut options) = place();
    options.rect = true;
    options.noautoanchor = true;
    options.nominal_batch = 1000 * options.batch_size;
    // The step's rate is 0: an epoch is like the other.
    let hyp = Hyp { warmup_bias_lr: 0.0, ..Hyp::default().without_augmentation() };
    let mut trainer = Trainer::new(options, hyp, &Device::Cpu, &mut |_: Event<'_>| {}).unwrap();
    let mut gradients = |epoch| {
        assert!(trainer.train_epoch(epoch, &Stop::default(), &mut |_: Event<'_>| {}).unwrap());
        assert_eq!((trainer.state.batch, trainer.optimizer.steps()), (2, 1));
        trainer.state.batch = 0;
        let state = trainer.optimizer.state();
        let of = |name: &str| state[&format!("optimizer.gradient.{name}")].flatten_all().unwrap().to_vec1::<f32>();
        ["model.0.conv.weight", "model.3.m.0.bias"].map(|name| of(name).unwrap())
    };
    let (first, second, third) = (gradients(0), gradients(1), gradients(2));
    assert!(second.iter().flatten().any(|value| *value != 0.0));
    assert_ne!(first, second);
    assert_eq!(second, third);
}

#[test]
fn a_head_with_classes_of_its_own_is_told() {
    let (folder, options) = place();
    fs::write(folder.path().join("network.yaml"), NETWORK.replace("[nc, anchors]", "[30, anchors]")).unwrap();
    let problem = Trainer::new(options, Hyp::default(), &Device::Cpu, &mut |_: Event<'_>| {}).unwrap_err().to_string();
    assert!(problem.contains("has 30 classes of its own, the data set 5: write `nc`"), "{problem}");
}

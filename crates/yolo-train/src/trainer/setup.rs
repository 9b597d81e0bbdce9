//! From options to a run that can start.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use candle_core::Device;
use yolo_core::NetworkConfig;
use yolo_core::config::Anchors;
use yolo_core::weights::{Weights, checkpoint};

use super::checkpoint::State;
use super::events::{Event, Listener};
use super::learner::Learner;
use super::results::Results;
use super::{TrainOptions, Trainer, anchors, pictures, weights_file};
use crate::data::{DatasetConfig, Loader, LoaderOptions, MaskOptions, Split};
use crate::loss::{Loss, scaled_gains};
use crate::optim::{EarlyStopping, Group, Optimizer, Schedule};
use crate::{Error, Hyp, Result};

/// Warnings about labels that are told one by one.
const SPELLED_OUT: usize = 20;

impl Trainer {
    /// Sets up a new run in `options.save_dir`, which is made where it is missing.
    ///
    /// # Errors
    /// Where an option is out of its range, the network or the data set cannot be used, or the folder belongs to a run that is
    /// going on or can be resumed.
    pub fn new(options: TrainOptions, hyp: Hyp, device: &Device, listener: &mut Listener<'_>) -> Result<Self> {
        let lock = claim(&options.save_dir)?;
        let resumable = weights_file(&options.save_dir, "resume");
        if resumable.is_file() {
            return Err(Error::Training(format!(
                "{} holds a run that was cut: go on with it by --resume, choose another --name, or remove {}",
                options.save_dir.display(),
                resumable.display()
            )));
        }
        Self::set_up(options, hyp, device, None, lock, listener)
    }

    /// Takes up a run that was cut, from its folder or a file in its `weights`; its options are those that it began with.
    /// `change` may adapt them to this machine (device, workers).
    ///
    /// # Errors
    /// Where there is no such run, it is finished or going on, or its data set is another by now.
    pub fn resume(
        run: &Path,
        device: impl FnOnce(&TrainOptions) -> Result<Device>,
        listener: &mut Listener<'_>,
    ) -> Result<Self> {
        let folder = run_folder(run)?;
        let file = weights_file(&folder, "resume");
        if !file.is_file() {
            let problem = if weights_file(&folder, "last").is_file() {
                "the run is finished, there is nothing to resume"
            } else {
                "there is no run to resume: weights/resume.safetensors is missing"
            };
            return Err(Error::data(&folder, problem));
        }
        let mut options = TrainOptions::open(folder.join("opt.yaml"))?;
        options.save_dir.clone_from(&folder);
        let mut warn = |warning| listener(Event::Warning(warning));
        let hyp = Hyp::open(&folder.join("hyp.yaml").to_string_lossy(), &mut warn)?;
        let lock = claim(&folder)?;
        let weights = Weights::open(&file)?;
        let device = device(&options)?;
        Self::set_up(options, hyp, &device, Some(&weights), lock, listener)
    }

    fn set_up(
        mut options: TrainOptions,
        hyp: Hyp,
        device: &Device,
        resumed: Option<&Weights>,
        lock: File,
        listener: &mut Listener<'_>,
    ) -> Result<Self> {
        // The label smoothing of the command line is the run's.
        let hyp = Hyp { label_smoothing: options.label_smoothing, ..hyp };
        options.check(&hyp)?;
        let data = DatasetConfig::open(&options.data)?;
        let classes = if options.single_cls { 1 } else { data.classes().len() };
        let pretrained = match (&options.weights, resumed) {
            (Some(file), None) => Some(open_weights(file)?),
            _ => None,
        };
        let config = network(&options, &hyp, resumed.or(pretrained.as_ref()), classes, resumed.is_some(), listener)?;
        let own_anchors = options.cfg.is_some() || hyp.anchor_count().is_some();
        let frozen = layers_to_freeze(&options.freeze, config.backbone.len() + config.head.len());
        let (mut learner, transfer) =
            Learner::new(&config, options.seed, pretrained.as_ref(), own_anchors, &frozen, device)?;
        if let (Some(file), Some(_)) = (&options.weights, &pretrained) {
            let (taken, all) = (transfer.taken, transfer.all);
            listener(Event::Notice(format!("Transferred {taken}/{all} items from {}", file.display())));
            if taken == 0 {
                listener(Event::Warning("no tensor of the weights fits the network: it starts from scratch".into()));
            }
        }
        if let Some(temperature) = learner.graph().config().dynamic.temperature {
            let (last, end) = (temperature.at(options.epochs.saturating_sub(1)), temperature.at_inference());
            if last != end {
                listener(Event::Warning(format!(
                    "the temperature of the routing is {last} still in the last of {} epochs, and the saved weights run at \
                     {end}: train for more epochs, or let `dynamic: temperature: epochs` in the network's YAML be fewer",
                    options.epochs
                )));
            }
        }
        for name in learner.frozen() {
            listener(Event::Notice(format!("freezing {name}")));
        }
        if learner.parameters().is_empty() {
            return Err(Error::Argument {
                argument: "freeze",
                problem: "every layer is frozen, nothing is left to train".into(),
            });
        }

        let stride = learner.graph().stride();
        // As YOLOv5: maps of a single cell are no pictures to train on.
        let fitted = (options.imgsz.div_ceil(stride) * stride).max(2 * stride);
        if fitted != options.imgsz {
            let asked = options.imgsz;
            listener(Event::Warning(format!(
                "--imgsz {asked} must be a multiple of the network's stride {stride}, and at least two of them, updating to {fitted}"
            )));
            options.imgsz = fitted;
        }
        listener(Event::Notice(learner.graph().summary(options.imgsz)?.line()));
        let segments = learner.graph().num_masks() > 0;
        let train = open_loader(&data, Split::Train, training(&options, &hyp, stride, segments)?, listener)?;
        let val = open_loader(&data, Split::Val, validation(&options, stride, segments)?, listener)?;
        let names = train.dataset().classes().to_vec();
        let (pictures, batches) = (train.labels().len(), train.len());

        let accumulate = Schedule::accumulation(options.batch_size, options.nominal_batch);
        let decay = hyp.weight_decay * (options.batch_size * accumulate) as f64 / options.nominal_batch.max(1) as f64;
        let mut optimizer = Optimizer::new(options.optimizer, learner.parameters(), hyp.lr0, hyp.momentum, decay)?;
        let sizes = optimizer.group_sizes();
        let [bias, weight, norm] = [Group::Bias, Group::Weight, Group::Norm].map(|group| sizes[group as usize]);
        listener(Event::Notice(format!(
            "optimizer: {}(lr={}) with parameter groups {norm} weight(decay=0.0), {weight} weight(decay={decay}), {bias} bias",
            options.optimizer, hyp.lr0
        )));
        let schedule = Schedule {
            lr0: hyp.lr0,
            lrf: hyp.lrf,
            epochs: options.epochs,
            cosine: options.cos_lr,
            batches,
            warmup: Schedule::warmup_batches(hyp.warmup_epochs, batches),
            warmup_bias_lr: hyp.warmup_bias_lr,
            warmup_momentum: hyp.warmup_momentum,
            momentum: hyp.momentum,
            batch: options.batch_size,
            nominal: options.nominal_batch,
        };

        let mut state = State::new(pictures, batches, classes);
        if let Some(weights) = resumed {
            state = State::of(weights)?;
            if (state.pictures, state.batches) != (pictures, batches) || state.maps.len() != classes {
                return Err(Error::Training(format!(
                    "the run began with {} pictures in {} batches and {} classes; {} has {pictures} in {batches} and {classes} \
                     now: a run goes on only with its own data",
                    state.pictures,
                    state.batches,
                    state.maps.len(),
                    options.data.display()
                )));
            }
            learner.restore(weights, "network.", "average.", state.updates)?;
            optimizer.restore(weights, state.steps)?;
        } else if !options.noautoanchor {
            fit_anchors(&mut learner, &train, &options, &hyp, listener)?;
        }
        let gains = scaled_gains(&hyp, learner.graph().strides().len(), classes, options.imgsz);
        let masks = learner.graph().num_masks();
        let loss = Loss::new(&gains, classes, masks, learner.anchors()?, options.box_loss);

        let mut results = Results::new(&options.save_dir, segments);
        if resumed.is_some() {
            results.resume(state.epoch)?;
        } else {
            options.save(&hyp)?;
            if !options.noplots {
                pictures::of_labels(&options.save_dir, train.labels(), &names)?;
            }
        }
        let stopping = EarlyStopping::resumed(options.patience, state.best_fitness.0, state.best_epoch);
        let device = device.clone();
        Ok(Self {
            options,
            device,
            names,
            learner,
            optimizer,
            schedule,
            loss,
            train,
            val,
            state,
            stopping,
            results,
            _lock: lock,
        })
    }
}

/// The network that is asked for, with the data set's classes.
fn network(
    options: &TrainOptions,
    hyp: &Hyp,
    weights: Option<&Weights>,
    classes: usize,
    resumed: bool,
    listener: &mut Listener<'_>,
) -> Result<NetworkConfig> {
    let mut config = match (&options.cfg, weights) {
        (Some(cfg), _) if !resumed => NetworkConfig::open(cfg)?,
        (_, Some(weights)) => NetworkConfig::of_weights(weights)?,
        _ => {
            let problem = "neither a network nor weights to start from: name one with --cfg or --weights";
            return Err(Error::Argument { argument: "cfg", problem: problem.into() });
        }
    };
    if let (Some(cfg), true) = (&options.cfg, resumed) {
        // In messages a resumed run's network goes by the name that it was given.
        config.name.clone_from(cfg);
    }
    if config.nc != classes {
        listener(Event::Notice(format!("Overriding {} nc={} with nc={classes}", config.stem(), config.nc)));
        config = config.with_classes(classes);
    }
    if let (Some(count), false) = (hyp.anchor_count(), resumed) {
        listener(Event::Notice(format!("Overriding {} anchors with anchors={count}", config.stem())));
        config.anchors = Anchors::Count(count);
    }
    Ok(config)
}

/// Weights of either form.
fn open_weights(file: &Path) -> Result<Weights> {
    let checkpoint = file.extension().is_some_and(|ending| ending == "pt" || ending == "pth");
    if checkpoint { Ok(checkpoint::read(file)?.to_weights()?) } else { Ok(Weights::open(file)?) }
}

/// A single number stands for all layers below it, and may be more than the network's `layers`: all of them then.
fn layers_to_freeze(freeze: &[usize], layers: usize) -> Vec<usize> {
    match freeze {
        [count] => (0..layers.min(*count)).collect(),
        layers => layers.to_vec(),
    }
}

fn masks(options: &TrainOptions, segments: bool) -> Option<MaskOptions> {
    segments.then_some(MaskOptions { ratio: options.mask_ratio, overlap: options.overlap_mask })
}

fn training(options: &TrainOptions, hyp: &Hyp, stride: usize, segments: bool) -> Result<LoaderOptions> {
    let size = u32::try_from(options.imgsz).unwrap_or(u32::MAX);
    Ok(LoaderOptions {
        stride: stride as u32,
        rect: options.rect,
        shuffle: !options.rect,
        cache: options.picture_cache()?,
        single_class: options.single_cls,
        workers: options.workers,
        seed: options.seed,
        segments: masks(options, segments),
        ..LoaderOptions::training(size, options.batch_size, hyp.clone())
    })
}

fn validation(options: &TrainOptions, stride: usize, segments: bool) -> Result<LoaderOptions> {
    let size = u32::try_from(options.imgsz).unwrap_or(u32::MAX);
    Ok(LoaderOptions {
        stride: stride as u32,
        single_class: options.single_cls,
        workers: options.workers,
        segments: masks(options, segments),
        ..LoaderOptions::validation(size, options.batch_size.saturating_mul(2).min(65_536))
    })
}

/// Opens a split, and tells what was found of it.
fn open_loader(
    data: &DatasetConfig,
    split: Split,
    options: LoaderOptions,
    listener: &mut Listener<'_>,
) -> Result<Loader> {
    let told = Mutex::new(&mut *listener);
    let loader = Loader::open(data, split, options, &|done, all| {
        // Pictures are looked at by several threads; whoever comes while another one tells need not.
        if let Ok(mut listener) = told.try_lock() {
            listener(Event::Labels { split, done, all });
        }
    })?;
    let counts = loader.dataset().counts();
    let from = if loader.dataset().from_cache() { " (from the label cache)" } else { "" };
    listener(Event::Notice(format!(
        "{}: {} images, {} backgrounds, {} corrupt{from}",
        split.name(),
        // As YOLOv5: those with a label file, even an empty one.
        counts.found,
        counts.missing + counts.empty,
        counts.corrupt
    )));
    let messages = loader.dataset().messages();
    for message in messages.iter().take(SPELLED_OUT).chain(loader.warnings()) {
        listener(Event::Warning(message.clone()));
    }
    if messages.len() > SPELLED_OUT {
        listener(Event::Warning(format!("and {} more of these", messages.len() - SPELLED_OUT)));
    }
    Ok(loader)
}

fn fit_anchors(
    learner: &mut Learner,
    train: &Loader,
    options: &TrainOptions,
    hyp: &Hyp,
    listener: &mut Listener<'_>,
) -> Result<()> {
    let old = learner.anchors_in_pixels()?;
    let Some(fit) = anchors::fit(train.labels(), &old, options.imgsz, hyp.anchor_t, options.seed) else {
        return Ok(());
    };
    let start =
        format!("AutoAnchor: {:.2} anchors/target, {:.3} Best Possible Recall (BPR). ", fit.per_target, fit.recall);
    let (Some((better, recall)), old) = (fit.better, fit.recall) else {
        let end = if fit.recall > 0.98 {
            "Current anchors are a good fit to dataset"
        } else {
            "Anchors are a poor fit to dataset, and no better ones were found: the original anchors are used"
        };
        listener(Event::Notice(start + end));
        return Ok(());
    };
    learner.set_anchors(&better)?;
    let list =
        |level: &Vec<[f64; 2]>| level.iter().map(|[w, h]| format!("{w:.0},{h:.0}")).collect::<Vec<_>>().join(", ");
    let levels: Vec<String> = better.iter().map(list).collect();
    listener(Event::Notice(format!(
        "{start}Anchors are a poor fit to dataset, new ones raise the recall from {old:.3} to {recall:.3}: {}",
        levels.join("; ")
    )));
    Ok(())
}

/// Takes hold of a run's folder: only one run at a time writes there.
fn claim(folder: &Path) -> Result<File> {
    let weights = folder.join("weights");
    std::fs::create_dir_all(&weights).map_err(|cause| Error::io(&weights, cause))?;
    let path = weights.join(".lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|cause| Error::io(&path, cause))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let problem = "another run is writing into this folder: choose another --name";
            Err(Error::data(folder, problem))
        }
        // A file system without locks is no reason not to train.
        Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// The folder of a run, which may be named by a file of its weights.
fn run_folder(run: &Path) -> Result<PathBuf> {
    let folder = if run.is_file() { run.parent().and_then(Path::parent) } else { Some(run) };
    match folder {
        Some(folder) if folder.is_dir() => Ok(folder.to_path_buf()),
        Some(folder) if folder.as_os_str().is_empty() => Ok(PathBuf::from(".")),
        _ => Err(Error::data(run, "no such run: expected its folder (runs/train/exp) or a file of its weights")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_layers_or_a_list() {
        assert_eq!(layers_to_freeze(&[0], 6), [0usize; 0]);
        assert_eq!(layers_to_freeze(&[3], 6), [0, 1, 2]);
        assert_eq!(layers_to_freeze(&[0, 4], 6), [0, 4]);
        assert_eq!(layers_to_freeze(&[usize::MAX], 3), [0, 1, 2]);
    }

    #[test]
    fn a_folder_has_one_run_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = claim(folder.path()).unwrap();
        let error = claim(folder.path()).unwrap_err().to_string();
        assert!(error.contains("another run"), "{error}");
        drop(first);
        assert!(claim(folder.path()).is_ok());
    }

    #[test]
    fn a_run_is_named_by_its_folder_or_its_weights() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("weights")).unwrap();
        let last = weights_file(folder.path(), "last");
        std::fs::write(&last, "").unwrap();
        assert_eq!(run_folder(&last).unwrap(), folder.path());
        assert_eq!(run_folder(folder.path()).unwrap(), folder.path());
        assert!(run_folder(&folder.path().join("none")).is_err());
    }
}

//! Puts results on disk: every file whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use yolo_core::{Error, files};

use super::record::{Record, Wanted};
use super::run_folder::{cannot_make, class_folder, increment_path};

const LABELS: &str = "labels";
const CROPS: &str = "crops";
const TABLE: &str = "predictions.csv";
const TABLE_HEAD: [&str; 3] = ["Image Name", "Prediction", "Confidence"];

/// What the files of one picture are called.
#[derive(Debug, Clone)]
pub(crate) struct FileNames {
    /// The drawn picture.
    pub(crate) picture: PathBuf,
    /// The label file.
    pub(crate) labels: PathBuf,
    /// The crops, before they are numbered.
    pub(crate) crops: PathBuf,
}

/// Writes a run's results into its folder.
pub(crate) struct Writer {
    folder: PathBuf,
    table: Option<csv::Writer<File>>,
}

impl Writer {
    /// Writes into `folder`, which is there.
    ///
    /// The table grows in a file without a name and gets its name in [`Writer::finish`]: it is not held in memory, and a
    /// run that is killed leaves nothing of it. Rows of an earlier run in the same folder come first, as with YOLOv5.
    ///
    /// # Errors
    /// A folder that cannot be written in, and a file in the table's place that is none.
    pub(crate) fn new(folder: PathBuf, wanted: &Wanted) -> anyhow::Result<Self> {
        if wanted.txt {
            let labels = folder.join(LABELS);
            fs::create_dir_all(&labels).with_context(|| cannot_make(&labels))?;
        }
        let table = if wanted.csv {
            let path = folder.join(TABLE);
            let mut file = tempfile::tempfile_in(&folder).map_err(|source| Error::io(&path, source))?;
            let continued = copy_table(&path, &mut file)?;
            let mut table = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(file);
            if !continued {
                table.write_record(TABLE_HEAD).map_err(|error| table_error(&path, error))?;
            }
            Some(table)
        } else {
            None
        };
        Ok(Self { folder, table })
    }

    /// The run's folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of label files.
    pub(crate) fn labels_folder(&self) -> PathBuf {
        self.folder.join(LABELS)
    }

    /// How many label files there are.
    pub(crate) fn count_labels(&self) -> usize {
        let Ok(entries) = fs::read_dir(self.labels_folder()) else { return 0 };
        entries.flatten().filter(|entry| entry.path().extension().is_some_and(|ending| ending == "txt")).count()
    }

    /// Writes one picture's files.
    ///
    /// # Errors
    /// A file that cannot be written; nothing of it is left.
    pub(crate) fn write(&mut self, names: &FileNames, record: &Record, wanted: &Wanted) -> anyhow::Result<()> {
        if let Some(picture) = &record.picture {
            write_file(&self.folder.join(&names.picture), picture)?;
        }
        if wanted.txt {
            let path = self.labels_folder().join(&names.labels);
            match &record.labels {
                Some(labels) => write_file(&path, labels.as_bytes())?,
                None => remove_stale(&path)?,
            }
        }
        if let Some(table) = &mut self.table {
            for row in &record.rows {
                table.write_record(row).map_err(|error| table_error(&self.folder.join(TABLE), error))?;
            }
        }
        for (class, crop) in &record.crops {
            let folder = self.folder.join(CROPS).join(class_folder(class));
            fs::create_dir_all(&folder).with_context(|| cannot_make(&folder))?;
            let wanted = folder.join(&names.crops);
            let path = increment_path(&wanted).with_context(|| format!("{}: too many crops", wanted.display()))?;
            write_file(&path, crop)?;
        }
        Ok(())
    }

    /// Gives the table its name.
    ///
    /// # Errors
    /// A table that cannot be written.
    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        let Some(table) = self.table.take() else { return Ok(()) };
        let path = self.folder.join(TABLE);
        let io = |source| Error::io(&path, source);
        let mut rows = table.into_inner().map_err(|error| io(error.into_error()))?;
        rows.rewind().map_err(io)?;
        files::write_whole(&path, |out| io::copy(&mut rows, out).map(drop).map_err(io))?;
        Ok(())
    }

    /// Takes the folders of a run that came to nothing away again; what is in them stays.
    pub(crate) fn remove_if_empty(&self) {
        // Folders that hold something refuse, which is what is wanted.
        let _ = fs::remove_dir(self.labels_folder());
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Copies the table of an earlier run, where there is one.
fn copy_table(path: &Path, to: &mut File) -> anyhow::Result<bool> {
    let mut from = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        file => BufReader::new(file.map_err(|source| Error::io(path, source))?),
    };
    let io = |source| Error::io(path, source);
    let mut head = Vec::new();
    from.by_ref().take(1 << 10).read_until(b'\n', &mut head).map_err(io)?;
    if head.trim_ascii_end() != TABLE_HEAD.join(",").as_bytes() {
        bail!("{}: expected a table of predictions, which begins with {}", path.display(), TABLE_HEAD.join(","));
    }
    to.write_all(&head).map_err(io)?;
    io::copy(&mut from, to).map_err(io)?;
    Ok(true)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    files::write_whole(path, |out| out.write_all(bytes).map_err(|source| Error::io(path, source)))
}

/// A label file of an earlier run with `--exist-ok` would say that something was found.
fn remove_stale(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}

fn table_error(path: &Path, error: csv::Error) -> anyhow::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(source) => Error::io(path, source).into(),
        kind => anyhow::anyhow!("{}: {kind:?}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{LabelForm, Place};
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            picture: true,
            txt: true,
            csv: true,
            crops: true,
            json: false,
            labels: LabelForm { place: Place::Centre, confidence: false },
            style: yolo_core::picture::Style::default(),
        }
    }

    fn names() -> FileNames {
        FileNames { picture: "a.jpg".into(), labels: "a.txt".into(), crops: "a.jpg".into() }
    }

    fn listing(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_table_is_quoted_as_python_quotes() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(folder.path().to_path_buf(), &wanted()).unwrap();
        let rows =
            [["a.jpg", "cat, big", "0.90"], ["say \"hi\".jpg", "dog", "0.10"], ["two\nlines.jpg", "x y", "1.00"]]
                .map(|row| row.map(String::from));
        writer.write(&names(), &Record { rows: rows.into(), ..Record::default() }, &wanted()).unwrap();
        assert_eq!(listing(folder.path()), ["labels"]);
        writer.finish().unwrap();
        assert_eq!(listing(folder.path()), ["labels", "predictions.csv"]);
        // What csv.writer of CPython 3.11 writes for these rows.
        let expected = "Image Name,Prediction,Confidence\r\na.jpg,\"cat, big\",0.90\r\n\"say \"\"hi\"\".jpg\",dog,0.10\r\n\"two\nlines.jpg\",x y,1.00\r\n";
        assert_eq!(fs::read_to_string(folder.path().join("predictions.csv")).unwrap(), expected);
    }

    #[test]
    fn crops_are_numbered_and_labels_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(folder.path().to_path_buf(), &wanted()).unwrap();
        let crops = [("cat/dog", b"1"), ("cat/dog", b"2")].map(|(name, bytes)| (name.to_string(), bytes.to_vec()));
        let record = Record { labels: Some("0 1\n".into()), crops: crops.into(), ..Record::default() };
        writer.write(&names(), &record, &wanted()).unwrap();
        assert_eq!(fs::read(folder.path().join("crops/cat_dog/a.jpg")).unwrap(), b"1");
        assert_eq!(fs::read(folder.path().join("crops/cat_dog/a2.jpg")).unwrap(), b"2");
        assert_eq!(writer.count_labels(), 1);
        writer.write(&names(), &Record::default(), &wanted()).unwrap();
        assert_eq!(writer.count_labels(), 0);
    }

    #[test]
    fn only_empty_folders_go() {
        let project = tempfile::tempdir().unwrap();
        let folder = project.path().join("exp");
        fs::create_dir(&folder).unwrap();
        let writer = Writer::new(folder.clone(), &wanted()).unwrap();
        fs::write(folder.join("labels/a.txt"), "").unwrap();
        writer.remove_if_empty();
        assert!(folder.join("labels/a.txt").exists());
        fs::remove_file(folder.join("labels/a.txt")).unwrap();
        writer.remove_if_empty();
        assert!(!folder.exists());
    }
}

//! Hostile pickles, written by hand: each is small and well-formed as a file, and asks for more than any machine has.

use std::io::Write;

use yolo_core::Result;
use yolo_core::weights::checkpoint::{self, Checkpoint};
use zip::write::SimpleFileOptions;

/// Reads a checkpoint with this pickle and one storage, `0`, of four bytes.
fn read(pickle: &[u8]) -> Result<Checkpoint> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut zip = zip::ZipWriter::new(file.reopen().unwrap());
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let pickle = [b"\x80\x02", pickle, b"."].concat();
    for (name, bytes) in [("archive/data.pkl", pickle.as_slice()), ("archive/data/0", &1.5f32.to_le_bytes())] {
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    checkpoint::read(file.path())
}

fn refused(pickle: &[u8], words: &str) {
    let error = read(pickle).expect_err(words).to_string();
    assert!(error.contains(words) && error.len() < 2000 && !error.contains(char::is_control), "{error}");
}

fn text(text: &str) -> Vec<u8> {
    [b"X", (text.len() as u32).to_le_bytes().as_slice(), text.as_bytes()].concat()
}

fn dict(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let entries: Vec<u8> = entries.iter().flat_map(|(key, value)| [&text(key), *value].concat()).collect();
    [b"}(", entries.as_slice(), b"u"].concat()
}

fn module(attributes: &[(&str, &[u8])]) -> Vec<u8> {
    let attributes = [[("_modules", b"}".as_slice())].as_slice(), attributes].concat();
    [b"cmodels.yolo\nModel\n)\x81".as_slice(), &dict(&attributes), b"b"].concat()
}

/// A tensor on storage `0` of `elements` floats; offset, shape and strides are pickled numbers.
fn tensor(elements: u8, offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let storage = [
        b"(".as_slice(),
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        &[b'K', elements],
        b"tQ",
    ];
    let storage = storage.concat();
    [b"ctorch._utils\n_rebuild_tensor_v2\n(", storage.as_slice(), offset, b"(", shape, b"t(", strides, b"t\x89NtR"]
        .concat()
}

fn one() -> Vec<u8> {
    tensor(1, b"K\x00", b"K\x01", b"K\x01")
}

fn number(number: i64) -> Vec<u8> {
    [b"\x8a\x08", number.to_le_bytes().as_slice()].concat()
}

#[test]
fn the_hand_written_form_is_right() {
    let checkpoint = read(&module(&[("_parameters", &dict(&[("w", &one())]))])).unwrap();
    let sources: Vec<_> = checkpoint.sources().collect();
    assert_eq!((sources[0].name(), sources[0].bytes().into_owned()), ("w", 1.5f32.to_le_bytes().to_vec()));
}

#[test]
fn tensors_beyond_their_storage() {
    let state = |tensor: Vec<u8>| dict(&[("w", &tensor), ("good", &one())]);
    let beyond = "reaches beyond its record";
    refused(&state(tensor(1, b"K\x01", b"K\x01", b"K\x01")), beyond);
    refused(&state(tensor(1, b"K\x00", b"K\x02", b"K\x01")), beyond);
    refused(&state(tensor(1, b"K\x00", b"K\x02K\x02", &[number(i64::MAX), number(i64::MAX)].concat())), beyond);
    refused(&state(tensor(1, &number(i64::MAX), b"K\x01", b"K\x01")), beyond);
    refused(&state(tensor(1, b"K\x00", &number(i64::MAX).repeat(3), b"K\x00K\x00K\x00")), beyond);
    refused(&state(tensor(2, b"K\x00", b"K\x01", b"K\x01")), "needs 2 elements");
    // Repeating one number costs nothing in the file, and a thousand million of them would fill the memory.
    refused(&state([b"c".as_slice(), &b"\x1b".repeat(100_000), b"\nx\n)R"].concat()), "...");
    refused(&state(tensor(1, b"K\x00", &number(1 << 30), b"K\x00")), "would take 4294967296 bytes");
    refused(&state(tensor(1, b"K\x00", &number(-1), b"K\x01")), "is not run");
    // Dimensions of one element may have any stride, and an empty tensor any offset.
    let odd = tensor(1, b"K\x00", b"K\x01K\x01", &[number(i64::MAX), number(i64::MAX)].concat());
    assert_eq!(read(&state(odd)).unwrap().sources().next().unwrap().bytes().len(), 4);
    let empty = tensor(1, &number(i64::MAX), &[b"K\x00".to_vec(), number(i64::MAX)].concat(), b"K\x01K\x01");
    assert_eq!(read(&state(empty)).unwrap().sources().next().unwrap().bytes().len(), 0);
    let shared = tensor(1, b"K\x00", &number(1 << 14), b"K\x00");
    let names: Vec<_> = (0..2000).map(|i| format!("w{i}")).collect();
    let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), shared.as_slice())).collect();
    refused(&dict(&many), "would take");
}

#[test]
fn nesting_does_not_reach_the_stack() {
    const DEEP: usize = 1_000_000;
    let nested = [b"]".repeat(DEEP), b"a".repeat(DEEP - 1)].concat();
    refused(&nested, "holds a list");
    let parameters = dict(&[("w", &one())]);
    let checkpoint = read(&module(&[("_parameters", &parameters), ("yaml", &dict(&[("head", &nested)]))])).unwrap();
    assert_eq!(checkpoint.metadata().yaml, None);
    assert!(checkpoint.notes()[0].contains("larger than any network's"), "{:?}", checkpoint.notes());
}

#[test]
fn modules_within_themselves_and_within_each_other() {
    // Memo 0 is the module, and also its own child.
    let own = [b"cmodels.yolo\nModel\n)\x81q\x00".as_slice(), &dict(&[("_modules", &dict(&[("a", b"h\x00")]))]), b"b"];
    refused(&own.concat(), "nested more than 64 deep");
    // Forty levels, each with the next one twice: 2^40 modules.
    let mut tower = module(&[]);
    for _ in 0..40 {
        tower.extend_from_slice(b"q\x000");
        tower.extend(module(&[("_modules", &dict(&[("a", b"h\x00"), ("b", b"h\x00")]))]));
    }
    refused(&tower, "attributes, no network has");
}

#[test]
fn shared_texts_do_not_multiply() {
    let long = [text(&"n".repeat(900_000)), b"q\x00".to_vec()].concat();
    let names = [b"(".as_slice(), &long, &b"h\x00".repeat(90_000), b"l"].concat();
    let parameters = dict(&[("w", &one())]);
    let yaml = dict(&[("anchors", &names)]);
    let checkpoint = read(&module(&[("_parameters", &parameters), ("names", &names), ("yaml", &yaml)])).unwrap();
    assert_eq!((&checkpoint.metadata().names, &checkpoint.metadata().yaml), (&None, &None));
}

#[test]
fn more_operations_than_any_network() {
    refused(&b"N0".repeat(3_000_000), "more than 4000000 operations");
    // A list of a million, copied by each OrderedDict(list) that follows.
    let list = [b"(".as_slice(), &b"N".repeat(1_000_000), b"lq\x000"].concat();
    let copies = b"ccollections\nOrderedDict\nh\x00\x85R".repeat(100_000);
    refused(&[list, copies].concat(), "more than 4000000 operations");
}

#[test]
fn broken_programs() {
    for (program, words) in [
        (b"".as_slice(), "stack is empty"),
        (b"(K\x01", "holds a number"),
        (b"K\x01(a", "stack is empty"),
        (b"t", "a mark is missing"),
        (b"h\x07", "object 7"),
        (b"NNa", "something else than a list"),
        (b"N(NNu", "something else than a dict"),
        (b"}(Nu", "key without a value"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "ends too soon"),
        (b"X\xff\xff\xff\xff", "ends too soon"),
        (b"cos", "a name without an end"),
        (b"N)Q", "something else than a storage"),
        (b"I1\n", "opcode 0x49"),
        (b"\x80\x01N", "protocol 1"),
    ] {
        refused(program, words);
    }
}

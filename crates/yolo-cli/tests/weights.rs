//! `yolo convert` and `yolo fetch`: the binary itself, against files and a server on loopback.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use yolo_core::weights::Weights;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../yolo-core/tests/data/checkpoints").join(name)
}

fn yolo(args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_yolo"));
    for proxy in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command.args(args).envs(environment.iter().copied()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The one line of a failure, after checking that it is one, with status 2.
fn failure(output: &Output) -> String {
    let message = text(&output.stderr);
    let errors: Vec<_> = message.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!((output.status.code(), errors.len()), (Some(2), 1), "{message}");
    assert!(output.stdout.is_empty());
    errors[0].to_string()
}

/// A server that gives every request the same answer, and counts them.
struct Server {
    url: String,
    requests: Arc<AtomicUsize>,
}

impl Server {
    fn new(status: &'static str, announced: usize, body: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/release", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 4096];
                if stream.read(&mut request).unwrap_or(0) == 0 {
                    continue;
                }
                counter.fetch_add(1, Ordering::SeqCst);
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {announced}\r\nConnection: close\r\n\r\n");
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            }
        });
        Self { url, requests }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// A cache folder, and that nothing is in it.
struct Cache(tempfile::TempDir);

impl Cache {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn fetch(&self, name: &str, release: &str) -> Output {
        yolo(&["fetch", name], &[("YOLO_CACHE", self.0.path().to_str().unwrap()), ("YOLO_WEIGHTS_URL", release)])
    }

    fn files(&self) -> Vec<String> {
        fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

#[test]
fn fetched_and_converted_once() {
    let body = fs::read(fixture("model_f16.pt")).unwrap();
    let server = Server::new("200 OK", body.len(), body);
    let cache = Cache::new();
    for name in ["yolov5s-seg", "yolov5s-seg.pt", "yolov5s-seg.safetensors"] {
        let output = cache.fetch(name, &server.url);
        let path = text(&output.stdout);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(Path::new(path.trim()), cache.0.path().join("yolov5s-seg.safetensors"));
        let weights = Weights::open(path.trim()).unwrap();
        assert_eq!(weights.shape("model.0.conv.weight"), Some([4, 3, 3, 3].as_slice()));
        assert_eq!(weights.metadata().names.as_deref().unwrap().len(), 2);
    }
    assert_eq!(server.requests(), 1);
    assert_eq!(cache.files(), ["yolov5s-seg.safetensors"]);
}

#[test]
fn many_at_once_leave_one_whole_file() {
    let body = fs::read(fixture("model_f16.pt")).unwrap();
    let server = Server::new("200 OK", body.len(), body);
    let cache = Cache::new();
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| assert!(cache.fetch("yolov5m", &server.url).status.success()));
        }
    });
    assert_eq!(cache.files(), ["yolov5m.safetensors"]);
    Weights::open(cache.0.path().join("yolov5m.safetensors")).unwrap();
}

#[test]
fn a_failed_download_says_what_to_do_and_leaves_nothing() {
    let body = fs::read(fixture("model_f16.pt")).unwrap();
    let len = body.len();
    let refused = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let half = body[..len / 2].to_vec();
    let page = b"<html>please log in</html>".to_vec();
    let trained_size = 4_062_133;
    for (what, url, name, words) in [
        ("offline", refused, "yolov5s", "the server cannot be reached".to_string()),
        ("no such file", Server::new("404 Not Found", 0, vec![]).url, "yolov5s", "no such file (404)".into()),
        ("overloaded", Server::new("503 Service Unavailable", 0, vec![]).url, "yolov5s", "status 503".into()),
        (
            "cut off",
            Server::new("200 OK", len, half).url,
            "yolov5s",
            format!("broke off after {} of {len} bytes", len / 2),
        ),
        ("a page", Server::new("200 OK", page.len(), page).url, "yolov5s", "text file".into()),
        (
            "wrong size",
            Server::new("200 OK", len, body).url,
            "yolov5n",
            format!("{len} bytes, expected {trained_size}"),
        ),
        ("wrong sum", Server::new("200 OK", trained_size, vec![7; trained_size]).url, "yolov5n", "SHA-256".into()),
    ] {
        let cache = Cache::new();
        let message = failure(&cache.fetch(name, &url));
        assert!(message.contains(&words), "{what}: {message}");
        let by_hand = cache.0.path().join(format!("{name}.pt"));
        let advice = format!("download {url}/{name}.pt yourself and put it at {}", by_hand.display());
        assert!(message.contains(&advice), "{what}: {message}");
        assert_eq!(cache.files(), [""; 0], "{what}");
    }
}

#[test]
fn a_file_put_into_the_cache_by_hand_is_taken() {
    let cache = Cache::new();
    fs::copy(fixture("model_f16.pt"), cache.0.path().join("yolov5x6.pt")).unwrap();
    let output = cache.fetch("yolov5x6", "http://127.0.0.1:1");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).trim().ends_with("yolov5x6.safetensors"));

    fs::copy(fixture("model_f16.pt"), cache.0.path().join("yolov5n.pt")).unwrap();
    let message = failure(&cache.fetch("yolov5n", "http://127.0.0.1:1"));
    assert!(message.contains("expected 4062133") && message.contains("remove it"), "{message}");
}

#[test]
fn a_checkpoint_is_converted_once_by_its_content() {
    let (cache, folder) = (Cache::new(), tempfile::tempdir().unwrap());
    let path = folder.path().join("best.pt");
    let resolve = || {
        let output = cache.fetch(path.to_str().unwrap(), "http://127.0.0.1:1");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).trim().to_string()
    };
    fs::copy(fixture("model_f16.pt"), &path).unwrap();
    let first = resolve();
    let written = fs::metadata(&first).unwrap().modified().unwrap();
    assert_eq!(resolve(), first);
    assert_eq!(fs::metadata(&first).unwrap().modified().unwrap(), written);
    fs::copy(fixture("ema_f32_protocol4.pt"), &path).unwrap();
    assert_ne!(resolve(), first);
    // Safetensors are taken where they are.
    let safetensors = fixture("model_f16.safetensors");
    let output = cache.fetch(safetensors.to_str().unwrap(), "http://127.0.0.1:1");
    assert_eq!(text(&output.stdout).trim(), safetensors.to_str().unwrap());
}

#[test]
fn names_and_folders_that_cannot_be_used() {
    let cache = Cache::new();
    let message = failure(&cache.fetch("yolov9z", "http://127.0.0.1:1"));
    assert!(message.contains("no such file") && message.contains("yolov5s-seg"), "{message}");
    let message = failure(&cache.fetch(cache.0.path().to_str().unwrap(), "http://127.0.0.1:1"));
    assert!(message.contains("is a folder"), "{message}");
    #[cfg(unix)]
    assert!(failure(&cache.fetch("/dev/null", "http://127.0.0.1:1")).contains("/dev/null is a pipe or a device"));
    // A file where the cache should be: nobody can write there, the superuser neither.
    let file = fixture("README.md");
    let message = failure(&yolo(&["fetch", "yolov5s"], &[("YOLO_CACHE", file.to_str().unwrap())]));
    assert!(message.contains("cannot be written") && message.contains("YOLO_CACHE"), "{message}");
}

#[test]
fn convert_reports_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let input = fixture("ema_f32_protocol4.pt").to_str().unwrap().to_string();
    let output = yolo(&["convert", &input, &at("a.safetensors"), "--half"], &[]);
    let line = text(&output.stdout);
    assert!(output.status.success() && line.lines().count() == 1, "{line}{}", text(&output.stderr));
    assert!(line.ends_with("YAML and 3 class names from `ema`\n"), "{line}");
    assert!(yolo(&["convert", &at("a.safetensors"), &at("a.npz")], &[]).status.success());

    let message = failure(&yolo(&["convert", &at("a.safetensors"), &at("a.safetensors")], &[]));
    assert!(message.contains("the input itself"), "{message}");
    let message = failure(&yolo(&["convert", &input, &at("a.onnx")], &[]));
    assert!(message.contains(".safetensors nor .npz"), "{message}");
    let message = failure(&yolo(&["convert", &input, &at("none/a.npz")], &[]));
    assert!(message.contains("none/a.npz"), "{message}");
    let message = failure(&yolo(&["convert", fixture("legacy.pt").to_str().unwrap(), &at("b.npz")], &[]));
    assert!(message.contains("before 1.6") && !Path::new(&at("b.npz")).exists(), "{message}");
}

//! A crate outside the workspace that depends on `yolo-core` by its path builds and runs.

use std::path::Path;
use std::process::Command;

const MAIN: &str = r#"
use yolo_core::{Graph, NetworkConfig};

fn main() -> yolo_core::Result<()> {
    let graph = Graph::new(&NetworkConfig::open("yolov5n")?)?;
    println!("{} parameters", graph.num_params());
    Ok(())
}
"#;

/// What the workspace's other crates ask of shared dependencies. Without it cargo would build Candle once more.
const SAME_FEATURES: &str = r#"
getrandom = { version = "0.4", features = ["std", "sys_rng"] }
rustix = { version = "1", features = ["termios"] }
serde_core = "1"

[build-dependencies]
syn = { version = "3", features = ["full"] }
"#;

#[test]
fn a_crate_elsewhere_builds() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.parent().and_then(Path::parent).unwrap();
    let workspace = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    // With the workspace's profiles, lock file and target folder, cargo finds most of the dependencies built already.
    let profiles =
        &workspace[workspace.find("[profile.dev]").unwrap()..workspace.find("[profile.dev.package.dyconv").unwrap()];
    let target = root.join("target");
    let folder = target.join("outside");
    std::fs::create_dir_all(folder.join("src")).unwrap();
    let manifest = format!(
        "[package]\nname = \"outside\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\nyolo-core = {{ path = {here:?} }}\n{SAME_FEATURES}\n{profiles}"
    );
    std::fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    std::fs::write(folder.join("src/main.rs"), MAIN).unwrap();
    std::fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();

    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--offline", "--manifest-path"]).arg(folder.join("Cargo.toml")).arg("--target-dir").arg(&target);
    let output = cargo.current_dir(&folder).output().unwrap();
    let (printed, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");
    assert_eq!(printed.trim(), "1872157 parameters", "{told}");
}

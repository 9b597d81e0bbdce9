//! Reading YAML: what is accepted, and what each mistake is told.

use super::*;

const HEAD: &str = "nc: 80\ndepth_multiple: 0.33\nwidth_multiple: 0.5\nanchors: 3\n";

fn problem(text: &str) -> String {
    NetworkConfig::parse("net.yaml", text).expect_err("must be refused").to_string()
}

#[test]
fn literals_are_read_as_python_evaluates_them() {
    let yaml = format!(
        "{HEAD}backbone:\n  - [-1, 1, nn.Upsample, [None, 2, 'nearest']]\n  - [[-1, 0], 3, C3, [64, False, '2', 0.5, null]]\nhead: []\n"
    );
    let config = NetworkConfig::parse("net.yaml", &yaml).unwrap();
    assert_eq!(config.backbone[0].args, [Arg::None, Arg::Int(2), Arg::Str("nearest".into())]);
    assert_eq!(config.backbone[1].args, [Arg::Int(64), Arg::Bool(false), Arg::Int(2), Arg::Float(0.5), Arg::None]);
    assert_eq!(config.backbone[1].from, From::Many(vec![-1, 0]));
    assert_eq!((config.channels, config.channel_multiple), (3, 8));
}

#[test]
fn yaml_round_trips() {
    let yaml = "nc: 5\ndepth_multiple: 1.0\nwidth_multiple: 0.25\nch: 4\nactivation: nn.LeakyReLU(0.1)\nchannel_multiple: 16\n\
        dynamic: {routing: softmax, temperature: {start: 30, end: 1.5, epochs: 10}, num_experts: 6}\n\
        anchors: [[10, 13, 16.5, 30]]\nbackbone: [[-1, 1, Conv, [64, 6, 2, 2]], [-1, 1, 'odd name', ['a b', None, True]]]\nhead: []\n";
    let config = NetworkConfig::parse("a", yaml).unwrap();
    assert_eq!(config.dynamic.temperature.unwrap().at_inference(), 1.5);
    assert_eq!(NetworkConfig::parse("a", &config.to_yaml()).unwrap(), config);
    for name in crate::zoo::names() {
        let config = NetworkConfig::open(&name).unwrap();
        assert_eq!(NetworkConfig::parse(&name, &config.to_yaml()).unwrap(), config, "{name}");
    }
}

#[test]
fn mistakes_are_named() {
    for (yaml, expected) in [
        ("[1, 2", "not valid YAML"),
        ("just text", "a network is a map"),
        ("nc: 80", "`depth_multiple` is missing"),
        (
            "nc: -1\ndepth_multiple: 1\nwidth_multiple: 1\nanchors: 3\nbackbone: []\nhead: []",
            "`nc` must be a whole number",
        ),
        (
            "nc: 1\ndepth_multiple: .nan\nwidth_multiple: 1\nanchors: 3\nbackbone: []\nhead: []",
            "`depth_multiple` must be",
        ),
        (
            "nc: 1\ndepth_multiple: 1\nwidth_multiple: 1\nanchors: [[1, 2, 3]]\nbackbone: []\nhead: []",
            "one list has 3 numbers",
        ),
        ("nc: 1\ndepth_multiple: 1\nwidth_multiple: 1\nanchors: 99999999999\nbackbone: []\nhead: []", "from 1 to 64"),
    ] {
        let text = problem(yaml);
        assert!(text.starts_with("net.yaml: ") && text.contains(expected), "{yaml}: {text}");
    }
    for (tail, expected) in [
        ("backbone: []\nhead: []", "both empty"),
        ("backbone: [[-1, 1, Conv]]\nhead: []", "layer 0 (?): a row is [from, number, module, args]"),
        ("backbone: [[-1, 1, Conv, [1]], [x, 1, Conv, [1]]]\nhead: []", "layer 1 (Conv): `from` must be"),
        ("backbone: [[-1, 1, Conv, [1]]]\nhead: [[-1, -3, C3, [1]]]", "layer 1 (C3): the number of repeats must be"),
        ("backbone: [[-1, 1, Conv, {a: 1}]]\nhead: []", "layer 0 (Conv): the arguments must be a list"),
        ("activation: nn.Swish()\nbackbone: []\nhead: []", "is not known; there are nn.SiLU()"),
        (
            "dynamic: {routing: hard}\nbackbone: []\nhead: []",
            "`dynamic.routing` must be sigmoid or softmax, it is hard",
        ),
        ("dynamic: {temperature: 0}\nbackbone: []\nhead: []", "`dynamic.temperature` must be a number over 0"),
        ("dynamic: {experts: 3}\nbackbone: []\nhead: []", "not experts"),
    ] {
        let text = problem(&format!("{HEAD}{tail}"));
        assert!(text.contains(expected), "{tail}: {text}");
    }
}

#[test]
fn brackets_without_end_take_no_time() {
    for text in [format!("nc: {}", "[".repeat(100_000)), format!("nc: {}", "{a: ".repeat(100_000))] {
        assert!(problem(&text).contains("not valid YAML: brackets are nested more than 200 deep"));
    }
    assert!(problem(&"[1] ".repeat(1000)).contains("not valid YAML"));
    // As weights may carry it.
    assert!(problem(&" ".repeat((1 << 20) + 1)).contains("1048577 bytes are too many for a network's YAML"));
}

#[test]
fn paths_of_yolov5s_documentation_name_built_in_networks() {
    for name in ["models/yolov5n.yaml", "./models/hub/yolov5-p6.yaml", "segment/yolov5n-seg.yaml", "hub/yolov3.yaml"] {
        NetworkConfig::open(name).unwrap();
    }
    assert!(NetworkConfig::open("other/yolov5n.yaml").is_err());
}

#[test]
fn a_name_that_is_neither_file_nor_zoo_gets_suggestions() {
    let text = NetworkConfig::open("yolov5q.yaml").unwrap_err().to_string();
    assert!(text.contains("no such file") && text.contains("yolov5s"), "{text}");
    let text = NetworkConfig::open(env!("CARGO_MANIFEST_DIR")).unwrap_err().to_string();
    assert!(text.contains("a folder, not a network's YAML"), "{text}");
}

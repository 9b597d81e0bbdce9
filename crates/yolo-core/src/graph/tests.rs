//! The zoo against the reference's tables; what cannot be built.

use serde_json::Value;

use super::*;

fn build(layers: &str) -> Result<Graph> {
    let yaml =
        format!("nc: 80\ndepth_multiple: 1.0\nwidth_multiple: 1.0\nanchors: 3\nch: 16\nbackbone: {layers}\nhead: []\n");
    Graph::new(&NetworkConfig::parse("net.yaml", &yaml)?)
}

#[test]
fn zoo_agrees_with_the_reference_tables() {
    let tables: Value = serde_json::from_str(include_str!("../../tests/data/tables.json")).unwrap();
    let tables = tables.as_object().unwrap();
    assert!(tables.len() >= 22, "the reference has at least 22 networks");
    for (name, table) in tables {
        let graph = Graph::new(&NetworkConfig::open(name).unwrap()).unwrap();
        assert_eq!(graph.num_params() as u64, table["params"].as_u64().unwrap(), "{name}: parameters");
        assert_eq!(graph.num_modules() as u64, table["modules"].as_u64().unwrap(), "{name}: modules");
        let strides: Vec<f64> = table["strides"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
        assert_eq!(graph.strides(), strides, "{name}: strides");
        let summary = graph.summary(640).unwrap();
        let printed = table["gflops_printed"].as_f64().unwrap();
        assert!(
            (summary.gflops_printed() - printed).abs() < 2e-4 * printed,
            "{name}: {} {printed}",
            summary.gflops_printed()
        );
        let mut cost = Cost::default();
        graph.cost(640, 640).unwrap().into_iter().for_each(|layer| cost += layer);
        if let Some(flops) = table.get("flops_at_640") {
            for (kind, ours) in [
                ("static_conv", cost.static_conv),
                ("dynamic_conv", cost.dynamic_conv),
                ("aggregation", cost.aggregation),
            ] {
                assert_eq!(ours, flops[kind].as_f64().unwrap(), "{name}: {kind}");
            }
        }
        for (layer, row) in graph.layers().iter().zip(table["layers"].as_array().unwrap()) {
            assert_eq!(layer.params as u64, row["params"].as_u64().unwrap(), "{name}: layer {}", row["i"]);
            assert_eq!(layer.module, row["module"].as_str().unwrap(), "{name}: layer {}", row["i"]);
            assert_eq!(layer.from.to_string(), row["f"].to_string().replace(',', ", "), "{name}: layer {}", row["i"]);
        }
        assert_eq!(graph.layers().len(), table["layers"].as_array().unwrap().len(), "{name}: layers");
    }
}

#[test]
fn every_network_of_the_zoo_builds() {
    let names = crate::zoo::names();
    assert_eq!(names.len(), 43);
    for name in names {
        let graph = Graph::new(&NetworkConfig::open(&name).unwrap()).unwrap();
        let mut seen = std::collections::HashSet::new();
        assert!(graph.params().iter().all(|param| seen.insert(&param.name)), "{name}: a parameter's name comes twice");
        let size = 2 * graph.stride();
        graph.shapes(size, size).unwrap();
    }
}

#[test]
fn what_cannot_be_built_is_named() {
    for (layers, expected) in [
        ("[[-1, 1, Cnov, [16, 3]]]", "layer 0 (Cnov): there is no such module; the nearest names are Conv"),
        ("[[-1, 1, Conv, [16, 3]], [1, 1, Conv, [16]]]", "layer 1 (Conv): `from` 1 is not a layer before it"),
        ("[[-1, 1, Conv, [16, 3]], [7, 1, Conv, [16]]]", "layer 1 (Conv): `from` 7 is not a layer before it"),
        ("[[-1, 1, Conv, [16, 3]], [-3, 1, Conv, [16]]]", "reaches back beyond the first layer"),
        ("[[-9223372036854775808, 1, Conv, [16, 3]]]", "reaches back beyond the first layer"),
        ("[[-1, 1, Conv, [-16, 3]]]", "layer 0 (Conv): -16 output channels"),
        ("[[-1, 1, Conv, [99999999999, 3]]]", "there must be from 1 to 1048576"),
        ("[[-1, 1, Conv, [16, 0]]]", "`k` must be a whole number from 1 to 1024, it is 0"),
        ("[[-1, 1, Conv, [16, 3, 1, None, 5]]]", "16 channels in and 16 out do not divide by 5 groups"),
        ("[[-1, 1, DyConv2d, [32, 3, 1, None, 3]]]", "do not divide by 3 groups"),
        ("[[-1, 1, Conv, [16, 3, 1, None, 1, 1, True, 9]]]", "takes 8 arguments, also got 9"),
        ("[[-1, 1, Conv, [word]]]", "the first argument must be the number of output channels"),
        ("[[-1, 1, Concat, [1]]]", "`from` must be a list of layers"),
        ("[[[-1, -1], 1, Conv, [16]]]", "it reads one layer"),
        ("[[-1, 1, nn.Upsample, [None, 2, bilinear]]]", "`mode` must be nearest"),
        ("[[-1, 1, Expand, [3]]]", "16 channels do not divide by 3 squared"),
        ("[[-1, 1, nn.Conv2d, [8, 16, 3]]]", "a convolution of 8 channels gets 16"),
        ("[[-1, 2, Conv, [32, 3]]]", "a convolution of 16 channels gets 32"),
        ("[[[-1], 1, Detect, [nc, anchors]], [-1, 1, Conv, [16]]]", "a head must be the last layer"),
        ("[[-1, 1, Detect, [nc, anchors]]]", "`from` must be a list of layers"),
        ("[[-1, 1, C3TR, [24, True, 1, 0.375]]]", "9 channels do not divide by 4 attention heads"),
        ("[[-1, 1, Conv, [1048576, 1024]], [-1, 1, Conv, [1048576, 1024]]]", "makes the network too large"),
    ] {
        let text = build(layers).expect_err(layers).to_string();
        assert!(text.starts_with("net.yaml: layer ") && text.contains(expected), "{layers}: {text}");
    }
}

#[test]
fn sizes_that_do_not_fit_are_named() {
    let graph = build("[[-1, 1, nn.Upsample, [None, 64, nearest]], [-1, 1, nn.Upsample, [None, 64, nearest]], [-1, 1, nn.Upsample, [None, 64, nearest]]]").unwrap();
    assert!(graph.shapes(256, 256).unwrap_err().to_string().contains("too large"));
    let graph = build("[[-1, 1, Conv, [16, 9, 1, 0]]]").unwrap();
    let text = graph.shapes(4, 4).unwrap_err().to_string();
    assert!(text.contains("layer 0 (Conv)") && text.contains("does not fit into a map of 4x4"), "{text}");
    let graph = Graph::new(&NetworkConfig::open("yolov5n").unwrap()).unwrap();
    let text = graph.shapes(640, 650).unwrap_err().to_string();
    assert!(text.contains("layer 12 (Concat)") && text.contains("multiple of the network's stride"), "{text}");
}

#[test]
fn numbers_of_classes_are_bounded() {
    for nc in [0, 65537, usize::MAX] {
        let text = Graph::new(&NetworkConfig::open("yolov5n").unwrap().with_classes(nc)).unwrap_err().to_string();
        assert_eq!(text, format!("yolov5n: `nc` must be from 1 to 65536, it is {nc}"));
    }
}

#[test]
fn repeats_of_repeats_are_bounded() {
    for row in ["[-1, 1000, nn.MaxPool2d, [3, 1, 1]]", "[-1, 10, C3, [8]], [-1, 1000, Bottleneck, [8]]"] {
        let yaml =
            format!("nc: 1\ndepth_multiple: 100\nwidth_multiple: 1\nanchors: 3\nch: 8\nbackbone: [{row}]\nhead: []\n");
        let text = Graph::new(&NetworkConfig::parse("net.yaml", &yaml).unwrap()).expect_err(row).to_string();
        assert!(text.contains("more than 65536 operations") && text.contains("depth_multiple"), "{text}");
    }
}

#[test]
fn anchors_follow_the_strides() {
    let (rising, falling) = ("[[4, 4], [9, 9], [16, 16]]", "[[16, 16], [9, 9], [4, 4]]");
    let first_and_last = |anchors: &str, levels: &str| {
        let yaml = format!(
            "nc: 1\ndepth_multiple: 1\nwidth_multiple: 1\nanchors: {anchors}\nbackbone: [[-1, 1, Conv, [8, 3, 2]], [-1, 1, Conv, [8, 3, 2]]]\nhead: [[{levels}, 1, Detect, [nc, anchors]]]\n"
        );
        let graph = Graph::new(&NetworkConfig::parse("a", &yaml).unwrap()).unwrap();
        let anchors = graph.params().iter().find(|param| param.name.ends_with(".anchors")).unwrap();
        let Init::Values(values) = &anchors.init else { unreachable!() };
        let pixels = |level: usize| values[2 * level] * graph.strides()[level] as f32;
        (pixels(0), pixels(2))
    };
    for (levels, expected) in [("[0, 0, 1]", (4.0, 16.0)), ("[1, 0, 0]", (16.0, 4.0))] {
        assert_eq!(first_and_last(rising, levels), expected, "{levels}");
        assert_eq!(first_and_last(falling, levels), expected, "{levels}");
    }
    // Where strides say nothing, YOLOv5 reverses either order.
    assert_eq!(first_and_last(rising, "[0, 1, 0]"), (16.0, 4.0));
    assert_eq!(first_and_last(falling, "[0, 1, 0]"), (4.0, 16.0));
}

#[test]
fn repeats_round_half_to_even() {
    let yaml = "nc: 1\ndepth_multiple: 0.5\nwidth_multiple: 0.25\nanchors: 3\nbackbone: [[-1, 5, C3, [64]], [-1, 7, C3, [64]], [-1, 1, C3, [68]]]\nhead: []\n";
    let graph = Graph::new(&NetworkConfig::parse("a", yaml).unwrap()).unwrap();
    let repeats: Vec<_> = graph.layers().iter().map(|layer| layer.repeats).collect();
    assert_eq!(repeats, [2, 4, 1]);
    assert_eq!(graph.nodes()[graph.layers()[2].node].channels, 24);
}

//! Random and damaged networks: whatever the text, an answer or a sentence, and never a panic.

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use yolo_core::weights::Weights;
use yolo_core::{Graph, Model, NetworkConfig, Plan, PlanOptions};

/// Numbers that users mistype, and those that they mean.
fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => (0i64..9).prop_map(|n| n.to_string()),
        2 => prop::sample::select(vec![16i64, 24, 32, 64]).prop_map(|n| n.to_string()),
        1 => prop::sample::select(vec!["-1", "-9", "1000000", "9223372036854775807", "-9223372036854775808", "1e300", "0.5", "1.5", ".nan"])
            .prop_map(str::to_owned),
    ]
}

fn argument() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec!["None", "True", "False", "nearest", "nc", "anchors", "nn.ReLU()", "~", "''"]);
    prop_oneof![
        6 => number(),
        2 => word.prop_map(str::to_owned),
        1 => prop::collection::vec(number(), 0..5).prop_map(|list| format!("[{}]", list.join(", "))),
    ]
}

/// A row that may mean anything.
fn wild_row() -> impl Strategy<Value = String> {
    let module = prop::sample::select(yolo_core::layers::registry::names().chain(["Nothing"]).collect::<Vec<_>>());
    let from = prop_oneof![
        8 => Just("-1".to_owned()),
        1 => number(),
        2 => prop::collection::vec(prop_oneof![Just("-1".to_owned()), number()], 0..4).prop_map(|l| format!("[{}]", l.join(", "))),
    ];
    let repeats = prop_oneof![3 => Just("1".to_owned()), 1 => number()];
    (from, repeats, module, prop::collection::vec(argument(), 0..8))
        .prop_map(|(from, n, module, args)| format!("[{from}, {n}, {module}, [{}]]", args.join(", ")))
}

/// A row that builds wherever its predecessor gives a multiple of 8 channels, or nearly.
fn tame_row() -> impl Strategy<Value = String> {
    let module = prop::sample::select(vec![
        "Conv, [8, 3, 2]",
        "Conv, [16, [3, 1], 1, None, 4]",
        "DWConv, [8, 3]",
        "DWConvTranspose2d, [8, 3, 2, 1, 1]",
        "GhostConv, [16, 3]",
        "GhostBottleneck, [8, 3, 2]",
        "Bottleneck, [8, True, 2]",
        "BottleneckCSP, [8]",
        "SPP, [8, [3, 5]]",
        "SPPF, [8, 3]",
        "MixConv2d, [8, [1, 3]]",
        "Focus, [8]",
        "CrossConv, [8, 3, 2]",
        "C3, [8, False]",
        "C3TR, [8]",
        "C3SPP, [8, [3]]",
        "C3Ghost, [8]",
        "C3x, [8]",
        "DynamicConv, [8, 3, 2]",
        "GhostModule, [9]",
        "C3_GhostDynamicConv, [8]",
        "C3_DynamicConv, [8, True]",
        "DyConv2d, [8, 3]",
        "nn.Conv2d, [8, 8, 1]",
        "nn.ConvTranspose2d, [8, 2, 2]",
        "nn.BatchNorm2d, []",
        "nn.MaxPool2d, [3, 1, 1]",
        "nn.ZeroPad2d, [[0, 1, 2, 0]]",
        "nn.Upsample, [None, 2, nearest]",
        "Contract, [2]",
        "Expand, [2]",
    ]);
    let repeats = prop_oneof![4 => Just(1), 1 => Just(2)];
    prop_oneof![
        12 => (repeats, module).prop_map(|(n, module)| format!("[-1, {n}, {module}]")),
        1 => Just("[[-1, -1], 1, Concat, [1]]".to_owned()),
    ]
}

fn row() -> impl Strategy<Value = String> {
    prop_oneof![1 => wild_row(), 6 => tame_row()].prop_map(|row| format!("  - {row}"))
}

fn network() -> impl Strategy<Value = String> {
    let head = prop_oneof![
        9 => Just("anchors: 3".to_owned()),
        1 => Just("anchors: [[10, 13, 16, 30]]".to_owned()),
        1 => number().prop_map(|n| format!("anchors: {n}")),
    ];
    (prop::collection::vec(row(), 1..6), head, prop_oneof![9 => Just("8".to_owned()), 1 => number()]).prop_map(
        |(rows, anchors, channels)| {
            format!(
                "nc: 3\ndepth_multiple: 1.0\nwidth_multiple: 1.0\nch: {channels}\n{anchors}\nbackbone:\n{}\nhead: []\n",
                rows.join("\n")
            )
        },
    )
}

/// Builds what can be built; runs what is small; an error is one sentence that names the file.
fn try_network(text: &str) -> Result<bool, TestCaseError> {
    let built = NetworkConfig::parse("random.yaml", text).and_then(|config| Graph::new(&config));
    let graph = match built {
        Ok(graph) => graph,
        Err(error) => {
            let sentence = error.to_string();
            prop_assert!(sentence.starts_with("random.yaml: "), "{sentence}");
            return Ok(false);
        }
    };
    let (height, width) = (32, 48);
    let shapes = match graph.shapes(height, width) {
        Ok(shapes) => shapes,
        Err(error) => {
            prop_assert!(error.to_string().contains("layer"), "{error}");
            return Ok(false);
        }
    };
    prop_assert!(graph.summary(64).is_ok() || graph.shapes(64, 64).is_err());
    let config = NetworkConfig::parse("random.yaml", &graph.config().to_yaml()).unwrap();
    prop_assert_eq!(&config, graph.config());
    if graph.num_params() > 300_000 || shapes.iter().map(|shape| shape.elements()).sum::<usize>() > 2_000_000 {
        return Ok(false);
    }
    let x = Tensor::rand(0f32, 1.0, (2, graph.config().channels, height, width), &Device::Cpu).unwrap();
    let weights = Weights::from_tensors(graph.init(1, &Device::Cpu).unwrap(), Default::default());
    let expected = shapes[graph.output().main()].elements();
    let model = Model::from_weights(graph.clone(), &weights, &Device::Cpu, DType::F32).unwrap();
    let output = model.run(&x);
    prop_assert!(output.is_ok(), "{:?}\n{}", output.err(), text);
    let output = output.unwrap().main;
    prop_assert_eq!(output.elem_count(), 2 * expected, "{}", text);

    // The compiled network is the same one.
    let options = PlanOptions { batch: 2, size: (height, width), threads: Some(2), ..PlanOptions::default() };
    let plan = Plan::compile(&graph, &weights, &options);
    prop_assert!(plan.is_ok(), "{:?}\n{}", plan.err(), text);
    let plan = plan.unwrap();
    let planned = plan.forward(&mut plan.session().unwrap(), &x, None);
    prop_assert!(planned.is_ok(), "{:?}\n{}", planned.err(), text);
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (planned, output) = (values(&planned.unwrap().main), values(&output));
    let largest = output.iter().fold(1e-3f32, |largest, value| largest.max(value.abs()));
    for (planned, value) in planned.iter().zip(&output) {
        prop_assert!((planned - value).abs() <= 1e-4 * largest, "{} instead of {}\n{}", planned, value, text);
    }
    Ok(true)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(5), ..ProptestConfig::default() })]

    #[test]
    fn random_networks_never_panic(text in network()) {
        try_network(&text)?;
    }

    #[test]
    fn damaged_networks_never_panic(
        which in 0usize..43,
        cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..4),
    ) {
        let name = yolo_core::zoo::names().swap_remove(which);
        let mut bytes = NetworkConfig::open(&name).unwrap().to_yaml().into_bytes();
        for (at, byte, action) in cuts {
            let at = at.index(bytes.len());
            match action {
                0 => bytes[at] = byte,
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, b"0123456789-.[]{}, :abc"[usize::from(byte) % 22]),
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let _ = NetworkConfig::parse("damaged.yaml", &text).and_then(|config| Graph::new(&config));
    }
}

/// The generator above is worth something only if it also builds networks that run.
#[test]
fn the_generator_reaches_running_networks() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let ran = (0..300).filter(|_| try_network(&network().new_tree(&mut runner).unwrap().current()).unwrap()).count();
    assert!(ran >= 40, "only {ran} of 300 random networks ran");
}

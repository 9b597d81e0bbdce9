//! The built-in networks, by YOLOv5's names: one YAML a family, scaled by name.

use crate::{NetworkConfig, Result, text};

/// Scale letter, `depth_multiple`, `width_multiple`.
const SCALES: [(&str, f64, f64); 5] =
    [("n", 0.33, 0.25), ("s", 0.33, 0.5), ("m", 0.67, 0.75), ("l", 1.0, 1.0), ("x", 1.33, 1.25)];

/// Families that come in every scale: the name with `?` for the scale's letter, and the YAML without its two multiples.
const FAMILIES: [(&str, &str); 6] = [
    ("yolov5?", include_str!("yolov5.yaml")),
    ("yolov5?-seg", include_str!("yolov5-seg.yaml")),
    ("yolov5?6", include_str!("yolov5-6.yaml")),
    ("yolov5?_C3_GhostDynamicConv", include_str!("yolov5_C3_GhostDynamicConv.yaml")),
    ("yolov5?-seg_C3_GhostDynamicConv", include_str!("yolov5-seg_C3_GhostDynamicConv.yaml")),
    ("yolov5?_C3_DynamicConv", include_str!("yolov5_C3_DynamicConv.yaml")),
];

/// Networks of one scale.
const SINGLES: [(&str, &str); 12] = [
    ("yolov3", include_str!("yolov3.yaml")),
    ("yolov3-spp", include_str!("yolov3-spp.yaml")),
    ("yolov3-tiny", include_str!("yolov3-tiny.yaml")),
    ("yolov5-bifpn", include_str!("yolov5-bifpn.yaml")),
    ("yolov5-fpn", include_str!("yolov5-fpn.yaml")),
    ("yolov5-p2", include_str!("yolov5-p2.yaml")),
    ("yolov5-p34", include_str!("yolov5-p34.yaml")),
    ("yolov5-p6", include_str!("yolov5-p6.yaml")),
    ("yolov5-p7", include_str!("yolov5-p7.yaml")),
    ("yolov5s-LeakyReLU", include_str!("yolov5s-LeakyReLU.yaml")),
    ("yolov5s-ghost", include_str!("yolov5s-ghost.yaml")),
    ("yolov5s-transformer", include_str!("yolov5s-transformer.yaml")),
];

/// Second names: the path-aggregation network is what plain YOLOv5l is.
const ALIASES: [(&str, &str); 1] = [("yolov5-panet", "yolov5l")];

/// The names of all built-in networks.
pub fn names() -> Vec<String> {
    let scaled = FAMILIES.iter().flat_map(|(family, _)| SCALES.iter().map(|(letter, ..)| family.replace('?', letter)));
    scaled.chain(SINGLES.iter().chain(&ALIASES).map(|(name, _)| (*name).to_owned())).collect()
}

/// The built-in network of that name, if there is one.
pub(crate) fn find(name: &str) -> Option<Result<NetworkConfig>> {
    let target = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, target)| target);
    if let Some((_, yaml)) = SINGLES.iter().find(|(single, _)| *single == target) {
        return Some(NetworkConfig::parse(name, yaml));
    }
    FAMILIES.iter().find_map(|(family, yaml)| {
        let (_, depth, width) = SCALES.iter().find(|(letter, ..)| family.replace('?', letter) == target)?;
        Some(NetworkConfig::parse(name, &format!("depth_multiple: {depth:?}\nwidth_multiple: {width:?}\n{yaml}")))
    })
}

/// The built-in names that are least unlike `name`, for messages.
pub(crate) fn nearest(name: &str) -> Vec<String> {
    let names = names();
    text::nearest(name, names.iter().map(String::as_str), 4).into_iter().map(str::to_owned).collect()
}

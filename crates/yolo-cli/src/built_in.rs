//! What the program carries with it: networks that were trained on `yolo data shapes`, and pictures to try them on.

/// A network in f16.
pub(crate) struct Network {
    pub(crate) name: &'static str,
    pub(crate) bytes: &'static [u8],
}

/// A JPEG.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) name: &'static str,
    pub(crate) bytes: &'static [u8],
}

/// Networks by the name that `--weights` takes; the first runs where nothing is asked for.
pub(crate) static NETWORKS: [Network; 2] = [
    Network { name: "shapes-n-ghostdyn", bytes: include_bytes!("../../../weights/shapes-n-ghostdyn.safetensors") },
    Network {
        name: "shapes-n-ghostdyn-seg",
        bytes: include_bytes!("../../../weights/shapes-n-ghostdyn-seg.safetensors"),
    },
];

/// None of them was trained on.
pub(crate) static PICTURES: [Picture; 4] = [
    Picture { name: "shapes-1.jpg", bytes: include_bytes!("../../../weights/pictures/shapes-1.jpg") },
    Picture { name: "shapes-2.jpg", bytes: include_bytes!("../../../weights/pictures/shapes-2.jpg") },
    Picture { name: "shapes-3.jpg", bytes: include_bytes!("../../../weights/pictures/shapes-3.jpg") },
    Picture { name: "shapes-4.jpg", bytes: include_bytes!("../../../weights/pictures/shapes-4.jpg") },
];

/// The network of a name, with or without `.safetensors` behind it.
pub(crate) fn network(name: &str) -> Option<&'static Network> {
    let name = name.strip_suffix(".safetensors").unwrap_or(name);
    NETWORKS.iter().find(|network| network.name == name)
}

#[cfg(test)]
mod tests {
    use yolo_core::NetworkConfig;
    use yolo_core::weights::{StoredType, Weights};

    use super::*;

    #[test]
    fn networks_are_small_and_describe_themselves() {
        for network in &NETWORKS {
            assert!(network.bytes.len() < 4_000_000, "{}", network.name);
            let weights = Weights::from_static(network.name, network.bytes).unwrap();
            let config = NetworkConfig::of_weights(&weights).unwrap();
            assert_eq!(config.nc, 5);
            assert!(weights.metadata().imgsz.is_some());
            let names = weights.metadata().names.as_deref().unwrap_or_default();
            assert_eq!(names, ["circle", "square", "triangle", "star", "ring"]);
            assert!(weights.names().all(|name| weights.dtype(name) != Some(StoredType::F32)), "{}", network.name);
        }
    }
}

//! From YAML text to [`NetworkConfig`]: every mistake is named with its key or layer.

use serde_yaml::{Mapping, Value};

use super::{
    Activation, Anchors, Arg, DynamicConfig, From, LayerConfig, MAX_CLASSES, NetworkConfig, RoutingKind, Temperature,
};
use crate::{Error, Result, yaml};

/// Larger files are not networks.
pub(super) const MAX_YAML_BYTES: u64 = 1 << 20;
/// Bounds that no network reaches, so that a mistyped number cannot eat the machine.
const MAX_ANCHORS: usize = 64;
const MAX_CHANNELS: usize = 1 << 12;
const MAX_LAYERS: usize = 4096;
const MAX_REPEATS: usize = 1000;
const MAX_EXPERTS: usize = 256;

pub(super) fn network(name: &str, text: &str) -> Result<NetworkConfig> {
    let problem = |problem: String| Error::Config { file: name.to_owned(), problem };
    if text.len() as u64 > MAX_YAML_BYTES {
        return Err(problem(format!(
            "{} bytes are too many for a network's YAML (at most {MAX_YAML_BYTES})",
            text.len()
        )));
    }
    let value = yaml::parse(text).map_err(|e| problem(format!("not valid YAML: {e}")))?;
    let Value::Mapping(map) = value else {
        return Err(problem(
            "a network is a map with the keys nc, depth_multiple, width_multiple, anchors, backbone and head".into(),
        ));
    };
    let top = |result: Result<_, String>| result.map_err(&problem);
    let nc = positive(&map, "nc", MAX_CLASSES, None).map_err(&problem)?;
    let factor = |key| {
        let value = required(&map, key)?.as_f64().filter(|v| v.is_finite() && *v > 0.0 && *v <= 100.0);
        value.ok_or_else(|| format!("`{key}` must be a number over 0 and at most 100, it is {}", show(&map, key)))
    };
    let activation = match map.get("activation") {
        None | Some(Value::Null) => Activation::default(),
        Some(Value::String(text)) => top(activation(text))?,
        Some(_) => return Err(problem("`activation` must be a word such as nn.SiLU() or nn.LeakyReLU(0.1)".into())),
    };
    Ok(NetworkConfig {
        name: name.to_owned(),
        nc,
        depth_multiple: factor("depth_multiple").map_err(&problem)?,
        width_multiple: factor("width_multiple").map_err(&problem)?,
        anchors: anchors(&map).map_err(&problem)?,
        channels: positive(&map, "ch", MAX_CHANNELS, Some(3)).map_err(&problem)?,
        activation,
        channel_multiple: positive(&map, "channel_multiple", MAX_CHANNELS, Some(8)).map_err(&problem)?,
        dynamic: dynamic(&map).map_err(&problem)?,
        backbone: layers(name, &map, "backbone", 0)?,
        head: layers(name, &map, "head", rows(&map, "backbone"))?,
    })
    .and_then(|config| {
        if config.backbone.is_empty() && config.head.is_empty() {
            return Err(problem("`backbone` and `head` are both empty: a network has at least one layer".into()));
        }
        Ok(config)
    })
}

fn required<'a>(map: &'a Mapping, key: &str) -> Result<&'a Value, String> {
    map.get(key).ok_or_else(|| format!("the key `{key}` is missing"))
}

fn rows(map: &Mapping, key: &str) -> usize {
    map.get(key).and_then(Value::as_sequence).map_or(0, Vec::len)
}

/// What the YAML has under `key`, cut to what fits in a message.
fn show(map: &Mapping, key: &str) -> String {
    map.get(key).map_or_else(|| "missing".into(), show_value)
}

fn show_value(value: &Value) -> String {
    let text = serde_yaml::to_string(value).unwrap_or_default();
    let line = text.trim().replace('\n', " ");
    match line.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

fn positive(map: &Mapping, key: &str, limit: usize, default: Option<usize>) -> Result<usize, String> {
    let value = match (map.get(key), default) {
        (None | Some(Value::Null), Some(default)) => return Ok(default),
        (None, None) => return Err(format!("the key `{key}` is missing")),
        (Some(value), _) => value,
    };
    match value.as_u64().and_then(|v| usize::try_from(v).ok()) {
        Some(number) if (1..=limit).contains(&number) => Ok(number),
        _ => Err(format!("`{key}` must be a whole number from 1 to {limit}, it is {}", show_value(value))),
    }
}

fn anchors(map: &Mapping) -> Result<Anchors, String> {
    let expected = "`anchors` must be a list of lists of widths and heights (one list a level, all of one length), or their number a level";
    let value = required(map, "anchors")?;
    if let Some(count) = value.as_u64() {
        return match usize::try_from(count) {
            Ok(count) if (1..=MAX_ANCHORS).contains(&count) => Ok(Anchors::Count(count)),
            _ => Err(format!("`anchors` must be from 1 to {MAX_ANCHORS} a level, it is {count}")),
        };
    }
    let lists = value.as_sequence().filter(|lists| !lists.is_empty()).ok_or(expected)?;
    let mut levels = Vec::with_capacity(lists.len());
    for list in lists {
        let numbers: Option<Vec<f64>> = list.as_sequence().ok_or(expected)?.iter().map(Value::as_f64).collect();
        let numbers = numbers.ok_or(expected)?;
        if numbers.is_empty() || numbers.len() % 2 != 0 || numbers.len() > 2 * MAX_ANCHORS {
            return Err(format!("{expected}; one list has {} numbers", numbers.len()));
        }
        if let Some(bad) = numbers.iter().find(|v| !(v.is_finite() && **v > 0.0)) {
            return Err(format!("{expected}; {bad} is not a size"));
        }
        levels.push(numbers);
    }
    if levels.iter().any(|list| list.len() != levels[0].len()) {
        return Err(expected.into());
    }
    Ok(Anchors::Lists(levels))
}

/// Reads `nn.LeakyReLU(0.1)`, with or without `nn.`, arguments and `inplace`.
pub(super) fn activation(text: &str) -> Result<Activation, String> {
    let trimmed = text.trim();
    let bare = trimmed.strip_prefix("torch.").unwrap_or(trimmed);
    let bare = bare.strip_prefix("nn.").unwrap_or(bare);
    let (name, args) = match bare.split_once('(') {
        Some((name, rest)) => {
            (name, rest.strip_suffix(')').ok_or_else(|| format!("`{text}` lacks its closing bracket"))?)
        }
        None => (bare, ""),
    };
    let mut numbers = args.split(',').map(str::trim).filter(|a| !a.is_empty() && !a.starts_with("inplace"));
    let slope = numbers.next().map(|a| a.trim_start_matches("negative_slope=").parse::<f64>());
    let known = match name {
        "SiLU" => Activation::SiLU,
        "ReLU" => Activation::ReLU,
        "ReLU6" => Activation::ReLU6,
        "LeakyReLU" => match slope {
            None => return Ok(Activation::LeakyReLU(0.01)),
            Some(Ok(slope)) if slope.is_finite() => return Ok(Activation::LeakyReLU(slope)),
            Some(_) => return Err(format!("`{text}`: the slope must be a number")),
        },
        "Hardswish" => Activation::Hardswish,
        "Mish" => Activation::Mish,
        "GELU" => Activation::GELU,
        "Sigmoid" => Activation::Sigmoid,
        "Tanh" => Activation::Tanh,
        "Identity" => Activation::Identity,
        _ => {
            return Err(format!(
                "`{text}` is not known; there are nn.SiLU(), nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.Hardswish(), \
                 nn.Mish(), nn.GELU(), nn.Sigmoid(), nn.Tanh() and nn.Identity()"
            ));
        }
    };
    if slope.is_some() {
        return Err(format!("`{text}`: {name} takes no argument"));
    }
    Ok(known)
}

fn dynamic(map: &Mapping) -> Result<DynamicConfig, String> {
    let map = match map.get("dynamic") {
        None | Some(Value::Null) => return Ok(DynamicConfig::default()),
        Some(Value::Mapping(map)) => map,
        Some(_) => return Err("`dynamic` must be a map with the keys routing, temperature and num_experts".into()),
    };
    let mut config = DynamicConfig::default();
    for (key, value) in map {
        match key.as_str().unwrap_or_default() {
            "routing" => {
                config.routing = match value.as_str() {
                    Some("sigmoid") => RoutingKind::Sigmoid,
                    Some("softmax") => RoutingKind::Softmax,
                    _ => {
                        return Err(format!(
                            "`dynamic.routing` must be sigmoid or softmax, it is {}",
                            show_value(value)
                        ));
                    }
                }
            }
            "temperature" => config.temperature = Some(temperature(value)?),
            "num_experts" => {
                config.num_experts =
                    Some(positive(map, "num_experts", MAX_EXPERTS, None).map_err(|e| format!("dynamic: {e}"))?)
            }
            _ => {
                return Err(format!(
                    "`dynamic` has the keys routing, temperature and num_experts, not {}",
                    show_value(key)
                ));
            }
        }
    }
    Ok(config)
}

fn temperature(value: &Value) -> Result<Temperature, String> {
    let expected = "`dynamic.temperature` must be a number over 0, or {start: 30, end: 1, epochs: 10}";
    let over_zero = |value: Option<&Value>| value.and_then(Value::as_f64).filter(|v| v.is_finite() && *v > 0.0);
    if let Value::Mapping(map) = value {
        let epochs = map.get("epochs").and_then(Value::as_u64).and_then(|v| usize::try_from(v).ok());
        return match (over_zero(map.get("start")), over_zero(map.get("end")), epochs, map.len()) {
            (Some(start), Some(end), Some(epochs), 3) => Ok(Temperature::Annealed { start, end, epochs }),
            _ => Err(format!("{expected}; it is {}", show_value(value))),
        };
    }
    over_zero(Some(value)).map(Temperature::Constant).ok_or_else(|| format!("{expected}; it is {}", show_value(value)))
}

fn layers(file: &str, map: &Mapping, key: &str, first: usize) -> Result<Vec<LayerConfig>> {
    let problem = |problem: String| Error::Config { file: file.to_owned(), problem };
    let rows = match map.get(key) {
        None => return Err(problem(format!("the key `{key}` is missing (an empty list will do)"))),
        Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Sequence(rows)) => rows,
        Some(_) => return Err(problem(format!("`{key}` must be a list of rows [from, number, module, args]"))),
    };
    if first.saturating_add(rows.len()) > MAX_LAYERS {
        return Err(problem(format!("more than {MAX_LAYERS} layers")));
    }
    rows.iter()
        .enumerate()
        .map(|(i, row)| {
            layer(row).map_err(|(module, text)| Error::Layer {
                file: file.to_owned(),
                layer: first + i,
                module,
                problem: text,
            })
        })
        .collect()
}

/// One row; on failure the module's name as far as it was read, and the problem.
fn layer(row: &Value) -> Result<LayerConfig, (String, String)> {
    let fields = row.as_sequence().map(Vec::as_slice).unwrap_or_default();
    let [from, number, module, args] = fields else {
        return Err(("?".into(), format!("a row is [from, number, module, args], this is {}", show_value(row))));
    };
    let Some(module) = module.as_str() else {
        return Err(("?".into(), format!("the module must be a name, it is {}", show_value(module))));
    };
    let fail = |text: String| (module.to_owned(), text);
    let from = match from {
        Value::Sequence(list) => list.iter().map(Value::as_i64).collect::<Option<Vec<_>>>().map(From::Many),
        value => value.as_i64().map(From::One),
    };
    let from = from.ok_or_else(|| {
        fail(format!("`from` must be a layer's index or a list of them, it is {}", show_value(&fields[0])))
    })?;
    let number =
        number.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| *v <= MAX_REPEATS).ok_or_else(|| {
            fail(format!(
                "the number of repeats must be a whole number from 0 to {MAX_REPEATS}, it is {}",
                show_value(&fields[1])
            ))
        })?;
    let args = match args {
        Value::Null => Vec::new(),
        Value::Sequence(items) => items.iter().map(Arg::from_yaml).collect::<Result<_, _>>().map_err(fail)?,
        other => return Err(fail(format!("the arguments must be a list, they are {}", show_value(other)))),
    };
    Ok(LayerConfig { from, number, module: module.to_owned(), args })
}

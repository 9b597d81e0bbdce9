//! From the pickled objects to a state dict: the walk that `Module.state_dict()` makes.

use std::collections::HashSet;

use super::pickle::{Arena, Fault, Id, Node, Tensor};
use super::{Origin, yaml};
use crate::weights::NetworkMetadata;

/// The deepest nesting of modules; YOLOv5 nests six deep.
const MAX_DEPTH: usize = 64;
/// The most tensors; YOLOv5x6 has 899.
const MAX_TENSORS: usize = 100_000;
/// The longest name of a tensor, in bytes.
const MAX_NAME: usize = 1024;
/// The most attributes that are looked at: modules may be shared, so a small file can describe a vast tree.
const MAX_STEPS: usize = 10_000_000;
/// The most classes that names are read for, and the most bytes of their names.
const MAX_CLASSES: usize = 100_000;
const MAX_CLASS_NAMES: usize = 1 << 20;

/// The network's tensors by their state-dict names, in the state dict's order.
pub(super) type Found<'a> = Vec<(String, Tensor<'a>)>;

/// Where in a checkpoint the network is.
pub(super) fn locate(arena: &Arena<'_>, root: Id) -> Result<(Id, Origin), Fault> {
    if is_module(arena, root) {
        return Ok((root, Origin::Module));
    }
    if arena.dict(root).is_none() {
        return Err(format!("the checkpoint holds {}, expected a model or a state dict", arena.describe(root)));
    }
    let entry = |key| arena.entry(root, key).filter(|&id| !matches!(arena.get(id), Node::None));
    for (key, origin) in [("ema", Origin::Ema), ("model", Origin::Model)] {
        if let Some(id) = entry(key) {
            if is_module(arena, id) {
                return Ok((id, origin));
            }
            if !is_state_dict(arena, id) {
                let what = arena.describe(id);
                return Err(format!(
                    "the checkpoint's `{key}` is {what}, which is not a class known as data: save the model's state_dict() instead"
                ));
            }
        }
    }
    for key in ["ema", "model", "state_dict"] {
        if let Some(id) = entry(key).filter(|&id| is_state_dict(arena, id)) {
            return Ok((id, Origin::StateDict));
        }
    }
    if is_state_dict(arena, root) {
        return Ok((root, Origin::StateDict));
    }
    Err("the checkpoint holds no network: neither a model under `ema` or `model`, nor a state dict".into())
}

/// The tensors of the network at `id`.
pub(super) fn tensors<'a>(arena: &Arena<'a>, id: Id, origin: Origin) -> Result<Found<'a>, Fault> {
    let mut walk = Walk { arena, found: vec![], steps: 0 };
    if origin != Origin::StateDict {
        walk.module(id, "", 0)?;
        return Ok(walk.found);
    }
    for &(key, value) in arena.dict(id).unwrap_or_default() {
        match (arena.str(key), arena.get(value)) {
            (Some(name), Node::Tensor(tensor)) => walk.add(name.to_string(), tensor)?,
            (Some(name), Node::Opaque { .. }) => return Err(unknown(arena, name, value)),
            _ => {}
        }
    }
    Ok(walk.found)
}

struct Walk<'w, 'a> {
    arena: &'w Arena<'a>,
    found: Found<'a>,
    steps: usize,
}

impl<'a> Walk<'_, 'a> {
    /// The module's own tensors, then its children's, as `state_dict()` orders them.
    fn module(&mut self, module: Id, prefix: &str, depth: usize) -> Result<(), Fault> {
        if depth > MAX_DEPTH {
            return Err(format!("modules are nested more than {MAX_DEPTH} deep at `{prefix}`"));
        }
        let arena = self.arena;
        let members = |key| attribute(arena, module, key).and_then(|id| arena.dict(id)).unwrap_or_default();
        let (parameters, buffers, children) = (members("_parameters"), members("_buffers"), members("_modules"));
        let transient = attribute(arena, module, "_non_persistent_buffers_set").and_then(|id| arena.list(id));
        let transient = transient.unwrap_or_default();
        let attributes = state(arena, module).and_then(|state| arena.dict(state)).map_or(0, <[_]>::len);
        self.steps += 1 + attributes + parameters.len() + buffers.len() + children.len() + transient.len();
        if self.steps > MAX_STEPS {
            return Err(format!("the modules have more than {MAX_STEPS} attributes, no network has"));
        }

        let transient: HashSet<_> = transient.iter().filter_map(|&id| arena.str(id)).collect();
        let is_saved = |(key, _): &&(Id, Id)| arena.str(*key).is_none_or(|name| !transient.contains(name));
        for &(key, value) in parameters.iter().chain(buffers.iter().filter(is_saved)) {
            let Some(name) = arena.str(key) else { continue };
            match arena.get(value) {
                Node::None => {}
                Node::Tensor(tensor) => self.add(format!("{prefix}{name}"), tensor)?,
                _ => return Err(unknown(arena, &format!("{prefix}{name}"), value)),
            }
        }
        for &(key, child) in children {
            let Some(name) = arena.str(key) else { continue };
            match arena.get(child) {
                Node::None => {}
                Node::Instance { .. } => {
                    let prefix = format!("{prefix}{name}.");
                    check_name(&prefix)?;
                    self.module(child, &prefix, depth + 1)?;
                }
                _ => return Err(unknown(arena, &format!("{prefix}{name}"), child)),
            }
        }
        Ok(())
    }

    fn add(&mut self, name: String, tensor: &Tensor<'a>) -> Result<(), Fault> {
        check_name(&name)?;
        if self.found.len() >= MAX_TENSORS {
            return Err(format!("the checkpoint has more than {MAX_TENSORS} tensors, no network has"));
        }
        self.found.push((name, tensor.clone()));
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), Fault> {
    if name.len() <= MAX_NAME { Ok(()) } else { Err(format!("a tensor's name is longer than {MAX_NAME} bytes")) }
}

fn unknown(arena: &Arena<'_>, name: &str, value: Id) -> Fault {
    format!(
        "`{name}` is {}, which is not a class known as data and is not run: save the model's state_dict() instead",
        arena.describe(value)
    )
}

/// The attributes of an object, a dict.
fn state(arena: &Arena<'_>, object: Id) -> Option<Id> {
    let &Node::Instance { state: Some(state), .. } = arena.get(object) else { return None };
    // An object with slots has two dicts; a module's attributes are in the first.
    Some(arena.list(state).and_then(|states| states.first()).copied().unwrap_or(state))
}

fn attribute(arena: &Arena<'_>, object: Id, name: &str) -> Option<Id> {
    arena.entry(state(arena, object)?, name)
}

fn is_module(arena: &Arena<'_>, id: Id) -> bool {
    attribute(arena, id, "_modules").is_some()
}

fn is_state_dict(arena: &Arena<'_>, id: Id) -> bool {
    arena.dict(id).is_some_and(|pairs| pairs.iter().any(|&(_, value)| matches!(arena.get(value), Node::Tensor(_))))
}

/// What the checkpoint says about its network: from the module, or from beside a state dict. `read` gives a small
/// tensor's numbers; what cannot be taken over is told in `notes`.
pub(super) fn metadata<'a>(
    arena: &Arena<'a>,
    root: Id,
    network: Id,
    origin: Origin,
    mut read: impl FnMut(&Tensor<'a>) -> Option<Vec<f64>>,
    notes: &mut Vec<String>,
) -> NetworkMetadata {
    // The head, the last layer of the module's `model`, knows what older models themselves do not.
    let layers = attribute(arena, network, "_modules").and_then(|modules| arena.entry(modules, "model"));
    let layers = layers.and_then(|layers| attribute(arena, layers, "_modules")).and_then(|layers| arena.dict(layers));
    let head = layers.and_then(|layers| layers.last()).map(|&(_, head)| head);
    let fact = |name| match origin {
        Origin::StateDict => arena.entry(root, name),
        _ => attribute(arena, network, name).or_else(|| attribute(arena, head?, name)),
    };

    let nc = fact("nc").and_then(|id| arena.int(id)).and_then(|nc| usize::try_from(nc).ok());
    let nc = nc.filter(|nc| (1..=MAX_CLASSES).contains(nc));
    let yaml = fact("yaml").filter(|&id| arena.dict(id).is_some()).and_then(|id| match yaml::render(arena, id, nc) {
        Ok(yaml) => Some(yaml),
        Err(fault) => {
            notes.push(format!("the network's YAML is left out, {fault}"));
            None
        }
    });
    let mut names = fact("names").and_then(|id| class_names(arena, id));
    if let (Some(names), Some(nc)) = (&mut names, nc)
        && names.len() != nc
    {
        notes.push(format!("the checkpoint names {} classes, its network has {nc}", names.len()));
        names.truncate(nc);
        names.extend((names.len()..nc).map(|class| format!("class{class}")));
    }
    let strides = fact("stride").and_then(|id| match arena.get(id) {
        Node::Tensor(tensor) => read(tensor),
        Node::List(items) => items.iter().map(|&item| arena.int(item).map(|stride| stride as f64)).collect(),
        &Node::Int(stride) => Some(vec![stride as f64]),
        _ => None,
    });
    let stride = strides.and_then(|strides| strides.into_iter().reduce(f64::max));
    let stride = stride.filter(|stride| (1.0..=1024.0).contains(stride)).map(|stride| stride.round() as usize);

    let options = arena.entry(root, "opt");
    let imgsz = options.and_then(|opt| arena.entry(opt, "imgsz").or_else(|| attribute(arena, opt, "imgsz")));
    let imgsz = imgsz.and_then(|id| usize::try_from(arena.int(id)?).ok()).filter(|side| (1..=1 << 16).contains(side));
    // YOLOv5 trains its networks with a stride of 64 on 1280 pixels, the others on 640.
    let imgsz = imgsz.or(stride.map(|stride| if stride >= 64 { 1280 } else { 640 }));
    NetworkMetadata { yaml, names, imgsz, stride, ..Default::default() }
}

/// Class names from a list, or from a dict by class index.
fn class_names(arena: &Arena<'_>, id: Id) -> Option<Vec<String>> {
    let names: Vec<Id> = match arena.get(id) {
        Node::List(items) => items.clone(),
        Node::Dict(pairs) => {
            let mut pairs: Vec<_> =
                pairs.iter().map(|&(class, name)| Some((arena.int(class)?, name))).collect::<Option<_>>()?;
            pairs.sort_by_key(|&(class, _)| class);
            let in_order = pairs.iter().zip(0..).all(|((class, _), index)| *class == index);
            in_order.then(|| pairs.into_iter().map(|(_, name)| name).collect())?
        }
        _ => return None,
    };
    let names: Vec<&str> = names.into_iter().map(|name| arena.str(name)).collect::<Option<_>>()?;
    let bytes = names.iter().fold(0usize, |sum, name| sum.saturating_add(name.len()));
    (names.len() <= MAX_CLASSES && bytes <= MAX_CLASS_NAMES).then(|| names.into_iter().map(str::to_string).collect())
}

//! The classes and functions that are known as data, and the data that they stand for. Nothing here is ever run.

use super::pickle::{Arena, Fault, Id, Node, Storage, Tensor};
use super::view::Window;
use crate::weights::StoredType;

/// Packages whose classes are modules (`torch.nn.Module`) or plain records: their attributes can be looked at.
const PACKAGES: [&str; 8] =
    ["argparse", "models", "timm", "torch.nn.modules", "torchvision", "ultralytics", "utils", "yolov5"];

/// What `callable(*args)` stands for (opcode REDUCE).
pub(super) fn call<'a>(arena: &mut Arena<'a>, callable: Id, args: Id) -> Result<Id, Fault> {
    let opaque = Node::Opaque { class: callable, args: Some(args) };
    let &Node::Global { module, name } = arena.get(callable) else { return arena.push(opaque) };
    let first = arena.list(args).and_then(|args| args.first()).copied();
    match (module, name) {
        ("collections", "OrderedDict" | "defaultdict") | ("builtins" | "__builtin__", "dict") => {
            // Python 2 gave an OrderedDict its pairs here, Python 3 adds them later.
            let listed = first.and_then(|list| arena.list(list)).map_or(0, <[_]>::len);
            arena.spend(listed)?;
            let pairs = first.and_then(|list| arena.list(list)).unwrap_or_default();
            let pair = |&pair: &Id| arena.list(pair).and_then(|pair| Some((*pair.first()?, *pair.get(1)?)));
            let pairs = pairs.iter().filter_map(pair).collect();
            arena.push(Node::Dict(pairs))
        }
        ("builtins" | "__builtin__", "set" | "frozenset" | "list" | "tuple") | ("torch", "Size") => match first {
            Some(items) => Ok(items),
            None => arena.push(Node::List(vec![])),
        },
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => match first {
            Some(tensor) => Ok(tensor),
            None => arena.push(opaque),
        },
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
            let tensor = tensor(arena, args);
            arena.push(tensor.unwrap_or(opaque))
        }
        // A tensor with attributes of its own: (function, type, the function's arguments, attributes).
        ("torch._tensor", "_rebuild_from_type_v2") => {
            let parts = arena.list(args).unwrap_or_default();
            let inner = parts.first().zip(parts.get(2)).map(|(&function, &args)| (arena.get(function), args));
            let tensor = match inner {
                Some((Node::Global { module: "torch._utils", name: "_rebuild_tensor_v2" }, args)) => {
                    tensor(arena, args)
                }
                _ => None,
            };
            arena.push(tensor.unwrap_or(opaque))
        }
        ("copyreg" | "copy_reg", "_reconstructor") => match first {
            Some(class) => make(arena, class, args),
            None => arena.push(opaque),
        },
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => {
            let scalar = numpy_scalar(arena, args);
            arena.push(scalar.unwrap_or(opaque))
        }
        _ => arena.push(opaque),
    }
}

/// What a new object of `class` stands for (opcode NEWOBJ).
pub(super) fn make<'a>(arena: &mut Arena<'a>, class: Id, args: Id) -> Result<Id, Fault> {
    let node = match arena.get(class) {
        Node::Global { module: "collections", name: "OrderedDict" | "defaultdict" } => Node::Dict(vec![]),
        Node::Global { module, .. } if is_data(module) => Node::Instance { class, state: None },
        _ => Node::Opaque { class, args: Some(args) },
    };
    arena.push(node)
}

/// What a persistent reference stands for: `("storage", type, record, device, elements)`.
pub(super) fn storage<'a>(arena: &mut Arena<'a>, reference: Id) -> Result<Id, Fault> {
    let parts = arena.list(reference).unwrap_or_default();
    let &[kind, class, key, _device, elements] = parts else {
        return Err("a reference to something else than a storage".into());
    };
    let (Some("storage"), Some(key), Some(elements)) = (arena.str(kind), arena.str(key), arena.int(elements)) else {
        return Err("a reference to something else than a storage".into());
    };
    let dtype = match arena.get(class) {
        Node::Global { module: "torch", name } => element_type(name),
        _ => None,
    };
    let elements = u64::try_from(elements).map_err(|_| "a storage of negative size")?;
    arena.push(match dtype {
        Some(dtype) => Node::Storage(Storage { dtype, key, elements }),
        None => Node::Opaque { class, args: None },
    })
}

fn is_data(module: &str) -> bool {
    PACKAGES
        .iter()
        .any(|package| module.strip_prefix(package).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

fn element_type(storage: &str) -> Option<StoredType> {
    Some(match storage {
        "HalfStorage" => StoredType::F16,
        "BFloat16Storage" => StoredType::BF16,
        "FloatStorage" => StoredType::F32,
        "DoubleStorage" => StoredType::F64,
        "LongStorage" => StoredType::I64,
        "IntStorage" => StoredType::I32,
        "ShortStorage" => StoredType::I16,
        "CharStorage" => StoredType::I8,
        "ByteStorage" => StoredType::U8,
        "BoolStorage" => StoredType::BOOL,
        _ => return None,
    })
}

/// A tensor from `(storage, offset, shape, strides, ...)`.
fn tensor<'a>(arena: &Arena<'a>, args: Id) -> Option<Node<'a>> {
    let &[storage, offset, shape, strides, ..] = arena.list(args)? else { return None };
    let &Node::Storage(storage) = arena.get(storage) else { return None };
    let number = |id: &Id| usize::try_from(arena.int(*id)?).ok();
    let numbers = |id: Id| {
        let numbers = arena.list(id).filter(|numbers| numbers.len() <= Window::MAX_RANK)?;
        numbers.iter().map(number).collect::<Option<Vec<_>>>()
    };
    let (shape, strides) = (numbers(shape)?, numbers(strides)?);
    if shape.len() != strides.len() {
        return None;
    }
    let window = Window { stored: storage.dtype, offset: number(&offset)?, shape, strides };
    Some(Node::Tensor(Box::new(Tensor { storage, window })))
}

/// A NumPy number from `(dtype, bytes)`, little-endian as every machine that trains is.
fn numpy_scalar<'a>(arena: &Arena<'a>, args: Id) -> Option<Node<'a>> {
    let &[dtype, bytes] = arena.list(args)? else { return None };
    let Node::Opaque { class, args: Some(args) } = arena.get(dtype) else { return None };
    let Node::Global { module: "numpy", name: "dtype" } = arena.get(*class) else { return None };
    let Node::Bytes(bytes) = *arena.get(bytes) else { return None };
    Some(match arena.str(*arena.list(*args)?.first()?)? {
        "f8" => Node::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
        "f4" => Node::Float(f32::from_le_bytes(bytes.try_into().ok()?).into()),
        "i8" => Node::Int(i64::from_le_bytes(bytes.try_into().ok()?)),
        "i4" => Node::Int(i32::from_le_bytes(bytes.try_into().ok()?).into()),
        _ => return None,
    })
}

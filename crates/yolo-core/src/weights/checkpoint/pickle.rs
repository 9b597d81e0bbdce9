//! A reader of pickles that runs nothing.
//!
//! A pickle is a program for a small stack machine; Python's machine imports and calls whatever the program names. This
//! one builds plain data: a name is only a name ([`Node::Global`]), and a "call" is looked up in the short list of
//! [`classes`](super::classes), where each entry says which data it stands for. Everything else becomes
//! [`Node::Opaque`], which nobody can look into.
//!
//! All nodes live in one arena and refer to each other by index, so shared and cyclic objects need no special care, and
//! no depth of nesting can exhaust the stack.

use std::collections::HashMap;

use super::classes;
use super::view::Window;
use crate::weights::StoredType;

/// So many operations and container elements a pickle may have, which bounds time and memory. A YOLOv5 checkpoint has
/// some fifty thousand, one with an optimiser's state a few hundred thousand.
const MAX_CELLS: usize = 4_000_000;
/// The longest pickle that is read, in bytes; the tensors' data is not part of it.
const MAX_LEN: usize = 32 << 20;

/// A sentence about what is wrong.
pub(super) type Fault = String;

/// A node of the [`Arena`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Id(u32);

/// A piece of data, borrowing its text from the pickle.
#[derive(Debug, Clone)]
pub(super) enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(&'a str),
    Bytes(&'a [u8]),
    /// Lists, tuples and sets.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function, by name.
    Global {
        module: &'a str,
        name: &'a str,
    },
    /// An object of a class that is known as data, with its attributes.
    Instance {
        class: Id,
        state: Option<Id>,
    },
    Storage(Storage<'a>),
    Tensor(Box<Tensor<'a>>),
    /// What a call of `class` with `args` would have given, had it been made.
    Opaque {
        class: Id,
        args: Option<Id>,
    },
}

/// Numbers that lie in a record of their own beside the pickle.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage<'a> {
    pub(super) dtype: StoredType,
    /// Name of the record.
    pub(super) key: &'a str,
    /// How many numbers it should hold.
    pub(super) elements: u64,
}

/// A window onto a storage.
#[derive(Debug, Clone)]
pub(super) struct Tensor<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) window: Window,
}

/// All nodes of a pickle.
#[derive(Debug, Default)]
pub(super) struct Arena<'a> {
    nodes: Vec<Node<'a>>,
    cells: usize,
}

impl<'a> Arena<'a> {
    pub(super) fn get(&self, id: Id) -> &Node<'a> {
        self.nodes.get(id.0 as usize).unwrap_or(&Node::None)
    }

    /// The elements of a list, tuple or set.
    pub(super) fn list(&self, id: Id) -> Option<&[Id]> {
        if let Node::List(items) = self.get(id) { Some(items) } else { None }
    }

    pub(super) fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        if let Node::Dict(pairs) = self.get(id) { Some(pairs) } else { None }
    }

    pub(super) fn str(&self, id: Id) -> Option<&'a str> {
        if let Node::Str(text) = self.get(id) { Some(text) } else { None }
    }

    pub(super) fn int(&self, id: Id) -> Option<i64> {
        if let Node::Int(number) = self.get(id) { Some(*number) } else { None }
    }

    /// The value under a text key; the last one, as in Python.
    pub(super) fn entry(&self, dict: Id, key: &str) -> Option<Id> {
        self.dict(dict)?.iter().rev().find(|(k, _)| self.str(*k) == Some(key)).map(|&(_, value)| value)
    }

    /// `module.name` of a class, or what kind of data this is: for messages.
    pub(super) fn describe(&self, id: Id) -> String {
        match self.get(id) {
            Node::Global { module, name } => format!("{module}.{name}"),
            Node::Instance { class, .. } | Node::Opaque { class, .. } => match self.get(*class) {
                Node::Global { module, name } => format!("{module}.{name}"),
                _ => "an object without a class".into(),
            },
            Node::None => "None".into(),
            Node::Bool(_) => "a bool".into(),
            Node::Int(_) | Node::Float(_) => "a number".into(),
            Node::Str(_) => "a text".into(),
            Node::Bytes(_) => "bytes".into(),
            Node::List(_) => "a list".into(),
            Node::Dict(_) => "a dict".into(),
            Node::Storage(_) => "a storage".into(),
            Node::Tensor(_) => "a tensor".into(),
        }
    }

    fn get_mut(&mut self, id: Id) -> Option<&mut Node<'a>> {
        self.nodes.get_mut(id.0 as usize)
    }

    pub(super) fn push(&mut self, node: Node<'a>) -> Result<Id, Fault> {
        let content = match &node {
            Node::List(items) => items.len(),
            Node::Dict(pairs) => 2 * pairs.len(),
            _ => 0,
        };
        self.spend(content)?;
        let id = u32::try_from(self.nodes.len()).map_err(|_| too_large())?;
        self.nodes.push(node);
        Ok(Id(id))
    }

    /// Counts work or memory against the pickle's allowance.
    pub(super) fn spend(&mut self, cells: usize) -> Result<(), Fault> {
        self.cells = self.cells.saturating_add(cells);
        if self.cells > MAX_CELLS { Err(too_large()) } else { Ok(()) }
    }
}

fn too_large() -> Fault {
    format!("it has more than {MAX_CELLS} operations, no network has")
}

/// Reads a pickle: its nodes, and which of them is the result.
pub(super) fn read(bytes: &[u8]) -> Result<(Arena<'_>, Id), Fault> {
    if bytes.len() > MAX_LEN {
        return Err(format!("the pickle is {} bytes long, more than the {MAX_LEN} that are read", bytes.len()));
    }
    let mut machine =
        Machine { bytes, at: 0, arena: Arena::default(), stack: vec![], marks: vec![], memo: HashMap::new() };
    match machine.run() {
        Ok(root) => Ok((machine.arena, root)),
        Err(fault) => Err(format!("the pickle is damaged at byte {} ({fault})", machine.at)),
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    arena: Arena<'a>,
    stack: Vec<Id>,
    /// Heights of the stack at which a MARK lies.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Opcodes by their letters, as `pickletools` lists them.
    fn run(&mut self) -> Result<Id, Fault> {
        loop {
            self.arena.spend(1)?;
            match self.byte()? {
                0x80 => {
                    let protocol = self.byte()?;
                    if !(2..=5).contains(&protocol) {
                        return Err(format!("protocol {protocol}, expected 2 to 5"));
                    }
                }
                // FRAME: a hint for the reader of a stream.
                0x95 => drop(self.take(8)?),
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => {
                    // POP takes a MARK where that lies on top.
                    if self.marks.last() == Some(&self.stack.len()) {
                        self.marks.pop();
                    } else {
                        self.pop()?;
                    }
                }
                b'1' => drop(self.pop_mark()?),
                b'2' => self.stack.push(self.top()?),

                b'N' => self.push(Node::None)?,
                0x88 => self.push(Node::Bool(true))?,
                0x89 => self.push(Node::Bool(false))?,
                b'J' => {
                    let number = i32::from_le_bytes(self.array()?);
                    self.push(Node::Int(number.into()))?;
                }
                b'K' => {
                    let number = self.byte()?;
                    self.push(Node::Int(number.into()))?;
                }
                b'M' => {
                    let number = u16::from_le_bytes(self.array()?);
                    self.push(Node::Int(number.into()))?;
                }
                0x8a => {
                    let len = self.byte()?;
                    self.long(len.into())?;
                }
                0x8b => {
                    let len = self.length32()?;
                    self.long(len)?;
                }
                b'G' => {
                    let number = f64::from_be_bytes(self.array()?);
                    self.push(Node::Float(number))?;
                }

                b'X' | b'T' => {
                    let len = self.length32()?;
                    self.text(len)?;
                }
                0x8c | b'U' => {
                    let len = self.byte()?;
                    self.text(len.into())?;
                }
                0x8d => {
                    let len = self.length64()?;
                    self.text(len)?;
                }
                b'B' => {
                    let len = self.length32()?;
                    self.binary(len)?;
                }
                b'C' => {
                    let len = self.byte()?;
                    self.binary(len.into())?;
                }
                0x8e | 0x96 => {
                    let len = self.length64()?;
                    self.binary(len)?;
                }

                b']' | b')' | 0x8f => self.push(Node::List(vec![]))?,
                b'l' | b't' | 0x91 => {
                    let items = self.pop_mark()?;
                    self.push(Node::List(items))?;
                }
                0x85 => self.tuple(1)?,
                0x86 => self.tuple(2)?,
                0x87 => self.tuple(3)?,
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_mark()?;
                    self.append(items)?;
                }
                b'}' => self.push(Node::Dict(vec![]))?,
                b'd' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Dict(vec![]))?;
                    self.set_items(&items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set_items(&items)?;
                }

                b'q' => {
                    let index = self.byte()?;
                    self.put(index.into())?;
                }
                b'r' => {
                    let index = u32::from_le_bytes(self.array()?);
                    self.put(index)?;
                }
                0x94 => self.put(self.memo.len() as u32)?,
                b'h' => {
                    let index = self.byte()?;
                    self.recall(index.into())?;
                }
                b'j' => {
                    let index = u32::from_le_bytes(self.array()?);
                    self.recall(index)?;
                }

                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Node::Global { module, name })?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Some(module), Some(name)) = (self.arena.str(module), self.arena.str(name)) else {
                        return Err("a class is named by something else than text".into());
                    };
                    self.push(Node::Global { module, name })?;
                }
                b'R' => {
                    let (args, callable) = (self.pop()?, self.pop()?);
                    let made = classes::call(&mut self.arena, callable, args)?;
                    self.stack.push(made);
                }
                0x81 => {
                    let (args, class) = (self.pop()?, self.pop()?);
                    let made = classes::make(&mut self.arena, class, args)?;
                    self.stack.push(made);
                }
                0x92 => {
                    let (_keywords, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                    let made = classes::make(&mut self.arena, class, args)?;
                    self.stack.push(made);
                }
                b'b' => {
                    let (new, object) = (self.pop()?, self.top()?);
                    if let Some(Node::Instance { state, .. }) = self.arena.get_mut(object) {
                        *state = Some(new);
                    }
                }
                b'Q' => {
                    let reference = self.pop()?;
                    let storage = classes::storage(&mut self.arena, reference)?;
                    self.stack.push(storage);
                }
                opcode => return Err(format!("opcode 0x{opcode:02x}, which PyTorch does not write")),
            }
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(len);
        let taken = end.and_then(|end| self.bytes.get(self.at..end)).ok_or("it ends too soon")?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| "it ends too soon".into())
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    fn length32(&mut self) -> Result<usize, Fault> {
        usize::try_from(u32::from_le_bytes(self.array()?)).map_err(|error| error.to_string())
    }

    fn length64(&mut self) -> Result<usize, Fault> {
        usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|error| error.to_string())
    }

    fn line(&mut self) -> Result<&'a str, Fault> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let len = rest.iter().position(|&byte| byte == b'\n').ok_or("a name without an end")?;
        let line = self.take(len + 1)?;
        std::str::from_utf8(line.strip_suffix(b"\n").unwrap_or(line)).map_err(|error| error.to_string())
    }

    fn push(&mut self, node: Node<'a>) -> Result<(), Fault> {
        let id = self.arena.push(node)?;
        self.stack.push(id);
        Ok(())
    }

    /// The text as text where it is UTF-8: Python 2 wrote bytes with the same opcodes.
    fn text(&mut self, len: usize) -> Result<(), Fault> {
        let bytes = self.take(len)?;
        self.push(std::str::from_utf8(bytes).map_or(Node::Bytes(bytes), Node::Str))
    }

    fn binary(&mut self, len: usize) -> Result<(), Fault> {
        let bytes = self.take(len)?;
        self.push(Node::Bytes(bytes))
    }

    /// A number of any length, little-endian two's complement; beyond 64 bits it is kept as bytes.
    fn long(&mut self, len: usize) -> Result<(), Fault> {
        let bytes = self.take(len)?;
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        if len > wide.len() {
            return self.push(Node::Bytes(bytes));
        }
        wide.iter_mut().zip(bytes).for_each(|(to, &from)| *to = from);
        self.push(Node::Int(i64::from_le_bytes(wide)))
    }

    /// The top of the stack; nothing below the last MARK is in reach.
    fn top(&self) -> Result<Id, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("its stack is empty".into());
        }
        self.stack.last().copied().ok_or_else(|| "its stack is empty".into())
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, Fault> {
        let mark = self.marks.pop().ok_or("a mark is missing")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn tuple(&mut self, len: usize) -> Result<(), Fault> {
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Node::List(items))
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), Fault> {
        self.arena.spend(items.len())?;
        let list = self.top()?;
        match self.arena.get_mut(list) {
            Some(Node::List(list)) => list.extend(items),
            Some(Node::Instance { .. } | Node::Opaque { .. }) => {}
            _ => return Err("an element is added to something else than a list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), Fault> {
        self.arena.spend(items.len())?;
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("a key without a value".into());
        }
        let dict = self.top()?;
        match self.arena.get_mut(dict) {
            Some(Node::Dict(dict)) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            Some(Node::Instance { .. } | Node::Opaque { .. }) => {}
            _ => return Err("an entry is put into something else than a dict".into()),
        }
        Ok(())
    }

    fn put(&mut self, index: u32) -> Result<(), Fault> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), Fault> {
        let id =
            self.memo.get(&index).copied().ok_or_else(|| format!("it refers to object {index}, which is not there"))?;
        self.stack.push(id);
        Ok(())
    }
}

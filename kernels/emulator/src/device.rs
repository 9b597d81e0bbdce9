//! The emulator as a device of the operations in [`dyconv_kernels::gpu::ops`].

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use dyconv_kernels::gpu::ops::Device;
use dyconv_kernels::gpu::{Access, Element, Kernel, Launch};

use crate::Error;
use crate::conformance::TestDevice;
use crate::module::{Module, Sources, Span};

/// Bytes before and after the values of a buffer that belong to nobody, so that a kernel that leaves it is caught.
const MARGIN: usize = 4096;

/// Memory of the emulated device: exactly the values, on an address that an offset may make odd.
#[derive(Debug)]
pub struct Memory {
    cells: Box<[UnsafeCell<u128>]>,
    /// Bytes from the first cell to the first value.
    start: usize,
    element: Element,
    len: usize,
    initialised: Cell<bool>,
}

impl Memory {
    /// Room for `len` values that begins `offset` values after a multiple of 16 bytes. All bits are set: NaN.
    fn new(element: Element, len: usize, offset: usize) -> Self {
        let start = MARGIN + offset * element.size();
        let cells = (start + len * element.size() + MARGIN).div_ceil(size_of::<u128>());
        let cells = (0..cells).map(|_| UnsafeCell::new(u128::MAX)).collect();
        Self { cells, start, element, len, initialised: Cell::new(false) }
    }

    fn base(&self) -> *mut u8 {
        // SAFETY: the start lies within the cells. They may be written through shared references.
        unsafe { UnsafeCell::raw_get(self.cells.as_ptr()).cast::<u8>().add(self.start) }
    }

    fn bytes(&self) -> usize {
        self.len * self.element.size()
    }

    fn write(&self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.bytes());
        // SAFETY: as many bytes as the memory has. It is not shared between threads (`UnsafeCell`), and no kernel runs.
        unsafe { self.base().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.initialised.set(true);
    }

    fn read(&self) -> &[u8] {
        // SAFETY: the bytes lie within the cells, and nothing writes to them while no kernel runs.
        unsafe { std::slice::from_raw_parts(self.base(), self.bytes()) }
    }
}

/// All kernels of one language.
#[derive(Debug)]
pub struct Emulator {
    modules: HashMap<String, Arc<Module>>,
    seed: Cell<u32>,
    launched: RefCell<Vec<(Kernel, Element)>>,
}

impl Emulator {
    /// Compiles all kernel files into `folder`, two at a time.
    ///
    /// # Errors
    /// Where the platform or the compiler is missing, or the text does not compile.
    pub fn new(sources: &Sources, folder: &Path) -> Result<Self, Error> {
        let files = sources.kernel_files();
        let mut modules = HashMap::new();
        for pair in files.chunks(2) {
            let built: Vec<_> = std::thread::scope(|scope| {
                let jobs: Vec<_> =
                    pair.iter().map(|file| scope.spawn(|| Module::build(sources, file, folder))).collect();
                jobs.into_iter().map(|job| job.join()).collect()
            });
            for (file, module) in pair.iter().zip(built) {
                let module = module.map_err(|_| Error::Broken("a compiling thread died".to_owned()))?;
                modules.insert((*file).to_owned(), module?);
            }
        }
        Ok(Self { modules, seed: Cell::new(1), launched: RefCell::default() })
    }

    /// Puts another module in the place of a kernel file's own.
    pub fn replace(&mut self, file: &str, module: Arc<Module>) {
        self.modules.insert(file.to_owned(), module);
    }

    /// Sets the seed that the order of blocks and threads is drawn from.
    pub fn set_seed(&self, seed: u32) {
        self.seed.set(seed);
    }
}

impl Device for Emulator {
    type Buffer = Memory;
    type Error = Error;

    fn empty(&self, element: Element, len: usize) -> Result<Memory, Error> {
        Ok(Memory::new(element, len, 0))
    }

    fn run(&self, launch: &Launch, buffers: &[Option<&Memory>]) -> Result<(), Error> {
        let entry = launch.entry();
        assert_eq!(launch.buffers.len(), buffers.len(), "{entry}");
        let mut spans = Vec::with_capacity(buffers.len());
        for (described, given) in launch.buffers.iter().zip(buffers) {
            let described_as = |element: Element, len: usize| format!("{len} values of {}", element.suffix());
            let (Some(memory), true) = (given, described.access != Access::Absent) else {
                let name = described.name;
                if given.is_some() || described.access != Access::Absent {
                    let expected = described_as(described.element, described.len);
                    return Err(Error::Buffer { kernel: entry, buffer: name, expected, got: "another".to_owned() });
                }
                let base = std::ptr::null_mut();
                spans.push(Span { name, base, bytes: 0, initialised: false, writable: false });
                continue;
            };
            if (memory.element, memory.len) != (described.element, described.len) {
                return Err(Error::Buffer {
                    kernel: entry,
                    buffer: described.name,
                    expected: described_as(described.element, described.len),
                    got: described_as(memory.element, memory.len),
                });
            }
            spans.push(Span {
                name: described.name,
                base: memory.base().cast(),
                bytes: memory.bytes(),
                initialised: memory.initialised.get(),
                writable: described.access == Access::Write,
            });
        }
        let Some(module) = self.modules.get(launch.kernel.file()) else {
            return Err(Error::Broken(format!("{} was not compiled", launch.kernel.file())));
        };
        // SAFETY: the spans are the buffers' memory, and `Memory` is used by one thread.
        unsafe {
            let size = (launch.grid, launch.block, launch.shared);
            module.launch(&entry, size, &spans, &launch.params, self.seed.get())?;
        }
        for (described, given) in launch.buffers.iter().zip(buffers) {
            if let (Access::Write, Some(memory)) = (described.access, given) {
                memory.initialised.set(true);
            }
        }
        self.launched.borrow_mut().push((launch.kernel, launch.element));
        Ok(())
    }
}

impl TestDevice for Emulator {
    fn upload(&self, bytes: &[u8], element: Element, offset: usize) -> Result<Memory, Error> {
        let memory = Memory::new(element, bytes.len() / element.size(), offset);
        memory.write(bytes);
        Ok(memory)
    }

    fn download(&self, buffer: &Memory) -> Result<Vec<u8>, Error> {
        Ok(buffer.read().to_vec())
    }

    fn reorder(&self, seed: u32) {
        self.set_seed(seed);
    }

    fn take_launched(&self) -> Vec<(Kernel, Element)> {
        self.launched.take()
    }
}

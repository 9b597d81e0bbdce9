//! Compiles a kernel file for the emulator, and loads it.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use dyconv_kernels::gpu::{Element, Kernel};
use libloading::{Library, Symbol};

use crate::Error;

/// A language of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Language {
    /// `kernels/cuda/*.cu`.
    Cuda,
    /// `kernels/metal/*.metal`.
    Metal,
}

impl Language {
    /// Folder of its sources, and of its shim.
    fn folder(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Cuda => "cu",
            Self::Metal => "metal",
        }
    }

    /// The C++ file that includes a kernel file and lists its kernels.
    fn wrap(self, file: &str) -> String {
        let mut text = match self {
            Self::Cuda => format!("#include \"cuda_emulator.h\"\n#include \"kernels/cuda/{file}.cu\"\n"),
            Self::Metal => format!("#include <metal_stdlib>\n#include \"kernels/metal/{file}.metal\"\n"),
        };
        text += "extern const emulator::Kernel emulator_kernels[] = {\n";
        for kernel in Kernel::ALL.iter().filter(|kernel| kernel.file() == file) {
            for element in Element::ALL {
                text += &format!("    EMULATOR_KERNEL({}_{}),\n", kernel.name(), element.suffix());
            }
        }
        text + "    {nullptr, nullptr},\n};\n"
    }
}

/// The files of a language by their paths below `kernels/`, with their text.
#[derive(Debug, Clone)]
pub struct Sources {
    language: Language,
    files: Vec<(String, String)>,
}

impl Sources {
    /// The sources as they ship.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn read(language: Language) -> Result<Self, Error> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut files = vec![("params.h".to_owned(), read(&folder.join("params.h"))?)];
        for path in list(&folder.join(language.folder()))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            files.push((format!("{}/{name}", language.folder()), read(&path)?));
        }
        Ok(Self { language, files })
    }

    /// The same with one text in one file replaced; nothing where the text is not there exactly once.
    pub fn replaced(&self, file: &str, find: &str, replacement: &str) -> Option<Self> {
        let mut changed = self.clone();
        let (_, text) = changed.files.iter_mut().find(|(path, _)| path == file)?;
        if text.matches(find).count() != 1 {
            return None;
        }
        *text = text.replace(find, replacement);
        Some(changed)
    }

    /// Every file: its path below `kernels/`, and its text.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// Kernel files, without their endings.
    pub fn kernel_files(&self) -> Vec<&str> {
        let prefix = format!("{}/", self.language.folder());
        let suffix = format!(".{}", self.language.extension());
        self.files.iter().filter_map(|(path, _)| path.strip_prefix(&prefix)?.strip_suffix(&suffix)).collect()
    }

    /// The files that a kernel file is made of: itself and what it includes.
    fn parts(&self, kernel_file: &str) -> BTreeMap<&str, &str> {
        let mut parts = BTreeMap::new();
        let mut open = vec![format!("{}/{kernel_file}.{}", self.language.folder(), self.language.extension())];
        while let Some(path) = open.pop() {
            let Some((path, text)) = self.files.iter().find(|(known, _)| *known == path) else { continue };
            if parts.insert(path.as_str(), text.as_str()).is_none() {
                let included = text.lines().filter_map(|line| line.strip_prefix("#include \"")?.strip_suffix('"'));
                open.extend(included.map(|name| match name.strip_prefix("../") {
                    Some(name) => name.to_owned(),
                    None => format!("{}/{name}", self.language.folder()),
                }));
            }
        }
        parts
    }
}

/// One kernel file, compiled and loaded. It runs one launch at a time.
#[derive(Debug)]
pub struct Module {
    // The engine is global state of the library.
    library: Mutex<Library>,
}

/// One argument of a kernel that is a buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) name: &'static str,
    /// Null where the argument is absent.
    pub(crate) base: *mut c_void,
    pub(crate) bytes: usize,
    pub(crate) initialised: bool,
    pub(crate) writable: bool,
}

impl Module {
    /// Compiles `file` of the sources into `folder`, unless the same text was compiled there before, and loads it.
    ///
    /// # Errors
    /// Where the platform or the compiler is missing, or the text does not compile.
    pub fn build(sources: &Sources, file: &str, folder: &Path) -> Result<Arc<Self>, Error> {
        // A library that is loaded twice is one library with one state, so it gets one lock.
        static LOADED: Mutex<BTreeMap<PathBuf, Arc<Module>>> = Mutex::new(BTreeMap::new());
        let path = compile(sources, file, folder)?;
        let mut loaded = LOADED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(module) = loaded.get(&path) {
            return Ok(Arc::clone(module));
        }
        // SAFETY: a library that this crate compiled from its own text; it has no constructors beyond C++'s own statics.
        let library = unsafe { Library::new(&path) }
            .map_err(|error| Error::Broken(format!("{file}: the library cannot be loaded: {error}")))?;
        let module = Arc::new(Self { library: Mutex::new(library) });
        loaded.insert(path, Arc::clone(&module));
        Ok(module)
    }

    /// Runs a kernel over `spans` and one struct of scalars, in an order of blocks and threads drawn from `seed`.
    ///
    /// # Safety
    /// Each span that is not null is memory of that many bytes, and nothing else uses it meanwhile.
    ///
    /// # Errors
    /// What the checks find.
    pub(crate) unsafe fn launch(
        &self,
        entry: &str,
        (grid, block, shared): ([u32; 3], [u32; 3], u32),
        spans: &[Span],
        params: &[u32],
        seed: u32,
    ) -> Result<(), Error> {
        type Begin = unsafe extern "C" fn(usize);
        type Buffer = unsafe extern "C" fn(*const c_char, *mut c_void, usize, c_int, c_int);
        type Unwritten = unsafe extern "C" fn(*const c_void) -> usize;
        type Seed = unsafe extern "C" fn(c_uint);
        type Launch = unsafe extern "C" fn(
            *const c_char,
            *const c_uint,
            *const c_uint,
            *const *const c_void,
            *const usize,
            usize,
        ) -> c_int;
        type Findings = unsafe extern "C" fn() -> *const c_char;

        let library = self.library.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let name = c_string(entry)?;
        // SAFETY: the types are those of the functions in cpp/checks.cc and cpp/engine.cc.
        let (begin, buffer, unwritten, set_seed, launch, findings) = unsafe {
            (
                symbol::<Begin>(&library, c"emulator_begin")?,
                symbol::<Buffer>(&library, c"emulator_buffer")?,
                symbol::<Unwritten>(&library, c"emulator_unwritten")?,
                symbol::<Seed>(&library, c"emulator_seed")?,
                symbol::<Launch>(&library, c"emulator_launch")?,
                symbol::<Findings>(&library, c"emulator_findings")?,
            )
        };
        // A kernel takes the addresses of its arguments: of the pointers, and of the struct.
        let mut arguments: Vec<*const c_void> = spans.iter().map(|span| (&raw const span.base).cast()).collect();
        arguments.push(params.as_ptr().cast());
        let mut sizes = vec![size_of::<*mut c_void>(); spans.len()];
        sizes.push(size_of_val(params));
        // SAFETY: strings and arrays outlive the calls; the kernel touches the spans (the caller's promise) whatever else it
        // tries to touch, the checks give the launch up before it happens.
        unsafe {
            begin(shared as usize);
            set_seed(seed);
            for span in spans.iter().filter(|span| !span.base.is_null()) {
                let label = c_string(span.name)?;
                buffer(label.as_ptr(), span.base, span.bytes, span.initialised.into(), span.writable.into());
            }
            let found = launch(
                name.as_ptr(),
                grid.as_ptr(),
                block.as_ptr(),
                arguments.as_ptr(),
                sizes.as_ptr(),
                arguments.len(),
            );
            if found < 0 {
                return Err(Error::Found(format!("there is no kernel `{entry}`")));
            }
            if found > 0 {
                return Err(Error::Found(CStr::from_ptr(findings()).to_string_lossy().into_owned()));
            }
            for span in spans.iter().filter(|span| span.writable) {
                let bytes = unwritten(span.base);
                if bytes > 0 {
                    return Err(Error::Found(format!("{entry}: {bytes} bytes of {} are never written", span.name)));
                }
            }
        }
        Ok(())
    }
}

fn c_string(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|error| Error::Found(error.to_string()))
}

/// # Safety
/// `T` is the type of the symbol.
unsafe fn symbol<'a, T>(library: &'a Library, name: &CStr) -> Result<Symbol<'a, T>, Error> {
    // SAFETY: the caller's promise.
    unsafe { library.get(name) }.map_err(|error| Error::Broken(format!("{name:?} is missing: {error}")))
}

/// The compiler, by the variable `CXX`; clang merges accesses in ways that the checks' messages do not show.
fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned())
}

/// Compiles `file` of the sources into `folder`, unless the same text was compiled there before; gives the library's path.
///
/// # Errors
/// Where the platform or the compiler is missing, or the text does not compile.
pub fn compile(sources: &Sources, file: &str, folder: &Path) -> Result<PathBuf, Error> {
    if !cfg!(target_os = "linux") {
        return Err(Error::Unavailable("it needs Linux and g++".to_owned()));
    }
    let engine = Path::new(env!("CARGO_MANIFEST_DIR")).join("cpp");
    let shim = engine.join(sources.language.folder());
    let wrapper = sources.language.wrap(file);
    let mut hasher = DefaultHasher::new();
    let parts = sources.parts(file);
    (&parts, &wrapper, compiler()).hash(&mut hasher);
    for path in list(&engine)?.into_iter().chain(list(&shim)?) {
        read(&path)?.hash(&mut hasher);
    }
    let library = folder.join(format!("{file}-{:016x}.so", hasher.finish()));
    if library.is_file() {
        return Ok(library);
    }
    // In a folder of its own until it is whole: another process may be doing the same.
    let work = folder.join(format!("{file}-{:016x}-{}", hasher.finish(), std::process::id()));
    for (path, text) in parts {
        write(&work.join("kernels").join(path), text)?;
    }
    write(&work.join("kernel.cc"), &wrapper)?;
    let mut objects = vec![work.join("kernel")];
    for name in ["engine", "checks"] {
        objects.push(engine_object(&engine, name, &work, folder)?);
    }
    let mut kernel = Command::new(compiler());
    kernel.args(COMPILE).args(["-O1", "-fsanitize=thread", "-o"]).arg(work.join("kernel")).arg(work.join("kernel.cc"));
    for include in [&work, &shim, &engine] {
        kernel.arg("-I").arg(include);
    }
    run(file, &mut kernel)?;
    // Without -fsanitize: it would bring ThreadSanitizer's library, whose place the checks take.
    let mut link = Command::new(compiler());
    link.args(["-shared", "-Wl,-Bsymbolic", "-o"]).arg(work.join("library"));
    run(file, link.args(objects).arg("-ldl"))?;
    fs::rename(work.join("library"), &library).map_err(|error| file_error(&library, error))?;
    fs::remove_dir_all(&work).map_err(|error| file_error(&work, error))?;
    Ok(library)
}

const COMPILE: [&str; 4] = ["-std=c++17", "-g", "-fPIC", "-c"];

/// One object of the engine, the same for all kernels: compiled in `work` unless it is in `folder`.
fn engine_object(engine: &Path, name: &str, work: &Path, folder: &Path) -> Result<PathBuf, Error> {
    let source = engine.join(name).with_extension("cc");
    let mut hasher = DefaultHasher::new();
    (compiler(), read(&source)?, read(&engine.join("engine.h"))?).hash(&mut hasher);
    let object = folder.join(format!("{name}-{:016x}.o", hasher.finish()));
    if !object.is_file() {
        let part = work.join(name);
        run(name, Command::new(compiler()).args(COMPILE).arg("-O2").arg(source).arg("-o").arg(&part))?;
        fs::rename(&part, &object).map_err(|error| file_error(&object, error))?;
    }
    Ok(object)
}

fn run(file: &str, command: &mut Command) -> Result<(), Error> {
    let output = command
        .output()
        .map_err(|error| Error::Broken(format!("`{}` cannot be run: {error}", command.get_program().display())))?;
    if output.status.success() {
        return Ok(());
    }
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::Compile { file: file.to_owned(), messages })
}

/// The files of a folder, sorted.
fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(|error| file_error(folder, error))?;
    let mut paths: Vec<PathBuf> =
        entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).filter(|path| path.is_file()).collect();
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|error| file_error(path, error))
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|error| file_error(folder, error))?;
    fs::write(path, text).map_err(|error| file_error(path, error))
}

fn file_error(path: &Path, error: std::io::Error) -> Error {
    Error::File { path: path.display().to_string(), error }
}

//! ONNX Runtime: how it is found and loaded, and how a graph is opened, bound and run. The only file that names `ort`.

use std::collections::BTreeMap;
use std::env;
use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use marionette_models::error::one_line;
use ort::environment::Environment;
use ort::ep::ExecutionProvider as _;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::builder::SessionBuilder;
use ort::session::{IoBinding, Session};
use ort::value::{PrimitiveTensorElementType, Tensor};
use ort::{ep, logging::LogLevel};

use crate::memory;

mod buffer;
mod operators;

pub use buffer::Buffer;
use buffer::Memory;

/// The oldest ONNX Runtime that is used: since 1.24 it checks the paths of external data itself.
const OLDEST: &str = "1.24";
const OLDEST_MINOR: u32 = 24;
/// Names the library, where it is set.
const VARIABLE: &str = "ORT_DYLIB_PATH";
/// What to do where there is no library.
const REMEDY: &str = "run `scripts/native-deps.sh onnxruntime`, or `pip install onnxruntime` and set ORT_DYLIB_PATH to its \
                      capi/libonnxruntime.so.*";

/// Why ONNX Runtime cannot do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The library would send telemetry.
    #[error(
        "ONNX Runtime would send telemetry from this device: set {TELEMETRY}=1 before the program starts, or call `session::disable_telemetry` first in it"
    )]
    Telemetry,
    /// There is no library.
    #[error("ONNX Runtime {OLDEST} or newer is not found (looked {looked}); {REMEDY}")]
    Missing {
        /// Where it was looked for.
        looked: String,
    },
    /// A library was found and cannot be used.
    #[error("{library}: {problem}; {remedy}")]
    Unusable {
        /// The library.
        library: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// An execution provider cannot be had.
    #[error("the execution provider \"{wanted}\" cannot be had ({problem}); what can: {available}")]
    Provider {
        /// What was asked for.
        wanted: Provider,
        /// Why not.
        problem: String,
        /// What this ONNX Runtime has, of those that marionette knows.
        available: String,
    },
    /// A graph cannot be opened or run.
    #[error("{graph}: ONNX Runtime {action}: {message}")]
    Graph {
        /// The graph's file.
        graph: String,
        /// What it could not do.
        action: String,
        /// What ONNX Runtime says.
        message: String,
    },
}

/// What the graphs run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Provider {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl Provider {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Cpu, Self::Cuda];

    /// As the command line spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }

    /// Whether this ONNX Runtime was built with it.
    fn is_built_in(self) -> bool {
        match self {
            Self::Cpu => ep::CPU::is_available(),
            Self::Cuda => ep::CUDA::is_available(),
        }
        .unwrap_or(false)
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A loaded ONNX Runtime; one a process.
pub struct OnnxRuntime {
    environment: Environment,
    library: PathBuf,
    version: String,
}

/// The variable that keeps ONNX Runtime from phoning home. Without it the official library of Linux (1.31) resolves a host after some
/// seconds, and writes a device id and a database into the user's cache folder, whatever its interface is told.
const TELEMETRY: &str = "ORT_DISABLE_TELEMETRY";

/// Keeps ONNX Runtime from sending telemetry, in this process and those that it starts. A program calls it before all else.
///
/// # Safety
/// No other thread runs yet: the environment is changed, which another may be reading.
pub unsafe fn disable_telemetry() {
    // SAFETY: the caller's promise.
    unsafe { env::set_var(TELEMETRY, "1") };
}

static LOADED: OnceLock<OnnxRuntime> = OnceLock::new();
static LOADING: Mutex<()> = Mutex::new(());

impl OnnxRuntime {
    /// Loads ONNX Runtime, or gives the one that was loaded before.
    ///
    /// `ORT_DYLIB_PATH`, where it is set, must name a library that works. Else the first that exists is taken: beside the
    /// executable, in `lib` beside the executable's folder, in `.deps/onnxruntime/lib` of any folder above it, and last
    /// whatever the system's loader finds.
    ///
    /// # Errors
    /// [`SessionError::Missing`] and [`SessionError::Unusable`]; [`SessionError::Telemetry`] where that was not switched off.
    pub fn load() -> Result<&'static Self, SessionError> {
        let _one_at_a_time = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = LOADED.get() {
            return Ok(loaded);
        }
        if env::var_os(TELEMETRY).is_none_or(|value| value != "1") {
            return Err(SessionError::Telemetry);
        }
        let loaded = Self::find()?;
        Ok(LOADED.get_or_init(|| loaded))
    }

    fn find() -> Result<Self, SessionError> {
        if let Some(path) = env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
            let set =
                format!("{VARIABLE} names it: set it to a library of ONNX Runtime {OLDEST} or newer, or unset it");
            // `ort` takes a relative path as relative to the program first.
            let path = std::path::absolute(&path).ok().filter(|path| path.exists()).unwrap_or(PathBuf::from(path));
            return Self::open(&path).map_err(|problem| problem.with(&path.to_string_lossy(), &set));
        }
        let executable = env::current_exe().and_then(|path| path.canonicalize()).unwrap_or_default();
        if let Some(path) = beside(&executable).into_iter().find(|path| path.is_file()) {
            return Self::open(&path).map_err(|problem| problem.with(&path.to_string_lossy(), REMEDY));
        }
        // The system's loader is asked by bare names. One that it has but that cannot be used is worth saying.
        let mut unusable = None;
        for name in file_names() {
            match Self::open(Path::new(&name)) {
                Ok(found) => return Ok(found),
                Err(Problem::NotLoaded(_)) => {}
                Err(problem) => unusable = unusable.or(Some(problem.with(&name, REMEDY))),
            }
        }
        Err(unusable.unwrap_or(SessionError::Missing {
            looked:
                "beside the program, in ../lib, in .deps/onnxruntime/lib above it and in the system's library folders"
                    .into(),
        }))
    }

    fn open(path: &Path) -> Result<Self, Problem> {
        let version = version_of(path)?;
        // What is checked here, `ort` would meet with a panic later.
        let builder = ort::init_from(path).map_err(|error| Problem::Wrong(one_line(&error.to_string())))?;
        let built = builder.with_name("marionette").with_telemetry(false).build();
        let environment = built.map_err(|error| Problem::Wrong(one_line(error.message())))?;
        // What goes wrong comes back as an error; ONNX Runtime's own lines would stand beside it.
        environment.set_log_level(LogLevel::Fatal);
        Ok(Self { environment, library: path.to_owned(), version })
    }

    /// Its environment, for a program that opens graphs of its own beside ours.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The library that was loaded.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Its version, such as `1.31.1`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The providers that this ONNX Runtime was built with, of those that marionette knows.
    pub fn providers(&self) -> Vec<Provider> {
        Provider::ALL.into_iter().filter(|provider| provider.is_built_in()).collect()
    }

    fn provider_error(&self, wanted: Provider, problem: String) -> SessionError {
        let available = self.providers().iter().map(|provider| provider.name()).collect::<Vec<_>>().join(", ");
        SessionError::Provider { wanted, problem, available }
    }

    /// Refuses a provider that this ONNX Runtime was not built with.
    ///
    /// # Errors
    /// [`SessionError::Provider`].
    pub fn require(&self, provider: Provider) -> Result<(), SessionError> {
        if provider.is_built_in() {
            return Ok(());
        }
        let problem = format!("ONNX Runtime {} at {} was built without it", self.version, self.library.display());
        Err(self.provider_error(provider, problem))
    }

    /// Starts a provider, without any graph.
    ///
    /// # Errors
    /// [`SessionError::Provider`].
    pub fn start(&self, provider: Provider) -> Result<(), SessionError> {
        self.require(provider)?;
        let builder =
            Session::builder(&self.environment).map_err(|error| failure("a session", "cannot begin it", &error))?;
        self.register(builder, provider).map(drop)
    }

    /// Adds a provider to a session. For CUDA that loads its libraries; a failure must not fall back to the processor unseen.
    fn register(&self, builder: SessionBuilder, provider: Provider) -> Result<SessionBuilder, SessionError> {
        match provider {
            Provider::Cpu => Ok(builder),
            Provider::Cuda => builder
                .with_execution_providers([ep::CUDA::default().build().error_on_failure()])
                .map_err(|error| self.provider_error(provider, one_line(error.message()))),
        }
    }
}

/// Where the library may lie, relative to the executable.
fn beside(executable: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Some(folder) = executable.parent() {
        folders.push(folder.to_owned());
        folders.extend(folder.parent().map(|above| above.join("lib")));
        folders.extend(folder.ancestors().map(|above| above.join(".deps/onnxruntime/lib")));
    }
    folders.iter().flat_map(|folder| file_names().map(|name| folder.join(name))).collect()
}

/// What the library's file is called.
fn file_names() -> [String; 2] {
    let name = format!("{}onnxruntime{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    let with_version = format!("{name}.1");
    [name, with_version]
}

/// What is wrong with a library.
enum Problem {
    /// The system cannot load it, which is what it says where there is none.
    NotLoaded(String),
    /// It is loaded and of no use.
    Wrong(String),
}

impl Problem {
    fn with(self, library: &str, remedy: &str) -> SessionError {
        let problem = match self {
            Self::NotLoaded(message) => format!("cannot be loaded: {message}"),
            Self::Wrong(problem) => problem,
        };
        SessionError::Unusable { library: one_line(library), problem, remedy: remedy.to_owned() }
    }
}

/// Whether a file of Linux's format ends before its segments do. The system maps such a library and kills the program that touches what
/// is missing.
fn is_cut(path: &Path) -> bool {
    use object::read::ReadCache;
    use object::read::elf::{FileHeader, ProgramHeader};
    let segments = || -> Option<bool> {
        let file = File::open(path).ok().filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()))?;
        let length = file.metadata().ok()?.len();
        let file = ReadCache::new(file);
        let header = object::elf::FileHeader64::<object::Endianness>::parse(&file).ok()?;
        let endian = header.endian().ok()?;
        let segments = header.program_headers(endian, &file).ok()?;
        Some(segments.iter().any(|segment| {
            let (offset, size) = segment.file_range(endian);
            offset.checked_add(size).is_none_or(|end| end > length)
        }))
    };
    // What is of another format is for the system to refuse.
    segments().unwrap_or(false)
}

/// The version of a library, where it is ONNX Runtime's and new enough.
fn version_of(path: &Path) -> Result<String, Problem> {
    let wrong = |problem: &str| Problem::Wrong(problem.to_owned());
    if is_cut(path) {
        return Err(wrong("is cut: it ends before the parts that its header names"));
    }
    // SAFETY: loading a library runs its initialisers; that is what the user names one for.
    let library =
        unsafe { libloading::Library::new(path) }.map_err(|error| Problem::NotLoaded(one_line(&error.to_string())))?;
    // SAFETY: a symbol of this name is the C API's entry point (onnxruntime_c_api.h), which takes nothing.
    let entry = unsafe { library.get::<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase\0") }
        .map_err(|_| wrong("is a library, but not ONNX Runtime's (it has no OrtGetApiBase)"))?;
    // SAFETY: as above; the structure is static, and so is the version string that it gives.
    let (version, lacks_api) = unsafe {
        let base = entry().as_ref().ok_or_else(|| wrong("gives no API"))?;
        let version = CStr::from_ptr((base.GetVersionString)()).to_string_lossy().into_owned();
        (version, (base.GetApi)(ort::sys::ORT_API_VERSION).is_null())
    };
    let version = one_line(&version);
    let number = |part: Option<&str>| part.and_then(|part| part.parse::<u32>().ok());
    let mut parts = version.split('.');
    if number(parts.next()) != Some(1) || number(parts.next()).is_none_or(|minor| minor < OLDEST_MINOR) {
        return Err(Problem::Wrong(format!("is ONNX Runtime {version}, expected {OLDEST} or newer of version 1")));
    }
    // Where it is missing, `ort` panics.
    if lacks_api {
        return Err(Problem::Wrong(format!("says that it is ONNX Runtime {version}, but lacks the API of {OLDEST}")));
    }
    Ok(version)
}

/// How a graph is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphOptions {
    /// What it runs on.
    pub provider: Provider,
    /// Threads within an operator; ONNX Runtime's choice (one a physical core) where none is given.
    pub threads: Option<NonZeroUsize>,
    /// Whether operators of our own have our kernels on the processor.
    pub kernels: bool,
    /// Whether ONNX Runtime plans one block of memory for all intermediate values of a run.
    pub memory_pattern: bool,
    /// Whether ONNX Runtime keeps a second copy of the weights, laid out for the processor.
    pub prepacking: bool,
    /// After how many runs the memory moves into huge pages, if ever.
    pub huge_pages_after: Option<usize>,
}

/// An open graph with its bindings.
pub struct Graph {
    name: String,
    session: Session,
    binding: IoBinding,
    /// What is bound, by name.
    held: BTreeMap<String, Arc<Memory>>,
    /// How many more runs there are before the memory moves into huge pages.
    runs_before_huge_pages: Option<usize>,
}

impl Graph {
    /// Opens a graph at the highest optimisation level.
    ///
    /// # Errors
    /// [`SessionError::Provider`] where the provider fails to start; [`SessionError::Graph`].
    pub fn open(runtime: &OnnxRuntime, path: &Path, options: GraphOptions) -> Result<Self, SessionError> {
        runtime.require(options.provider)?;
        let name = path.display().to_string();
        let failed = |error: ort::Error| failure(&name, "cannot open it", &error);
        let mut builder = Session::builder(&runtime.environment).map_err(failed)?;
        builder =
            configure(builder, options).map_err(|error| failure(&name, "refuses the session's options", &error))?;
        builder = runtime.register(builder, options.provider)?;
        // ONNX Runtime 1.31 looks whether a domain of operators is known and then adds it, with no lock between: of two sessions that open
        // as a process's first at once, one is refused ("the domain is already exist").
        static OPENING: Mutex<()> = Mutex::new(());
        let one_at_a_time = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        let session = builder.commit_from_file(path).map_err(failed)?;
        drop(one_at_a_time);
        memory::trim();
        let binding = session.create_binding().map_err(failed)?;
        Ok(Self { name, session, binding, held: BTreeMap::new(), runs_before_huge_pages: options.huge_pages_after })
    }

    /// Binds values to an input. They are copied.
    ///
    /// # Errors
    /// [`SessionError::Graph`] for an unknown name or values that do not fill the shape.
    pub fn input<T>(&mut self, name: &str, shape: &[usize], values: &[T]) -> Result<(), SessionError>
    where
        T: PrimitiveTensorElementType + Clone + fmt::Debug + 'static,
    {
        let failed = |error| failure(&self.name, &format!("cannot take the input {name}"), &error);
        let tensor = Tensor::from_array((shape.to_vec(), values.to_vec())).map_err(failed)?;
        self.binding.bind_input(name, &tensor).map_err(failed)
    }

    /// Binds a buffer to an input: where the graph runs on the processor, later writes to the buffer are seen by later runs.
    ///
    /// # Errors
    /// [`SessionError::Graph`].
    pub fn input_buffer(&mut self, name: &str, buffer: &Buffer) -> Result<(), SessionError> {
        self.bind(name, buffer, buffer.tensor(), false)
    }

    /// Binds a part of a buffer to an input: the values from `first` on, in a shape.
    ///
    /// # Errors
    /// [`SessionError::Graph`]: the buffer has not so many, among others.
    pub fn input_part(
        &mut self,
        name: &str,
        buffer: &Buffer,
        first: usize,
        shape: &[usize],
    ) -> Result<(), SessionError> {
        self.bind(name, buffer, buffer.part(first, shape), false)
    }

    /// Binds a buffer to an output: every run writes there.
    ///
    /// # Errors
    /// [`SessionError::Graph`].
    pub fn output_buffer(&mut self, name: &str, buffer: &mut Buffer) -> Result<(), SessionError> {
        self.bind(name, buffer, buffer.tensor(), true)
    }

    /// Binds a part of a buffer to an output, as [`Graph::input_part`] does to an input.
    ///
    /// # Errors
    /// As [`Graph::input_part`].
    pub fn output_part(
        &mut self,
        name: &str,
        buffer: &mut Buffer,
        first: usize,
        shape: &[usize],
    ) -> Result<(), SessionError> {
        self.bind(name, buffer, buffer.part(first, shape), true)
    }

    fn bind(
        &mut self,
        name: &str,
        buffer: &Buffer,
        tensor: ort::Result<Tensor<f32>>,
        is_output: bool,
    ) -> Result<(), SessionError> {
        let bound = tensor.and_then(|mut tensor| match is_output {
            true => self.binding.bind_output(name, &mut tensor),
            false => self.binding.bind_input(name, &tensor),
        });
        let kind = if is_output { "give the output" } else { "take the input" };
        bound.map_err(|error| failure(&self.name, &format!("cannot {kind} {name}"), &error))?;
        // Before that of a former binding is let go, another one took its place.
        self.held.insert(name.to_owned(), Arc::clone(&buffer.memory));
        Ok(())
    }

    /// Runs the graph; the bound outputs hold the results.
    ///
    /// # Errors
    /// [`SessionError::Graph`].
    pub fn run(&mut self) -> Result<(), SessionError> {
        let failed = |error| failure(&self.name, "failed", &error);
        self.session.run_binding(&self.binding).map(drop).map_err(failed)?;
        match &mut self.runs_before_huge_pages {
            Some(0) => {
                memory::collapse();
                self.runs_before_huge_pages = None;
            }
            Some(runs) => *runs -= 1,
            None => {}
        }
        Ok(())
    }
}

/// An open graph of somebody else's, which gives one row of f32 for some rows of whole numbers.
pub struct Classifier {
    name: String,
    session: Session,
}

impl Classifier {
    /// Opens a graph.
    ///
    /// # Errors
    /// As [`Graph::open`].
    pub fn open(runtime: &OnnxRuntime, path: &Path, options: GraphOptions) -> Result<Self, SessionError> {
        let Graph { name, session, .. } = Graph::open(runtime, path, options)?;
        Ok(Self { name, session })
    }

    /// Runs it on rows [1, T], of which it gets those that it has inputs for: its first output, flat.
    ///
    /// # Errors
    /// [`SessionError::Graph`]: it wants other inputs, or gives no f32.
    pub fn run(&mut self, rows: Vec<(&str, Vec<i64>)>) -> Result<Vec<f32>, SessionError> {
        let failed = |error: ort::Error| failure(&self.name, "failed", &error);
        let mut inputs = Vec::new();
        for (name, row) in rows {
            if self.session.inputs().iter().any(|input| input.name() == name) {
                inputs.push((name, Tensor::from_array(([1, row.len()], row)).map_err(failed)?));
            }
        }
        let outputs = self.session.run(inputs).map_err(failed)?;
        let values = outputs[0].try_extract_tensor::<f32>().map_err(failed)?.1;
        Ok(values.to_vec())
    }
}

fn configure(builder: SessionBuilder, options: GraphOptions) -> ort::Result<SessionBuilder> {
    let mut builder = builder
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_log_level(LogLevel::Fatal)?
        .with_memory_pattern(options.memory_pattern)?
        .with_prepacking(options.prepacking)?
        // Else what the 4-bit weights become is not computed once, but in every run.
        .with_config_entry("session.disable_quant_qdq", "1")?;
    if options.kernels && options.provider == Provider::Cpu {
        builder = builder.with_operators(operators::domain(options.threads)?)?;
    }
    if let Some(threads) = options.threads {
        builder = builder.with_intra_threads(threads.get())?;
    }
    Ok(builder)
}

fn failure(graph: &str, action: &str, error: &ort::Error) -> SessionError {
    SessionError::Graph { graph: graph.to_owned(), action: action.to_owned(), message: one_line(error.message()) }
}

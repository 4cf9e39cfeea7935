//! The device that libtorch computes on.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::{Cuda, Device};

use crate::error::{Result, TrainError};

/// The device, as on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum DeviceName {
    /// The processor
    #[default]
    Cpu,
    /// The first NVIDIA GPU
    Cuda,
}

/// Whether this processor multiplies bfloat16 by itself: libtorch computes with it anywhere, but slowly.
pub(crate) fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

const CUDA_LIBRARY: &str = "libtorch_cuda.so";
const CPU_LIBRARY: &str = "libtorch_cpu.so";

impl DeviceName {
    /// Makes the device ready. It must be called before the first tensor is made: libtorch looks for CUDA once.
    ///
    /// # Errors
    /// [`TrainError::Device`] where CUDA cannot be had.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda => {
                load_cuda()?;
                if !Cuda::is_available() {
                    let problem = "libtorch's CUDA library is loaded, but it finds no GPU".to_owned();
                    let remedy =
                        "check with nvidia-smi that there is one and that its driver is new enough for CUDA 13";
                    return Err(TrainError::Device { device: "cuda", problem, remedy });
                }
                Ok(Device::Cuda(0))
            }
        }
    }
}

/// The libtorch that this program was linked to registers CUDA when its CUDA library is loaded beside it.
fn load_cuda() -> Result<()> {
    let remedy = "install PyTorch 2.11.0 with CUDA (pip install torch==2.11.0) and set LIBTORCH_USE_PYTORCH=1, or set \
                  LIBTORCH to the folder of a CUDA build of libtorch 2.11.0";
    let refuse = |problem: String| TrainError::Device { device: "cuda", problem, remedy };
    let folders = folders();
    let Some(library) = folders.iter().map(|folder| folder.join(CUDA_LIBRARY)).find(|path| path.is_file()) else {
        let searched: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        return Err(refuse(format!("there is no {CUDA_LIBRARY} in {}", searched.join(", "))));
    };
    // SAFETY: loading runs the library's initialisers, which is the purpose: they register CUDA with the libtorch that is
    // loaded already. The file is libtorch's own, from a folder that the user named or linked.
    let loaded = unsafe { Library::open(Some(&library), RTLD_NOW | RTLD_GLOBAL) };
    // Never unloaded: libtorch keeps pointers into it.
    std::mem::forget(loaded.map_err(|error| refuse(format!("{} does not load: {error}", library.display())))?);
    Ok(())
}

/// Where the CUDA library may lie, in the order of search.
fn folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    folders.extend(folder_of_loaded(CPU_LIBRARY));
    folders.extend(std::env::var_os("LIBTORCH").map(|folder| PathBuf::from(folder).join("lib")));
    if std::env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        folders.extend(pytorch_folder());
    }
    folders
}

/// The folder of a library that is loaded already.
fn folder_of_loaded(library: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut paths = maps.lines().filter_map(|line| line.find('/').and_then(|start| line.get(start..))).map(Path::new);
    paths.find(|path| path.file_name() == Some(OsStr::new(library)))?.parent().map(Path::to_owned)
}

/// The library folder of the PyTorch that `python3` would import, found without importing it.
fn pytorch_folder() -> Option<PathBuf> {
    let code = "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])";
    let output = Command::new("python3").args(["-c", code]).output().ok()?;
    let folder = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !folder.trim().is_empty()).then(|| Path::new(folder.trim()).join("lib"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_libtorch_is_found() {
        assert!(folder_of_loaded(CPU_LIBRARY).unwrap().join(CPU_LIBRARY).is_file());
        assert_eq!(folder_of_loaded("libnothing.so"), None);
    }

    #[test]
    fn without_cuda_the_error_says_where_it_looked_and_what_to_do() {
        let libtorch = folder_of_loaded(CPU_LIBRARY).unwrap();
        if libtorch.join(CUDA_LIBRARY).exists() {
            eprintln!("skipped: this libtorch has CUDA");
            return;
        }
        let error = DeviceName::Cuda.open().unwrap_err().to_string();
        assert!(error.contains(&libtorch.display().to_string()) && error.contains("LIBTORCH"), "{error}");
        assert!(!error.contains('\n'));
    }
}

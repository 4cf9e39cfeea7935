//! Writes libtorch's folder into the run path of the programs and tests, so that they start without any variable set.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // torch-sys, which has `links = "tch"`, says where it found libtorch.
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Some(folder) = std::env::var_os("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
    }
}

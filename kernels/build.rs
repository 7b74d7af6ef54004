//! Hands the search path for libtorch on: to this package's tests and examples, and to the packages above
//! (`DEP_XLSTM_KERNELS_RPATH`), which repeat it for their own programs.

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_XLSTM_BRIDGE_RPATH");
    let rpath = std::env::var("DEP_XLSTM_BRIDGE_RPATH").unwrap_or_default();
    println!("cargo::metadata=rpath={rpath}");
    for folder in rpath.split(':').filter(|folder| !folder.is_empty()) {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }
}

//! Lets the programs and tests of this package find libtorch without environment variables: a build script's link
//! arguments reach only its own package, so each repeats what `kernels/bridge/build.rs` found.

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_XLSTM_KERNELS_RPATH");
    let rpath = std::env::var("DEP_XLSTM_KERNELS_RPATH").unwrap_or_default();
    for folder in rpath.split(':').filter(|folder| !folder.is_empty()) {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }
}

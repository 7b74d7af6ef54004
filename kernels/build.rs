//! Compiles the CPU kernels (`cpu/`), once for each instruction set, and hands the search path for libtorch on: to
//! this package's tests and examples, and to the packages above (`DEP_XLSTM_KERNELS_RPATH`), which repeat it for
//! their own programs.
//!
//! Never `-march=native`: a binary carries every version and chooses when it runs (`cpu/dispatch.cpp`).

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_XLSTM_BRIDGE_RPATH");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=cpu");
    let rpath = std::env::var("DEP_XLSTM_BRIDGE_RPATH").unwrap_or_default();
    println!("cargo::metadata=rpath={rpath}");
    for folder in rpath.split(':').filter(|folder| !folder.is_empty()) {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }
    let on_x86 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|target| target == "x86_64");
    base().file("cpu/dispatch.cpp").compile("xlstm_cpu_dispatch");
    compile("baseline", &[]);
    if on_x86 {
        compile("avx2", &["-mavx2", "-mfma"]);
        let avx512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"];
        compile("avx512", &[&avx512[..], &["-mprefer-vector-width=512"]].concat());
    }
}

fn base() -> cc::Build {
    let mut build = cc::Build::new();
    // Vectors wider than the machine's are passed between functions of one file only: no ABI is at stake.
    build.flag_if_supported("-Wno-psabi");
    // Contraction and quiet arithmetic let loops become vector code; associativity and NaN stay as written.
    build.cpp(true).std("c++17").pic(true).opt_level(3).debug(false).flag("-fopenmp").flags([
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fno-trapping-math",
    ]);
    build
}

fn compile(name: &str, flags: &[&str]) {
    base()
        .define("XLSTM_ISA", name)
        .flags(flags)
        .file("cpu/kernels.cpp")
        .compile(&format!("xlstm_cpu_{name}"));
}

//! Compiles `cpp/*.cpp` against libtorch and tells dependents where its libraries lie.
//!
//! All files of a library go to the compiler as one: each would read libtorch's headers anew, which takes several times as
//! long as what they hold.
//!
//! A build script's link arguments reach only its own package's binaries, so every package with programs or tests
//! repeats them from the metadata that this script leaves: `DEP_XLSTM_BRIDGE_RPATH`, a list separated by colons.
//! The first entries are relative to the program ($ORIGIN), so that a folder that was moved still runs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const TORCH_VERSION: &str = "2.11.0";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=cpp");
    let libtorch = env::var_os("LIBTORCH").map(PathBuf::from).ok_or(
        "LIBTORCH is not set: run `make setup` (it fills .libtorch), or set it to a libtorch 2.11.0 folder",
    )?;
    let library = libtorch.join("lib");
    if !library.join("libtorch_cpu.so").is_file() {
        return Err(format!(
            "no libtorch at {}: run `make setup` to have it fetched, or set LIBTORCH",
            libtorch.display()
        ));
    }
    check_version(&libtorch)?;
    compile(&libtorch)?;
    compile_cuda_half(&libtorch)?;
    let rpath = search_path(&library);
    println!("cargo::metadata=rpath={rpath}");
    for folder in rpath.split(':') {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }
    Ok(())
}

/// Compare the version that libtorch's headers state with the one that `tch` was written for.
fn check_version(libtorch: &Path) -> Result<(), String> {
    let header = libtorch.join("include/torch/headeronly/version.h");
    println!("cargo::rerun-if-changed={}", header.display());
    let text = std::fs::read_to_string(&header).map_err(|error| {
        format!("cannot read {}: {error}; expected libtorch {TORCH_VERSION}", header.display())
    })?;
    let part = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(&format!("#define TORCH_VERSION_{name} ")))
            .map(str::trim)
    };
    let found = [part("MAJOR"), part("MINOR"), part("PATCH")].map(|part| part.unwrap_or("?")).join(".");
    if found != TORCH_VERSION {
        return Err(format!(
            "{} is libtorch {found}, expected {TORCH_VERSION}: unset LIBTORCH and run `make setup`",
            libtorch.display()
        ));
    }
    Ok(())
}

/// A file in the build folder that includes all C++ files of `folder`, which is in this package.
fn together(folder: &str) -> Result<PathBuf, String> {
    let mut sources: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(|error| format!("cannot list kernels/bridge/{folder}: {error}"))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "cpp"))
        .collect();
    sources.sort();
    // Relative to this package, which is on the search path of headers: a path of the machine may have any letter.
    let text: String = sources.iter().map(|path| format!("#include \"{}\"\n", path.display())).collect();
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets no OUT_DIR")?);
    let file = out.join(format!("{}.cpp", folder.replace('/', "_")));
    std::fs::write(&file, text).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    Ok(file)
}

fn compile(libtorch: &Path) -> Result<(), String> {
    let include = libtorch.join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .pic(true)
        .opt_level(2)
        .debug(false)
        .flag("-fopenmp")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // Parts of libtorch's headers that stand behind a macro which libtorch itself was built with.
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_GLOO", None)
        // libtorch's own headers are not free of warnings; ours are.
        .flag("-isystem")
        .flag(&include)
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include"))
        .flag("-isystem")
        .flag("cpp/declarations")
        .include(".")
        .file(together("cpp")?)
        .try_compile("xlstm_bridge")
        .map_err(|error| format!("the C++ half of the bridge does not compile: {error}"))
}

/// Compiles what needs libtorch's CUDA half (NCCL, recorded graphs) into a shared library of its own, which the crate
/// carries as bytes and opens where there is a GPU (`src/cuda_half.rs`). It needs a few headers of CUDA, no toolkit and no
/// GPU; where they are missing, the build goes on without it.
fn compile_cuda_half(libtorch: &Path) -> Result<(), String> {
    println!("cargo::rustc-check-cfg=cfg(xlstm_cuda_half)");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    let beside = libtorch.join("include-cuda");
    let toolkit = env::var_os("CUDA_HOME").map(|folder| PathBuf::from(folder).join("include"));
    let is_there = |folder: &PathBuf| folder.join("cuda_runtime_api.h").is_file();
    let Some(headers) = [Some(beside), toolkit].into_iter().flatten().find(is_there) else { return Ok(()) };
    // A path that does not exist would build this crate anew every time; tools/fetch_libtorch.py touches version.h.
    println!("cargo::rerun-if-changed={}", headers.join("cuda_runtime_api.h").display());
    let include = libtorch.join("include");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets no OUT_DIR")?);
    let library = out.join("libxlstm_cuda_half.so");
    let mut command = cc::Build::new()
        .cpp(true)
        .std("c++17")
        .pic(true)
        .opt_level(2)
        .debug(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_NCCL", None)
        .define("USE_CUDA", None)
        .get_compiler()
        .to_command();
    command.args(["-shared", "-fvisibility=hidden", "-I.", "-Icpp"]);
    let declarations = "cpp/cuda_half/declarations".into();
    for folder in [include.clone(), include.join("torch/csrc/api/include"), declarations, headers] {
        command.arg("-isystem").arg(folder);
    }
    let status = command.arg(together("cpp/cuda_half")?).arg("-o").arg(&library).status();
    if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
        return Err(format!("kernels/bridge/cpp/cuda_half does not compile: {status:?}, {command:?}"));
    }
    println!("cargo::rustc-cfg=xlstm_cuda_half");
    println!("cargo::rustc-env=XLSTM_CUDA_HALF={}", library.display());
    Ok(())
}

/// Where a program looks for libtorch: beside the target folder first, then where it was linked.
fn search_path(library: &Path) -> String {
    let inside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.libtorch/lib");
    let mut folders = Vec::new();
    if let (Ok(inside), Ok(linked)) = (inside.canonicalize(), library.canonicalize())
        && inside == linked
    {
        // target/release/PROGRAM, then target/release/{deps,examples}/PROGRAM.
        folders.push("$ORIGIN/../../.libtorch/lib".to_owned());
        folders.push("$ORIGIN/../../../.libtorch/lib".to_owned());
    }
    folders.push(library.display().to_string());
    folders.join(":")
}

//! Every kernel, for the sizes of the paper and six compute capabilities, compiles on a machine without a GPU, fits its
//! registers, and its resource report is kept in `target/kernels/`. `make kernels` compiles every size for every one
//! (`XLSTM_KERNELS_EVERYTHING`); without, the rarer ones have three sizes.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use xlstm_cuda::{
    Architecture, Cache, CudaError, MlstmSizes, Nvrtc, ResourceReport, Source, Specialization,
    paper_specializations,
};

fn target_folder() -> PathBuf {
    // The test binary lies in <target>/release/deps.
    let own = std::env::current_exe().expect("a test has a path");
    own.ancestors().nth(3).map(Path::to_path_buf).expect("target folder")
}

fn open() -> Nvrtc {
    Nvrtc::open().unwrap_or_else(|error| panic!("{error}"))
}

/// Compiles all on every core; the cache in the target folder makes a second run instant.
fn compile_all(wanted: &[Specialization]) -> Vec<ResourceReport> {
    let (nvrtc, cache) = (open(), Cache::new(target_folder().join("kernels/cache")));
    let next = AtomicUsize::new(0);
    let reports = Mutex::new(vec![ResourceReport::default(); wanted.len()]);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                while let Some(one) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let compiled = cache.get(&nvrtc, one).unwrap_or_else(|error| panic!("{one}: {error}"));
                    assert!(compiled.image.starts_with(b"\x7fELF"), "{one}: not an ELF image");
                    let index = wanted.iter().position(|other| other == one).expect("it is in the list");
                    reports.lock().expect("no thread failed")[index] = compiled.report;
                }
            });
        }
    });
    reports.into_inner().expect("no thread failed")
}

#[test]
fn every_kernel_compiles_for_every_size_and_architecture() {
    let wanted = paper_specializations(std::env::var_os("XLSTM_KERNELS_EVERYTHING").is_some());
    let reports = compile_all(&wanted);
    let mut text = String::new();
    for (one, report) in wanted.iter().zip(&reports) {
        text += &format!("{one}\n{}\n", report.to_text());
        let names: Vec<&str> = report.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
        assert_eq!(names, one.source.kernels(), "{one}");
        for kernel in &report.kernels {
            // The matrix kernels may lose a few bytes outside their loops; the sLSTM's largest heads hold all of R that
            // 128 registers take, and lose what the report shows.
            let allowed = match one.source {
                Source::Slstm => 256,
                // Heads of 1280: forty numbers of each of six tensors and of the sums in a lane.
                Source::Pointwise => 400,
                // With resets, on 8.0: weights that a run of eight tokens reads once.
                Source::Inner => 96,
                // With resets, on 8.0, keys of 128: where each row's segment begins, after the products.
                Source::MlstmScores if one.architecture == Architecture::Sm80 => 448,
                // Outside the loop over chunks.
                Source::MlstmStates
                    if !matches!(one.architecture, Architecture::Sm80 | Architecture::Sm90a) =>
                {
                    40
                }
                _ => 32,
            };
            assert!(kernel.spill_stores <= allowed, "{one}: {kernel}");
        }
    }
    let path = target_folder().join("kernels/resources.txt");
    std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

#[test]
fn the_key_follows_everything_that_decides_the_code() {
    let sizes = MlstmSizes { key: 128, value: 128, chunk: 128 };
    let base = Specialization::mlstm(Source::MlstmGates, Architecture::Sm80, sizes);
    let same = Specialization::mlstm(Source::MlstmGates, Architecture::Sm80, sizes);
    let others = [
        Specialization::mlstm(Source::MlstmGates, Architecture::Sm90a, sizes),
        Specialization::mlstm(Source::MlstmStates, Architecture::Sm80, sizes),
        Specialization::mlstm(Source::MlstmGates, Architecture::Sm80, MlstmSizes { chunk: 256, ..sizes }),
    ];
    assert_eq!(Cache::key((13, 0), &base), Cache::key((13, 0), &same));
    assert_ne!(Cache::key((13, 0), &base), Cache::key((13, 1), &base));
    for other in &others {
        assert_ne!(Cache::key((13, 0), &base), Cache::key((13, 0), other), "{other}");
    }
}

#[test]
fn a_damaged_entry_is_compiled_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let (nvrtc, cache) = (open(), Cache::new(folder.path()));
    let sizes = MlstmSizes { key: 64, value: 64, chunk: 128 };
    let wanted = Specialization::mlstm(Source::MlstmGates, Architecture::Sm80, sizes);
    let first = cache.get(&nvrtc, &wanted).expect("compiles");
    let report = folder.path().join(format!("{}.txt", Cache::key(nvrtc.version(), &wanted)));
    std::fs::write(&report, "half a li").expect("writable");
    let again = cache.get(&nvrtc, &wanted).expect("compiles again");
    assert_eq!(first.report, again.report);
    assert_eq!(std::fs::read_to_string(&report).expect("stored again"), first.report.to_text());
}

#[test]
fn a_size_the_kernels_cannot_have_is_refused_with_the_compilers_words() {
    let sizes = MlstmSizes { key: 60, value: 64, chunk: 128 };
    let wanted = Specialization::mlstm(Source::MlstmGates, Architecture::Sm80, sizes);
    let error = open().compile(&wanted).expect_err("60 is no multiple of 8");
    assert!(matches!(&error, CudaError::Compile { source_name: "mlstm_gates.cu", .. }), "{error}");
    assert!(error.to_string().contains("chunk and head sizes"), "{error}");
}

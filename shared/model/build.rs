//! Compiles the CUDA kernels to PTX where the feature asks for it. PTX is the driver's input: no GPU is needed here.

use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "src/cuda/kernels.cu";

fn main() {
    println!("cargo::rerun-if-changed=src/cuda");
    for variable in ["NVCC", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        compile();
    }
}

fn compile() {
    let folder = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let compiler = std::env::var("NVCC").unwrap_or_else(|_| "nvcc".to_owned());
    let capability = std::env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "80".to_owned());
    let status = Command::new(&compiler)
        .args(["--ptx", "-O3"])
        .arg(format!("-arch=compute_{capability}"))
        .arg("--output-directory")
        .arg(&folder)
        .arg(SOURCE)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{compiler} did not compile {SOURCE}: {status}"),
        Err(error) => panic!(
            "feature `cuda` needs NVIDIA's compiler; {compiler}: {error}. See `make cuda-build`."
        ),
    }
}

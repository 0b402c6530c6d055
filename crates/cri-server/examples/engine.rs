//! A small binary that is to the tests what `trierarch` is to the engine: it answers as shim and OCI runtime,
//! and as `serve <dir>` it runs an engine on that directory until it is killed.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let _program = arguments.next();
    match arguments.next().as_deref().and_then(|word| word.to_str()) {
        Some("shim") => cri_server::shim::main(arguments),
        Some("oci-runtime") => oci_runtime::main(arguments),
        Some("serve") => serve(arguments.next().unwrap_or_default().into()),
        _ => ExitCode::FAILURE,
    }
}

fn serve(dir: std::path::PathBuf) -> ExitCode {
    let Ok(program) = std::env::current_exe() else { return ExitCode::FAILURE };
    let clock = cri_server::Clock::new(linux::process::realtime_nanos);
    let mut config = cri_server::Config::new(&dir, program, clock);
    config.cni = cri_server::CniConfig::Disabled;
    config.cgroup_root = format!("/{}", dir.file_name().unwrap_or_default().display()).into();
    let Ok(runtime) = tokio::runtime::Runtime::new() else { return ExitCode::FAILURE };
    match runtime.block_on(cri_server::run(config, tokio_util::sync::CancellationToken::new())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("engine: {error}: {:?}", std::error::Error::source(&error));
            ExitCode::FAILURE
        }
    }
}

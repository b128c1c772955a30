//! The program as tests start it: what the shell around them sets does not count, and the user's own files stay as they are.

use std::process::Command;

/// `smart-run`, with costs kept beside the build.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smart-run"));
    command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command.env_remove("SMART_HOST_DRIVER").env_remove("SIMT_CLOCK");
    command
}

//! Safetensors and PyTorch files from strangers: every tensor can be read, or the file is refused in one sentence.

#![no_main]

use libfuzzer_sys::fuzz_target;
use smart_run::config::{FloatType, ModelSource};
use smart_run::weights::Checkpoint;

/// Elements of a tensor that are read at most; a view may repeat few bytes often.
const MAX_ELEMENTS: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir().unwrap();
    }
    let Some((kind, content)) = data.split_first() else { return };
    let names = ["model.safetensors", "pytorch_model.bin"];
    let (name, other) = if kind % 2 == 0 { (names[0], names[1]) } else { (names[1], names[0]) };
    FOLDER.with(|folder| {
        let _ = std::fs::remove_file(folder.path().join(other));
        std::fs::write(folder.path().join(name), content).unwrap();
        match Checkpoint::open(&ModelSource::from(folder.path())) {
            Ok(checkpoint) => read_all(&checkpoint),
            Err(error) => assert!(error.is_input() && !error.to_string().contains('\n'), "{error}"),
        }
    });
});

fn read_all(checkpoint: &Checkpoint) {
    for name in checkpoint.names() {
        let view = checkpoint.get(name).unwrap();
        if view.num_elements() > MAX_ELEMENTS {
            continue;
        }
        let mut converted = vec![0; view.num_elements() * 4];
        if view.float_type().is_ok() {
            view.copy_converted(FloatType::F32, &mut converted).unwrap();
        }
        let _ = view.to_i64_vec();
    }
    let _ = checkpoint.float_type();
    let _ = checkpoint.finish();
}

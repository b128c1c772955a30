//! Pictures from strangers, as files and as data URLs: decoded and cut into patches, or refused in one sentence.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use smart_run::config::ModelSource;
use smart_run::image::{ImageProcessor, Picture};
use smart_run::serve::fuzzing::decode_data_url;

/// Pixels beyond which a picture is not cut into patches here: it takes long, and nothing new comes of it.
const MAX_PIXELS: usize = 1 << 18;

static PROCESSOR: LazyLock<ImageProcessor> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/images/processors/qwen2_vl");
    smart_run::text::silence_fenced_panics();
    ImageProcessor::from_hf(&ModelSource::from(folder.as_path()), 3).unwrap().unwrap()
});

fuzz_target!(|data: &[u8]| {
    LazyLock::force(&PROCESSOR);
    let decoded;
    let content = match std::str::from_utf8(data) {
        Ok(url) => match decode_data_url(url) {
            Ok(content) => {
                decoded = content;
                &decoded[..]
            }
            Err(_) => data,
        },
        Err(_) => data,
    };
    match Picture::from_bytes("picture", content) {
        Ok(picture) if picture.height() * picture.width() <= MAX_PIXELS => {
            assert_eq!(picture.pixels().len(), picture.height() * picture.width() * 3);
            assert_eq!(Picture::stated_size("picture", content).unwrap(), picture.size());
            if let Err(error) = PROCESSOR.prepare(&picture) {
                assert!(error.is_input(), "{error}");
            }
        }
        Ok(_) => (),
        Err(error) => assert!(error.is_input() && !error.to_string().contains('\n'), "{error}"),
    }
});

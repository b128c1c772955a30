//! Pictures against Pillow and the image processors of transformers (tests/golden/images), and against hostile files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::{Value, json};
use smart_run::Error;
use smart_run::config::ModelSource;
use smart_run::image::{
    ImageProcessor, MAX_PIXELS, PatchLayout, Patches, Picture, best_resolution, smart_resize,
};

/// Most that decoders of a lossy format may differ in a channel of a pixel, and on average, in levels of 255.
const LOSSY_LEVELS: (u8, f64) = (4, 0.5);
/// Damaged files of a property test.
const CASES: u32 = 2000;
/// A broken file must be refused within this, on a busy machine.
const NO_HANG: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
struct Golden {
    decoded: Vec<Decoded>,
    cases: Vec<Case>,
    /// height, width, factor, fewest pixels, most pixels, rows, columns
    smart_resize: Vec<[usize; 7]>,
    /// height, width, rows, columns
    best_resolution: Vec<[usize; 4]>,
}

#[derive(Deserialize)]
struct Decoded {
    file: String,
    exact: bool,
}

#[derive(Deserialize)]
struct Case {
    picture: String,
    processor: String,
    patch_size: usize,
    patch_len: usize,
    stride: usize,
    tiles: usize,
    tile_grid: (usize, usize),
    grid: (usize, usize),
    original_size: (usize, usize),
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images")
}

fn golden() -> Golden {
    serde_json::from_slice(&fs::read(folder().join("expected.json")).unwrap()).unwrap()
}

fn tensors() -> Vec<u8> {
    fs::read(folder().join("expected.safetensors")).unwrap()
}

/// What Pillow decoded from the picture `file`.
fn pillows(expected: &SafeTensors, file: &str) -> Picture {
    let tensor = expected.tensor(&format!("decoded.{file}")).unwrap();
    Picture::from_rgb(tensor.shape()[0], tensor.shape()[1], tensor.data().to_vec()).unwrap()
}

/// Content and name of every picture file.
fn files() -> Vec<(String, Vec<u8>)> {
    let read =
        |one: &Decoded| (one.file.clone(), fs::read(folder().join("pictures").join(&one.file)).unwrap());
    golden().decoded.iter().map(read).collect()
}

/// As `drawn` of tools/make_image_goldens.py.
fn drawn(height: usize, width: usize) -> Picture {
    let value = |at: usize| {
        let (y, x, channel) = (at / 3 / width, at / 3 % width, at % 3);
        ((3 * x * x + 5 * y * y + 7 * x * y + 850 * channel) / 64 % 256) as u8
    };
    Picture::from_rgb(height, width, (0..height * width * 3).map(value).collect()).unwrap()
}

/// The processor that `config` describes, as a `preprocessor_config.json`.
fn processor(config: &Value, patch_size: usize) -> smart_run::Result<Option<ImageProcessor>> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("preprocessor_config.json"), config.to_string()).unwrap();
    ImageProcessor::from_hf(&ModelSource::from(dir.path()), patch_size)
}

/// What the file of the golden processor `name` says.
fn config_of(name: &str) -> Value {
    let dir = folder().join("processors").join(name);
    let content = fs::read(dir.join("processor_config.json"));
    let nested = content.is_ok();
    let content = content.unwrap_or_else(|_| fs::read(dir.join("preprocessor_config.json")).unwrap());
    let config: Value = serde_json::from_slice(&content).unwrap();
    if nested { config["image_processor"].clone() } else { config }
}

#[test]
fn decoded_pixels_are_pillows() {
    let content = tensors();
    let expected = SafeTensors::deserialize(&content).unwrap();
    for Decoded { file, exact } in golden().decoded {
        let picture = Picture::open(&folder().join("pictures").join(&file)).unwrap();
        let pillow = pillows(&expected, &file);
        assert_eq!(picture.size(), pillow.size(), "{file}");
        let content = fs::read(folder().join("pictures").join(&file)).unwrap();
        assert_eq!(Picture::stated_size(&file, &content).unwrap(), picture.size(), "{file}");
        let differences: Vec<u8> = picture
            .pixels()
            .iter()
            .zip(pillow.pixels())
            .map(|(ours, theirs)| ours.abs_diff(*theirs))
            .collect();
        let largest = *differences.iter().max().unwrap();
        let mean = differences.iter().map(|&d| f64::from(d)).sum::<f64>() / differences.len() as f64;
        if exact {
            assert_eq!(
                largest,
                0,
                "{file}: {} of {} differ",
                differences.iter().filter(|d| **d > 0).count(),
                differences.len()
            );
        } else {
            println!("{file}: differs by {largest} at most, {mean:.3} on average");
            assert!(largest <= LOSSY_LEVELS.0 && mean <= LOSSY_LEVELS.1, "{file}: {largest}, {mean}");
        }
    }
}

#[test]
fn patches_are_those_of_transformers() {
    let content = tensors();
    let expected = SafeTensors::deserialize(&content).unwrap();
    for case in golden().cases {
        let name = format!("{}.{}", case.picture, case.processor);
        let picture = match case.picture.strip_prefix("drawn_") {
            Some(_) => drawn(case.original_size.0, case.original_size.1),
            None => pillows(&expected, &case.picture),
        };
        let source = ModelSource::from(folder().join("processors").join(&case.processor));
        let whole = ImageProcessor::from_hf(&source, case.patch_size).unwrap().unwrap();
        let patches = whole.prepare(&picture).unwrap();
        check_sizes(&name, &case, &patches);
        assert_eq!(whole.layout(picture.size()).unwrap(), *patches.layout(), "{name}: before there are any");
        let theirs = expected.tensor(&format!("values.{name}")).unwrap();
        let theirs: Vec<u32> =
            theirs.data().as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let ours: Vec<u32> =
            patches.values().iter().step_by(case.stride).map(|value| value.to_bits()).collect();
        assert_eq!(ours, theirs, "{name}: bits of every {}th value", case.stride);

        // Every pixel, before it is scaled.
        let Ok(theirs) = expected.tensor(&format!("levels.{name}")) else { continue };
        let mut config = config_of(&case.processor);
        config["do_rescale"] = json!(false);
        config["do_normalize"] = json!(false);
        let levels = processor(&config, case.patch_size).unwrap().unwrap().prepare(&picture).unwrap();
        assert!(
            levels.values().iter().copied().eq(theirs.data().iter().map(|&level| f32::from(level))),
            "{name}"
        );
    }
}

fn check_sizes(name: &str, case: &Case, patches: &Patches) {
    let theirs = PatchLayout {
        patch_len: case.patch_len,
        tiles: case.tiles,
        tile_grid: case.tile_grid,
        grid: case.grid,
        original_size: case.original_size,
    };
    assert_eq!(*patches.layout(), theirs, "{name}");
    assert_eq!(patches.values().len(), case.tiles * case.grid.0 * case.grid.1 * case.patch_len, "{name}");
}

#[test]
fn sizes_are_those_of_transformers() {
    let golden = golden();
    for [height, width, factor, fewest, most, rows, columns] in golden.smart_resize {
        let ours = smart_resize((height, width), factor, &(fewest..=most)).unwrap();
        assert_eq!(ours, (rows, columns), "{height} x {width} by {factor} within {fewest}..={most}");
    }
    let pinpoints = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)];
    for [height, width, rows, columns] in golden.best_resolution {
        assert_eq!(best_resolution((height, width), &pinpoints), (rows, columns), "{height} x {width}");
    }
}

#[test]
fn slivers_are_refused_or_cost_no_more_than_what_is_kept() {
    let sliver = drawn(1, 201);
    let error = processor(&config_of("qwen2_vl"), 3).unwrap().unwrap().prepare(&sliver).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("201 x 1"), "{error}");
    assert!(smart_resize((200, 1), 28, &(3136..=1_000_000)).is_ok());
    // 336 x 22 million pixels, were they all computed.
    let sliver = drawn(1, 65_535);
    for name in ["llava_1_5", "llava_interleave", "llava_1_6"] {
        let started = Instant::now();
        let patches = processor(&config_of(name), 14).unwrap().unwrap().prepare(&sliver).unwrap();
        assert!(patches.values().iter().all(|value| value.is_finite()));
        assert!(started.elapsed() < NO_HANG, "{name}: {:?}", started.elapsed());
    }
    let error = processor(&config_of("llava_square"), 7).unwrap().unwrap().prepare(&sliver).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("padded to a square"), "{error}");
    // The size says it already.
    for (name, patch_size, size) in [
        ("qwen2_vl", 3, (1, 201)),
        ("llava_square", 7, (1, 65_535)),
        ("llava_1_6", 14, (0, 8)),
        ("llava_1_5", 14, (MAX_PIXELS, 2)),
    ] {
        let error = processor(&config_of(name), patch_size).unwrap().unwrap().layout(size).unwrap_err();
        assert!(error.is_input(), "{name}: {error}");
    }
}

#[test]
fn patches_have_as_many_numbers_as_their_layout_says() {
    let layout =
        PatchLayout { patch_len: 3, tiles: 2, tile_grid: (1, 1), grid: (4, 5), original_size: (9, 9) };
    assert_eq!((layout.num_patches(), layout.num_values(), layout.bytes()), (40, 120, 480));
    let patches = Patches::new(vec![0.5; 120], layout).unwrap();
    assert_eq!(patches.fingerprint(), Patches::new(vec![0.5; 120], layout).unwrap().fingerprint());
    for other in [PatchLayout { grid: (5, 4), ..layout }, PatchLayout { original_size: (9, 8), ..layout }] {
        assert_ne!(patches.fingerprint(), Patches::new(vec![0.5; 120], other).unwrap().fingerprint());
    }
    for len in [0, 119, 121] {
        assert!(Patches::new(vec![0.5; len], layout).unwrap_err().is_input(), "{len}");
    }
    let endless = PatchLayout { tiles: usize::MAX, grid: (usize::MAX, 2), ..layout };
    assert!(Patches::new(vec![0.5; 120], endless).unwrap_err().is_input() && endless.bytes() == usize::MAX);
}

#[test]
fn nested_configs_go_first_and_models_without_pictures_have_no_processor() {
    let dir = tempfile::tempdir().unwrap();
    let source = ModelSource::from(dir.path());
    assert!(ImageProcessor::from_hf(&source, 14).unwrap().is_none());
    fs::write(
        dir.path().join("processor_config.json"),
        json!({"processor_class": "LlavaProcessor"}).to_string(),
    )
    .unwrap();
    assert!(ImageProcessor::from_hf(&source, 14).unwrap().is_none());
    fs::write(dir.path().join("preprocessor_config.json"), config_of("llava_1_5").to_string()).unwrap();
    assert!(matches!(ImageProcessor::from_hf(&source, 14).unwrap(), Some(ImageProcessor::Fixed(_))));
    let nested = json!({"image_processor": config_of("qwen2_5_vl")});
    fs::write(dir.path().join("processor_config.json"), nested.to_string()).unwrap();
    assert!(matches!(ImageProcessor::from_hf(&source, 14).unwrap(), Some(ImageProcessor::Dynamic(_))));
}

/// A golden processor's config with one field changed, and what the error must name.
const REFUSED: [(&str, &str, &str, &str); 24] = [
    ("llava_1_5", "image_processor_type", "\"ViTImageProcessor\"", "image_processor_type"),
    ("llava_1_5", "image_processor_type", "null", "image_processor_type"),
    ("llava_1_5", "do_resize", "false", "do_resize"),
    ("llava_1_5", "do_center_crop", "false", "size"),
    ("llava_1_5", "do_center_crop", "1", "do_center_crop"),
    ("llava_1_5", "do_pad", "true", "do_pad"),
    ("llava_1_5", "use_square_size", "true", "use_square_size"),
    ("llava_1_5", "resample", "1", "resample"),
    ("llava_1_5", "size", "{\"shortest_edge\": 336, \"longest_edge\": 400}", "size.longest_edge"),
    ("llava_1_5", "size", "{\"height\": 336}", "size.width"),
    ("llava_1_5", "size", "0", "size"),
    ("llava_1_5", "size", "[336, 336]", "size"),
    ("llava_1_5", "crop_size", "{\"shortest_edge\": 336}", "crop_size.height"),
    ("llava_1_5", "crop_size", "1000000", "crop_size"),
    ("llava_1_5", "crop_size", "13", "13 x 13"),
    ("llava_1_5", "image_mean", "[0.5, 0.5]", "image_mean"),
    ("llava_1_5", "image_std", "[0.5, 0.5, 0.0]", "image_std"),
    ("llava_1_5", "rescale_factor", "-1", "rescale_factor"),
    ("llava_1_6", "crop_size", "224", "crop_size"),
    ("llava_1_6", "image_grid_pinpoints", "[[336, 670]]", "image_grid_pinpoints"),
    ("llava_1_6", "image_grid_pinpoints", "[]", "image_grid_pinpoints"),
    ("qwen2_5_vl", "patch_size", "16", "patch_size"),
    ("qwen2_5_vl", "max_pixels", "3135", "size"),
    ("qwen2_5_vl", "merge_size", "0", "merge_size"),
];

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (name, field, value, named) in REFUSED {
        let mut config = config_of(name);
        assert!(processor(&config, 14).unwrap().is_some());
        config[field] = serde_json::from_str(value).unwrap();
        let error = processor(&config, 14).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(named), "{field}: {value}: {error}");
    }
}

/// Refused with one sentence that begins with the file's name, in time.
fn assert_refused(name: &str, content: &[u8]) {
    let started = Instant::now();
    let error = Picture::from_bytes(name, content).expect_err(name);
    assert!(started.elapsed() < NO_HANG, "{name}: {:?}", started.elapsed());
    let text = error.to_string();
    assert!(error.is_input() && text.starts_with(name) && !text.contains('\n'), "{text}");
}

#[test]
fn files_that_are_cut_short_are_refused() {
    for (name, content) in files() {
        let whole = Picture::from_bytes(&name, &content).unwrap();
        for part in 0..64 {
            let cut = &content[..content.len() * part / 64];
            // What is missing may be the other frames.
            match Picture::from_bytes(&name, cut) {
                Ok(picture) => assert_eq!(picture, whole, "{name}, cut at {part}/64"),
                Err(_) => assert_refused(&name, cut),
            }
        }
        assert_refused(&name, &content[..content.len() / 4]);
    }
}

/// A chunk of a PNG file.
fn png_chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut crc = !0u32;
    for byte in kind.iter().chain(data) {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    [&(data.len() as u32).to_be_bytes()[..], kind, data, &(!crc).to_be_bytes()].concat()
}

/// A PNG file that claims `width` x `height` pixels of 16-bit RGBA, and holds a few bytes.
fn png_claiming(width: u32, height: u32) -> Vec<u8> {
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[16, 6, 0, 0, 0]].concat();
    let signature = b"\x89PNG\r\n\x1a\n".to_vec();
    // An empty stored block of deflate.
    let data = [0x78, 0x01, 0x01, 0, 0, 0xFF, 0xFF, 0, 0, 0, 1];
    [signature, png_chunk(b"IHDR", &header), png_chunk(b"IDAT", &data), png_chunk(b"IEND", &[])].concat()
}

/// A WebP file with one chunk.
fn webp(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let chunk = [kind, &(data.len() as u32).to_le_bytes()[..], data].concat();
    [b"RIFF", &(4 + chunk.len() as u32).to_le_bytes()[..], b"WEBP", &chunk].concat()
}

#[test]
fn headers_that_claim_too_much_are_refused() {
    assert_refused("large.png", &png_claiming(100_000, 100_000));
    assert_refused("wide.png", &png_claiming(65_536, 1));
    assert_refused("area.png", &png_claiming(8_192, 8_193));
    // Allowed, but there is nothing of it.
    assert_refused("empty.png", &png_claiming(8_192, 8_192));
    assert_eq!(Picture::stated_size("empty.png", &png_claiming(8_192, 8_191)).unwrap(), (8_191, 8_192));
    for (width, height) in [(100_000, 100_000), (65_536, 1), (8_192, 8_193), (0, 8)] {
        let error = Picture::stated_size("large.png", &png_claiming(width, height)).unwrap_err();
        assert!(error.is_input() && error.to_string().starts_with("large.png"), "{error}");
    }
    assert_refused("zero.png", &png_claiming(0, 8));
    let frame = b"\x2C\0\0\0\0\xFF\xFF\xFF\xFF\0\x02\x02\x44\x01\0\x3B";
    assert_refused("large.gif", &[b"GIF89a\xFF\xFF\xFF\xFF\x80\0\0\0\0\0\xFF\xFF\xFF", &frame[..]].concat());
    // A small screen, and a frame of 4 thousand million pixels.
    assert_refused("frame.gif", &[b"GIF89a\x04\0\x04\0\x80\0\0\0\0\0\xFF\xFF\xFF", &frame[..]].concat());
    assert_refused(
        "beside.gif",
        b"GIF89a\x04\0\x04\0\x80\0\0\0\0\0\xFF\xFF\xFF\x2C\x01\0\0\0\x04\0\x04\0\0\x02\0\x3B",
    );
    assert_refused("zero.gif", &[b"GIF89a\0\0\0\0\x80\0\0\0\0\0\xFF\xFF\xFF", &frame[..]].concat());
    assert_refused("canvas.webp", &webp(b"VP8X", &[0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]));
    // 14 bits a side.
    assert_refused("lossless.webp", &webp(b"VP8L", &[0x2F, 0xFF, 0xFF, 0xFF, 0x0F, 0, 0, 0]));
    assert_refused(
        "lossy.webp",
        &webp(b"VP8 ", &[0x10, 0, 0, 0x9D, 0x01, 0x2A, 0xFF, 0x3F, 0xFF, 0x3F, 0, 0, 0]),
    );
    for side in [[0xFF, 0xFF], [0, 0]] {
        let (_, mut jpeg) = files().into_iter().find(|(name, _)| name == "photo_420.jpg").unwrap();
        let frame = jpeg.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
        jpeg[frame + 5..frame + 7].copy_from_slice(&side);
        jpeg[frame + 7..frame + 9].copy_from_slice(&side);
        assert_refused("size.jpg", &jpeg);
    }
}

#[test]
fn what_is_no_picture_is_refused() {
    assert_refused("empty.png", b"");
    assert_refused("text.png", b"not a picture");
    assert_refused("bitmap.bmp", b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x02\0\0\0\x02\0\0\0\x01\0\x18\0");
    assert_refused("start.jpg", &[0xFF, 0xD8, 0xFF]);
    for path in ["/dev/null", env!("CARGO_MANIFEST_DIR"), "there/is/no/such.png"] {
        let error = Picture::open(Path::new(path)).unwrap_err();
        assert!(error.is_input() && error.to_string().starts_with(path), "{error}");
    }
    let large = tempfile::NamedTempFile::new().unwrap();
    large.as_file().set_len(1 << 40).unwrap();
    assert!(Picture::open(large.path()).unwrap_err().to_string().contains("larger than 256 MiB"));
    let wrong = Picture::from_rgb(2, 3, vec![0; 17]).unwrap_err();
    assert!(matches!(wrong, Error::Input(_)));
    assert!(Picture::from_rgb(0, 3, vec![]).is_err());
    assert!(Picture::from_rgb(MAX_PIXELS, 2, vec![]).is_err());
}

#[derive(Debug, Clone)]
enum Damage {
    Set(Index, u8),
    Remove(Index, usize),
    Repeat(Index, usize),
    Truncate(Index),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let one = prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        1 => (any::<Index>(), 1..64usize).prop_map(|(at, len)| Damage::Remove(at, len)),
        1 => (any::<Index>(), 1..64usize).prop_map(|(at, len)| Damage::Repeat(at, len)),
        1 => any::<Index>().prop_map(Damage::Truncate),
    ];
    prop::collection::vec(one, 1..6)
}

fn damaged(mut content: Vec<u8>, damage: &[Damage]) -> Vec<u8> {
    for one in damage {
        if content.is_empty() {
            break;
        }
        let len = content.len();
        let span = |at: &Index, length: usize| at.index(len)..(at.index(len) + length).min(len);
        match one {
            Damage::Set(at, byte) => content[at.index(len)] = *byte,
            Damage::Remove(at, length) => drop(content.drain(span(at, *length))),
            Damage::Repeat(at, length) => {
                let repeated = content[span(at, *length)].to_vec();
                content.splice(span(at, 0), repeated);
            }
            Damage::Truncate(at) => content.truncate(at.index(len)),
        }
    }
    content
}

/// Runs `check` on random values of `strategy`, [`CASES`] of them or `PROPTEST_CASES`.
fn fuzz<S: Strategy>(strategy: S, check: impl Fn(S::Value)) {
    smart_run::text::silence_fenced_panics();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&strategy, |value| {
        check(value);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

/// Is a picture, or refused with one sentence, in time.
fn check(name: &str, content: &[u8]) {
    let started = Instant::now();
    match Picture::from_bytes(name, content) {
        Ok(picture) => {
            assert_eq!(picture.pixels().len(), picture.height() * picture.width() * 3);
            assert_eq!(Picture::stated_size(name, content).unwrap(), picture.size(), "{name}");
        }
        Err(error) => assert!(error.is_input() && !error.to_string().contains('\n'), "{error}"),
    }
    assert!(started.elapsed() < NO_HANG, "{name}: {:?}", started.elapsed());
}

#[test]
fn damaged_files_never_panic_or_hang() {
    let files = files();
    fuzz((any::<Index>(), damage(), 0..64usize, any::<bool>()), |(file, damage, head, near)| {
        let (name, content) = file.get(&files);
        // Half of the time the damage is near the beginning, where the sizes are.
        let (front, back) = content.split_at(if near { head.min(content.len()) } else { content.len() });
        check(name, &[damaged(front.to_vec(), &damage), back.to_vec()].concat());
    });
}

#[test]
fn random_bytes_behind_a_signature_never_panic() {
    let signatures: Vec<&[u8]> =
        vec![b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xFF\xD8\xFF", b"GIF89a", b"RIFF\xFF\0\0\0WEBPVP8"];
    fuzz(
        (prop::sample::select(signatures), prop::collection::vec(any::<u8>(), 0..400)),
        |(signature, bytes)| {
            check("random", &[signature, &bytes].concat());
        },
    );
}

//! Files of `torch.save`: those that torch wrote are read bit by bit; hostile ones are one sentence, at once, and nothing
//! of them runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use smart_run::config::{FloatType, ModelSource};
use smart_run::weights::{Checkpoint, FileFormat, StoredType};

#[allow(dead_code)]
#[path = "common/torch_zip.rs"]
mod torch_zip;

use torch_zip::{Zip, state_dict_pickle, text};

/// A fault must be reported within a second; the rest is slack for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch").join(path)
}

/// A folder whose only weights are `file` as pytorch_model.bin.
fn folder_of(file: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("pytorch_model.bin"), file).unwrap();
    folder
}

fn open(folder: &Path) -> smart_run::Result<Checkpoint> {
    Checkpoint::open(&ModelSource::from(folder))
}

/// The tensors of a safetensors file.
fn twin(path: &str) -> Checkpoint {
    Checkpoint::from_static(path, fs::read(golden(path)).unwrap().leak()).unwrap()
}

/// Both hold the same tensors, but for those that `expected` alone has and `skipped` accepts.
fn assert_equal(case: &str, got: &Checkpoint, expected: &Checkpoint, skipped: fn(&str) -> bool) {
    let names: Vec<&str> = expected.names().filter(|name| !skipped(name)).collect();
    assert_eq!(got.names().collect::<Vec<_>>(), names, "{case}");
    for name in names {
        let (got, expected) = (got.get(name).unwrap(), expected.get(name).unwrap());
        assert_eq!((got.dtype, got.shape), (expected.dtype, expected.shape), "{case}, {name}");
        assert!(got.bytes == expected.bytes, "{case}, {name}: other elements");
    }
}

#[test]
fn every_format_and_protocol_gives_the_tensors_that_torch_saved() {
    let expected = twin("twin.safetensors");
    for case in ["zip_protocol2", "zip_protocol4", "zip_protocol5", "legacy_protocol2", "legacy_protocol5"] {
        let folder = folder_of(&fs::read(golden(&format!("{case}.bin"))).unwrap());
        let checkpoint = open(folder.path()).unwrap();
        let legacy = |name: &str| name.starts_with("untyped.");
        let none = |_: &str| false;
        assert_equal(case, &checkpoint, &expected, if case.starts_with("legacy") { legacy } else { none });
        assert_eq!(checkpoint.get("shared.transposed").unwrap().shape, [10, 6], "{case}");
        assert_eq!(checkpoint.get("type.bool").unwrap().dtype, StoredType::BOOL, "{case}");
        checkpoint.names().for_each(|name| checkpoint.ignore(name));
        checkpoint.finish().unwrap();
    }
}

/// A view that stands row-major in the file is the mapped file itself, at its place in the shared storage.
#[test]
fn row_major_views_share_the_mapping() {
    let folder = folder_of(&fs::read(golden("zip_protocol2.bin")).unwrap());
    let checkpoint = open(folder.path()).unwrap();
    let at = |name: &str| checkpoint.get(name).unwrap().bytes.as_ptr() as usize;
    let whole = at("shared.whole");
    assert_eq!(at("shared.matrix"), whole);
    assert_eq!(at("shared.tail"), whole + 50 * 2);
    assert_eq!(at("shared.column_of_one_row"), whole + 20 * 2, "strides of one index do not matter");
    let inside = whole..whole + 120;
    for copied in ["shared.transposed", "shared.column", "shared.box", "shared.permuted"] {
        assert!(!inside.contains(&at(copied)), "{copied}");
        assert_eq!(at(copied), at(copied), "{copied} is copied once");
    }
}

#[test]
fn shards_and_medusa_heads_are_found_by_the_names_of_their_files() {
    let sharded = open(&golden("sharded")).unwrap();
    assert_equal("sharded", &sharded, &twin("sharded/twin.safetensors"), |_| false);
    let formats: Vec<FileFormat> = sharded.files().map(|(_, format, _)| format).collect();
    assert_eq!(formats, [FileFormat::Torch; 2]);
    assert_eq!(sharded.total_bytes(), 40);

    let medusa = open(&golden("medusa")).unwrap();
    assert_equal("medusa", &medusa, &twin("medusa/twin.safetensors"), |_| false);
    assert_eq!(medusa.float_type().unwrap(), FloatType::F16);
}

#[test]
fn safetensors_beside_torch_files_are_preferred() {
    let folder = folder_of(b"nothing that could be read");
    fs::copy(golden("twin.safetensors"), folder.path().join("model.safetensors")).unwrap();
    assert_eq!(open(folder.path()).unwrap().names().count(), twin("twin.safetensors").names().count());
}

/// Fails as every fault must: one sentence about the file, at once. Returns the sentence.
fn refused(case: &str, file: &[u8]) -> String {
    refused_in(folder_of(file).path(), case)
}

fn refused_in(folder: &Path, case: &str) -> String {
    let start = Instant::now();
    let error = open(folder).expect_err(case);
    assert!(start.elapsed() < AT_ONCE, "{case} took {:?}", start.elapsed());
    assert!(error.is_input(), "{case}: {error:?}");
    let sentence = error.to_string();
    assert!(sentence.contains("pytorch_model.bin: ") && !sentence.contains('\n'), "{case}: {sentence}");
    assert!(sentence.chars().count() < 400, "{case}: {sentence}");
    sentence
}

fn assert_refused(case: &str, file: &[u8], expected: &str) {
    let sentence = refused(case, file);
    assert!(sentence.contains(expected), "{case}: {expected:?} is not in {sentence:?}");
}

/// Sound files of torch that hold something else than a plain state dict.
#[test]
fn what_is_no_state_dict_of_plain_tensors_is_named() {
    for (case, expected) in [
        ("whole_module", "torch.nn.modules.linear.Linear"),
        ("nested", "\"model\" holds tensors inside another container"),
        ("list", "it should hold a state dict"),
        ("expanded", "tensor w of size [1000, 4] repeats elements of its storage"),
        ("sparse", "torch._utils._rebuild_sparse_tensor"),
        ("quantised", "torch._utils._rebuild_qtensor"),
        ("complex", "torch.ComplexFloatStorage"),
        ("subclass", "torch._tensor._rebuild_from_type_v2"),
        ("path", "pathlib."),
        ("script", "__torch__"),
    ] {
        assert_refused(case, &fs::read(golden(&format!("refused/{case}.bin"))).unwrap(), expected);
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for case in ["zip_protocol2", "zip_protocol5", "legacy_protocol2", "legacy_protocol5"] {
        let file = fs::read(golden(&format!("{case}.bin"))).unwrap();
        let folder = folder_of(&file);
        let cut = fs::File::options().write(true).open(folder.path().join("pytorch_model.bin")).unwrap();
        for len in (0..file.len()).rev() {
            cut.set_len(len as u64).unwrap();
            refused_in(folder.path(), &format!("{case} cut to {len}"));
        }
    }
}

// ---- pickles written by hand

/// A zip file around `pickle`, with a storage of 16 bytes under the key 0.
fn with_pickle(pickle: &[u8]) -> Vec<u8> {
    Zip::default().entry("x/data.pkl", pickle).entry("x/data/0", &[7; 16]).file()
}

/// A pickle whose state dict has the tensor `w`, f32, over the storage of [`with_pickle`]: number of elements, offset,
/// size, strides.
fn tensor_pickle(num_elements: i32, offset: i32, size: &[i32], strides: &[i32]) -> Vec<u8> {
    state_dict_pickle("w", "FloatStorage", "0", num_elements, offset, size, strides)
}

#[test]
fn a_tensor_written_by_hand_is_read() {
    let folder = folder_of(&with_pickle(&tensor_pickle(4, 1, &[3], &[1])));
    let checkpoint = open(folder.path()).unwrap();
    let view = checkpoint.get("w").unwrap();
    assert_eq!((view.dtype, view.shape, view.bytes), (StoredType::F32, &[3][..], &[7; 12][..]));
}

#[test]
fn nothing_is_called_and_what_is_asked_for_is_named() {
    let marker = std::env::temp_dir().join(format!("smart-run-hostile-{}", std::process::id()));
    let command = format!("touch {}", marker.display());
    let call = |global: &[u8]| [b"\x80\x02", global, &text(&command), b"\x85R."].concat();
    let stack_global = [
        b"\x80\x04".to_vec(),
        text("builtins"),
        text("eval"),
        b"\x93".to_vec(),
        text("1"),
        b"\x85R.".to_vec(),
    ];
    for (case, pickle, expected) in [
        ("os.system", call(b"cos\nsystem\n"), "its pickle names os.system, which is neither a tensor"),
        ("posix.system", call(b"cposix\nsystem\n"), "posix.system"),
        ("stack global", stack_global.concat(), "builtins.eval"),
        ("dotted", call(b"ctorch\nos.system\n"), "torch.os.system"),
        ("torch.load", call(b"ctorch\nload\n"), "torch.load"),
        ("bytes loader", call(b"ctorch.storage\n_load_from_bytes\n"), "torch.storage._load_from_bytes"),
        ("codecs", call(b"c_codecs\nencode\n"), "calls Encode with arguments that torch does not write"),
        ("getattr", call(b"c__builtin__\ngetattr\n"), "__builtin__.getattr"),
        ("control characters", call(b"c\x1b[2J\nx\n"), "\\u{1b}[2J.x"),
        ("instance", b"\x80\x02(ios\nsystem\n.".to_vec(), "0x69 (INST)"),
        ("object", b"\x80\x02(o.".to_vec(), "0x6F (OBJ)"),
        ("new object", b"\x80\x02ccollections\nOrderedDict\n)\x81.".to_vec(), "0x81 (NEWOBJ)"),
        ("extension", b"\x80\x02\x82\x01.".to_vec(), "0x82 (EXT1)"),
        ("out-of-band buffer", b"\x80\x05\x97.".to_vec(), "0x97 (NEXT_BUFFER)"),
        ("unknown opcode", b"\x80\x02\xFF.".to_vec(), "0xFF"),
        ("protocol 0", b"(dp0\nS'a'\n.".to_vec(), "0x64 (DICT)"),
        (
            "a call of a text",
            [b"\x80\x02".to_vec(), text("f"), b")R.".to_vec()].concat(),
            "no function of torch",
        ),
        ("a type called", b"\x80\x02ctorch\nFloatStorage\n)R.".to_vec(), "Storage(F32)"),
        ("attributes of a tensor", b"\x80\x02Nccollections\nOrderedDict\n)Rb.".to_vec(), "BUILD"),
    ] {
        assert_refused(case, &with_pickle(&pickle), expected);
        assert_refused(case, &[b"\x80\x02.", &pickle[..]].concat(), "");
    }
    assert!(!marker.exists(), "a pickle was run");
}

/// Bytes beside the tensors, as protocol 2 writes them, are passed over like other values.
#[test]
fn bytes_are_data() {
    let encoded = [text("a"), b"c_codecs\nencode\n".to_vec(), text("x"), text("latin1"), b"\x86Rs.".to_vec()];
    let mut pickle = tensor_pickle(4, 0, &[4], &[1]);
    pickle.pop();
    let folder = folder_of(&with_pickle(&[pickle, encoded.concat()].concat()));
    assert_eq!(open(folder.path()).unwrap().names().collect::<Vec<_>>(), ["w"]);
}

#[test]
fn machines_are_not_confused() {
    let huge = i32::MAX;
    for (case, pickle, expected) in [
        ("empty", vec![], "truncated"),
        ("nothing made", b"\x80\x02.".to_vec(), "takes a value that is not there"),
        ("not a dictionary", b"\x80\x02N.".to_vec(), "it should hold a state dict"),
        ("no mark", b"\x80\x02t.".to_vec(), "closes a mark"),
        ("a value below a mark", b"\x80\x02}(.".to_vec(), "takes a value that is not there"),
        ("half a pair", b"\x80\x02}(Nu.".to_vec(), "a key without a value"),
        ("append to a number", b"\x80\x02K\x01Na.".to_vec(), "appends to what is no list"),
        ("a memo never made", b"\x80\x02h\x07.".to_vec(), "recalls value 7"),
        ("a memo out of turn", b"\x80\x02Nr\xff\xff\xff\xff.".to_vec(), "number 4294967295, out of turn"),
        ("a future protocol", b"\x80\x09.".to_vec(), "protocol 9"),
        ("a text of 4 GiB", b"\x80\x02X\xff\xff\xff\xffab.".to_vec(), "truncated"),
        ("a text of 16 EiB", b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffab.".to_vec(), "truncated"),
        ("bytes of 16 EiB", b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xffab.".to_vec(), "truncated"),
        ("an integer of 4 GiB", b"\x80\x02\x8b\xff\xff\xff\xff.".to_vec(), "truncated"),
        ("a text that is none", b"\x80\x02X\x01\x00\x00\x00\xff.".to_vec(), "not UTF-8"),
        ("an endless name", [b"\x80\x02c".to_vec(), vec![b'a'; 1000]].concat(), "by what is no name"),
        ("beyond the storage", tensor_pickle(4, 2, &[3], &[1]), "leaves its storage of 4 elements"),
        ("beyond the file", tensor_pickle(5, 0, &[3], &[1]), "views a storage of 5 elements"),
        ("far beyond the file", tensor_pickle(huge, 0, &[3], &[1]), "truncated"),
        ("a negative offset", tensor_pickle(4, -1, &[3], &[1]), "are not counts"),
        ("a negative size", tensor_pickle(4, 0, &[-3], &[1]), "are not counts"),
        ("a negative stride", tensor_pickle(4, 3, &[3], &[-1]), "are not counts"),
        ("more strides than sizes", tensor_pickle(4, 0, &[2], &[1, 1]), "are not counts"),
        ("nine dimensions", tensor_pickle(4, 0, &[1; 9], &[1; 9]), "8 dimensions"),
        ("a size beyond 64 bits", tensor_pickle(4, 0, &[huge; 3], &[0; 3]), "impossibly large"),
        ("a stride beyond 64 bits", tensor_pickle(4, 0, &[2; 8], &[huge; 8]), "leaves its storage"),
        ("a repeated element", tensor_pickle(4, 0, &[huge], &[0]), "repeats elements"),
        (
            "no such storage",
            state_dict_pickle("w", "FloatStorage", "1", 4, 0, &[1], &[1]),
            "storage \"1\" is missing",
        ),
        (
            "a storage elsewhere",
            state_dict_pickle("w", "FloatStorage", "../0", 4, 0, &[1], &[1]),
            "is missing",
        ),
    ] {
        assert_refused(case, &with_pickle(&pickle), expected);
    }
}

/// Programs that would grow without bound, or be deep or cyclic, in a reader that builds nested values.
#[test]
fn bombs_are_refused_or_harmless_in_bounded_time() {
    const MANY: usize = 20 << 20;
    let repeated = |opcode: &[u8]| [b"\x80\x02", &opcode.repeat(MANY / opcode.len())[..], b"."].concat();
    assert_refused("many values", &with_pickle(&repeated(b"N")), "more than 4194304 values");
    assert_refused("many marks", &with_pickle(&repeated(b"(")), "more than 4194304 values");
    assert_refused("many lists", &with_pickle(&repeated(b"]")), "more than 4194304 values");
    assert_refused(
        "deep tuples",
        &with_pickle(&[b"\x80\x02N", &b"\x85".repeat(MANY)[..]].concat()),
        "values",
    );
    assert_refused(
        "too long",
        &with_pickle(&[b"\x80\x02", &b"\x95AAAAAAAA".repeat(4 << 20)[..]].concat()),
        "32 MiB",
    );

    // Each tuple holds the one before twice: 2^1000 leaves, in 1000 pairs.
    let mut doubling = [b"\x80\x04}\x94".to_vec(), text("deep"), b")\x94".to_vec()].concat();
    for i in 1..=1000u32 {
        doubling.extend([&b"j"[..], &i.to_le_bytes(), b"\x86\x94"].concat());
    }
    doubling.extend(b"s.");
    let folder = folder_of(&with_pickle(&doubling));
    let start = Instant::now();
    assert_eq!(open(folder.path()).unwrap().names().count(), 0);
    assert!(start.elapsed() < AT_ONCE);

    // A text of 16 MiB named by each of many storages, as their kind and as their key.
    let long = [b"X", &(16u32 << 20).to_le_bytes()[..], &vec![b'k'; 16 << 20]].concat();
    let storage = b"(h\x00ctorch\nFloatStorage\nh\x00Ntq";
    let storages = [b"\x80\x02", &long[..], b"q\x00", &storage.repeat(1 << 18)[..], b"."].concat();
    refused("long texts", &with_pickle(&storages));

    // One call after the other of the same function with the same arguments.
    let one = tensor_pickle(4, 0, &[1; 8], &[1; 8]);
    let call = one.iter().rposition(|&byte| byte == b'R').unwrap();
    let function = one.windows(8).position(|window| window == b"ctorch._").unwrap();
    let arguments = function + b"ctorch._utils\n_rebuild_tensor_v2\n".len();
    let mut calls = [&one[..arguments], b"q\x00", &one[arguments..call], b"q\x01R"].concat();
    calls.extend(b"h\x00h\x01R".repeat(1 << 20));
    assert_refused("many tensors", &with_pickle(&calls), "more than 262144 tensors");

    // A list that holds itself, in a dictionary that holds itself.
    let cyclic =
        [b"\x80\x04}\x94".to_vec(), text("a"), b"]\x94h\x01as".to_vec(), text("b"), b"h\x00s.".to_vec()];
    assert_eq!(open(folder_of(&with_pickle(&cyclic.concat())).path()).unwrap().names().count(), 0);
}

/// Many views of one storage: nothing is copied when the file is opened, and what could be is bounded.
#[test]
fn views_cannot_multiply_the_file() {
    // f32 [2, 2] of 4 elements: row-major, or transposed.
    let views = |count: usize, strides: &[i32]| {
        let mut pickle = b"\x80\x02}".to_vec();
        for i in 0..count {
            let one = state_dict_pickle(&format!("w{i}"), "FloatStorage", "0", 1024, 0, &[32, 32], strides);
            // Without its head (PROTO, EMPTY_DICT) and its end (STOP).
            pickle.extend(&one[3..one.len() - 1]);
        }
        Zip::default().entry("x/data.pkl", &[&pickle[..], b"."].concat()).entry("x/data/0", &[1; 4096]).file()
    };
    assert_eq!(open(folder_of(&views(3, &[32, 1])).path()).unwrap().names().count(), 3);
    assert_eq!(open(folder_of(&views(1, &[1, 32])).path()).unwrap().names().count(), 1);
    assert_refused("shared too often", &views(1000, &[32, 1]), "is one too many");
    assert_refused("copied too often", &views(1000, &[1, 32]), "is one too many");
}

// ---- zip files written by hand

#[test]
fn a_broken_zip_file_is_named() {
    let pickle = tensor_pickle(4, 0, &[4], &[1]);
    let sound = || Zip::default().entry("x/data.pkl", &pickle).entry("x/data/0", &[7; 16]);
    assert!(open(folder_of(&sound().file()).path()).is_ok());
    assert!(open(folder_of(&sound().zip64().file()).path()).is_ok(), "zip64");
    assert!(open(folder_of(&sound().comment(b"PK\x05\x06 a comment").file()).path()).is_ok(), "comment");
    for (case, file, expected) in [
        ("compressed", sound().method(8).file(), "x/data.pkl is compressed or encrypted"),
        ("encrypted", sound().flags(1).file(), "compressed or encrypted"),
        ("listed twice", sound().entry("x/data/0", &[8; 16]).file(), "lists x/data/0 twice"),
        ("overlapping", sound().alias("x/data/1", "x/data/0").file(), "overlap"),
        (
            "content beyond the end",
            sound().size("x/data/0", 1 << 20).file(),
            "x/data/0 lies outside the file",
        ),
        ("content of 4 GiB", sound().size("x/data/0", u64::from(u32::MAX) - 1).file(), "outside the file"),
        ("content of 16 EiB", sound().zip64().size("x/data/0", u64::MAX).file(), "outside the file"),
        ("header beyond the end", sound().offset("x/data/0", 1 << 20).file(), "outside the file"),
        ("header of 16 EiB", sound().zip64().offset("x/data/0", u64::MAX).file(), "outside the file"),
        ("header inside another", sound().offset("x/data/0", 3).file(), "outside the file"),
        ("three entries", sound().count(3).file(), "should list 3 entries but lists 2"),
        ("one entry", sound().count(1).file(), "should list 1 entries but lists 2"),
        ("a million entries", sound().count(1_000_000).file(), "claims 1000000 entries, more than 262144"),
        ("a name of 2 KiB", sound().entry(&"x".repeat(2048), b"").file(), "zip directory is damaged"),
        (
            "directory elsewhere",
            sound().directory_offset(1 << 30).file(),
            "end of the zip directory is damaged",
        ),
        (
            "directory in the wrong place",
            sound().directory_offset(1).file(),
            "zip directory is damaged at byte 1",
        ),
        ("two state dicts", sound().entry("y/data.pkl", &pickle).file(), "should hold one data.pkl"),
        (
            "no state dict",
            Zip::default().entry("word/document.xml", b"<x/>").file(),
            "should hold one data.pkl",
        ),
        ("big endian", sound().entry("x/byteorder", b"big").file(), "big endian"),
        ("name of no text", sound().entry_bytes(b"x/\xFF", b"").file(), "not UTF-8"),
    ] {
        assert_refused(case, &file, expected);
    }
}

// ---- the older format written by hand

#[test]
fn a_broken_legacy_file_is_named() {
    let magic: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
    let version: &[u8] = b"\x80\x02M\xe9\x03.";
    let system =
        |little: u8| [b"\x80\x02}".to_vec(), text("little_endian"), vec![little], b"s.".to_vec()].concat();
    let tensor = tensor_pickle(4, 0, &[4], &[1]);
    let keys = |key: &str| [b"\x80\x02]".to_vec(), text(key), b"a.".to_vec()].concat();
    let storage = |len: u64, bytes: usize| [&len.to_le_bytes()[..], &vec![7; bytes]].concat();
    let file = |parts: &[&[u8]]| parts.concat();
    let sound = file(&[magic, version, &system(0x88), &tensor, &keys("0"), &storage(4, 16)]);
    assert_eq!(open(folder_of(&sound).path()).unwrap().get("w").unwrap().bytes, [7; 16]);
    for (case, file, expected) in [
        ("another pickle", tensor.clone(), "none that torch.save wrote"),
        ("another version", file(&[magic, b"\x80\x02K\x07."]), "should be 1001"),
        ("big endian", file(&[magic, version, &system(0x89), &tensor]), "little endian"),
        ("no keys", file(&[magic, version, &system(0x88), &tensor, b"\x80\x02N."]), "a list of storages"),
        (
            "a foreign key",
            file(&[magic, version, &system(0x88), &tensor, &keys("5")]),
            "knows no storage \"5\"",
        ),
        (
            "a storage of 16 EiB",
            file(&[magic, version, &system(0x88), &tensor, &keys("0"), &storage(u64::MAX, 16)]),
            "truncated",
        ),
        (
            "a short storage",
            file(&[magic, version, &system(0x88), &tensor, &keys("0"), &storage(3, 12)]),
            "holds 12 bytes of it",
        ),
        ("more behind it", [sound, vec![0]].concat(), "end at byte"),
    ] {
        assert_refused(case, &file, expected);
    }
}

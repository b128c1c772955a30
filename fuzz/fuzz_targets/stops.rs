//! Streaming decode and stop strings: pieces are the whole text up to the first stop string, whatever the tokens cut through.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use smart_run::config::ModelSource;
use smart_run::text::{StopStrings, Tokenizer};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/demo/target");
    let tokenizer = Tokenizer::open(&ModelSource::from(demo.as_path())).unwrap().unwrap();
    smart_run::text::silence_fenced_panics();
    tokenizer
});

fuzz_target!(|data: &[u8]| {
    // Stop strings, a zero byte behind each; behind two zero bytes token ids of two bytes each.
    let end = data.windows(2).position(|pair| pair == [0, 0]);
    let (stops, ids) = end.map_or((&data[..0], data), |end| (&data[..end], &data[end + 2..]));
    let Ok(stops) = std::str::from_utf8(stops) else { return };
    let stops: Vec<String> =
        stops.split('\0').filter(|stop| !stop.is_empty()).take(16).map(str::to_owned).collect();
    let ids: Vec<i32> = ids
        .chunks_exact(2)
        .take(400)
        .map(|pair| i32::from(u16::from_le_bytes([pair[0], pair[1]]) % 4096))
        .collect();
    let whole = TOKENIZER.decode(&ids).unwrap();
    let strings = StopStrings::new(stops.clone()).unwrap();
    let mut stream = TOKENIZER.stream_until(&strings);
    let mut said = String::new();
    for &id in &ids {
        said.extend(stream.push(id).unwrap());
    }
    said.extend(stream.finish().unwrap());
    assert!(stream.num_ids() <= ids.len());
    // The stop string that ends first; of several that end there the one that begins first.
    let ends = stops.iter().filter_map(|stop| whole.find(stop).map(|start| (start + stop.len(), start)));
    match ends.min() {
        Some((_, start)) => {
            assert!(stream.stopped());
            assert_eq!(said, whole[..start]);
        }
        None => {
            assert!(!stream.stopped());
            assert_eq!((said.as_str(), stream.num_ids()), (whole.as_str(), ids.len()));
        }
    }
});

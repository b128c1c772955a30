//! Targets that see pictures against Hugging Face transformers: what the tower gives, what replaces the placeholders, rotary
//! positions, logits and greedy tokens of tiny random-weight models.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use smart_run::config::FloatType;
use smart_run::control::Policy;
use smart_run::engine::{DraftSource, Engine, Request, expand_prompt};
use smart_run::image::{PatchLayout, Patches};
use smart_run::sampling::SamplingParams;
use smart_run::vision::{find_pictures, rotary_positions};

use crate::fixtures::{
    assert_close, builder, expected, expected_tensor, greedy, ids, paying_costs, prepare, repository, run,
};

/// Float32 end to end, through a tower and a decoder.
const LIMIT: f32 = 1e-4;

fn picture_file(case: &str, file: &str) -> PathBuf {
    repository("tests/golden").join(case).join(file)
}

fn name(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// The pictures that a prompt of `expected.json` shows.
fn pictures_of(case: &str, folder: &Path, golden: &Value, prompt: &Value) -> Vec<Patches> {
    let file_of = |wanted: &Value| {
        let mut pictures = golden["pictures"].as_array().unwrap().iter();
        name(&pictures.find(|picture| &picture["name"] == wanted).unwrap()["file"])
    };
    prompt["pictures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| prepare(folder, &picture_file(case, file_of(p))))
        .collect()
}

fn check(case: &str, folder: PathBuf) {
    let golden = expected(case);
    let mut engine = builder(&folder).policy(Policy::Plain).build().unwrap();
    for picture in golden["pictures"].as_array().unwrap() {
        let what = name(&picture["name"]);
        let patches = prepare(&folder, &picture_file(case, name(&picture["file"])));
        let rows = expected_tensor(case, &format!("patch_rows.{what}"));
        assert_close(&format!("{case} {what}: patches"), patches.values(), &rows, 1e-6);
        let encoder = engine.vision().unwrap();
        let tower = encoder.tower_features(&patches).unwrap().to_vec::<f32>().unwrap();
        let wanted = expected_tensor(case, &format!("tower_features.{what}"));
        assert_close(&format!("{case} {what}: tower"), &tower, &wanted, LIMIT);
        let features = encoder.encode(&patches).unwrap();
        assert_eq!(features.dim(0), picture["tokens"].as_u64().unwrap() as usize, "{case} {what}");
        let wanted = expected_tensor(case, &format!("visual_features.{what}"));
        assert_close(&format!("{case} {what}: joined"), &features.to_vec::<f32>().unwrap(), &wanted, LIMIT);
    }
    for prompt in golden["prompts"].as_array().unwrap() {
        let what = format!("{case}, prompt {}", prompt["name"]);
        let pictures = pictures_of(case, &folder, &golden, prompt);
        let (short, expanded) = (ids(&prompt["prompt_ids"]), ids(&prompt["expanded_ids"]));
        let config = engine.model_config();
        assert_eq!(expand_prompt(config, &short, &pictures).unwrap(), expanded, "{what}");
        assert_eq!(expand_prompt(config, &expanded, &pictures).unwrap(), expanded, "{what}: again");
        if let Some(delta) = prompt["rope_delta"].as_i64() {
            let placed = find_pictures(config.vision.as_ref().unwrap(), &expanded, &pictures);
            let (positions, got) = rotary_positions(expanded.len(), &placed);
            let axes = (0..3).flat_map(|axis| positions.iter().map(move |position| position[axis] as f32));
            let wanted = expected_tensor(case, &format!("mrope_positions.{}", name(&prompt["name"])));
            assert_eq!((axes.collect::<Vec<_>>(), i64::from(got)), (wanted, delta), "{what}");
        }
        let logits = engine.score(&short, &pictures).unwrap();
        let wanted = expected_tensor(case, &format!("logits.{}", name(&prompt["name"])));
        assert_close(&what, &logits, &wanted, LIMIT);
        let request = Request { pictures, ..greedy(&short, 48) };
        assert_eq!(run(&mut engine, request), ids(&prompt["greedy_ids"]), "{what}");
    }
}

/// The folder `case` as transformers 4 wrote it: its config, and the names of the tensors.
fn transformers4(case: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let golden = repository("tests/golden").join(case);
    for file in ["preprocessor_config.json", "model.safetensors"] {
        std::os::unix::fs::symlink(golden.join(file), folder.path().join(file)).unwrap();
    }
    std::os::unix::fs::symlink(golden.join("config.transformers4.json"), folder.path().join("config.json"))
        .unwrap();
    renamed(&golden.join("model.safetensors"), &golden.join("names.transformers4.json"), folder.path());
    folder
}

/// As [`transformers4`], with the names that the modules of transformers 5 have.
fn by_modules(case: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let golden = repository("tests/golden").join(case);
    for file in ["preprocessor_config.json", "config.json"] {
        std::os::unix::fs::symlink(golden.join(file), folder.path().join(file)).unwrap();
    }
    renamed(&golden.join("model.safetensors"), &golden.join("names.modules.json"), folder.path());
    folder
}

/// Writes `model.safetensors` to `folder` with its tensors renamed as `names` says.
fn renamed(model: &Path, names: &Path, folder: &Path) {
    let names: Value = serde_json::from_slice(&std::fs::read(names).unwrap()).unwrap();
    let bytes = std::fs::read(model).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let entries = tensors.iter().map(|(old, view)| (name(&names[old]).to_owned(), view));
    let path = folder.join("model.safetensors");
    let _ = std::fs::remove_file(&path);
    std::fs::write(path, safetensors::serialize(entries, None).unwrap()).unwrap();
}

macro_rules! target {
    ($($case:ident),*) => { $(
        #[test]
        fn $case() {
            let case = stringify!($case);
            check(case, repository("tests/golden").join(case));
            check(case, transformers4(case).path().to_owned());
            check(case, by_modules(case).path().to_owned());
        }
    )* };
}
target!(llava, llava_next, llava_interleave, qwen2_vl);

/// Trees behind pictures: the tokens are those of plain decoding, whatever positions a picture's rows and columns leave behind, and
/// whatever the drafter made of the picture.
#[test]
fn speculation_after_pictures_changes_speed_only() {
    let msd = || DraftSource::from(repository("tests/golden/msd_qwen2_vl/drafter"));
    for (case, drafter) in [
        ("llava", DraftSource::Ngrams),
        ("llava_next", DraftSource::Ngrams),
        ("llava_interleave", DraftSource::Ngrams),
        ("qwen2_vl", DraftSource::Ngrams),
        ("qwen2_vl", msd()),
    ] {
        let folder = repository("tests/golden").join(case);
        let golden = expected(case);
        let build = |float_type, policy: &str| -> Engine {
            let builder =
                Engine::builder(folder.as_path()).float_type(float_type).policy(policy.parse().unwrap());
            let builder = if policy == "plain" {
                builder
            } else {
                builder.drafter(drafter.clone()).costs(paying_costs())
            };
            builder.build().unwrap()
        };
        for float_type in [FloatType::F32, FloatType::Bf16, FloatType::F16] {
            let requests: Vec<Request> = golden["prompts"]
                .as_array()
                .unwrap()
                .iter()
                .enumerate()
                .map(|(i, prompt)| Request {
                    pictures: pictures_of(case, &folder, &golden, prompt),
                    sampling: SamplingParams {
                        temperature: if i % 2 == 0 { 0.0 } else { 0.6 },
                        seed: i as u64,
                        ..Default::default()
                    },
                    ..greedy(&ids(&prompt["prompt_ids"]), 40)
                })
                .collect();
            let mut plain = build(float_type, "plain");
            let wanted: Vec<Vec<i32>> = requests.iter().map(|r| run(&mut plain, r.clone())).collect();
            for policy in ["eagle2:4,3,12", "smart"] {
                let mut engine = build(float_type, policy);
                for (request, wanted) in requests.iter().zip(&wanted) {
                    assert_eq!(&run(&mut engine, request.clone()), wanted, "{case} {policy} {float_type:?}");
                }
                // Drafts of a random pair may not pay; a static tree drafts all the same.
                let drafted = engine.stats().mean_nodes() > 1.0;
                assert!(drafted || policy == "smart", "{case} {policy}: nothing was drafted");
            }
        }
    }
}

/// A trained pair that has to look: with the picture it was asked about the target says what is drawn there, with another one something
/// else; the drafter sees it, too, and its trees pay; no policy changes a token.
#[test]
fn a_trained_pair_describes_its_picture_under_every_policy() {
    let case = repository("tests/golden/msd_llava");
    let golden = expected("msd_llava");
    let build = |policy: &str| {
        let builder = Engine::builder(case.join("target")).policy(policy.parse().unwrap());
        let drafter = (policy != "plain").then(|| case.join("drafter"));
        match drafter {
            Some(drafter) => builder.drafter(drafter).costs(paying_costs()).build().unwrap(),
            None => builder.build().unwrap(),
        }
    };
    let picture = |prompt: &Value| prepare(&case.join("target"), &case.join(name(&prompt["picture"])));
    let prompts = golden["prompts"].as_array().unwrap();
    let requests: Vec<Request> = prompts
        .iter()
        .flat_map(|prompt| [(prompt, 0.0), (prompt, 0.7)])
        .enumerate()
        .map(|(i, (prompt, temperature))| Request {
            pictures: vec![picture(prompt)],
            sampling: SamplingParams { temperature, seed: i as u64, ..Default::default() },
            ignore_eos: false,
            ..greedy(&ids(&prompt["prompt_ids"]), 60)
        })
        .collect();
    let mut plain = build("plain");
    let wanted: Vec<Vec<i32>> = requests.iter().map(|request| run(&mut plain, request.clone())).collect();
    let swapped = Request { pictures: requests[2].pictures.clone(), ..requests[0].clone() };
    assert_ne!(run(&mut plain, swapped), wanted[0], "another picture, the same answer: it does not look");
    for policy in ["chain:3", "eagle2:10,5,60", "smart"] {
        let mut engine = build(policy);
        for (request, wanted) in requests.iter().zip(&wanted) {
            assert_eq!(&run(&mut engine, request.clone()), wanted, "{policy}");
        }
        // What pays on the machine at hand, SMART learns while it runs.
        let (accepted, nodes) = (engine.stats().mean_accepted_len(), engine.stats().mean_nodes());
        let sees = if policy == "smart" { nodes > 1.0 } else { accepted > 1.5 };
        assert!(sees, "{policy}: {accepted} of {nodes} nodes accepted a round: the drafter does not see");
    }
}

#[test]
fn pictures_and_placeholders_that_do_not_match_are_refused() {
    let folder = repository("tests/golden/llava");
    let picture = prepare(&folder, &folder.join("exact.png"));
    let mut engine = builder(&folder).policy(Policy::Plain).build().unwrap();
    let mut refusal = |prompt: &[i32], pictures: Vec<Patches>| {
        let error = engine.submit(Request { pictures, ..greedy(prompt, 4) }).unwrap_err();
        assert!(error.is_input(), "{error}");
        error.to_string()
    };
    assert!(refusal(&[1, 120, 2], vec![]).contains("1 place(s) for pictures"));
    assert!(refusal(&[1, 2], vec![picture.clone()]).contains("0 place(s)"));
    let made = |values: &[f32], layout| Patches::new(values.to_vec(), layout).unwrap();
    let foreign = made(picture.values(), PatchLayout { grid: (2, 8), ..*picture.layout() });
    assert!(refusal(&[1, 120, 2], vec![foreign]).contains("2 x 8 patches"));
    // Tiles, for a model that puts none together: its tokens would be fewer than its embeddings.
    let tiled = PatchLayout { tiles: 2, tile_grid: (1, 1), ..*picture.layout() };
    let tiled = made(&picture.values().repeat(2), tiled);
    assert!(refusal(&[1, 120, 2], vec![tiled]).contains("in 2 tile(s)"));
    let mut text = builder(&repository("tests/golden/llama2_mha")).policy(Policy::Plain).build().unwrap();
    let error = text.submit(Request { pictures: vec![picture], ..greedy(&[1, 2], 4) }).unwrap_err();
    assert!(error.to_string().contains("reads text alone"), "{error}");
    // What was refused has taken no place.
    assert_eq!(run(&mut engine, greedy(&[1, 2, 3], 4)).len(), 4);
}

/// Answers to one prompt look at one copy of its picture. It is there for as long as any of them may have to look again, and no longer.
#[test]
fn requests_share_their_pictures_until_the_last_text_has_ended() {
    let folder = repository("tests/golden/llava");
    let held = Arc::new(());
    let picture = prepare(&folder, &folder.join("exact.png")).holding(held.clone());
    let request = Request { pictures: vec![picture], ..greedy(&[1, 120, 2], 6) };
    let mut alone = builder(&folder).policy(Policy::Plain).build().unwrap();
    let wanted = run(&mut alone, request.clone());
    let copies = vec![request; 4];
    let place = copies[0].pictures[0].values().as_ptr();
    assert!(copies.iter().all(|copy| copy.pictures[0].values().as_ptr() == place));

    let mut engine = builder(&folder).policy(Policy::Plain).max_sequences(2).build().unwrap();
    let ids: Vec<_> = copies.into_iter().map(|copy| engine.submit(copy).unwrap()).collect();
    let mut texts = vec![Vec::new(); ids.len()];
    let mut step = |engine: &mut Engine| {
        for emission in engine.step().unwrap() {
            texts[emission.sequence.0 as usize].extend(emission.tokens);
        }
        texts.clone()
    };
    let is_held = || Arc::strong_count(&held) == 2;
    // Two run; one that waits gives up, and then one that runs.
    while step(&mut engine)[0].len() < 2 {}
    assert!(engine.cancel(ids[3]) && engine.cancel(ids[1]) && is_held());
    // All are read anew: the tower looks at the picture again.
    engine.restart_running();
    while step(&mut engine)[0].len() < 6 {}
    assert!(is_held(), "one is not done");
    while !engine.is_idle() {
        step(&mut engine);
    }
    let texts = step(&mut engine);
    assert_eq!([&texts[0], &texts[2]], [&wanted, &wanted]);
    assert_eq!(Arc::strong_count(&held), 1, "nobody can look any more");
}

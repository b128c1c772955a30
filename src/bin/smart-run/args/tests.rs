//! Command lines and what they mean.

use super::*;
use smart_run::config::FloatType;
use smart_run::device::DeviceChoice;
use smart_run::engine::DraftVocabulary;

/// Parses `line`, split at spaces, as typed after the program's name.
fn typed(line: &str) -> Result<Command, Stop> {
    parse(["smart-run"].into_iter().chain(line.split_whitespace()).map(OsString::from))
}

fn generate_args(line: &str) -> GenerateArgs {
    match typed(line) {
        Ok(Command::Generate(args)) => args,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn nothing_typed_is_the_demo() {
    assert_eq!(typed(""), Ok(Command::Demo));
}

#[test]
fn help_and_version_are_answers() {
    for (line, expected) in [
        ("--help", "generate"),
        ("generate --help", "--max-new-tokens"),
        ("trace --help", "4000 rounds and 64 MiB"),
        ("--version", "0."),
    ] {
        match typed(line) {
            Err(Stop::Answer(text)) => assert!(text.contains(expected), "{line}: {text}"),
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn defaults_are_those_of_the_design() {
    assert_eq!(
        generate_args("generate --prompt x"),
        GenerateArgs {
            models: ModelArgs::default(),
            prompt: Prompt::Text("x".into()),
            images: vec![],
            max_new_tokens: 256,
            stop: vec![],
            sampling: SamplingArgs { temperature: 0.0, top_p: 1.0, top_k: None, min_p: 0.0, seed: 0 },
            ignore_eos: false,
            policy: None,
            format: OutputFormat::Text,
            trace: None,
            record: None,
        }
    );
}

#[test]
fn every_flag_reaches_its_field() {
    let line = "generate --model m --draft d --draft-vocab 32768 --uncoupled --prompt-ids 3,0,2147483647 --max-new-tokens 7 --temperature 0.5 \
                --top-p 0.9 --top-k 40 --min-p 0.05 --seed 18446744073709551615 --ignore-eos --policy chain:4 \
                --dtype f16 --device cuda:2 --format json --trace t.jsonl --stop --x --stop y";
    assert_eq!(
        generate_args(line),
        GenerateArgs {
            models: ModelArgs {
                model: Some("m".into()),
                draft: Some("d".into()),
                draft_vocab: Some(DraftVocabulary::Lowest(32768)),
                uncoupled: true,
                dtype: Some(FloatType::F16),
                device: DeviceChoice::Cuda(2),
            },
            prompt: Prompt::Ids(vec![3, 0, i32::MAX]),
            images: vec![],
            max_new_tokens: 7,
            stop: vec!["--x".into(), "y".into()],
            sampling: SamplingArgs {
                temperature: 0.5,
                top_p: 0.9,
                top_k: Some(40),
                min_p: 0.05,
                seed: u64::MAX,
            },
            ignore_eos: true,
            policy: Some(Policy::Chain(4)),
            format: OutputFormat::Json,
            trace: Some("t.jsonl".into()),
            record: None,
        }
    );
    assert_eq!(generate_args("generate --prompt-file p").prompt, Prompt::File("p".into()));
    assert_eq!(generate_args("generate --prompt=-x").prompt, Prompt::Text("-x".into()));
    assert_eq!(generate_args("generate --prompt --x").prompt, Prompt::Text("--x".into()));
}

#[test]
fn a_wrong_command_line_is_one_sentence_that_names_the_flag() {
    let cases = [
        ("generat", "generat"),
        ("--nonsense", "--nonsense"),
        ("generate", "--prompt"),
        ("generate --prompt", "--prompt"),
        ("generate --prompt x --prompt-ids 1", "several prompts"),
        ("generate --prompt-file f --prompt-ids 1", "several prompts"),
        ("generate --prompt x --prompt y", "--prompt"),
        ("generate --prompt x stray", "stray"),
        ("generate --prompt x --nonsense", "--nonsense"),
        ("generate --prompt-ids ,", "--prompt-ids"),
        ("generate --prompt-ids 1,,2", "--prompt-ids"),
        ("generate --prompt-ids 1,-2", "--prompt-ids"),
        ("generate --prompt-ids -1", "--prompt-ids"),
        ("generate --prompt-ids +1", "--prompt-ids"),
        ("generate --prompt-ids 2147483648", "--prompt-ids"),
        ("generate --prompt-ids 1.0", "--prompt-ids"),
        ("generate --prompt x --max-new-tokens 0", "--max-new-tokens"),
        ("generate --prompt x --stop=", "--stop"),
        ("chat", "give --model"),
        ("chat --model m --policy smart", "--policy smart needs a drafter"),
        ("chat --model m --temperature -1", "--temperature"),
        ("chat --model m hello", "hello"),
        ("generate --prompt x --max-new-tokens -1", "--max-new-tokens"),
        ("generate --prompt x --max-new-tokens 1e3", "--max-new-tokens"),
        ("generate --prompt x --temperature -0.1", "--temperature"),
        ("generate --prompt x --temperature nan", "--temperature"),
        ("generate --prompt x --temperature inf", "--temperature"),
        ("generate --prompt x --temperature 1e39", "--temperature"),
        ("generate --prompt x --temperature hot", "--temperature"),
        ("generate --prompt x --top-p 0", "--top-p"),
        ("generate --prompt x --top-p 1.1", "--top-p"),
        ("generate --prompt x --top-p nan", "--top-p"),
        ("generate --prompt x --min-p -0.1", "--min-p"),
        ("generate --prompt x --min-p 2", "--min-p"),
        ("generate --prompt x --top-k 0", "--top-k"),
        ("generate --prompt x --top-k 4294967296", "--top-k"),
        ("generate --prompt x --seed -1", "--seed"),
        ("generate --prompt x --seed 18446744073709551616", "--seed"),
        ("generate --prompt x --dtype fp8", "--dtype"),
        ("generate --prompt x --device gpu", "--device"),
        ("generate --prompt x --device cuda:-1", "--device"),
        ("generate --prompt x --format yaml", "--format"),
        ("generate --prompt x --policy clever", "--policy"),
        ("generate --prompt x --policy chain", "--policy"),
        ("generate --prompt x --policy eagle2:10,5", "--policy"),
        ("generate --prompt x --model m --policy smart", "--policy smart needs a drafter"),
    ];
    for (line, expected) in cases {
        match typed(line) {
            Err(Stop::Usage(sentence)) => {
                assert!(sentence.contains(expected), "{line}: {sentence}");
                assert!(!sentence.contains('\n') && !sentence.starts_with("error"), "{line}: {sentence}");
            }
            other => panic!("{line}: {other:?}"),
        }
    }
    let empty = ["smart-run", "generate", "--prompt", ""].map(OsString::from);
    assert_eq!(parse(empty), Err(Stop::Usage("--prompt is empty: give some text to complete".into())));
}

#[test]
fn without_a_drafter_only_plain_may_be_asked_for() {
    assert!(typed("generate --prompt x --model m --policy plain").is_ok());
    assert!(typed("generate --prompt x --model m --draft d --policy smart").is_ok());
    assert!(generate_args("generate --prompt x --policy smart").models.has_drafter());
    assert!(!generate_args("generate --prompt x --model m").models.has_drafter());
}

#[test]
fn inspect_and_convert_take_a_folder() {
    assert_eq!(
        typed("inspect d --target t --format json"),
        Ok(Command::Inspect(InspectArgs {
            folder: "d".into(),
            target: Some("t".into()),
            format: OutputFormat::Json,
        }))
    );
    let convert = |line: &str| match typed(line) {
        Ok(Command::Convert(args)) => (args.dtype, args.max_shard_bytes),
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(convert("convert d --out o"), (None, 4 << 30));
    assert_eq!(
        convert("convert d --out o --dtype f16 --max-shard-size 5GB"),
        (Some(FloatType::F16), 5_000_000_000)
    );
    assert_eq!(convert("convert d --out o --max-shard-size 3KiB"), (None, 3072));
    assert_eq!(convert("convert d --out o --max-shard-size 7"), (None, 7));
    for line in [
        "inspect",
        "inspect a b",
        "inspect d --format yaml",
        "convert d",
        "convert --out o",
        "convert d --out o --dtype auto",
        "convert d --out o --max-shard-size 0GB",
        "convert d --out o --max-shard-size -1",
        "convert d --out o --max-shard-size +1",
        "convert d --out o --max-shard-size 1.5GB",
        "convert d --out o --max-shard-size GB",
        "convert d --out o --max-shard-size 99999999999999GiB",
    ] {
        assert!(matches!(typed(line), Err(Stop::Usage(_))), "{line}");
    }
}

fn profile_args(line: &str) -> ProfileArgs {
    match typed(line) {
        Ok(Command::Profile(args)) => args,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn profile_measures_the_demo_pair_unless_told_otherwise() {
    assert_eq!(
        profile_args("profile"),
        ProfileArgs {
            subject: ProfileSubject::Machine {
                models: ModelArgs::default(),
                max_sequences: 1,
                dummy_weights: false,
                breakdown: Vec::new(),
            },
            out: None,
            save_table: None,
            format: OutputFormat::Text,
        }
    );
    assert_eq!(
        profile_args(
            "profile --model m --draft d --draft-vocab f.pt --dtype f16 --device host --max-sequences 8 --dummy-weights --breakdown 1,64 --out p.svg --save-table t.json --format json"
        ),
        ProfileArgs {
            subject: ProfileSubject::Machine {
                models: ModelArgs {
                    model: Some("m".into()),
                    draft: Some("d".into()),
                    draft_vocab: Some(DraftVocabulary::Listed("f.pt".into())),
                    uncoupled: false,
                    dtype: Some(FloatType::F16),
                    device: DeviceChoice::Host,
                },
                max_sequences: 8,
                dummy_weights: true,
                breakdown: vec![1, 64],
            },
            out: Some(("p.svg".into(), Picture::Svg)),
            save_table: Some("t.json".into()),
            format: OutputFormat::Json,
        }
    );
    let shown = profile_args("profile --costs h200/llama-3.1-8b/eagle3 --out p.html");
    assert_eq!(shown.subject, ProfileSubject::Table("h200/llama-3.1-8b/eagle3".into()));
    assert_eq!(shown.out, Some(("p.html".into(), Picture::Html)));
}

#[test]
fn a_wrong_profile_is_one_sentence_that_names_the_flag() {
    for (line, expected) in [
        ("profile --out p.png", "--out p.png"),
        ("profile --out p", ".html or .svg"),
        ("profile --max-sequences 0", "--max-sequences"),
        ("profile --max-sequences 257", "from 1 to 256"),
        ("profile --costs x --model m", "--model"),
        ("profile --costs x --device host", "--device"),
        ("profile --dummy-weights", "--model"),
        ("profile --breakdown 1,0", "from 1 to 256"),
        ("profile --breakdown 8 --costs x", "--costs"),
        ("profile --costs x --dummy-weights", "--dummy-weights"),
        ("profile --costs x --max-sequences 1", "--max-sequences"),
        ("profile --dtype fp8", "--dtype"),
        ("profile --costs", "--costs"),
        ("profile stray", "stray"),
    ] {
        match typed(line) {
            Err(Stop::Usage(sentence)) => {
                assert!(sentence.contains(expected), "{line}: {sentence}");
                assert!(!sentence.contains('\n') && !sentence.starts_with("error"), "{line}: {sentence}");
            }
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn a_page_is_named_after_its_trace() {
    let trace = |line: &str| match typed(line) {
        Ok(Command::Trace(args)) => args,
        other => panic!("{line}: {other:?}"),
    };
    let named = trace("trace runs/a.b.jsonl");
    assert_eq!(named.out, TraceOutput::File("runs/a.b.html".into()));
    assert_eq!((named.tokenizer, named.rounds), (None, None));
    let flags = trace("trace t --out - --tokenizer m --rounds 3..18446744073709551615");
    assert_eq!((flags.out, flags.tokenizer), (TraceOutput::Stdout, Some("m".into())));
    assert_eq!(flags.rounds, Some(3..u64::MAX));
}

fn serve_args(line: &str) -> ServeArgs {
    match typed(line) {
        Ok(Command::Serve(args)) => args,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn a_server_is_for_this_machine_unless_it_is_told_otherwise() {
    use smart_run::serve::{ApiKey, ServerConfig};
    let defaults = ServeArgs {
        models: ModelArgs::default(),
        policy: None,
        name: None,
        max_context: None,
        kv_budget_bytes: None,
        server: ServerConfig::default(),
        log: LogFormat::Text,
    };
    assert!(defaults.server.address.ip().is_loopback());
    assert_eq!(serve_args("serve"), defaults);
    let line = "serve --model m --draft d --policy chain:2 --served-name s --host ::1 --port 0 --max-sequences 2 --max-waiting 3 \
                --max-context 4 --kv-budget-mib 5 --api-key a --api-key b --cors-origin https://c.example --cors-origin * \
                --allowed-host Box.example --allowed-host [fd00::7] --max-connections 6 --max-body-mib 7 --picture-budget-mib 11 --header-seconds 8 --body-seconds 9 --write-seconds 10 --drain-seconds 0 --log json";
    let seconds = std::time::Duration::from_secs;
    let expected = ServeArgs {
        models: ModelArgs { model: Some("m".into()), draft: Some("d".into()), ..ModelArgs::default() },
        policy: Some("chain:2".parse().unwrap()),
        name: Some("s".into()),
        max_context: Some(4),
        kv_budget_bytes: Some(5 << 20),
        server: ServerConfig {
            address: "[::1]:0".parse().unwrap(),
            api_keys: ["a", "b"].map(ApiKey::new).to_vec(),
            cors_origins: vec!["https://c.example".into(), "*".into()],
            allowed_hosts: vec!["box.example".into(), "[fd00::7]".into()],
            max_sequences: 2,
            max_waiting: 3,
            max_connections: 6,
            max_body_bytes: 7 << 20,
            picture_budget_bytes: 11 << 20,
            header_timeout: seconds(8),
            body_timeout: seconds(9),
            write_timeout: seconds(10),
            drain: seconds(0),
        },
        log: LogFormat::Json,
    };
    assert_eq!(serve_args(line), expected);
}

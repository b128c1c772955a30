//! `smart-run serve` as a program: its flags, its signals, its log.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{get, post, send};
use super::running::in_repository;

#[path = "../common/program.rs"]
mod common;

struct Program {
    child: Child,
    address: SocketAddr,
}

fn command(arguments: &[&str]) -> Command {
    let mut command = common::program();
    command.args(["serve", "--port", "0", "--device", "host"]).args(arguments);
    // Without a measurement at the start.
    if !arguments.contains(&"--model") {
        command.args(["--policy", "eagle2:4,3,12"]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).env_remove("SMART_API_KEY");
    command
}

impl Program {
    /// Starts, and waits until requests are taken.
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line:?}"));
        let program = Self { address: address.parse().unwrap(), child };
        let deadline = Instant::now() + Duration::from_secs(60);
        while get(program.address, "/ready").status != 200 {
            assert!(Instant::now() < deadline, "it does not get ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        program
    }

    fn signal(&self, name: &str) {
        let sent =
            Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// The exit status, and what was said on standard error.
    fn end(mut self) -> (ExitStatus, String) {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap(), said)
    }
}

#[test]
fn a_signal_under_load_lets_what_runs_end() {
    for signal in ["TERM", "INT"] {
        let program = Program::start(command(&[
            "--max-sequences",
            "2",
            "--max-context",
            "256",
            "--log",
            "json",
            "--drain-seconds",
            "120",
        ]));
        let address = program.address;
        let body = json!({"prompt": "def secret_of_mine(", "max_tokens": 100_000, "ignore_eos": true, "n": 6, "seed": 1});
        let expected = post(address, "/v1/completions", &body).good();
        let (status, said) = std::thread::scope(|scope| {
            let running = scope.spawn(|| post(address, "/v1/completions", &body).good());
            // All six are there: one that came behind the signal would be refused, and the whole request with it.
            let submitted = || {
                let stats = get(address, "/stats").good();
                stats["waiting"].as_u64().unwrap() + stats["running"].as_u64().unwrap()
            };
            while submitted() < 6 {
                assert!(!running.is_finished(), "the answer came before its six choices were seen together");
            }
            program.signal(signal);
            assert_eq!(running.join().unwrap()["choices"], expected["choices"]);
            program.end()
        });
        assert_eq!(status.code(), Some(0), "{said}");
        // The log: an object a line, with names of requests and nothing of what was said.
        let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let ended = lines.iter().filter(|line| line["message"] == "generation ended");
        assert_eq!(ended.clone().count(), 2);
        for line in ended {
            assert_eq!(line["choices"], 6);
            assert!(line["request_id"].as_str().is_some_and(|id| id.len() == 32));
        }
        assert!(!said.contains("secret") && !said.contains("def "), "{said}");
    }
}

#[test]
fn a_key_in_the_environment_counts() {
    let mut command = command(&["--api-key", "alpha", "--served-name", "name/of it", "--log", "quiet"]);
    command.env("SMART_API_KEY", "beta");
    let program = Program::start(command);
    let models = |key: &str| send(program.address, "GET", "/v1/models", &[("Authorization", key)], b"");
    assert_eq!(models("Bearer gamma").status, 401);
    assert_eq!(models("Bearer alpha").status, 200);
    assert_eq!(models("Bearer beta").good()["data"][0]["id"], "name/of it");
    program.signal("TERM");
    let (status, said) = program.end();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));
}

/// Exit code and standard error of a start that fails.
fn fails(arguments: &[&str]) -> (Option<i32>, String) {
    let output = command(arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_start_that_fails_is_one_sentence() {
    for (arguments, what) in [
        (&["--port", "99999"][..], "--port"),
        (&["--host", "nowhere"], "--host"),
        (&["--max-sequences", "0"], "--max-sequences"),
        (&["--api-key", "a b"], "--api-key"),
        (&["--cors-origin", "example.org/"], "--cors-origin"),
        (&["--drain-seconds", "-1"], "--drain-seconds"),
        (&["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (&["--served-name", ""], "--served-name"),
        (&["--host", "203.0.113.1"], "cannot listen on 203.0.113.1:0"),
    ] {
        let (code, said) = fails(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(said.contains(what) && said.trim().lines().count() == 1, "{arguments:?}: {said}");
    }
    // What shows while the model is loaded, when the server listens already.
    let (code, said) = fails(&["--kv-budget-mib", "1", "--max-context", "64", "--log", "quiet"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("key/value budget"), "{said}");
    // No tokenizer.
    let (code, said) =
        fails(&["--model", in_repository("tests/golden/llama2_mha").to_str().unwrap(), "--draft", "ngram"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("no tokenizer.json"), "{said}");
}

//! Everything at once: many clients that stream, cancel, vanish, dawdle and send rubbish; nobody's answer is wrong and nothing is left behind.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use smart_run::engine::Engine;
use smart_run::serve::ServerConfig;

use super::client::{Stream, connect, get, post, request};
use super::running::{Running, builder, config, in_repository, target};

const PATH: &str = "/v1/completions";
const PROMPTS: [&str; 8] = [
    "import os\n",
    "class Node:\n",
    "def main(",
    "for i in range(",
    "    return ",
    "try:\n",
    "def test_",
    "x = [",
];

/// A policy that drafts now and then, on an engine too small for all of its clients.
fn engine() -> Engine {
    builder(&target())
        .drafter(in_repository("assets/demo/drafter").as_path())
        .policy("eagle2:4,3,12".parse().unwrap())
        .max_sequences(8)
        .build()
        .unwrap()
}

fn body(i: usize, stream: bool) -> Value {
    json!({"prompt": PROMPTS[i % PROMPTS.len()], "max_tokens": 4 + i % 29, "temperature": 0, "ignore_eos": true, "stream": stream})
}

/// Resident memory of this process, in KiB, and its open files.
fn resources() -> (usize, usize) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let rss = rss.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
    (rss, std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count))
}

/// What one client does in its turn; whether an answer was checked.
fn turn(running: &Running, wanted: &[Vec<String>], number: usize, random: usize) -> bool {
    let i = random % 232;
    let expected = &wanted[i % PROMPTS.len()][i % 29];
    match random / 232 % 8 {
        0 => {
            let mut stream = Stream::open(running.address, PATH, &body(i, true));
            let _first = stream.next();
            return false;
        }
        1 => {
            let mut gone = connect(running.address);
            let bytes = body(i, false).to_string();
            let headers = [("Content-Type", "application/json")];
            let bytes = request("POST", PATH, &headers, bytes.as_bytes());
            gone.write_all(&bytes[..bytes.len() - random % 2]).unwrap();
            return false;
        }
        2 => {
            let garbage = [&b"{"[..], b"\xff\xfe", b"{\"prompt\": 7}", b"[[[[[[", b"null"][random % 5];
            let answer = super::client::post_bytes(running.address, PATH, garbage);
            assert!((400..500).contains(&answer.status), "{}", answer.text());
            return false;
        }
        3 => {
            // Pipelined: two requests and rubbish behind them.
            let mut stream = connect(running.address);
            let one = request("GET", "/health", &[], b"");
            let _ = stream.write_all(&[&one[..], &one, b"\x00\x01 nonsense\r\n\r\n"].concat());
            return false;
        }
        4 => {
            let mut stream = Stream::open(running.address, PATH, &body(i, true));
            let mut text = String::new();
            while let Some(data) = stream.next() {
                if data == "[DONE]" {
                    break;
                }
                let chunk: Value = serde_json::from_str(&data).unwrap();
                text.push_str(chunk["choices"][0]["text"].as_str().unwrap());
                std::thread::sleep(Duration::from_millis((number % 7) as u64));
            }
            assert_eq!(&text, expected, "streamed");
        }
        _ => {
            let answer = post(running.address, PATH, &body(i, false));
            if answer.status == 429 {
                assert!(answer.headers.contains_key("retry-after"));
                return false;
            }
            assert_eq!(answer.good()["choices"][0]["text"].as_str().unwrap(), expected);
        }
    }
    true
}

#[test]
fn sixty_four_clients_of_all_kinds_get_right_answers_and_leave_nothing() {
    let soak = std::env::var("SMART_SOAK").is_ok_and(|value| value == "1");
    let length = Duration::from_secs(if soak { 600 } else { 12 });
    // In so short a time, allocators have not settled yet.
    let growth = if soak { 20 } else { 8 };
    let running = Running::with(ServerConfig { max_sequences: 8, ..config() }, &target(), engine());
    // What each request is answered alone.
    let wanted: Vec<Vec<String>> = (0..PROMPTS.len())
        .map(|prompt| {
            (0..29)
                .map(|length| {
                    let i = (0..232).find(|i| i % PROMPTS.len() == prompt && i % 29 == length).unwrap();
                    let answer = post(running.address, PATH, &body(i, false)).good();
                    answer["choices"][0]["text"].as_str().unwrap().to_owned()
                })
                .collect()
        })
        .collect();
    let (checked, began) = (AtomicUsize::new(0), Instant::now());
    let settled = std::thread::scope(|scope| {
        for number in 0..64 {
            let (running, wanted, checked) = (&running, &wanted, &checked);
            scope.spawn(move || {
                let mut state = number as u64;
                while began.elapsed() < length {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let right = turn(running, wanted, number, (state >> 33) as usize);
                    checked.fetch_add(usize::from(right), Ordering::Relaxed);
                }
            });
        }
        std::thread::sleep(length / 3);
        resources()
    });
    running.wait_until(|stats| stats["running"] == 0 && stats["waiting"] == 0);
    let (rss, files) = resources();
    let checked = checked.into_inner();
    eprintln!(
        "{checked} answers were right; {} KiB, then {rss}; {} files, then {files}",
        settled.0, settled.1
    );
    assert!(checked > 100, "{checked}");
    assert!(rss <= settled.0 + settled.0 / growth, "memory grew from {} to {rss} KiB", settled.0);
    assert!(files <= settled.1, "{} files, then {files}", settled.1);
    let metrics = get(running.address, "/metrics").text();
    assert!(metrics.contains("smart_run_pages"), "{metrics}");
}

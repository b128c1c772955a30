//! Bounds: what waits, what is slow, what is garbage, and how it ends.

use std::io::{BufReader, Read, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use smart_run::serve::ServerConfig;

use super::client::{Stream, connect, get, post, post_bytes, read_answer, read_head, request};
use super::running::{DEMO, Running, SEQUENCES, config, target};

const PATH: &str = "/v1/completions";

/// Runs for as long as it may.
fn endless() -> Value {
    json!({"prompt": "def main(", "max_tokens": 100_000, "ignore_eos": true, "stream": true, "seed": 1})
}

/// As [`endless`], slow enough to be met while it runs: it is many.
fn crowd() -> Value {
    json!({"prompt": "def main(", "max_tokens": 100_000, "ignore_eos": true, "n": 12, "seed": 1})
}

#[test]
fn too_many_waiting_are_told_to_come_back() {
    let running = Running::start(ServerConfig { max_waiting: 12, ..config() }, &target());
    std::thread::scope(|scope| {
        let first = scope.spawn(|| post(running.address, PATH, &crowd()).good());
        running.wait_until(|stats| stats["running"] == SEQUENCES);
        let mut busy = None;
        for _ in 0..50 {
            let answer = post(running.address, PATH, &crowd());
            if answer.status == 429 {
                busy = Some(answer);
                break;
            }
        }
        let busy = busy.expect("12 sequences run and wait: 12 more do not fit");
        assert_eq!(busy.json()["error"]["code"], "rate_limit_exceeded");
        assert!((1..=60).contains(&busy.headers["retry-after"].parse::<u64>().unwrap()));
        assert_eq!(first.join().unwrap()["choices"].as_array().unwrap().len(), 12);
    });
    // What was refused left nothing behind.
    running.wait_until(|stats| stats["running"] == 0 && stats["waiting"] == 0);
    post(running.address, PATH, &json!({"prompt": "a", "max_tokens": 2})).good();
}

#[test]
fn a_client_that_goes_frees_its_place() {
    let running = Running::start(config(), &target());
    // One that is being answered, one that waits for the whole answer, one that was cut off within its body.
    let mut stream = Stream::open(running.address, PATH, &endless());
    stream.next().unwrap();
    let mut whole = connect(running.address);
    let headers = [("Content-Type", "application/json")];
    whole.write_all(&request("POST", PATH, &headers, crowd().to_string().as_bytes())).unwrap();
    running.wait_until(|stats| stats["running"] == SEQUENCES && stats["waiting"].as_u64() > Some(0));
    let mut half = connect(running.address);
    half.write_all(&request("POST", PATH, &headers, &[b'{'; 100])[..120]).unwrap();
    drop((stream, whole, half));
    let began = Instant::now();
    running.wait_until(|stats| stats["running"] == 0 && stats["waiting"] == 0);
    assert!(began.elapsed() < Duration::from_secs(10));
    let metrics = get(running.address, "/metrics").text();
    let cancelled =
        metrics.lines().find_map(|line| line.strip_prefix("smart_run_choices_total{outcome=\"cancelled\"} "));
    assert!(cancelled.unwrap().parse::<usize>().unwrap() >= 10, "{metrics}");
    post(running.address, PATH, &json!({"prompt": "a", "max_tokens": 2})).good();
}

#[test]
fn a_stop_string_frees_the_place_too() {
    let body = json!({"prompt": "def main(", "max_tokens": 100_000, "ignore_eos": true, "temperature": 0, "stop": ","});
    let answer = post(DEMO.address, PATH, &body).good();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    DEMO.wait_until(|stats| stats["running"] == 0);
}

#[test]
fn a_slow_reader_gets_all_and_delays_nobody() {
    let running = Running::start(config(), &target());
    let mut slow = Stream::open(running.address, PATH, &endless());
    slow.next().unwrap();
    for _ in 0..3 {
        post(running.address, PATH, &json!({"prompt": "a", "max_tokens": 8})).good();
    }
    // The engine does not wait for it.
    running.wait_until(|stats| stats["running"] == 0);
    std::thread::sleep(Duration::from_millis(200));
    let mut last = String::new();
    while let Some(data) = slow.next() {
        last = data;
    }
    assert_eq!(last, "[DONE]");
}

/// What a connection says until it ends, and after how long.
fn until_closed(address: std::net::SocketAddr, bytes: &[u8]) -> (Vec<u8>, Duration) {
    let mut stream = connect(address);
    let began = Instant::now();
    let _ = stream.write_all(bytes);
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    (said, began.elapsed())
}

#[test]
fn slow_heads_and_bodies_are_given_up() {
    let timeouts = ServerConfig {
        header_timeout: Duration::from_millis(300),
        body_timeout: Duration::from_millis(300),
        ..config()
    };
    let running = Running::start(timeouts, &target());
    for start in ["", "GET /hea", "GET /health HTTP/1.1\r\nHost: a\r\n"] {
        let (_, time) = until_closed(running.address, start.as_bytes());
        assert!(time < Duration::from_secs(5), "{start:?}: {time:?}");
    }
    let head =
        request("POST", PATH, &[("Content-Type", "application/json"), ("Connection", "close")], &[b' '; 50]);
    let (said, time) = until_closed(running.address, &head[..head.len() - 10]);
    let said = String::from_utf8(said).unwrap();
    assert!(said.starts_with("HTTP/1.1 408 ") && time < Duration::from_secs(5), "{said}");
    assert!(said.contains("\"error\""));
    // A connection that was kept does not stay for ever.
    let (said, time) = until_closed(running.address, &request("GET", "/health", &[], b""));
    assert!(said.starts_with(b"HTTP/1.1 200 ") && time < Duration::from_secs(5));
}

#[test]
fn large_bodies_and_heads_are_refused() {
    let running = Running::start(ServerConfig { max_body_bytes: 1 << 20, ..config() }, &target());
    let large = vec![b' '; (1 << 20) + 1];
    let answer = post_bytes(running.address, PATH, &large);
    assert_eq!(
        (answer.status, answer.json()["error"]["type"].as_str()),
        (413, Some("invalid_request_error"))
    );
    // Without a length, it is seen as it comes.
    let mut stream = connect(running.address);
    stream.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    let chunk = [b"10000\r\n", &[b' '; 0x10000][..], b"\r\n"].concat();
    for _ in 0..17 {
        if stream.write_all(&chunk).is_err() {
            break;
        }
    }
    assert_eq!(read_head(&mut BufReader::new(stream)).map(|(status, _)| status), Some(413));
    let fits = [b"{\"prompt\": \"a\", \"max_tokens\": 1}", &large[..1 << 19]].concat();
    post_bytes(running.address, PATH, &fits).good();
    let head = format!("GET /health HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(300_000));
    let (said, _) = until_closed(running.address, head.as_bytes());
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&said));
    let head = format!("GET /health HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: x\r\n".repeat(200));
    let (said, _) = until_closed(running.address, head.as_bytes());
    assert!(said.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn connections_are_bounded() {
    let running = Running::start(ServerConfig { max_connections: 3, ..config() }, &target());
    let open: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = connect(running.address);
            stream.write_all(&request("GET", "/health", &[], b"")).unwrap();
            let mut reader = BufReader::new(stream);
            assert_eq!(read_answer(&mut reader).status, 200);
            reader
        })
        .collect();
    let refused = get(running.address, "/health");
    assert_eq!(
        (refused.status, refused.json()["error"]["code"].as_str()),
        (503, Some("too_many_connections"))
    );
    drop(open);
    let deadline = Instant::now() + Duration::from_secs(10);
    while get(running.address, "/health").status != 200 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn garbage_is_answered_or_closed_and_harms_nobody() {
    let chat = request(
        "POST",
        PATH,
        &[("Content-Type", "application/json")],
        b"{\"prompt\": \"a\", \"max_tokens\": 1}",
    );
    let smuggled = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\n\r\n";
    let mut noise = Vec::new();
    let mut state = 1u32;
    for _ in 0..4096 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise.push((state >> 24) as u8);
    }
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET  /health HTTP/1.1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n",
        b"\r\n\r\n\r\n\0\0\0\0\r\n\r\n",
        smuggled,
        &noise,
        &[&chat[..chat.len() - 1], &b"\0\0\0\0"[..]].concat(),
    ] {
        let mut stream = connect(DEMO.address);
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4") || said.starts_with("HTTP/1.0 4"), "{said}");
    }
    assert_eq!(get(DEMO.address, "/ready").status, 200);
}

#[test]
fn pipelined_requests_are_answered_in_turn() {
    let mut stream = connect(DEMO.address);
    let body = b"{\"prompt\": \"def main(\", \"max_tokens\": 4, \"temperature\": 0}";
    let chat = request("POST", PATH, &[("Content-Type", "application/json")], body);
    let all = [&request("GET", "/health", &[], b"")[..], &chat, &request("GET", "/nothing", &[], b""), &chat]
        .concat();
    stream.write_all(&all).unwrap();
    let mut reader = BufReader::new(stream);
    let answers: Vec<_> = (0..4).map(|_| read_answer(&mut reader)).collect();
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 404, 200]);
    assert_eq!(answers[1].json()["choices"], answers[3].json()["choices"]);
}

#[test]
fn a_stop_lets_what_runs_end_and_refuses_the_rest() {
    let mut running = Running::start(config(), &target());
    let address = running.address;
    let expected = post(address, PATH, &crowd()).good();
    std::thread::scope(|scope| {
        let first = scope.spawn(move || post(address, PATH, &crowd()).good());
        running.wait_until(|stats| stats["waiting"].as_u64() > Some(0));
        running.stop();
        // It may not have noticed yet.
        let refused = (0..200)
            .map(|_| get(address, "/ready"))
            .find(|answer| answer.status == 503)
            .expect("a refusal while it drains");
        assert_eq!(refused.json()["error"]["code"], "shutting_down");
        let refused = post(address, PATH, &json!({"prompt": "a"}));
        assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (503, Some("shutting_down")));
        assert_eq!(get(address, "/health").status, 200);
        assert_eq!(first.join().unwrap()["choices"], expected["choices"]);
    });
    let began = Instant::now();
    running.join();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn a_stop_does_not_wait_longer_than_it_was_told() {
    let mut running = Running::start(ServerConfig { drain: Duration::ZERO, ..config() }, &target());
    let address = running.address;
    std::thread::scope(|scope| {
        let first = scope.spawn(move || post(address, PATH, &crowd()));
        running.wait_until(|stats| stats["waiting"].as_u64() > Some(0));
        running.stop();
        let answer = first.join().unwrap();
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (503, Some("shutting_down")));
    });
    let began = Instant::now();
    running.join();
    assert!(began.elapsed() < Duration::from_secs(5));
}

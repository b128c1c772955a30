//! `--model org/name`: fetched from a server once, found in the cache ever after; every failure is one sentence.
//!
//! The server is this test's own, on this machine, and speaks as much of the protocol as a fetch needs.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

#[path = "common/program.rs"]
mod program;
#[allow(dead_code)]
#[path = "common/tiny_model.rs"]
mod tiny_model;

use program::program;
use tiny_model::Folder;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the server treats a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mood {
    Good,
    /// Answers everything with this status.
    Fails(u16),
    /// Asks for the token "sesame".
    Gated,
    /// Ends the bodies of weights early.
    Truncates,
    /// Says that the bodies of weights are complete where they are not.
    TruncatesQuietly,
    /// Names a commit that is none.
    Nonsense,
}

/// A server of one repository, `org/tiny`.
struct Server {
    address: String,
    mood: Arc<Mutex<Mood>>,
    /// Paths asked for, as long as they were whole files.
    fetched: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(files: HashMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { address, mood: Arc::new(Mutex::new(Mood::Good)), fetched: Arc::default() };
        let (mood, fetched, files) = (server.mood.clone(), server.fetched.clone(), Arc::new(files));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mood, fetched, files) = (mood.clone(), fetched.clone(), files.clone());
                thread::spawn(move || serve(stream.unwrap(), &mood, &fetched, &files));
            }
        });
        server
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn take_fetched(&self) -> Vec<String> {
        let mut fetched = std::mem::take(&mut *self.fetched.lock().unwrap());
        fetched.sort();
        fetched
    }
}

fn serve(
    stream: TcpStream,
    mood: &Mutex<Mood>,
    fetched: &Mutex<Vec<String>>,
    files: &HashMap<String, Vec<u8>>,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let path = head[0].split(' ').nth(1).unwrap().to_owned();
    let header = |name: &str| {
        head.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let mood = *mood.lock().unwrap();
    let mut stream = stream;
    let mut answer = |status: u16, headers: &str, length: usize, body: &[u8]| {
        let head =
            format!("HTTP/1.1 {status} S\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    };
    let refuse = match mood {
        Mood::Fails(status) => Some(status),
        Mood::Gated if header("authorization").as_deref() != Some("Bearer sesame") => Some(401),
        _ => None,
    };
    if let Some(status) = refuse {
        return answer(status, "", 2, b"{}");
    }
    if let Some(revision) = path.strip_prefix("/api/models/org/tiny/revision/") {
        let siblings: Vec<Value> = files.keys().map(|name| json!({"rfilename": name})).collect();
        let sha = if mood == Mood::Nonsense { "../../x" } else { COMMIT };
        let body = json!({"sha": sha, "siblings": siblings, "id": "org/tiny"}).to_string();
        return match revision {
            "main" | "v1" | COMMIT => {
                answer(200, "Content-Type: application/json\r\n", body.len(), body.as_bytes())
            }
            _ => answer(404, "", 2, b"{}"),
        };
    }
    let name = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/"));
    let Some((name, content)) = name.and_then(|name| files.get_key_value(name)) else {
        return answer(404, "", 2, b"{}");
    };
    let range = header("range").and_then(|range| {
        let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?.to_owned();
        Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()))
    });
    let (from, to) = range.unwrap_or((0, None));
    if from >= content.len() {
        return answer(416, "", 0, b"");
    }
    let end = to.map_or(content.len(), |to| (to + 1).min(content.len()));
    let mut body = &content[from..end];
    if to.is_none() {
        fetched.lock().unwrap().push(name.clone());
        if name.ends_with(".safetensors") && matches!(mood, Mood::Truncates | Mood::TruncatesQuietly) {
            body = &body[..body.len() / 2];
        }
    }
    let length = if mood == Mood::TruncatesQuietly { body.len() } else { end - from };
    let headers = format!(
        "ETag: \"{}-{}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {from}-{}/{}\r\n",
        name.replace('.', "_"),
        content.len(),
        end - 1,
        content.len()
    );
    answer(206, &headers, length, body);
}

/// The tiny target in two shards, with files that no model needs.
fn tiny_server() -> Server {
    let folder = Folder::target();
    folder.shard();
    folder.write_json("generation_config.json", &json!({"eos_token_id": 1}));
    let mut files = HashMap::new();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        files.insert(entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    }
    for other in ["README.md", "onnx/model.onnx", "flax_model.msgpack", "pytorch_model.bin", "../escape.json"]
    {
        files.insert(other.into(), b"never asked for".to_vec());
    }
    Server::start(files)
}

const NEEDED: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
];

/// `generate` with this model; the environment holds nothing but `variables`.
fn generate(model: &str, cache: &Path, variables: &[(&str, &str)]) -> Output {
    let mut command = program();
    command.args([
        "generate",
        "--device",
        "host",
        "--prompt-ids",
        "3,4",
        "--max-new-tokens",
        "4",
        "--format",
        "json",
        "--model",
        model,
    ]);
    for name in [
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_TOKEN",
        "HF_ENDPOINT",
        "HF_HUB_OFFLINE",
        "http_proxy",
        "HTTP_PROXY",
        "ALL_PROXY",
        "all_proxy",
    ] {
        command.env_remove(name);
    }
    command.env("HF_HOME", cache).envs(variables.iter().copied());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn succeeds(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    answer["token_ids"].clone()
}

/// One sentence and this exit code.
fn fails(output: &Output, code: i32) -> String {
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), said.lines().count()), (Some(code), 1), "{said}");
    assert!(output.stdout.is_empty());
    said
}

#[test]
fn a_model_is_fetched_once() {
    let (server, cache) = (tiny_server(), tempfile::tempdir().unwrap());
    let endpoint = [("HF_ENDPOINT", server.address.as_str())];
    let ids = succeeds(&generate("org/tiny", cache.path(), &endpoint));
    assert_eq!(ids.as_array().unwrap().len(), 4);
    assert_eq!(server.take_fetched(), NEEDED);
    assert_eq!(succeeds(&generate("org/tiny", cache.path(), &endpoint)), ids);
    // A revision of the same commit is the same files.
    assert_eq!(succeeds(&generate("org/tiny@v1", cache.path(), &endpoint)), ids);
    assert_eq!(server.take_fetched(), Vec::<String>::new());
    // The layout that other programs read.
    let snapshot = cache.path().join("hub/models--org--tiny/snapshots").join(COMMIT);
    assert!(snapshot.join("config.json").is_file());
    assert_eq!(fs::read_to_string(cache.path().join("hub/models--org--tiny/refs/main")).unwrap(), COMMIT);

    // Nobody is asked, whoever may listen.
    for model in ["org/tiny", "org/tiny@v1", &format!("org/tiny@{COMMIT}")] {
        let offline = [endpoint[0], ("HF_HUB_OFFLINE", "1")];
        server.set(Mood::Fails(500));
        assert_eq!(succeeds(&generate(model, cache.path(), &offline)), ids);
    }
    // Without a network the cache serves, and a warning says so.
    let gone = generate("org/tiny", cache.path(), &[("HF_ENDPOINT", "http://127.0.0.1:1")]);
    assert_eq!(succeeds(&gone), ids);
    assert!(text(&gone.stderr).contains("the cached files are taken"), "{}", text(&gone.stderr));
    // As a folder, and by the cache's own variable.
    let hub = cache.path().join("hub");
    let moved = [("HF_HUB_OFFLINE", "1"), ("HF_HUB_CACHE", hub.to_str().unwrap())];
    assert_eq!(succeeds(&generate("org/tiny", Path::new("/nowhere"), &moved)), ids);
    assert_eq!(succeeds(&generate(snapshot.to_str().unwrap(), cache.path(), &[])), ids);
}

#[test]
fn what_is_not_there_or_not_allowed_is_said_so() {
    let (server, cache) = (tiny_server(), tempfile::tempdir().unwrap());
    let endpoint = ("HF_ENDPOINT", server.address.as_str());
    let said = fails(&generate("org/none", cache.path(), &[endpoint]), 2);
    assert!(said.contains("org/none: there is no such folder here, and no such repository"), "{said}");
    let said = fails(&generate("org/tiny@v9", cache.path(), &[endpoint]), 2);
    assert!(said.contains("org/tiny@v9: ") && said.contains("revision"), "{said}");
    server.set(Mood::Gated);
    let said = fails(&generate("org/tiny", cache.path(), &[endpoint]), 2);
    assert!(said.contains("access is denied (401)") && said.contains("set HF_TOKEN"), "{said}");
    server.set(Mood::Fails(403));
    let said = fails(&generate("org/tiny", cache.path(), &[endpoint]), 2);
    assert!(said.contains("(403)") && said.contains("gated"), "{said}");
    server.set(Mood::Gated);
    succeeds(&generate("org/tiny", cache.path(), &[endpoint, ("HF_TOKEN", "sesame")]));
}

#[test]
fn a_failing_server_is_a_failure_at_run_time() {
    let (server, cache) = (tiny_server(), tempfile::tempdir().unwrap());
    let endpoint = [("HF_ENDPOINT", server.address.as_str())];
    for (mood, expected) in [
        (Mood::Fails(500), "failed (status 500)"),
        (Mood::Nonsense, "no commit"),
        (Mood::Truncates, "model-0000"),
        (Mood::TruncatesQuietly, "try again"),
    ] {
        server.set(mood);
        let said = fails(&generate("org/tiny", cache.path(), &endpoint), 1);
        assert!(said.contains("org/tiny") && said.contains(expected), "{mood:?}: {said}");
        // What came is no model yet.
        let said = fails(&generate("org/tiny", cache.path(), &[("HF_HUB_OFFLINE", "1")]), 2);
        assert!(said.contains("HF_HUB_OFFLINE is set"), "{said}");
    }
    let said = fails(&generate("org/tiny", cache.path(), &[("HF_ENDPOINT", "http://127.0.0.1:1")]), 1);
    assert!(said.contains("it cannot be fetched at http://127.0.0.1:1"), "{said}");
    // A good day: what was cut short is fetched to its end.
    server.set(Mood::Good);
    succeeds(&generate("org/tiny", cache.path(), &endpoint));
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let (server, cache) = (tiny_server(), tempfile::tempdir().unwrap());
    let file = cache.path().join("file");
    fs::write(&file, "").unwrap();
    let said = fails(&generate("org/tiny", &file, &[("HF_ENDPOINT", server.address.as_str())]), 2);
    assert!(said.contains(file.to_str().unwrap()), "{said}");
}

/// What is a folder, or no id, is never asked for.
#[test]
fn folders_come_first() {
    let (server, cache) = (tiny_server(), tempfile::tempdir().unwrap());
    let endpoint = [("HF_ENDPOINT", server.address.as_str())];
    for model in ["nowhere", "./org/tiny", "/nowhere/at/all", "org/tiny/deeper"] {
        let said = fails(&generate(model, cache.path(), &endpoint), 2);
        assert!(said.contains("there is no such model folder"), "{said}");
    }
    assert_eq!(server.take_fetched(), Vec::<String>::new());
}

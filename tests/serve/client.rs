//! An HTTP/1.1 client that shows what is on the wire.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The JSON of an answer that is good.
    pub fn good(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A request's bytes.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() || method == "POST" {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

pub fn send(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut stream = connect(address);
    let headers = [headers, &[("Connection", "close")]].concat();
    // A server that refuses a body before its end may have closed the connection.
    let _ = stream.write_all(&request(method, path, &headers, body));
    read_answer(&mut BufReader::new(stream))
}

pub fn get(address: SocketAddr, path: &str) -> Answer {
    send(address, "GET", path, &[], b"")
}

pub fn post(address: SocketAddr, path: &str, body: &Value) -> Answer {
    post_bytes(address, path, body.to_string().as_bytes())
}

pub fn post_bytes(address: SocketAddr, path: &str, body: &[u8]) -> Answer {
    send(address, "POST", path, &[("Content-Type", "application/json")], body)
}

/// Reads one answer, whole.
pub fn read_answer(reader: &mut BufReader<TcpStream>) -> Answer {
    let (status, headers) = read_head(reader).expect("an answer");
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
        while let Some(chunk) = read_chunk(reader) {
            body.extend(chunk);
        }
    } else if let Some(length) = headers.get("content-length") {
        body.resize(length.parse().unwrap(), 0);
        reader.read_exact(&mut body).unwrap();
    }
    Answer { status, headers, body }
}

/// Status and headers; `None` where the peer has closed.
pub fn read_head(reader: &mut BufReader<TcpStream>) -> Option<(u16, HashMap<String, String>)> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let status = line.split(' ').nth(1)?.parse().ok()?;
    let mut headers = HashMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { return Some((status, headers)) };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
}

fn read_chunk(reader: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let length = usize::from_str_radix(line.trim(), 16).ok()?;
    let mut chunk = vec![0; length + 2];
    reader.read_exact(&mut chunk).ok()?;
    chunk.truncate(length);
    (length > 0).then_some(chunk)
}

/// A streamed answer on its way.
pub struct Stream {
    reader: BufReader<TcpStream>,
    buffer: String,
}

impl Stream {
    /// Asks, and reads the head, which must be good.
    pub fn open(address: SocketAddr, path: &str, body: &Value) -> Self {
        let mut stream = connect(address);
        let headers = [("Content-Type", "application/json"), ("Connection", "close")];
        stream.write_all(&request("POST", path, &headers, body.to_string().as_bytes())).unwrap();
        let mut reader = BufReader::new(stream);
        let (status, headers) = read_head(&mut reader).unwrap();
        assert_eq!((status, headers["content-type"].as_str()), (200, "text/event-stream"));
        Self { reader, buffer: String::new() }
    }

    /// The next event's data; `None` at the end of the connection. Comments are passed over.
    pub fn next(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.buffer = rest;
                if let Some(data) = event.strip_prefix("data: ") {
                    return Some(data.to_owned());
                }
                continue;
            }
            self.buffer.push_str(&String::from_utf8(read_chunk(&mut self.reader)?).unwrap());
        }
    }

    /// All chunks up to `[DONE]`, behind which nothing comes.
    pub fn chunks(mut self) -> Vec<Value> {
        let mut chunks = Vec::new();
        loop {
            let data = self.next().expect("[DONE] at the end");
            if data == "[DONE]" {
                assert_eq!(self.next(), None);
                return chunks;
            }
            chunks.push(serde_json::from_str(&data).unwrap());
        }
    }
}

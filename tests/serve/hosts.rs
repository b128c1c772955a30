//! Which hosts a server goes by: pages of other sites can make their own name lead to this machine.

use std::io::{BufReader, Write};
use std::net::SocketAddr;

use super::client::{Answer, connect, read_answer};
use super::running::{Running, config};

/// The answer to a request with these lines in its head.
fn ask(address: SocketAddr, target: &str, lines: &str) -> Answer {
    let mut stream = connect(address);
    write!(stream, "GET {target} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n").unwrap();
    read_answer(&mut BufReader::new(stream))
}

fn status(address: SocketAddr, lines: &str) -> u16 {
    ask(address, "/health", lines).status
}

#[test]
fn a_server_on_the_loopback_goes_by_its_names_alone() {
    let running = Running::loading(config());
    let address = running.address;
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8080", &address.to_string()] {
        assert_eq!(status(address, &format!("Host: {host}\r\n")), 200, "{host}");
    }
    for lines in [
        "Host: evil.example\r\n",
        "Host: localhost.evil.example:80\r\n",
        "Host: 192.168.0.7\r\n",
        "Host: \r\n",
        "Host: local\u{e9}host\r\n",
        "Host: localhost\r\nHost: evil.example\r\n",
        "",
    ] {
        assert_eq!(status(address, lines), 403, "{lines:?}");
    }
    let answer = ask(address, "/", "Host: evil.example\r\nOrigin: http://evil.example\r\n");
    let error = answer.json()["error"].clone();
    assert_eq!((answer.status, &error["code"]), (403, &"host_not_allowed".into()));
    assert!(error["message"].as_str().unwrap().contains("\"evil.example\""), "{error}");
    // The host of a whole URL counts as well.
    assert_eq!(ask(address, "http://evil.example/health", "Host: localhost\r\n").status, 403);
    assert_eq!(ask(address, "http://localhost/health", "Host: localhost\r\n").status, 200);
}

#[test]
fn other_names_can_be_allowed() {
    let mut with_name = config();
    with_name.allowed_hosts = vec!["box.example".into()];
    let running = Running::loading(with_name.clone());
    for (host, expected) in
        [("box.example", 200), ("BOX.example:80", 200), ("localhost", 200), ("evil.example", 403)]
    {
        assert_eq!(status(running.address, &format!("Host: {host}\r\n")), expected, "{host}");
    }
    // On all addresses any name will do, unless some are given.
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    for (names, expected) in [(vec![], 200), (with_name.allowed_hosts, 403)] {
        let mut open = config();
        (open.address, open.allowed_hosts) = (everywhere, names);
        let running = Running::loading(open);
        let address = SocketAddr::from(([127, 0, 0, 1], running.address.port()));
        assert_eq!(status(address, "Host: evil.example\r\n"), expected);
    }
}

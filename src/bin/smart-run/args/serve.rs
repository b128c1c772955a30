//! `serve` as typed and as meant.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::Args;

use smart_run::control::Policy;
use smart_run::serve::{ApiKey, ServerConfig};

use super::model::LowModel;
use super::{ModelArgs, from_str, integer};

/// Where an API key may be that no list of processes should show.
const KEY_VARIABLE: &str = "SMART_API_KEY";

/// A server.
#[derive(Debug, PartialEq)]
pub struct ServeArgs {
    /// What runs, and where.
    pub models: ModelArgs,
    /// How trees are grown; `None` is `smart` with a drafter and `plain` without.
    pub policy: Option<Policy>,
    /// What requests call the model; `None` is its folder's or repository's name.
    pub name: Option<String>,
    /// Longest context; `None` is the model's own limit.
    pub max_context: Option<usize>,
    /// Memory for keys and values; `None` is what full contexts need, at most half of what is free.
    pub kv_budget_bytes: Option<usize>,
    /// Everything else.
    pub server: ServerConfig,
    /// How to log.
    pub log: LogFormat,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line to read.
    Text,
    /// An object of JSON a line.
    Json,
    /// None but warnings and errors.
    Quiet,
}

/// The same as typed.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct LowServe {
    #[command(flatten)]
    models: LowModel,
    /// How draft trees are grown, as for generate [default: smart; plain without a drafter]
    #[arg(long, value_name = "POLICY", value_parser = from_str::<Policy>)]
    policy: Option<Policy>,
    /// What requests call the model [default: the name of its folder or repository; demo for the demo pair]
    #[arg(long, value_name = "NAME")]
    served_name: Option<String>,
    /// Address to listen on; 0.0.0.0 is every one that this machine has
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", value_parser = address)]
    host: IpAddr,
    /// Port to listen on; 0 takes one that is free, which the first line printed names
    #[arg(long, value_name = "PORT", default_value = "8080", value_parser = port)]
    port: u16,
    /// Sequences served at once
    #[arg(long, value_name = "N", default_value = "16", value_parser = sequences)]
    max_sequences: usize,
    /// Sequences that wait for a place at most; more are told to come back (429)
    #[arg(long, value_name = "N", default_value = "256", value_parser = count)]
    max_waiting: usize,
    /// Tokens of a prompt and its answer at most [default: what the model was made for]
    #[arg(long, value_name = "N", value_parser = count)]
    max_context: Option<usize>,
    /// Device memory for keys and values [default: what full contexts need, at most half of what is free]
    #[arg(long, value_name = "MIB", value_parser = count)]
    kv_budget_mib: Option<usize>,
    /// Key that clients have to send (Authorization: Bearer KEY); may be repeated. The variable SMART_API_KEY holds one, too
    #[arg(long, value_name = "KEY", value_parser = key)]
    api_key: Vec<ApiKey>,
    /// Origin whose pages may read answers, as in https://example.org; may be repeated, * is all [default: none]
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    cors_origin: Vec<String>,
    /// Name by which requests may call this server, beside localhost; may be repeated. Others are refused (403) where the server listens
    /// on the loopback, or where a name is given [default: none]
    #[arg(long, value_name = "NAME", value_parser = host_name)]
    allowed_host: Vec<String>,
    /// Connections at once
    #[arg(long, value_name = "N", default_value = "1024", value_parser = count)]
    max_connections: usize,
    /// Largest body of a request
    #[arg(long, value_name = "MIB", default_value = "16", value_parser = body_mib)]
    max_body_mib: usize,
    /// Memory for pictures that are prepared for the model, of all requests together
    #[arg(long, value_name = "MIB", default_value = "4096", value_parser = count)]
    picture_budget_mib: usize,
    /// Time for the head of a request, also on a connection that was kept
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    header_seconds: u64,
    /// Time for the body of a request
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    body_seconds: u64,
    /// Time for which a client may take nothing of its answer
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    write_seconds: u64,
    /// Time for running requests once the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = drain_seconds)]
    drain_seconds: u64,
    /// How to log, on standard error: text, json (an object a line) or quiet (warnings and errors)
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_possible_values = true)]
    log: LogFormat,
}

/// Sees the flags of `serve` together, and the variable.
pub fn serve(typed: LowServe) -> Result<ServeArgs, String> {
    let models = ModelArgs::from(typed.models);
    models.check_policies(&typed.policy)?;
    let mut api_keys = typed.api_key;
    match std::env::var(KEY_VARIABLE) {
        Ok(value) => api_keys.push(key(&value).map_err(|reason| format!("{KEY_VARIABLE}: {reason}"))?),
        Err(std::env::VarError::NotPresent) => (),
        Err(std::env::VarError::NotUnicode(_)) => {
            return Err(format!("{KEY_VARIABLE}: it is not UTF-8 text"));
        }
    }
    if typed.served_name.as_ref().is_some_and(|name| name.is_empty() || name.chars().any(char::is_control)) {
        return Err("--served-name should be a name on one line".into());
    }
    Ok(ServeArgs {
        models,
        policy: typed.policy,
        name: typed.served_name,
        max_context: typed.max_context,
        kv_budget_bytes: typed.kv_budget_mib.map(|mib| mib << 20),
        server: ServerConfig {
            address: SocketAddr::new(typed.host, typed.port),
            api_keys,
            cors_origins: typed.cors_origin,
            allowed_hosts: typed.allowed_host,
            max_sequences: typed.max_sequences,
            max_waiting: typed.max_waiting,
            max_connections: typed.max_connections,
            max_body_bytes: typed.max_body_mib << 20,
            picture_budget_bytes: typed.picture_budget_mib << 20,
            header_timeout: Duration::from_secs(typed.header_seconds),
            body_timeout: Duration::from_secs(typed.body_seconds),
            write_timeout: Duration::from_secs(typed.write_seconds),
            drain: Duration::from_secs(typed.drain_seconds),
        },
        log: typed.log,
    })
}

fn address(typed: &str) -> Result<IpAddr, String> {
    typed.parse().map_err(|_| "it should be an address, as in 127.0.0.1 or ::1".into())
}

fn port(typed: &str) -> Result<u16, String> {
    integer(typed, 0, u16::MAX)
}

fn sequences(typed: &str) -> Result<usize, String> {
    integer(typed, 1, 1024)
}

fn count(typed: &str) -> Result<usize, String> {
    integer(typed, 1, 1 << 30)
}

fn body_mib(typed: &str) -> Result<usize, String> {
    integer(typed, 1, 1024)
}

fn seconds(typed: &str) -> Result<u64, String> {
    integer(typed, 1, 86_400)
}

fn drain_seconds(typed: &str) -> Result<u64, String> {
    integer(typed, 0, 86_400)
}

fn key(typed: &str) -> Result<ApiKey, String> {
    if !typed.is_empty() && typed.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(ApiKey::new(typed))
    } else {
        Err("a key should be letters, digits and signs of ASCII, without spaces".into())
    }
}

fn host_name(typed: &str) -> Result<String, String> {
    let address = typed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let fits = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !typed.is_empty()
                && typed.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        }
    };
    if fits {
        Ok(typed.to_ascii_lowercase())
    } else {
        Err("it should be a name or an address without scheme and port, as in box.example or [fd00::7]"
            .into())
    }
}

fn origin(typed: &str) -> Result<String, String> {
    let rest = typed.strip_prefix("https://").or_else(|| typed.strip_prefix("http://"));
    let is_origin = rest.is_some_and(|host| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
    });
    if typed == "*" || is_origin {
        Ok(typed.to_owned())
    } else {
        Err("it should be a scheme, a host and perhaps a port, as in https://example.org:8443, or *".into())
    }
}

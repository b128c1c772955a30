//! Connections: how many, how long a peer may take, and how they end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::app::App;
use super::errors::ApiError;
use super::stalls::Stalls;

/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Header fields of a request.
const MAX_HEADERS: usize = 100;
/// How long to leave a listener alone that has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections of one listener.
pub(super) struct Connections {
    app: Arc<App>,
    router: Router,
    open: JoinSet<()>,
    /// Turns true when connections are to end with what they are answering.
    closing: watch::Sender<bool>,
}

impl Connections {
    pub fn new(app: Arc<App>, router: Router) -> Self {
        Self { app, router, open: JoinSet::new(), closing: watch::channel(false).0 }
    }

    /// Takes connections, for ever.
    pub async fn accept(&mut self, listener: &TcpListener) {
        loop {
            // Those that have ended are taken off, so that their number counts.
            while self.open.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, _)) => self.take(stream),
                Err(error) => {
                    tracing::warn!("a connection was not accepted: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn take(&mut self, mut stream: TcpStream) {
        let app = self.app.clone();
        // Pieces of a stream are small and should not wait for more.
        let _ = stream.set_nodelay(true);
        if app.counters.connections.load(Ordering::Relaxed) >= app.config.max_connections {
            app.counters.refused_connections.fetch_add(1, Ordering::Relaxed);
            let answer = too_many();
            self.open.spawn(async move {
                let _ = tokio::time::timeout(ACCEPT_PAUSE, stream.write_all(answer.as_bytes())).await;
            });
            return;
        }
        let open = Open::count(app.clone());
        let service = TowerToHyperService::new(self.router.clone());
        let mut closing = self.closing.subscribe();
        self.open.spawn(async move {
            let _open = open;
            let io = TokioIo::new(Stalls::new(stream, app.config.write_timeout));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(app.config.header_timeout)
                .max_buf_size(MAX_HEAD_BYTES)
                .max_headers(MAX_HEADERS)
                .serve_connection(io, service);
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = async { _ = closing.wait_for(|closing| *closing).await } => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!("a connection ended: {error}");
            }
        });
    }

    /// Ends all connections, each with what it is answering, but at most after `patience`.
    pub async fn close(mut self, patience: Duration) {
        self.closing.send_replace(true);
        let all = async { while self.open.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!(connections = self.open.len(), "connections were cut off");
            self.open.shutdown().await;
        }
    }
}

/// Counts a connection as long as it lives.
struct Open {
    app: Arc<App>,
}

impl Open {
    fn count(app: Arc<App>) -> Self {
        app.counters.connections.fetch_add(1, Ordering::Relaxed);
        Self { app }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.app.counters.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a connection beyond the limit is told.
fn too_many() -> String {
    let body =
        ApiError::unavailable("too_many_connections", "there are too many connections").body().to_string();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\nretry-after: 1\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

//! The server: a loopback listener in front of the S3 service, its keys, its clean stop, and its form for tests.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::header::DATE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use jiff::SignedDuration;
use s3s::Body;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::auth::Keys;
use crate::backend::{Backend, StartReport};
use crate::clock::Clock;
use crate::disk::Disk;
use crate::error::Error;
use crate::faults::Faults;
use crate::service::Service;
use crate::{BUCKET, REGION};

/// How long a stop waits for requests under way.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// How often uploads are looked through for old ones.
const SWEEP_PERIOD: Duration = Duration::from_hours(1);

/// How a server is to run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Loopback port; 0 lets the system choose one.
    pub port: u16,
    /// Wait for the disk before answering a write. Without it a kill of the server loses nothing, a power cut may.
    pub sync: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: 0,
            sync: true,
        }
    }
}

/// A server that listens and holds its root, ready to run.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    backend: Arc<Backend>,
    keys: Keys,
    report: StartReport,
    faults: Option<Arc<Faults>>,
    traffic: Arc<Traffic>,
}

impl Server {
    /// Takes the root, makes its keys and the bucket `wmtp` where they are missing, and listens on loopback.
    pub fn bind(root: &Path, options: Options) -> Result<Self, Error> {
        let (backend, report) = Backend::open(root, options.sync)?;
        let keys = Keys::of_root(&backend.disk)?;
        match backend.create_bucket(BUCKET) {
            Ok(()) | Err(Error::BucketExists(_)) => {}
            Err(error) => return Err(error),
        }
        let listening =
            TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).and_then(|listener| {
                listener.set_nonblocking(true)?;
                let address = listener.local_addr()?;
                Ok((listener, address))
            });
        let (listener, address) = listening.map_err(|source| Error::Listen {
            port: options.port,
            source,
        })?;
        Ok(Self {
            listener,
            address,
            backend: Arc::new(backend),
            keys,
            report,
            faults: None,
            traffic: Arc::default(),
        })
    }

    /// The address for `AWS_ENDPOINT_URL_S3`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The access key of this root.
    pub fn access_key(&self) -> &str {
        &self.keys.access_key
    }

    /// The secret key of this root.
    pub fn secret_key(&self) -> &str {
        &self.keys.secret_key
    }

    /// What was found at start.
    pub fn report(&self) -> &StartReport {
        &self.report
    }

    /// Writes the environment that leads a client here as lines of `export NAME=value`, atomically, readable by the
    /// owner only.
    pub fn write_env_file(&self, path: &Path) -> Result<(), Error> {
        let text = format!(
            "export AWS_ENDPOINT_URL_S3={}\nexport AWS_ACCESS_KEY_ID={}\nexport AWS_SECRET_ACCESS_KEY={}\nexport AWS_REGION={REGION}\n",
            self.endpoint(),
            self.access_key(),
            self.secret_key(),
        );
        let disk: &Disk = &self.backend.disk;
        disk.replace_file(path, text.as_bytes())
    }

    /// Serves until `stop` is done, then lets requests under way finish for a few seconds.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let port = self.address.port();
        let listener = tokio::net::TcpListener::from_std(self.listener)
            .map_err(|source| Error::Listen { port, source })?;
        let mut builder = S3ServiceBuilder::new(Service::new(Arc::clone(&self.backend)));
        builder.set_auth(self.keys.checker());
        builder.set_config(self.backend.clock.config());
        let answerer = Answerer {
            service: builder.build(),
            clock: self.backend.clock.clone(),
            faults: self.faults,
            traffic: self.traffic,
        };
        let (stopping, watcher) = watch::channel(());
        let mut connections = JoinSet::new();
        let mut sweep = tokio::time::interval(SWEEP_PERIOD);
        let mut stop = pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => { connections.spawn(serve(stream, answerer.clone(), watcher.clone())); }
                    Err(error) => {
                        // Usually too many open files; the pause lets some close.
                        tracing::warn!(%error, "a connection was not accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                _ = sweep.tick() => sweep_uploads(Arc::clone(&self.backend)),
            }
        }
        drop(stopping);
        let all_done = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_GRACE, all_done).await.is_err() {
            tracing::warn!("requests under way were cut off");
        }
        Ok(())
    }
}

/// Answers requests: the service, and what a test puts in front of it.
#[derive(Clone)]
struct Answerer {
    service: S3Service,
    clock: Clock,
    faults: Option<Arc<Faults>>,
    traffic: Arc<Traffic>,
}

/// Bytes of bodies, as they were announced.
#[derive(Debug, Default)]
struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Answerer {
    async fn answer(&self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let length = request.body().size_hint().lower();
        self.traffic.received.fetch_add(length, Ordering::Relaxed);
        let mut response = if let Some(faults) = &self.faults {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
            let request = Request::from_parts(parts, body);
            faults.answer(&self.service, request).await?
        } else {
            let request = request.map(|body| Body::http_body(Drained(Some(body))));
            let answer = self.service.call(request).await;
            answer.map_err(|error| io::Error::other(format!("{error:?}")))?
        };
        if let Some(date) = self.clock.date().and_then(|date| date.parse().ok()) {
            response.headers_mut().insert(DATE, date);
        }
        let length = response.body().size_hint().lower();
        self.traffic.sent.fetch_add(length, Ordering::Relaxed);
        Ok(response)
    }
}

/// Bytes of a refused body that are taken all the same; few objects are larger.
const DRAINED_BYTES: usize = 256 << 20;

/// A request's body. What a refusal leaves of it is taken beside the answer: a client that still sends when the connection
/// closes does not see the answer.
struct Drained(Option<Incoming>);

impl hyper::body::Body for Drained {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.0 {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0
            .as_ref()
            .map_or_else(SizeHint::default, Incoming::size_hint)
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let body = self.0.take().filter(|body| !body.is_end_stream());
        if let (Some(body), Ok(runtime)) = (body, Handle::try_current()) {
            runtime.spawn(drain(body));
        }
    }
}

async fn drain(mut body: Incoming) {
    let mut left = DRAINED_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let taken = frame.data_ref().map_or(0, Bytes::len);
        let Some(less) = left.checked_sub(taken) else {
            return;
        };
        left = less;
    }
}

/// Serves one connection until it closes, or until the server stops and its request under way is answered.
async fn serve(stream: TcpStream, answerer: Answerer, mut stopping: watch::Receiver<()>) {
    // Small answers must not wait for more data to send.
    let _ = stream.set_nodelay(true);
    let answer = service_fn(move |request| {
        let answerer = answerer.clone();
        async move { answerer.answer(request).await }
    });
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    let served = tokio::select! {
        served = connection.as_mut() => served,
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}

fn sweep_uploads(backend: Arc<Backend>) {
    tokio::task::spawn_blocking(move || match backend.abort_old_uploads() {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "uploads older than seven days aborted"),
        Err(error) => tracing::warn!(%error, "old uploads were not aborted"),
    });
}

/// A server for the tests of other crates: runs on its own thread and stops when dropped. It does not wait for the
/// disk (`sync` off), which a test never needs.
///
/// ```
/// let root = tempfile::tempdir().unwrap();
/// let server = dev_store::TestServer::start(root.path());
/// assert!(server.endpoint().starts_with("http://127.0.0.1:"));
/// ```
#[derive(Debug)]
pub struct TestServer {
    endpoint: String,
    access_key: String,
    secret_key: String,
    report: StartReport,
    clock: Clock,
    traffic: Arc<Traffic>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl TestServer {
    /// Starts a server on `root`, with the bucket `wmtp` in it. A second start on the same folder finds what the first
    /// one stored, under the same keys.
    ///
    /// # Panics
    /// If the root is held by another server or cannot be used: a test has no use for a server that did not start.
    pub fn start(root: &Path) -> Self {
        Self::start_with(root, None)
    }

    /// Starts a server that misbehaves by a schedule.
    ///
    /// # Panics
    /// As [`TestServer::start`].
    pub fn start_faulty(root: &Path, faults: Arc<Faults>) -> Self {
        Self::start_with(root, Some(faults))
    }

    fn start_with(root: &Path, faults: Option<Arc<Faults>>) -> Self {
        let mut server = Server::bind(
            root,
            Options {
                port: 0,
                sync: false,
            },
        )
        .expect("a usable root for the test server");
        server.faults = faults;
        let (stop, stopped) = oneshot::channel();
        let clock = server.backend.clock.clone();
        let traffic = Arc::clone(&server.traffic);
        let (endpoint, keys, report) = (
            server.endpoint(),
            server.keys.clone(),
            server.report.clone(),
        );
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        let runtime = runtime.expect("threads for the test server");
        let thread = thread::spawn(move || {
            let stopped = async {
                // Both an order to stop and a dropped sender mean the same.
                let _ = stopped.await;
            };
            if let Err(error) = runtime.block_on(server.run(stopped)) {
                tracing::error!(%error, "test server failed");
            }
        });
        Self {
            endpoint,
            access_key: keys.access_key,
            secret_key: keys.secret_key,
            report,
            clock,
            traffic,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Lets the server's clock run ahead: what is stored already grows older by that much.
    pub fn advance(&self, by: Duration) {
        self.clock
            .advance(SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX));
    }

    /// Sets the server's clock back: what is stored now will be older by that much once it is right again.
    pub fn set_back(&self, by: Duration) {
        self.clock
            .advance(-SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX));
    }

    /// Bytes of all bodies that clients sent so far, or announced before they broke off.
    pub fn received(&self) -> u64 {
        self.traffic.received.load(Ordering::Relaxed)
    }

    /// Bytes of all bodies that were sent to clients so far, or would have been.
    pub fn sent(&self) -> u64 {
        self.traffic.sent.load(Ordering::Relaxed)
    }

    /// The address for `AWS_ENDPOINT_URL_S3`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The access key.
    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    /// The secret key.
    pub fn secret_key(&self) -> &str {
        &self.secret_key
    }

    /// The region that requests are signed for.
    pub fn region(&self) -> &'static str {
        REGION
    }

    /// What was found at start.
    pub fn report(&self) -> &StartReport {
        &self.report
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the server has been reported by its thread.
            let _ = thread.join();
        }
    }
}

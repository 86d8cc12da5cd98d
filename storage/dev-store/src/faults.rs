//! A server that misbehaves, by a seeded schedule: what networks, proxies and servers do to requests and answers.
//!
//! For tests of clients. Each request draws at most one fault; what is stored is always stored rightly.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE};
use hyper::{Method, Request, Response, StatusCode};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use s3s::Body;
use s3s::service::S3Service;

/// How far a listing may lag behind.
const MAX_LAG: Duration = Duration::from_millis(40);
/// How long an answer is withheld; no client of a test waits for so long.
const SILENCE: Duration = Duration::from_secs(20);
/// Pieces that a slow answer comes in, and the pause after each.
const DRIP_PIECES: usize = 4;
const DRIP_PAUSE: Duration = Duration::from_millis(5);

/// Something that goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// 500 `InternalError`; nothing was done.
    InternalError,
    /// 500 `InternalError`, although it was done.
    ErrorAfter,
    /// 503 `SlowDown`; nothing was done.
    SlowDown,
    /// 403 `AccessDenied`, although the credentials are right; nothing was done.
    Forbidden,
    /// 403 `RequestTimeTooSkewed`: a server whose clock is wrong; nothing was done.
    Skewed,
    /// The connection closes before anything was done.
    Reset,
    /// It was done, and the connection closes without an answer.
    LostReply,
    /// Nothing is done and no answer comes.
    Silence,
    /// It was done, and no answer comes.
    SilenceAfter,
    /// A proxy sends the request twice and hands on the second answer.
    Duplicate,
    /// A byte of the request's body is altered on the way.
    FlippedRequest,
    /// The connection closes in the middle of the answer's body.
    Truncated,
    /// The answer's body ends early, and its announced length agrees.
    ShortBody,
    /// A byte of the answer's body is altered on the way.
    FlippedAnswer,
    /// The answer comes in drops.
    SlowDrip,
    /// A listing as it was a moment ago.
    StaleListing,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::InternalError,
        Self::ErrorAfter,
        Self::SlowDown,
        Self::Forbidden,
        Self::Skewed,
        Self::Reset,
        Self::LostReply,
        Self::Silence,
        Self::SilenceAfter,
        Self::Duplicate,
        Self::FlippedRequest,
        Self::Truncated,
        Self::ShortBody,
        Self::FlippedAnswer,
        Self::SlowDrip,
        Self::StaleListing,
    ];

    /// Whether it can go wrong with such a request.
    fn befalls(self, method: &Method, is_listing: bool) -> bool {
        match self {
            Self::StaleListing => is_listing,
            Self::FlippedRequest => *method == Method::PUT,
            Self::Duplicate => *method == Method::PUT || *method == Method::DELETE,
            // A listing that is short or altered and still well-formed is nothing that HTTP protects from.
            Self::ShortBody | Self::FlippedAnswer => *method == Method::GET && !is_listing,
            _ => true,
        }
    }
}

/// A schedule of faults.
#[derive(Debug)]
pub struct Faults {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    random: StdRng,
    /// Share of the requests that draw a fault.
    rate: f64,
    /// Whether no request is answered.
    is_silent: bool,
    counts: HashMap<Fault, u64>,
    /// The last listings that were sent, by request.
    listings: HashMap<String, (Instant, StatusCode, Bytes)>,
}

impl Faults {
    /// A share of all requests, drawn by the seed, goes wrong.
    pub fn seeded(seed: u64, rate: f64) -> Self {
        let state = State {
            random: StdRng::seed_from_u64(seed),
            rate,
            is_silent: false,
            counts: HashMap::new(),
            listings: HashMap::new(),
        };
        Self {
            state: Mutex::new(state),
        }
    }

    /// No further request goes wrong.
    pub fn calm(&self) {
        let mut state = self.locked();
        state.rate = 0.0;
        state.is_silent = false;
    }

    /// Of no further request anything is done, and none is answered, until [`Faults::calm`].
    pub fn fall_silent(&self) {
        self.locked().is_silent = true;
    }

    /// How often each fault was injected.
    pub fn counts(&self) -> HashMap<Fault, u64> {
        self.locked().counts.clone()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault of a request, if it draws one.
    fn draw(&self, method: &Method, is_listing: bool) -> Option<Fault> {
        let mut state = self.locked();
        let rate = state.rate;
        if !state.random.random_bool(rate) {
            return None;
        }
        let possible: Vec<Fault> = Fault::ALL
            .into_iter()
            .filter(|fault| fault.befalls(method, is_listing))
            .collect();
        // One of those that came least often: few requests are enough to see them all.
        let count = |fault: &Fault| state.counts.get(fault).copied().unwrap_or(0);
        let least = possible.iter().map(count).min().unwrap_or(0);
        let rare: Vec<Fault> = possible
            .into_iter()
            .filter(|fault| count(fault) == least)
            .collect();
        let fault = rare[state.random.random_range(0..rare.len())];
        *state.counts.entry(fault).or_default() += 1;
        Some(fault)
    }

    /// Answers a request, or fails to.
    pub(crate) async fn answer(
        &self,
        service: &S3Service,
        request: Request<Bytes>,
    ) -> io::Result<Response<Body>> {
        if self.locked().is_silent {
            return std::future::pending().await;
        }
        let is_listing = is_listing(&request);
        let fault = self.draw(request.method(), is_listing);
        let place = request.uri().to_string();
        let response = match fault {
            Some(Fault::InternalError) => {
                return Ok(refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"));
            }
            Some(Fault::SlowDown) => {
                return Ok(refusal(StatusCode::SERVICE_UNAVAILABLE, "SlowDown"));
            }
            Some(Fault::Forbidden) => return Ok(refusal(StatusCode::FORBIDDEN, "AccessDenied")),
            Some(Fault::Skewed) => {
                return Ok(refusal(StatusCode::FORBIDDEN, "RequestTimeTooSkewed"));
            }
            Some(Fault::Reset) => return Err(broken("the connection is reset")),
            Some(Fault::Silence) => return silence().await,
            Some(Fault::StaleListing) => match self.stale(&place) {
                Some(stale) => return Ok(stale),
                None => call(service, request).await?,
            },
            Some(Fault::Duplicate) => {
                call(service, clone(&request)).await?;
                call(service, request).await?
            }
            Some(Fault::FlippedRequest) => call(service, self.flipped(request)).await?,
            _ => call(service, request).await?,
        };
        let (parts, body) = response.into_parts();
        let body = BodyExt::collect(body).await;
        let body = body.map_err(|error| broken(&error.to_string()))?.to_bytes();
        if is_listing {
            let entry = (Instant::now(), parts.status, body.clone());
            // The one before is what lags; a newer one takes its place only when it is too old to be shown.
            let mut state = self.locked();
            let is_fresh = |(seen, ..): &(Instant, StatusCode, Bytes)| seen.elapsed() < MAX_LAG;
            if !state.listings.get(&place).is_some_and(is_fresh) {
                state.listings.insert(place, entry);
            }
        }
        match fault {
            Some(Fault::ErrorAfter) => {
                Ok(refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"))
            }
            Some(Fault::LostReply) => Err(broken("the answer is lost")),
            Some(Fault::SilenceAfter) => silence().await,
            _ => Ok(self.altered(fault, Response::from_parts(parts, body))),
        }
    }

    /// A listing as it was.
    fn stale(&self, place: &str) -> Option<Response<Body>> {
        let state = self.locked();
        let (seen, status, body) = state.listings.get(place)?;
        if seen.elapsed() >= MAX_LAG {
            return None;
        }
        let response = Response::builder()
            .status(*status)
            .header(CONTENT_TYPE, "application/xml");
        response.body(Body::from(body.clone())).ok()
    }

    fn flipped(&self, request: Request<Bytes>) -> Request<Bytes> {
        let (parts, body) = request.into_parts();
        Request::from_parts(parts, self.flip(&body))
    }

    fn flip(&self, body: &Bytes) -> Bytes {
        let mut altered = body.to_vec();
        if !altered.is_empty() {
            let place = self.locked().random.random_range(0..altered.len());
            altered[place] ^= 1;
        }
        Bytes::from(altered)
    }

    /// The answer as it comes out at the client's end.
    fn altered(&self, fault: Option<Fault>, response: Response<Bytes>) -> Response<Body> {
        let (mut parts, body) = response.into_parts();
        let half = body.len() / 2;
        let body = match fault {
            Some(Fault::Truncated) if half > 0 => {
                parts.headers.insert(CONTENT_LENGTH, body.len().into());
                let pieces = [Ok(Frame::data(body.slice(..half))), Err(broken("cut"))];
                Body::http_body(StreamBody::new(stream::iter(pieces)))
            }
            Some(Fault::ShortBody) => {
                parts.headers.insert(CONTENT_LENGTH, half.into());
                Body::from(body.slice(..half))
            }
            Some(Fault::FlippedAnswer) => Body::from(self.flip(&body)),
            Some(Fault::SlowDrip) if body.len() >= DRIP_PIECES => {
                parts.headers.insert(CONTENT_LENGTH, body.len().into());
                let size = body.len().div_ceil(DRIP_PIECES);
                let pieces: Vec<Bytes> = body.chunks(size).map(Bytes::copy_from_slice).collect();
                let drops = stream::iter(pieces).then(|piece| async {
                    tokio::time::sleep(DRIP_PAUSE).await;
                    Ok::<_, io::Error>(Frame::data(piece))
                });
                Body::http_body_unsync(StreamBody::new(drops.boxed()))
            }
            _ => Body::from(body),
        };
        Response::from_parts(parts, body)
    }
}

/// Whether a request lists objects or uploads.
fn is_listing(request: &Request<Bytes>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    request.method() == Method::GET && query.contains("list-type=2")
}

async fn call(service: &S3Service, request: Request<Bytes>) -> io::Result<Response<Body>> {
    service
        .call(request.map(Body::from))
        .await
        .map_err(|error| broken(&format!("{error:?}")))
}

/// Ends the connection, in the middle of whatever it was doing.
fn broken(reason: &str) -> io::Error {
    io::Error::other(reason.to_owned())
}

fn clone(request: &Request<Bytes>) -> Request<Bytes> {
    let mut copy = Request::new(request.body().clone());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

async fn silence() -> io::Result<Response<Body>> {
    tokio::time::sleep(SILENCE).await;
    Err(broken("nobody waits any more"))
}

fn refusal(status: StatusCode, code: &str) -> Response<Body> {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>injected</Message></Error>"
    );
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

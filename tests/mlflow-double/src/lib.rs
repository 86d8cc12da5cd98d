//! An HTTP server for tests that answers as MLflow 3.17.2 was recorded to, and fails on demand.
//!
//! Shapes, codes and messages are those of the real server; what it keeps, it keeps as that does: points that are equal
//! once, parameters for good, tags until they are overwritten. `shared/tracking` holds the double and the real server
//! against the same calls, the real one in `make test-full`.

mod http;
mod model;

use std::collections::VecDeque;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::model::Model;

/// A way to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// None: the request is answered.
    None,
    /// An HTTP status without a word of MLflow's.
    Status(u16),
    /// A page for people, with status 200, as a gateway answers that wants a login.
    Garbage,
    /// The request is read, and nothing is ever answered.
    Hang,
    /// The connection ends instead of an answer, after the request took effect.
    LostReply,
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `GET`, `POST` and so on.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// Bytes of the body.
    pub size: usize,
}

#[derive(Default)]
struct State {
    model: Model,
    asked: Vec<Asked>,
    /// What the next requests meet.
    faults: VecDeque<Fault>,
    /// What all others meet.
    always: Option<Fault>,
}

/// A server on a port of its own.
pub struct Double {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Double {
    /// Starts to listen. The threads end with the process of the test.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::<Mutex<State>>::default();
        let served = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&served);
                std::thread::spawn(move || http::serve(&stream, &state));
            }
        });
        Self {
            endpoint: format!("http://{address}"),
            state,
        }
    }

    /// An address on which nobody listens.
    pub fn nowhere() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        format!("http://{}", listener.local_addr().expect("it is bound"))
    }

    /// Where it is.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The next requests fail, one fault each.
    pub fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.extend(faults);
    }

    /// Every request fails, or none any more.
    pub fn fail_always(&self, fault: Option<Fault>) {
        self.lock().always = fault;
    }

    /// All requests so far, failed ones included.
    pub fn asked(&self) -> Vec<Asked> {
        self.lock().asked.clone()
    }

    /// Everything it holds.
    pub fn holds(&self) -> Value {
        self.lock().model.to_json()
    }

    /// As if its database were gone.
    pub fn forget(&self) {
        self.lock().model = Model::default();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

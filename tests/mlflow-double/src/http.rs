//! One request and one answer a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, PoisonError};

use crate::{Asked, Fault, State};

struct Request {
    asked: Asked,
    query: String,
    body: Vec<u8>,
}

/// Answers a connection.
pub(crate) fn serve(stream: &TcpStream, state: &Mutex<State>) {
    let Some(request) = read(stream) else { return };
    let (status, body) = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked.push(request.asked.clone());
        let fault = state.faults.pop_front().or(state.always);
        match fault {
            None | Some(Fault::None) => answer(&mut state, &request),
            Some(Fault::Status(status)) => (status, String::new()),
            Some(Fault::Garbage) => (200, "<!doctype html><title>Log in</title>".to_owned()),
            Some(Fault::LostReply) => {
                answer(&mut state, &request);
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
            Some(Fault::Hang) => {
                drop(state);
                // Until the client gives up.
                let _ = BufReader::new(stream).read_line(&mut String::new());
                return;
            }
        }
    };
    let head = format!(
        "HTTP/1.1 {status} Answer\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = stream;
    let _ = stream.write_all(&[head.as_bytes(), body.as_bytes()].concat());
}

fn answer(state: &mut State, request: &Request) -> (u16, String) {
    let Asked { method, path, .. } = &request.asked;
    state
        .model
        .answer(method, path, &request.query, &request.body)
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let (mut size, mut authorization) = (0, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => size = value.trim().parse().ok()?,
            "authorization" => authorization = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; size];
    reader.read_exact(&mut body).ok()?;
    Some(Request {
        asked: Asked {
            method,
            path: path.to_owned(),
            authorization,
            size,
        },
        query: query.to_owned(),
        body,
    })
}

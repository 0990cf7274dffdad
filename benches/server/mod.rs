//! The parts that the servers of several benches share: a listener that says where it is, and the
//! request of an opening handshake. Its answer is [`Request::acceptance`].

use std::io::{self, BufRead};
use std::net::TcpListener;

use tautline::testing::Request;

/// Listens on a port of its own, and prints the address.
pub(crate) fn listen() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("it is bound"));
    listener
}

/// Reads the request of an opening handshake.
pub(crate) fn read_request(reader: &mut impl BufRead) -> io::Result<Request> {
    let mut request = Request { path: String::new(), headers: Vec::new() };
    loop {
        let mut text = String::new();
        reader.read_line(&mut text)?;
        let text = text.trim();
        match (text.strip_prefix("GET "), text.split_once(": ")) {
            (Some(rest), _) => {
                rest.split(' ').next().unwrap_or_default().clone_into(&mut request.path)
            }
            (None, Some((name, value))) => {
                request.headers.push((name.to_owned(), value.to_owned()))
            }
            (None, None) if text.is_empty() => break,
            (None, None) => {}
        }
    }
    Ok(request)
}

//! A conversation with tungstenite's own server, in this process.

use std::net::{Ipv4Addr, TcpListener};
use std::thread;

use ::tungstenite::Message;
use ::tungstenite::protocol::CloseFrame;
use tautline::Client;
use tautline::testing::TestServer;

use crate::converse;

/// Serves one client: a greeting, everything back, and a close on request.
fn serve(listener: &TcpListener) -> Result<(), Box<dyn std::error::Error>> {
    let identity = native_tls::Identity::from_pkcs8(
        include_bytes!("../../src/testing/certificates/localhost.pem"),
        include_bytes!("../../src/testing/certificates/localhost.key"),
    )?;
    let (stream, _) = listener.accept()?;
    let stream = native_tls::TlsAcceptor::new(identity)?.accept(stream)?;
    let mut socket = ::tungstenite::accept(stream)?;
    socket.send(Message::text("hello"))?;
    loop {
        match socket.read()? {
            Message::Text(text) if text.as_str() == "close" => break,
            message @ (Message::Text(_) | Message::Binary(_)) => socket.send(message)?,
            _ => {}
        }
    }
    let reason = "as you asked".into();
    socket.close(Some(CloseFrame { code: 4001.into(), reason }))?;
    loop {
        match socket.read() {
            Ok(_) => {}
            Err(::tungstenite::Error::ConnectionClosed) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn tungstenite_server() {
    let whole = |builder| builder;
    let split = |builder: tautline::Builder| builder.max_outgoing_frame_size(1000);
    for settings in [whole as fn(tautline::Builder) -> tautline::Builder, split] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("it listens").port();
        // Its error is that of another thread.
        let server = thread::spawn(move || serve(&listener).map_err(|error| error.to_string()));
        let builder = Client::builder(format!("wss://localhost:{port}/"));
        converse(settings(builder.tls_root(TestServer::root_pem())));
        assert_eq!(server.join().expect("it does not panic"), Ok(()));
    }
}

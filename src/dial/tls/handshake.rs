//! The TLS handshake over a socket that does not block.

use std::io::Read;

use socket2::Socket;

use crate::config::endpoint::Target;
use crate::connection::tls_connection::{TlsBuffers, TlsConnection};
use crate::dial::io::DialIo;
use crate::dial::tls::{Connector, Handshake, Progress};
use crate::error::{Error, ErrorKind};

/// The size of the buffer for what the peer sends during the handshake.
const CIPHER_SIZE: usize = 16 * 1024;

/// Performs the handshake. The server's certificate is checked for the host of the target.
pub(super) fn shake_hands(
    connector: &dyn Connector,
    target: &Target,
    socket: &Socket,
    buffers: TlsBuffers,
    io: &DialIo<'_>,
) -> Result<TlsConnection, Error> {
    let context = || format!("TLS handshake with {target}");
    let failed = |error: std::io::Error| Error::caused(ErrorKind::Tls, context(), error);
    let mut cipher = vec![0; CIPHER_SIZE];
    let mut output = Vec::new();
    let mut progress = connector.begin(target.server_name(), buffers);
    loop {
        output.clear();
        let mut waiting = match progress {
            Ok(Progress::Done(mut connection)) => {
                connection.buffers().take_output(&mut output).map_err(failed)?;
                return match io.send(socket, &output, &context) {
                    Ok(()) => Ok(connection),
                    Err(error) => Err(unread_alert(&mut connection, socket, error, &context)),
                };
            }
            Ok(Progress::Waiting(waiting)) => waiting,
            Err(error) => return Err(Error::caused(ErrorKind::Tls, context(), error)),
        };
        waiting.buffers().take_output(&mut output).map_err(failed)?;
        if let Err(error) = io.send(socket, &output, &context) {
            return Err(unread_alert_in_handshake(waiting, socket, error, &context));
        }
        let filled = io.recv(socket, &mut cipher, &context)?;
        if filled == 0 {
            let ended = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(Error::caused(ErrorKind::Tls, context(), ended));
        }
        waiting.buffers().feed(&mut cipher, filled);
        progress = waiting.advance();
    }
}

/// The number of reads after a failed send, which is more than the rest of a handshake takes.
const UNREAD_MAX: usize = 8;

/// Returns the alert that the peer sent before a send failed with `error`, or `error` if there is
/// none.
///
/// A peer that refuses a handshake sends an alert and closes, which may reset the connection before
/// the alert is read.
pub(in crate::dial) fn unread_alert(
    connection: &mut TlsConnection,
    socket: &Socket,
    error: Error,
    context: &dyn Fn() -> String,
) -> Error {
    for _ in 0..UNREAD_MAX {
        let Some((mut cipher, filled)) = unread(socket, &error) else { break };
        connection.buffers().feed(&mut cipher, filled);
        match connection.enter().read(&mut [0; 1]) {
            Err(alert) if alert.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(alert) => return Error::caused(ErrorKind::Tls, context(), alert),
            // Data or the end of TLS: no alert.
            Ok(_) => break,
        }
    }
    error
}

/// Does the same as [`unread_alert`] while the handshake is under way.
fn unread_alert_in_handshake(
    mut waiting: Box<dyn Handshake>,
    socket: &Socket,
    error: Error,
    context: &dyn Fn() -> String,
) -> Error {
    for _ in 0..UNREAD_MAX {
        let Some((mut cipher, filled)) = unread(socket, &error) else { break };
        waiting.buffers().feed(&mut cipher, filled);
        match waiting.advance() {
            Ok(Progress::Waiting(again)) => waiting = again,
            Ok(Progress::Done(mut connection)) => {
                return unread_alert(&mut connection, socket, error, context);
            }
            Err(alert) => return Error::caused(ErrorKind::Tls, context(), alert),
        }
    }
    error
}

/// Returns a buffer with what lies unread on the socket, and its length, if `error` is the
/// socket's.
fn unread(socket: &Socket, error: &Error) -> Option<(Vec<u8>, usize)> {
    if error.kind() != ErrorKind::Io {
        return None;
    }
    let mut cipher = vec![0; CIPHER_SIZE];
    let mut socket: &Socket = socket;
    let filled = socket.read(&mut cipher).ok()?;
    (filled > 0).then_some((cipher, filled))
}

// Other platforms tell of a reset, and keep what lies unread, in other ways.
#[cfg(all(test, target_os = "linux", not(shuttle)))]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use crossbeam_channel::bounded;
    use native_tls::{Identity, TlsAcceptor};

    use super::*;
    use crate::config::endpoint::Endpoint;
    use crate::dial::io::testing::with_io;
    use crate::dial::tls::TlsOptions;

    /// Waits until the peer has reset the connection. The kernel tells of it beside the data.
    fn await_reset(socket: &Socket) {
        let mut watched = [rustix::event::PollFd::new(socket, rustix::event::PollFlags::HUP)];
        rustix::event::poll(&mut watched, None).expect("it waits");
    }

    /// Connects to a server that sends `bytes` and resets the connection.
    fn reset_behind(bytes: &[u8]) -> Socket {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let ours = listener.local_addr().and_then(TcpStream::connect).expect("it listens");
        let (mut theirs, _) = listener.accept().expect("it has been dialed");
        theirs.write_all(bytes).expect("it is open");
        // Closing resets, for there is data that has not been read.
        (&ours).write_all(b"unread").expect("it is open");
        theirs.peek(&mut [0; 1]).expect("it has come");
        drop(theirs);
        let ours = Socket::from(ours);
        await_reset(&ours);
        ours.set_nonblocking(true).expect("it is a socket");
        ours
    }

    fn shake_hands_with(socket: &Socket, options: &TlsOptions) -> Result<TlsConnection, Error> {
        let target = Endpoint::from("wss://localhost/").target().expect("it is a URL");
        let connector = options.connector().expect("OpenSSL is there");
        with_io(|io| shake_hands(&*connector, &target, socket, TlsBuffers::default(), io))
    }

    #[test]
    fn an_alert_that_lies_unread_when_a_send_fails_is_the_reason() {
        // Fatal, handshake_failure (RFC 8446 section 6.2), and a part of a record.
        for (sent, kind, words) in [
            (&b"\x15\x03\x03\x00\x02\x02\x28"[..], ErrorKind::Tls, "handshake failure"),
            (b"\x15\x03", ErrorKind::Io, "TLS handshake with localhost:443"),
        ] {
            let error = shake_hands_with(&reset_behind(sent), &TlsOptions::default()).map(drop);
            let error = error.expect_err("the server has gone");
            assert_eq!(error.kind(), kind, "{}", error.chain());
            // rustls says "HandshakeFailure".
            let plain = |text: &str| text.replace(' ', "").to_lowercase();
            assert!(plain(&error.chain()).contains(&plain(words)), "{}", error.chain());
        }
    }

    #[test]
    fn what_lies_unread_when_a_later_send_fails_is_the_reason() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let ours = listener.local_addr().and_then(TcpStream::connect).expect("it listens");
        let (released, held) = bounded::<()>(1);
        let server = std::thread::spawn(move || {
            let identity = Identity::from_pkcs8(
                include_bytes!("../../testing/certificates/localhost.pem"),
                include_bytes!("../../testing/certificates/localhost.key"),
            );
            let acceptor = TlsAcceptor::new(identity.expect("a pair")).expect("it is enough");
            let (theirs, _) = listener.accept().expect("it has been dialed");
            let mut stream = acceptor.accept(theirs).expect("both shake hands");
            held.recv().expect("the client goes on");
            // Data that does not decrypt. An alert would be encrypted too.
            let mut record = b"\x17\x03\x03\x00\x20".to_vec();
            record.extend([0x5a; 32]);
            stream.get_mut().write_all(&record).expect("it is open");
            stream.get_ref().peek(&mut [0; 1]).expect("it has come");
        });
        let socket = Socket::from(ours);
        socket.set_nonblocking(true).expect("it is a socket");
        let mut options = TlsOptions::default();
        options.extra_roots.push(include_bytes!("../../testing/certificates/root.pem").to_vec());
        let mut connection = shake_hands_with(&socket, &options).expect("both shake hands");
        (&socket).write_all(b"unread").expect("it is open");
        released.send(()).expect("the server waits");
        server.join().expect("it does not panic");
        await_reset(&socket);
        let refused = (&socket).write_all(b"too late").expect_err("it has been reset");
        let context = || "sending".to_owned();
        let error = Error::caused(ErrorKind::Io, context(), refused);
        let error = unread_alert(&mut connection, &socket, error, &context);
        assert_eq!(error.kind(), ErrorKind::Tls, "{}", error.chain());
    }
}

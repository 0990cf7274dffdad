//! The server's side of one connection, as a script plays it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use native_tls::{TlsAcceptor, TlsStream};
use socket2::SockRef;
use tungstenite::handshake::derive_accept_key;

use super::server::Shared;

/// A request head longer than this is no opening handshake.
const HEAD_MAX: usize = 64 * 1024;

/// The server's side of one connection. All its calls end when the server is dropped, with an
/// error.
pub struct Peer {
    number: usize,
    stream: Stream,
    /// What has been read and not been used.
    unread: Vec<u8>,
    /// The opcode and the fragments so far of a message that has not ended.
    partial: Option<(u8, Vec<u8>)>,
    /// The end of the connection has been told.
    has_ended: bool,
    shared: Arc<Shared>,
}

enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

/// A socket that can be made to write no further, as a network that has died does.
struct Socket {
    socket: TcpStream,
    /// How many more bytes get through.
    allowance: Option<usize>,
    /// Bytes go one by one, this far apart.
    trickle: Option<Duration>,
    shared: Arc<Shared>,
}

/// What stands between a server's writes and the wire.
#[derive(Clone, Copy)]
pub(super) struct Obstacles {
    pub(super) allowance: Option<usize>,
    pub(super) trickle: Option<Duration>,
}

/// The opening handshake that a client sent.
#[derive(Clone, Debug)]
pub struct Request {
    /// With the query.
    pub path: String,
    /// In the order in which they came, names as they were written.
    pub headers: Vec<(String, String)>,
}

/// What a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Received {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
    /// A ping.
    Ping(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// A close frame, and its code and reason.
    Close(Option<u16>, String),
    /// The client has ended TCP.
    End,
}

impl Request {
    /// The value of the first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The value of `Sec-WebSocket-Accept` that answers it (RFC 6455 section 4.2.2).
    pub fn accept_key(&self) -> String {
        derive_accept_key(self.header("Sec-WebSocket-Key").unwrap_or_default().as_bytes())
    }

    /// The whole answer that accepts it, with `extra` header lines (each ended by `\r\n`).
    pub fn acceptance(&self, extra: &str) -> String {
        let key = self.accept_key();
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {key}\r\n{extra}\r\n"
        )
    }
}

impl Peer {
    pub(super) fn accept(
        number: usize,
        socket: TcpStream,
        acceptor: Option<&TlsAcceptor>,
        obstacles: Obstacles,
        shared: &Arc<Shared>,
    ) -> io::Result<Peer> {
        let Obstacles { allowance, trickle } = obstacles;
        let socket = Socket { socket, allowance, trickle, shared: Arc::clone(shared) };
        let stream = match acceptor {
            None => Stream::Plain(socket),
            Some(acceptor) => {
                Stream::Tls(Box::new(acceptor.accept(socket).map_err(io::Error::other)?))
            }
        };
        Ok(Peer {
            number,
            stream,
            unread: Vec::new(),
            partial: None,
            has_ended: false,
            shared: Arc::clone(shared),
        })
    }

    /// Which connection of the server this is, from 0.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Where the client dialed from.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket().peer_addr()
    }

    // ---- The opening handshake ----

    /// Reads the opening handshake and accepts it.
    ///
    /// # Errors
    /// When the connection ends before, or no handshake comes.
    pub fn upgrade(&mut self) -> io::Result<Request> {
        self.upgrade_with("")
    }

    /// As [`upgrade`](Peer::upgrade), with further header lines in the answer, each ended by
    /// `\r\n`.
    ///
    /// # Errors
    /// As [`upgrade`](Peer::upgrade).
    pub fn upgrade_with(&mut self, extra: &str) -> io::Result<Request> {
        let request = self.read_request()?;
        self.write(request.acceptance(extra).as_bytes())?;
        self.shared.note_opening();
        Ok(request)
    }

    /// Reads the opening handshake and answers nothing.
    ///
    /// # Errors
    /// As [`upgrade`](Peer::upgrade).
    pub fn read_request(&mut self) -> io::Result<Request> {
        loop {
            let mut fields = [httparse::EMPTY_HEADER; 64];
            let mut request = httparse::Request::new(&mut fields);
            if let httparse::Status::Complete(len) =
                request.parse(&self.unread).map_err(io::Error::other)?
            {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let headers = request
                    .headers
                    .iter()
                    .map(|field| (field.name.to_owned(), text(field.value)))
                    .collect();
                let request =
                    Request { path: request.path.unwrap_or_default().to_owned(), headers };
                self.unread.drain(..len);
                return Ok(request);
            }
            if self.unread.len() > HEAD_MAX || self.read_more()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads the opening handshake and answers it with another status than 101: `headers` are
    /// lines, each ended by `\r\n`.
    ///
    /// # Errors
    /// As [`upgrade`](Peer::upgrade).
    pub fn refuse(&mut self, status: u16, headers: &str, body: &str) -> io::Result<()> {
        self.read_request()?;
        let len = body.len();
        let answer =
            format!("HTTP/1.1 {status} Refused\r\nContent-Length: {len}\r\n{headers}\r\n{body}");
        self.write(answer.as_bytes())?;
        self.half_close()?;
        self.drain()
    }

    // ---- Sending ----

    /// Sends a text message.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn send_text(&mut self, text: &str) -> io::Result<()> {
        self.send_frame(0x81, text.as_bytes())
    }

    /// Sends a binary message.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn send_binary(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.send_frame(0x82, bytes)
    }

    /// Sends a ping.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn ping(&mut self, payload: &[u8]) -> io::Result<()> {
        self.send_frame(0x89, payload)
    }

    /// Sends a pong, asked for or not.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn pong(&mut self, payload: &[u8]) -> io::Result<()> {
        self.send_frame(0x8a, payload)
    }

    /// Sends a close frame.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn close(&mut self, code: u16, reason: &str) -> io::Result<()> {
        let mut payload = code.to_be_bytes().to_vec();
        payload.extend_from_slice(reason.as_bytes());
        self.send_frame(0x88, &payload)
    }

    /// Sends a frame whose first byte (FIN, reserved bits, opcode) is the script's own.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn send_frame(&mut self, first: u8, payload: &[u8]) -> io::Result<()> {
        self.write(&frame(first, payload))
    }

    /// Sends text messages of `size` bytes as fast as they go, until the connection ends.
    ///
    /// # Errors
    /// The end of the connection.
    pub fn flood(&mut self, size: usize) -> io::Result<()> {
        let burst =
            frame(0x81, "x".repeat(size).as_bytes()).repeat((64 * 1024 / (size + 1)).max(1));
        loop {
            self.write(&burst)?;
        }
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(socket) => socket.write_all(bytes),
            Stream::Tls(tls) => tls.write_all(bytes),
        }
    }

    /// Writes bytes one at a time, this far apart.
    ///
    /// # Errors
    /// When the connection or the server has ended.
    pub fn trickle(&mut self, bytes: &[u8], every: Duration) -> io::Result<()> {
        for byte in bytes {
            self.write(&[*byte])?;
            self.wait(every)?;
        }
        Ok(())
    }

    // ---- Receiving ----

    /// The next message or control frame; fragments are put together, and what comes between them
    /// comes first.
    ///
    /// # Errors
    /// When the client breaks RFC 6455 (an unmasked frame, a stray fragment), or the connection
    /// breaks. [`Received::End`] is told once: a script that asks again would go round for ever,
    /// and gets `UnexpectedEof`.
    pub fn receive(&mut self) -> io::Result<Received> {
        loop {
            let Some((first, payload)) = self.read_frame()? else {
                return match std::mem::replace(&mut self.has_ended, true) {
                    false => Ok(Received::End),
                    true => Err(ErrorKind::UnexpectedEof.into()),
                };
            };
            let (kind, message) = match (first & 0x0f, self.partial.take()) {
                (8, _) => {
                    let code = payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
                    self.shared.note_close(code);
                    let reason =
                        String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned();
                    return Ok(Received::Close(code, reason));
                }
                (9, partial) => {
                    self.partial = partial;
                    self.shared.note_ping();
                    return Ok(Received::Ping(payload));
                }
                (10, partial) => {
                    self.partial = partial;
                    return Ok(Received::Pong(payload));
                }
                (0, Some((kind, mut message))) => {
                    message.extend_from_slice(&payload);
                    (kind, message)
                }
                (kind @ (1 | 2), None) => (kind, payload),
                _ => {
                    return Err(io::Error::new(
                        ErrorKind::InvalidData,
                        "a client's frame out of order",
                    ));
                }
            };
            if first & 0x80 == 0 {
                self.partial = Some((kind, message));
                continue;
            }
            self.shared.note_message(&message);
            return Ok(match kind {
                1 => Received::Text(String::from_utf8(message).map_err(io::Error::other)?),
                _ => Received::Binary(message),
            });
        }
    }

    /// The next frame if it comes within this time: for scripts that talk while they listen.
    ///
    /// # Errors
    /// As [`receive`](Peer::receive).
    pub fn receive_timeout(&mut self, timeout: Duration) -> io::Result<Option<Received>> {
        // Zero would mean for ever.
        self.socket().set_read_timeout(Some(timeout.max(Duration::from_millis(1))))?;
        let received = match self.receive() {
            Ok(received) => Ok(Some(received)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(None)
            }
            Err(error) => Err(error),
        };
        self.socket().set_read_timeout(None)?;
        received
    }

    /// The next data message; answers pings and a close frame by itself.
    ///
    /// # Errors
    /// The end of the connection too.
    pub fn receive_message(&mut self) -> io::Result<Received> {
        loop {
            match self.receive()? {
                Received::Ping(payload) => self.pong(&payload)?,
                Received::Pong(_) => {}
                Received::Close(code, _) => {
                    let payload = code.map(|code| code.to_be_bytes().to_vec()).unwrap_or_default();
                    self.send_frame(0x88, &payload)?;
                    return Err(ErrorKind::ConnectionAborted.into());
                }
                Received::End => return Err(ErrorKind::UnexpectedEof.into()),
                message => return Ok(message),
            }
        }
    }

    /// Sends every data message back, answers pings and a close frame: a well-behaved server, until
    /// the connection ends.
    ///
    /// # Errors
    /// The end of the connection.
    pub fn echo(&mut self) -> io::Result<()> {
        loop {
            match self.receive_message()? {
                Received::Text(text) => self.send_text(&text)?,
                Received::Binary(bytes) => self.send_binary(&bytes)?,
                _ => {}
            }
        }
    }

    /// Reads and answers nothing, neither pings nor a close frame, until the client ends TCP.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn drain(&mut self) -> io::Result<()> {
        while self.receive()? != Received::End {}
        Ok(())
    }

    /// Neither reads nor writes until the server is dropped.
    ///
    /// # Errors
    /// Always, in the end: the server has stopped.
    pub fn stall(&mut self) -> io::Result<()> {
        self.shared.wait_for_stop(None);
        Err(ErrorKind::ConnectionAborted.into())
    }

    /// Waits.
    ///
    /// # Errors
    /// When the server is dropped meanwhile.
    pub fn wait(&mut self, time: Duration) -> io::Result<()> {
        match self.shared.wait_for_stop(Some(Instant::now() + time)) {
            true => Err(ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }

    // ---- Ending ----

    /// Resets the connection, as a firewall does. The script has to return after this: the reset
    /// goes out then.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn reset(&mut self) -> io::Result<()> {
        self.shared.release(self.number);
        SockRef::from(self.socket()).set_linger(Some(Duration::ZERO))
    }

    /// Ends the direction to the client: TCP FIN, without a close frame and without a TLS
    /// close_notify.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn half_close(&mut self) -> io::Result<()> {
        self.socket().shutdown(Shutdown::Write)
    }

    /// Ends TLS as it should be ended, by a close_notify, but without a close frame before it. The
    /// same as [`half_close`](Peer::half_close) where there is no TLS.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn end_tls(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tls(tls) => tls.shutdown(),
            Stream::Plain(_) => self.half_close(),
        }
    }

    /// Lets so many more bytes of the TLS stream through, and then no more, though the connection
    /// stays.
    pub fn stall_writes_after(&mut self, bytes: usize) {
        match &mut self.stream {
            Stream::Plain(socket) => socket.allowance = Some(bytes),
            Stream::Tls(tls) => tls.get_mut().allowance = Some(bytes),
        }
    }

    /// Limits what the kernel takes for a peer that does not read, which may otherwise be tens of
    /// megabytes.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn limit_receive_buffer(&mut self, bytes: usize) -> io::Result<()> {
        SockRef::from(self.socket()).set_recv_buffer_size(bytes)
    }

    fn socket(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(socket) => &socket.socket,
            Stream::Tls(tls) => &tls.get_ref().socket,
        }
    }

    fn read_frame(&mut self) -> io::Result<Option<(u8, Vec<u8>)>> {
        loop {
            if let Some((first, payload, len)) = parse_frame(&self.unread)? {
                self.unread.drain(..len);
                return Ok(Some((first, payload)));
            }
            if self.read_more()? == 0 {
                return Ok(None);
            }
        }
    }

    fn read_more(&mut self) -> io::Result<usize> {
        let mut bytes = vec![0; 64 * 1024];
        let count = match &mut self.stream {
            Stream::Plain(socket) => socket.read(&mut bytes)?,
            Stream::Tls(tls) => tls.read(&mut bytes)?,
        };
        self.unread.extend_from_slice(&bytes[..count]);
        Ok(count)
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("number", &self.number).finish_non_exhaustive()
    }
}

/// A frame as servers send them: unmasked.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..=125 => bytes.push(len as u8),
        len @ 126..=0xffff => {
            bytes.push(126);
            bytes.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            bytes.push(127);
            bytes.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// A client's frame at the front of `bytes`: its first byte, its payload unmasked, and its length.
fn parse_frame(bytes: &[u8]) -> io::Result<Option<(u8, Vec<u8>, usize)>> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
    if second & 0x80 == 0 {
        return Err(io::Error::new(ErrorKind::InvalidData, "a client's frame without a mask"));
    }
    let (skip, len) = match second & 0x7f {
        126 => match rest.first_chunk::<2>() {
            Some(len) => (2, usize::from(u16::from_be_bytes(*len))),
            None => return Ok(None),
        },
        127 => match rest.first_chunk::<8>() {
            Some(len) => (8, u64::from_be_bytes(*len) as usize),
            None => return Ok(None),
        },
        len => (0, usize::from(len)),
    };
    let Some(key) = rest[skip..].first_chunk::<4>().copied() else { return Ok(None) };
    let start = 2 + skip + 4;
    let Some(payload) = bytes.get(start..start + len) else { return Ok(None) };
    let mut payload = payload.to_vec();
    crate::protocol::mask::mask(&mut payload, key);
    Ok(Some((first, payload, start + len)))
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.socket.fmt(f)
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.socket.read(into)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = match self.trickle {
            Some(every) if !bytes.is_empty() => {
                if self.shared.wait_for_stop(Some(Instant::now() + every)) {
                    return Err(ErrorKind::ConnectionAborted.into());
                }
                &bytes[..1]
            }
            _ => bytes,
        };
        match &mut self.allowance {
            None => self.socket.write(bytes),
            Some(0) => {
                self.shared.wait_for_stop(None);
                Err(ErrorKind::ConnectionAborted.into())
            }
            Some(left) => {
                let count = self.socket.write(&bytes[..bytes.len().min(*left)])?;
                *left -= count;
                Ok(count)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

//! The server's side of one connection, as a script plays it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use native_tls::{TlsAcceptor, TlsStream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use tungstenite::handshake::derive_accept_key;

use super::recorder::Recorder;
use crate::sync;
use crate::time::after;

/// The number of bytes after which a request head is refused.
const HEAD_MAX: usize = 64 * 1024;

/// The size of a client's message from which on it is refused.
const MESSAGE_MAX: usize = 256 * 1024 * 1024;

/// The limit of a read from a socket that has something to read.
const READ_TIMEOUT: Duration = Duration::from_millis(1);

/// The server's side of one connection, as its script plays it.
///
/// Calls block until they are done, without a limit of time of their own. When the client ends the
/// connection, or the server is dropped, they return an error.
pub struct Peer {
    number: usize,
    stream: Stream,
    /// Bytes that have been read and not used.
    unread: Vec<u8>,
    /// The opcode and the fragments of an incomplete message.
    partial: Option<(u8, Vec<u8>)>,
    /// `Received::End` has been returned.
    has_ended: bool,
    recorder: Arc<Recorder>,
}

enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

/// A socket whose writes can be slowed down and stalled.
struct Socket {
    socket: TcpStream,
    limits: WriteLimits,
    recorder: Arc<Recorder>,
}

/// The limits of what a server writes to TCP.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WriteLimits {
    /// The number of bytes after which writes stall.
    pub(super) allowance: Option<usize>,
    /// Bytes are written one at a time, each after this delay.
    pub(super) byte_delay: Option<Duration>,
}

/// The opening handshake that a client sent.
#[derive(Clone, Debug)]
pub struct Request {
    /// The request target: the path with its query.
    pub path: String,
    /// The names and values of the headers, in the order and the spelling in which they came.
    pub headers: Vec<(String, String)>,
}

/// A message or control frame that a client sent.
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
    /// A close frame, with its code and reason.
    Close(Option<u16>, String),
    /// The end of the TCP connection.
    End,
}

impl Request {
    /// Returns the value of the first header with this name, ignoring case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Returns the value of `Sec-WebSocket-Accept` for this request (RFC 6455 section 4.2.2).
    pub fn accept_key(&self) -> String {
        derive_accept_key(self.header("Sec-WebSocket-Key").unwrap_or_default().as_bytes())
    }

    /// Returns the complete response that accepts this request, with `extra` header lines, each
    /// ended by `\r\n`.
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
        limits: WriteLimits,
        recorder: &Arc<Recorder>,
    ) -> io::Result<Peer> {
        let socket = Socket { socket, limits, recorder: Arc::clone(recorder) };
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
            recorder: Arc::clone(recorder),
        })
    }

    /// Returns the number of this connection of the server, from 0.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Returns the client's address.
    ///
    /// # Errors
    /// Fails once the connection has ended.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket().peer_addr()
    }

    // ---- The opening handshake ----

    /// Reads the opening handshake and accepts it with status 101.
    ///
    /// # Errors
    /// Fails when the connection ends first, or when the request is not HTTP or is longer than 64
    /// KiB.
    pub fn upgrade(&mut self) -> io::Result<Request> {
        self.upgrade_with("")
    }

    /// Reads the opening handshake and accepts it, with `extra` header lines in the response, each
    /// ended by `\r\n`.
    ///
    /// # Errors
    /// As [`upgrade`](Peer::upgrade).
    pub fn upgrade_with(&mut self, extra: &str) -> io::Result<Request> {
        let request = self.read_request()?;
        self.accept_request(&request, extra)?;
        Ok(request)
    }

    fn accept_request(&mut self, request: &Request, extra: &str) -> io::Result<()> {
        self.write(request.acceptance(extra).as_bytes())?;
        self.recorder.opening();
        Ok(())
    }

    /// Reads the opening handshake and accepts it, with the first of the subprotocols that the
    /// client offers, if it offers any.
    ///
    /// # Errors
    /// As [`upgrade`](Peer::upgrade).
    pub fn upgrade_with_first_subprotocol(&mut self) -> io::Result<Request> {
        let request = self.read_request()?;
        let first = request
            .header("Sec-WebSocket-Protocol")
            .and_then(|names| names.split(',').map(str::trim).find(|name| !name.is_empty()));
        let extra = first.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n"));
        self.accept_request(&request, &extra.unwrap_or_default())?;
        Ok(request)
    }

    /// Reads the opening handshake without answering it.
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

    /// Reads the opening handshake and refuses it with `status`, then reads until the client ends
    /// the connection. `headers` are lines, each ended by `\r\n`; `Content-Length` is added.
    ///
    /// # Errors
    /// As [`upgrade`](Peer::upgrade), or when the connection breaks.
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
    /// Fails once the connection has ended.
    pub fn send_text(&mut self, text: &str) -> io::Result<()> {
        self.send_frame(0x81, text.as_bytes())
    }

    /// Sends a binary message.
    ///
    /// # Errors
    /// Fails once the connection has ended.
    pub fn send_binary(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.send_frame(0x82, bytes)
    }

    /// Sends a ping.
    ///
    /// # Errors
    /// Fails once the connection has ended.
    pub fn ping(&mut self, payload: &[u8]) -> io::Result<()> {
        self.send_frame(0x89, payload)
    }

    /// Sends a pong, whether or not a ping came.
    ///
    /// # Errors
    /// Fails once the connection has ended.
    pub fn pong(&mut self, payload: &[u8]) -> io::Result<()> {
        self.send_frame(0x8a, payload)
    }

    /// Sends a close frame. The connection stays open.
    ///
    /// # Errors
    /// Fails once the connection has ended.
    pub fn close(&mut self, code: u16, reason: &str) -> io::Result<()> {
        let mut payload = code.to_be_bytes().to_vec();
        payload.extend_from_slice(reason.as_bytes());
        self.send_frame(0x88, &payload)
    }

    /// Sends a close frame, and reads until the client has answered it or has ended the connection.
    ///
    /// # Errors
    /// As [`receive`](Peer::receive).
    pub fn close_and_wait(&mut self, code: u16, reason: &str) -> io::Result<()> {
        self.close(code, reason)?;
        while !matches!(self.receive()?, Received::Close(..) | Received::End) {}
        Ok(())
    }

    /// Sends an unmasked frame. `first` is its first byte: FIN, reserved bits and opcode.
    ///
    /// # Errors
    /// Fails once the connection has ended.
    pub fn send_frame(&mut self, first: u8, payload: &[u8]) -> io::Result<()> {
        self.write(&frame(first, payload))
    }

    /// Sends text messages of `size` bytes as fast as the client reads, until the connection ends.
    ///
    /// # Errors
    /// Always: it ends with the connection.
    pub fn flood(&mut self, size: usize) -> io::Result<()> {
        let burst =
            frame(0x81, "x".repeat(size).as_bytes()).repeat((64 * 1024 / (size + 1)).max(1));
        loop {
            self.write(&burst)?;
        }
    }

    /// Writes bytes as they are, through TLS if there is TLS.
    ///
    /// # Errors
    /// Fails once the connection has ended.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(socket) => socket.write_all(bytes),
            Stream::Tls(tls) => tls.write_all(bytes),
        }
    }

    /// Writes bytes one at a time, and waits for `every` after each.
    ///
    /// # Errors
    /// Fails once the connection or the server has ended.
    pub fn trickle(&mut self, bytes: &[u8], every: Duration) -> io::Result<()> {
        for byte in bytes {
            self.write(&[*byte])?;
            self.wait(every)?;
        }
        Ok(())
    }

    // ---- Receiving ----

    /// Receives the next message or control frame. Fragments are assembled, and control frames
    /// between them are returned first.
    ///
    /// # Errors
    /// `InvalidData` when the client violates RFC 6455 (an unmasked frame, a stray fragment) or a
    /// message exceeds 256 MiB; other kinds when the connection breaks. [`Received::End`] is
    /// returned once, and `UnexpectedEof` afterwards, so that no script loops for ever.
    pub fn receive(&mut self) -> io::Result<Received> {
        loop {
            let Some((first, payload)) = self.read_frame()? else {
                return match std::mem::replace(&mut self.has_ended, true) {
                    false => Ok(Received::End),
                    true => Err(ErrorKind::UnexpectedEof.into()),
                };
            };
            if let Some(received) = self.assemble(first, payload)? {
                return Ok(received);
            }
        }
    }

    /// Returns what ends with this frame, or `None` if it is a fragment that others follow.
    fn assemble(&mut self, first: u8, payload: Vec<u8>) -> io::Result<Option<Received>> {
        let (kind, message) = match (first & 0x0f, self.partial.take()) {
            (8, _) => {
                let code = payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
                self.recorder.close(code);
                let reason =
                    String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned();
                return Ok(Some(Received::Close(code, reason)));
            }
            (9, partial) => {
                self.partial = partial;
                self.recorder.ping();
                return Ok(Some(Received::Ping(payload)));
            }
            (10, partial) => {
                self.partial = partial;
                return Ok(Some(Received::Pong(payload)));
            }
            (0, Some((_, message))) if message.len() + payload.len() > MESSAGE_MAX => {
                return Err(too_long());
            }
            (0, Some((kind, mut message))) => {
                message.extend_from_slice(&payload);
                (kind, message)
            }
            (kind @ (1 | 2), None) => (kind, payload),
            _ => {
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    "a stray fragment or an unknown opcode",
                ));
            }
        };
        if first & 0x80 == 0 {
            self.partial = Some((kind, message));
            return Ok(None);
        }
        self.recorder.message(&message);
        Ok(Some(match kind {
            1 => Received::Text(String::from_utf8(message).map_err(io::Error::other)?),
            _ => Received::Binary(message),
        }))
    }

    /// Receives like [`receive`](Peer::receive), for scripts that send while they listen. Returns
    /// `None` when no byte comes for `timeout`.
    ///
    /// # Errors
    /// As [`receive`](Peer::receive).
    pub fn receive_timeout(&mut self, timeout: Duration) -> io::Result<Option<Received>> {
        // Zero would mean no timeout.
        self.socket().set_read_timeout(Some(timeout.max(Duration::from_millis(1))))?;
        let received = match self.receive() {
            Ok(received) => Ok(Some(received)),
            Err(error) if is_timeout(&error) => Ok(None),
            Err(error) => Err(error),
        };
        self.socket().set_read_timeout(None)?;
        received
    }

    /// Receives the next text or binary message, and answers pings meanwhile. A close frame is
    /// answered too, and ends the script's work.
    ///
    /// # Errors
    /// As [`receive`](Peer::receive), `ConnectionAborted` after a close frame, and `UnexpectedEof`
    /// at the end of the connection.
    pub fn receive_message(&mut self) -> io::Result<Received> {
        loop {
            let received = self.receive()?;
            if let Some(message) = self.answer(received)? {
                return Ok(message);
            }
        }
    }

    /// Answers a ping or a close frame, and returns a message.
    fn answer(&mut self, received: Received) -> io::Result<Option<Received>> {
        match received {
            Received::Ping(payload) => self.pong(&payload)?,
            Received::Pong(_) => {}
            Received::Close(code, _) => {
                let payload = code.map(|code| code.to_be_bytes().to_vec()).unwrap_or_default();
                self.send_frame(0x88, &payload)?;
                return Err(ErrorKind::ConnectionAborted.into());
            }
            Received::End => return Err(ErrorKind::UnexpectedEof.into()),
            message => return Ok(Some(message)),
        }
        Ok(None)
    }

    /// Answers what comes, until `due`. If `due` is past, it reads once what is there already.
    ///
    /// # Errors
    /// As [`receive_message`](Peer::receive_message).
    pub(super) fn answer_until(&mut self, due: Instant) -> io::Result<()> {
        let mut is_over = false;
        loop {
            // The client may have sent the first frames right behind its opening handshake.
            while let Some((first, payload, len)) = parse_frame(&self.unread)? {
                self.unread.drain(..len);
                if let Some(received) = self.assemble(first, payload)? {
                    self.answer(received)?;
                }
            }
            if is_over {
                return Ok(());
            }
            let left = due.saturating_duration_since(sync::now());
            let is_readable = self.is_readable(left)?;
            // A client that sends without end does not delay what is due.
            is_over = left.is_zero() || !is_readable && sync::now() >= due;
            if is_readable {
                // Only a part of a TLS record may have come.
                self.socket().set_read_timeout(Some(READ_TIMEOUT))?;
                let count = self.read_more();
                self.socket().set_read_timeout(None)?;
                match count {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    Err(error) if !is_timeout(&error) => return Err(error),
                    _ => {}
                }
            }
        }
    }

    /// Waits until there is something to read, for `timeout` at most. Returns whether there is. The
    /// drop of the server counts, which shuts the socket down.
    fn is_readable(&self, timeout: Duration) -> io::Result<bool> {
        if let Stream::Tls(tls) = &self.stream {
            if tls.buffered_read_size().map_err(io::Error::other)? > 0 {
                return Ok(true);
            }
        }
        // The timeout of a read is coarser than the times of a recording.
        let timeout = Timespec::try_from(timeout).ok();
        match poll(&mut [PollFd::new(self.socket(), PollFlags::IN)], timeout.as_ref()) {
            Ok(count) => Ok(count > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends every text and binary message back, and answers pings and the close frame, until the
    /// connection ends.
    ///
    /// # Errors
    /// Always: it ends with the connection.
    pub fn echo(&mut self) -> io::Result<()> {
        loop {
            match self.receive_message()? {
                Received::Text(text) => self.send_text(&text)?,
                Received::Binary(bytes) => self.send_binary(&bytes)?,
                _ => {}
            }
        }
    }

    /// Reads without answering pings or close frames, until the client ends the TCP connection.
    ///
    /// # Errors
    /// As [`receive`](Peer::receive).
    pub fn drain(&mut self) -> io::Result<()> {
        while self.receive()? != Received::End {}
        Ok(())
    }

    /// Neither reads nor writes until the server is dropped, even if the client ends the
    /// connection.
    ///
    /// # Errors
    /// Always: `ConnectionAborted`, when the server is dropped.
    pub fn stall(&mut self) -> io::Result<()> {
        self.recorder.wait_for_stop(None);
        Err(ErrorKind::ConnectionAborted.into())
    }

    /// Waits for `time`. Scripts should not sleep: a sleep would delay the drop of the server.
    ///
    /// # Errors
    /// `ConnectionAborted`, when the server is dropped meanwhile.
    pub fn wait(&mut self, time: Duration) -> io::Result<()> {
        match self.recorder.wait_for_stop(Some(after(sync::now(), time))) {
            true => Err(ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }

    // ---- Ending ----

    /// Makes the end of the connection a TCP reset. It is sent when the script returns, which it
    /// should do at once.
    ///
    /// # Errors
    /// Fails once the connection has ended.
    pub fn reset(&mut self) -> io::Result<()> {
        self.recorder.release(self.number);
        SockRef::from(self.socket()).set_linger(Some(Duration::ZERO))
    }

    /// Ends the direction to the client with a TCP FIN, without a close frame or a TLS
    /// `close_notify`.
    ///
    /// # Errors
    /// Fails once the connection has ended.
    pub fn half_close(&mut self) -> io::Result<()> {
        self.socket().shutdown(Shutdown::Write)
    }

    /// Ends TLS with a `close_notify`, without a close frame before it. Without TLS it does the
    /// same as [`half_close`](Peer::half_close).
    ///
    /// # Errors
    /// Fails once the connection has ended.
    pub fn end_tls(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tls(tls) => tls.shutdown(),
            Stream::Plain(_) => self.half_close(),
        }
    }

    /// Stalls the connection after this many more bytes have been written to TCP. Writes then block
    /// until the server is dropped, and the connection stays open.
    pub fn stall_writes_after(&mut self, bytes: usize) {
        match &mut self.stream {
            Stream::Plain(socket) => socket.limits.allowance = Some(bytes),
            Stream::Tls(tls) => tls.get_mut().limits.allowance = Some(bytes),
        }
    }

    /// Limits the bytes that the kernel buffers while the script does not read, which may otherwise
    /// be tens of megabytes. The kernel takes this as a hint.
    ///
    /// # Errors
    /// Fails once the connection has ended.
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

/// Returns an unmasked frame, as servers send them.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    append_frame(&mut bytes, first, payload);
    bytes
}

/// Appends an unmasked frame.
pub(super) fn append_frame(bytes: &mut Vec<u8>, first: u8, payload: &[u8]) {
    bytes.push(first);
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
}

/// Returns the first byte, the unmasked payload and the length of the client's frame at the front
/// of `bytes`, or `None` when it is incomplete.
fn parse_frame(bytes: &[u8]) -> io::Result<Option<(u8, Vec<u8>, usize)>> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
    if second & 0x80 == 0 {
        return Err(io::Error::new(ErrorKind::InvalidData, "a client's frame is not masked"));
    }
    let (skip, len) = match second & 0x7f {
        126 => match rest.first_chunk::<2>() {
            Some(len) => (2, usize::from(u16::from_be_bytes(*len))),
            None => return Ok(None),
        },
        127 => match rest.first_chunk::<8>() {
            Some(len) => (8, usize::try_from(u64::from_be_bytes(*len)).unwrap_or(usize::MAX)),
            None => return Ok(None),
        },
        len => (0, usize::from(len)),
    };
    if len > MESSAGE_MAX {
        return Err(too_long());
    }
    let Some(key) = rest[skip..].first_chunk::<4>().copied() else { return Ok(None) };
    let start = 2 + skip + 4;
    let Some(payload) = bytes.get(start..start + len) else { return Ok(None) };
    let mut payload = payload.to_vec();
    crate::protocol::mask::mask(&mut payload, key);
    Ok(Some((first, payload, start + len)))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn too_long() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "a client's message is longer than 256 MiB")
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
        let bytes = match self.limits.byte_delay {
            Some(delay) if !bytes.is_empty() => {
                if self.recorder.wait_for_stop(Some(after(sync::now(), delay))) {
                    return Err(ErrorKind::ConnectionAborted.into());
                }
                &bytes[..1]
            }
            _ => bytes,
        };
        match &mut self.limits.allowance {
            None => self.socket.write(bytes),
            Some(0) => {
                self.recorder.wait_for_stop(None);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_of_any_length_that_a_client_may_announce_is_an_error_or_incomplete() {
        let announced = |len: u64| {
            let mut head = vec![0x82, 0x80 | 127];
            head.extend_from_slice(&len.to_be_bytes());
            head.extend_from_slice(&[0; 4]);
            parse_frame(&head)
        };
        for len in [MESSAGE_MAX as u64 + 1, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(announced(len).expect_err("it is too long").kind(), ErrorKind::InvalidData);
        }
        assert_eq!(announced(MESSAGE_MAX as u64).expect("it is short enough"), None);
    }
}

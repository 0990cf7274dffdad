//! A dialer and servers that follow a script, in the place of TCP, TLS and the opening handshake.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderMap;

use super::engine::{self, Engine};
use super::socket::StreamSocket;
use crate::config::endpoint::Target;
use crate::connection::tls_connection::TlsConnection;
use crate::dial::{DialSettings, Dialed, Lookups, Opening};
use crate::error::{Error, ErrorKind};
use crate::sync::threads::Threads;
use crate::sync::wait::Shutdown;
use crate::sync::wake_pair::WakePair;
use crate::time::Deadline;

/// The server of one execution.
#[derive(Default)]
pub(super) struct Server {
    /// Returns the outcome of a dial, given its number, from 0. `None`: every dial hangs.
    script: Option<Arc<dyn Fn(usize) -> Dial + Send + Sync>>,
    dials: usize,
}

thread_local! {
    /// All threads of an execution are coroutines on one thread of the system.
    static SERVER: RefCell<Server> = RefCell::default();
}

/// The outcome of a dial.
pub(crate) enum Dial {
    /// The server does not answer.
    Hangs,
    Fails,
    /// The connection opens, and the server runs this on a thread of its own.
    Opens(Box<dyn FnOnce(&mut Peer) + Send>),
}

/// Sets the script of the server of this execution.
#[cfg(test)]
pub(super) fn server(script: impl Fn(usize) -> Dial + Send + Sync + 'static) {
    SERVER.with_borrow_mut(|server| server.script = Some(Arc::new(script)));
}

/// Takes the server out, for the end of an execution.
#[cfg(test)]
pub(super) fn take_server() -> Server {
    SERVER.take()
}

/// In the place of `dial::Dialer`, whose lookups it uses.
pub(crate) struct Dialer {
    lookups: Lookups,
    shutdown: Shutdown,
}

impl Dialer {
    pub(crate) fn new(settings: DialSettings, threads: Arc<Threads>) -> Self {
        let shutdown = threads.shutdown_signal();
        let hosts_max = settings.hosts_max();
        Dialer { shutdown, lookups: Lookups::new(settings.resolver, hosts_max, threads) }
    }

    pub(crate) fn remember_failure(&mut self) {}

    pub(crate) fn dial(
        &mut self,
        target: &Target,
        _offer: Option<&str>,
        _is_400_final: bool,
        pair: &WakePair,
        deadline: Deadline,
    ) -> Result<Dialed, Error> {
        let addresses = self.lookups.addresses(target, &self.shutdown, deadline)?;
        let (script, number) = SERVER.with_borrow_mut(|server| {
            server.dials += 1;
            (server.script.clone(), server.dials - 1)
        });
        let run = match script.map_or(Dial::Hangs, |script| script(number)) {
            Dial::Fails => {
                return Err(Error::new(ErrorKind::Connect, format!("connecting to {target}")));
            }
            Dial::Opens(run) => run,
            // As in the real dial, the waker ends the wait and the shutdown signal says why.
            Dial::Hangs => {
                if !self.shutdown.is_requested() {
                    pair.wait_until(deadline.at());
                }
                return Err(match self.shutdown.is_requested() {
                    true => Error::stopped(),
                    false => deadline.error(&format!("connecting to {target}")),
                });
            }
        };
        let (ours, theirs) = StreamSocket::pair();
        let is_tls = target.is_tls;
        shuttle::thread::spawn(move || {
            let mut peer = Peer { socket: theirs, is_tls, cipher: Vec::new(), unread: Vec::new() };
            run(&mut peer);
        });
        let opening = Opening {
            peer: addresses.first(),
            subprotocol: None,
            headers: HeaderMap::new(),
            extensions: Vec::new(),
        };
        Ok(Dialed {
            socket: ours,
            tls: is_tls.then(|| TlsConnection::new(Engine::new())),
            leftover: Vec::new(),
            opening,
        })
    }
}

/// The server's side of a connection.
pub(crate) struct Peer {
    socket: StreamSocket,
    is_tls: bool,
    cipher: Vec<u8>,
    unread: Vec<u8>,
}

/// The number of messages of a flood: more than the buffers hold.
#[cfg(test)]
const FLOOD: usize = 40;

/// The first bytes of frames.
pub(crate) const TEXT: u8 = 0x81;
pub(crate) const CLOSE: u8 = 0x88;
pub(crate) const PING: u8 = 0x89;
pub(crate) const PONG: u8 = 0x8a;

#[cfg(test)]
impl Peer {
    /// Returns the first byte and the unmasked payload of the client's next frame, or `None` at the
    /// end of the connection.
    pub(crate) fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            // The client's frames here are short: a head of two bytes and a key of four.
            if let &[first, second, ref rest @ ..] = self.unread.as_slice() {
                let len = usize::from(second & 0x7f);
                if rest.len() >= 4 + len {
                    let payload = (0..len).map(|index| rest[4 + index] ^ rest[index % 4]).collect();
                    self.unread.drain(..6 + len);
                    return Some((first, payload));
                }
            }
            let mut bytes = [0; 16];
            let count = self.socket.receive(&mut bytes).map_or(0, |(count, _)| count);
            if count == 0 {
                return None;
            }
            if !self.is_tls {
                self.unread.extend_from_slice(&bytes[..count]);
                continue;
            }
            self.cipher.extend_from_slice(&bytes[..count]);
            while let Some((kind, payload)) = engine::take_record(&mut self.cipher) {
                match kind {
                    engine::DATA => self.unread.extend(payload),
                    // The answer to ours: the renegotiation is over.
                    engine::RENEGOTIATE => self.write(&engine::record(engine::RENEGOTIATED, &[])),
                    engine::CLOSE_NOTIFY => return None,
                    _ => {}
                }
            }
        }
    }

    pub(crate) fn send(&mut self, first: u8, payload: &[u8]) {
        let mut frame = vec![first, payload.len() as u8];
        frame.extend_from_slice(payload);
        match self.is_tls {
            true => self.write(&engine::record(engine::DATA, &frame)),
            false => self.write(&frame),
        }
    }

    /// Makes the client's TLS engine write a record of its own.
    pub(crate) fn update_keys(&mut self) {
        self.write(&engine::record(engine::KEY_UPDATE, &[]));
    }

    /// Makes the client's TLS engine refuse plaintext until the renegotiation is over.
    pub(crate) fn renegotiate(&mut self) {
        self.write(&engine::record(engine::RENEGOTIATE, &[]));
    }

    /// Answers pings and the close frame, and passes text messages to `text`, until the end of the
    /// connection.
    pub(crate) fn serve(&mut self, mut text: impl FnMut(&mut Peer, &[u8])) {
        while let Some((first, payload)) = self.receive() {
            match first {
                PING => self.send(PONG, &payload),
                CLOSE => {
                    self.send(CLOSE, &payload);
                    // The client ends the connection.
                    return self.ignore();
                }
                TEXT => text(self, &payload),
                _ => {}
            }
        }
    }

    /// Sends many messages and reads nothing, until the client ends the connection.
    pub(crate) fn flood(&mut self, payload: &[u8]) {
        for _ in 0..FLOOD {
            self.send(TEXT, payload);
        }
        self.socket.await_end();
    }

    /// Reads without answering, until the end of the connection.
    pub(crate) fn ignore(&mut self) {
        while self.receive().is_some() {}
    }

    /// Writes all of `bytes`. They are lost once the connection has ended, as in the kernel.
    fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.socket.send_now(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.socket.await_room()
                }
                Err(_) => return,
            }
        }
    }
}

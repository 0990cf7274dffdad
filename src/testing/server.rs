//! The server: a listener, a thread for each connection, and what a test wants to know of them.

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use native_tls::{Identity, TlsAcceptor};
use parking_lot::{Condvar, Mutex};

use super::peer::{Obstacles, Peer};
use crate::sync::threads::{JoinTimeout, ThreadOptions, Threads};
use crate::sync::wait::Shutdown as Stop;

/// How long a dropped server waits for its threads. Scripts of this module end at once; one of the
/// user's own may not.
const DROP_WITHIN: Duration = Duration::from_secs(5);

/// Enough for a script and a TLS handshake, and little enough for a thousand connections.
const STACK: usize = 512 * 1024;

/// How many connections may wait to be accepted. The system may allow fewer.
const BACKLOG: i32 = 4096;

/// How many messages the server remembers.
const REMEMBERED: usize = 100_000;

/// A scripted server on a loopback port. Dropping it ends every connection and joins every thread.
pub struct TestServer {
    address: SocketAddr,
    is_tls: bool,
    shared: Arc<Shared>,
}

/// Settings of a [`TestServer`].
#[derive(Clone, Debug, Default)]
pub struct TestServerBuilder {
    address: Option<SocketAddr>,
    certificate: Option<Leaf>,
    is_forgetful: bool,
    tls_stalls_after: Option<usize>,
    trickles_every: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
enum Leaf {
    Localhost,
    Stranger,
}

/// What the server, its threads and its peers share.
pub(super) struct Shared {
    threads: Threads,
    pub(super) stop: Stop,
    is_forgetful: bool,
    seen: Mutex<Seen>,
    changed: Condvar,
}

/// What has happened. Guarded by `Shared::seen`.
#[derive(Default)]
struct Seen {
    connections: usize,
    openings: usize,
    open_now: usize,
    pings: usize,
    closes: Vec<Option<u16>>,
    messages: Vec<Vec<u8>>,
    /// The sockets of all connections, to be shut down from outside.
    sockets: HashMap<usize, TcpStream>,
    is_stopped: bool,
}

impl TestServer {
    /// Starts a plain server on a free port of 127.0.0.1. `script` plays every connection; its
    /// error ends that connection and is not told.
    ///
    /// # Panics
    /// If the system has no port to give.
    pub fn start(
        script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) -> TestServer {
        TestServer::builder().start(script)
    }

    /// Settings, for TLS and fixed ports.
    pub fn builder() -> TestServerBuilder {
        TestServerBuilder::default()
    }

    /// `ws://127.0.0.1:PORT/`, or `wss://localhost:PORT/` with TLS.
    pub fn url(&self) -> String {
        match self.is_tls {
            true => format!("wss://localhost:{}/", self.address.port()),
            false => format!("ws://{}/", self.address),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The root certificate of servers with TLS, for
    /// [`Builder::tls_root`](crate::Builder::tls_root).
    pub fn root_pem() -> &'static [u8] {
        include_bytes!("certificates/root.pem")
    }

    /// How many connections have been accepted.
    pub fn connections(&self) -> usize {
        self.shared.seen.lock().connections
    }

    /// How many opening handshakes have been answered with 101.
    pub fn openings(&self) -> usize {
        self.shared.seen.lock().openings
    }

    /// How many connections are there now.
    pub fn open_now(&self) -> usize {
        self.shared.seen.lock().open_now
    }

    /// How many pings came.
    pub fn pings(&self) -> usize {
        self.shared.seen.lock().pings
    }

    /// The codes of all close frames that came. `None`: one without a code.
    pub fn closes(&self) -> Vec<Option<u16>> {
        self.shared.seen.lock().closes.clone()
    }

    /// The data messages that came, the first 100,000 of them, of all connections.
    pub fn messages(&self) -> Vec<Vec<u8>> {
        self.shared.seen.lock().messages.clone()
    }

    /// Waits until so many connections have been accepted; whether they were in time.
    pub fn wait_for_connections(&self, count: usize, timeout: Duration) -> bool {
        self.shared.wait(timeout, |seen| seen.connections >= count)
    }

    /// Waits until so many opening handshakes have been answered; whether they were in time.
    pub fn wait_for_openings(&self, count: usize, timeout: Duration) -> bool {
        self.shared.wait(timeout, |seen| seen.openings >= count)
    }

    /// Waits until so many data messages have come; whether they were in time.
    pub fn wait_for_messages(&self, count: usize, timeout: Duration) -> bool {
        self.shared.wait(timeout, |seen| seen.messages.len() >= count)
    }

    /// Waits until so many pings have come; whether they were in time.
    pub fn wait_for_pings(&self, count: usize, timeout: Duration) -> bool {
        self.shared.wait(timeout, |seen| seen.pings >= count)
    }

    /// Waits until a close frame has come; whether it was in time.
    pub fn wait_for_close(&self, timeout: Duration) -> bool {
        self.shared.wait(timeout, |seen| !seen.closes.is_empty())
    }

    /// Waits until no connection is left; whether that was in time.
    pub fn wait_until_empty(&self, timeout: Duration) -> bool {
        self.shared.wait(timeout, |seen| seen.open_now == 0)
    }

    /// Forgets the messages and close codes that it has seen; the counts go on.
    pub fn forget(&self) {
        self.shared.note(|seen| {
            seen.messages = Vec::new();
            seen.closes = Vec::new();
        });
    }

    /// Ends every connection that is there now, without a close frame.
    pub fn abort_all(&self) {
        self.shared.abort_all();
    }
}

impl TestServerBuilder {
    /// Listens at this address instead of a free port of 127.0.0.1: for a server that comes back.
    pub fn address(mut self, address: SocketAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// Speaks TLS, with a certificate for localhost that [`TestServer::root_pem`] vouches for.
    pub fn tls(mut self) -> Self {
        self.certificate = Some(Leaf::Localhost);
        self
    }

    /// Speaks TLS, with a certificate for another host.
    pub fn tls_for_a_stranger(mut self) -> Self {
        self.certificate = Some(Leaf::Stranger);
        self
    }

    /// Writes so many bytes of each connection's TLS stream, handshake included, and then no more,
    /// though the connection stays.
    pub fn tls_stalls_after(mut self, bytes: usize) -> Self {
        self.tls_stalls_after = Some(bytes);
        self
    }

    /// Writes the bytes of each connection one by one, this far apart, whatever they are: TLS
    /// handshake, TLS records, answers, frames.
    pub fn trickles_every(mut self, time: Duration) -> Self {
        self.trickles_every = Some(time);
        self
    }

    /// Remembers no messages and no close codes: for tests that run for long.
    pub fn forgetful(mut self) -> Self {
        self.is_forgetful = true;
        self
    }

    /// Starts the server.
    ///
    /// # Panics
    /// If the system does not let it listen.
    pub fn start(
        self,
        script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) -> TestServer {
        let wanted = self.address.unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        let listener = TcpListener::bind(wanted)
            .unwrap_or_else(|error| panic!("cannot listen on {wanted}: {error}"));
        // A longer queue than the default of 128: a thousand clients that come back at once would
        // wait a second for their lost SYNs.
        socket2::SockRef::from(&listener)
            .listen(BACKLOG)
            .expect("a socket that listens may listen again");
        let address = listener.local_addr().expect("a bound socket has an address");
        let acceptor = self.certificate.map(acceptor);
        let is_tls = acceptor.is_some();
        let threads =
            Threads::new(ThreadOptions { stack_size: Some(STACK), ..ThreadOptions::default() });
        let stop = threads.shutdown_signal();
        let shared = Shared {
            threads,
            stop,
            is_forgetful: self.is_forgetful,
            seen: Mutex::default(),
            changed: Condvar::new(),
        };
        let shared = Arc::new(shared);
        let accepting = Accepting {
            shared: Arc::clone(&shared),
            script: Arc::new(script),
            acceptor,
            obstacles: Obstacles { allowance: self.tls_stalls_after, trickle: self.trickles_every },
        };
        shared
            .threads
            .spawn("server-accept", JoinTimeout::Deadline, move || accepting.run(&listener))
            .unwrap_or_else(|error| panic!("cannot start the server: {}", error.chain()));
        TestServer { address, is_tls, shared }
    }
}

fn acceptor(leaf: Leaf) -> TlsAcceptor {
    let identity = match leaf {
        Leaf::Localhost => Identity::from_pkcs8(
            include_bytes!("certificates/localhost.pem"),
            include_bytes!("certificates/localhost.key"),
        ),
        Leaf::Stranger => Identity::from_pkcs8(
            include_bytes!("certificates/stranger.pem"),
            include_bytes!("certificates/stranger.key"),
        ),
    };
    let identity = identity.expect("the certificates of this module are good");
    TlsAcceptor::new(identity).expect("an acceptor of a good identity")
}

type Script = Arc<dyn Fn(&mut Peer) -> io::Result<()> + Send + Sync>;

/// What the accepting thread runs on. Ends when a connection comes after the stop:
/// `TestServer::drop` makes one.
struct Accepting {
    shared: Arc<Shared>,
    script: Script,
    acceptor: Option<TlsAcceptor>,
    obstacles: Obstacles,
}

impl Accepting {
    fn run(self, listener: &TcpListener) {
        for (number, socket) in listener.incoming().enumerate() {
            if self.shared.stop.is_requested() {
                return;
            }
            // A connection that was reset in the queue, or no descriptor left for it, which may
            // last.
            let Ok(socket) = socket else {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            };
            if !self.shared.admit(number, &socket) {
                continue;
            }
            let (shared, script) = (Arc::clone(&self.shared), Arc::clone(&self.script));
            let (acceptor, obstacles) = (self.acceptor.clone(), self.obstacles);
            let play = move || {
                let leaving = Leaving { shared: Arc::clone(&shared), number };
                if let Ok(mut peer) =
                    Peer::accept(number, socket, acceptor.as_ref(), obstacles, &shared)
                {
                    // The script's error is the end of its connection, and nothing else.
                    let _ = script(&mut peer);
                }
                drop(leaving);
            };
            if self.shared.threads.spawn("server-peer", JoinTimeout::Deadline, play).is_err() {
                self.shared.forget(number);
            }
        }
    }
}

/// Takes a connection off the list when its script ends, panics included.
struct Leaving {
    shared: Arc<Shared>,
    number: usize,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.shared.forget(self.number);
    }
}

impl Shared {
    fn admit(&self, number: usize, socket: &TcpStream) -> bool {
        // A frame at a time, at once: a test waits for every one of them.
        let _ = socket.set_nodelay(true);
        let Ok(handle) = socket.try_clone() else { return false };
        self.note(|seen| {
            seen.connections += 1;
            seen.open_now += 1;
            if seen.is_stopped {
                let _ = handle.shutdown(Shutdown::Both);
            }
            seen.sockets.insert(number, handle);
        });
        true
    }

    fn forget(&self, number: usize) {
        self.note(|seen| {
            seen.open_now -= 1;
            seen.sockets.remove(&number);
        });
    }

    /// Gives up the server's own handle of a connection, so that the peer's is the last and its
    /// drop closes the socket.
    pub(super) fn release(&self, number: usize) {
        self.note(|seen| drop(seen.sockets.remove(&number)));
    }

    pub(super) fn note_opening(&self) {
        self.note(|seen| seen.openings += 1);
    }

    pub(super) fn note_ping(&self) {
        self.note(|seen| seen.pings += 1);
    }

    pub(super) fn note_close(&self, code: Option<u16>) {
        if !self.is_forgetful {
            self.note(|seen| seen.closes.push(code));
        }
    }

    pub(super) fn note_message(&self, message: &[u8]) {
        if self.is_forgetful {
            return;
        }
        self.note(|seen| {
            if seen.messages.len() < REMEMBERED {
                seen.messages.push(message.to_vec());
            }
        });
    }

    fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock());
        self.changed.notify_all();
    }

    /// Waits until the server stops, or the time is over; whether it stops.
    pub(super) fn wait_for_stop(&self, until: Option<Instant>) -> bool {
        let mut seen = self.seen.lock();
        while !seen.is_stopped {
            match until {
                None => self.changed.wait(&mut seen),
                Some(until) if self.changed.wait_until(&mut seen, until).timed_out() => {
                    return seen.is_stopped;
                }
                Some(_) => {}
            }
        }
        true
    }

    fn wait(&self, timeout: Duration, is_there: impl Fn(&Seen) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut seen = self.seen.lock();
        while !is_there(&seen) {
            if self.changed.wait_until(&mut seen, deadline).timed_out() {
                return is_there(&seen);
            }
        }
        true
    }

    fn abort_all(&self) {
        for socket in self.seen.lock().sockets.values() {
            // It may have gone by itself.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.shared.threads.shutdown();
        self.shared.note(|seen| seen.is_stopped = true);
        self.shared.abort_all();
        // Wakes `accept`, which nothing else does on every platform. A full backlog means that it
        // is about to wake anyhow.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_millis(100));
        let report = self.shared.threads.join_until(Instant::now() + DROP_WITHIN);
        if !report.is_clean() && !std::thread::panicking() {
            log::error!("a script of the server did not end when the server was dropped: {report}");
        }
    }
}

impl std::fmt::Debug for TestServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestServer")
            .field("url", &self.url())
            .field("connections", &self.connections())
            .finish()
    }
}

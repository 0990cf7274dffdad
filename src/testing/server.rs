//! The test server: a listener, a thread for each connection, and a record of what has come.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use native_tls::{Identity, TlsAcceptor};
use socket2::SockRef;

use super::peer::{Peer, WriteLimits};
use super::recorder::Recorder;
use crate::name::ClientName;
use crate::sync;
use crate::sync::panic::catch;
use crate::sync::threads::{JoinTimeout, ThreadOptions, Threads};
use crate::time::after;

/// The time that a dropped server waits for its threads. The scripts of this module end at once,
/// one of the program's own may not.
const DROP_TIMEOUT: Duration = Duration::from_secs(5);

/// Enough for a script and a TLS handshake, and small enough for a thousand connections.
const STACK_SIZE: usize = 512 * 1024;

/// The number of connections that may wait to be accepted. The system may allow fewer.
const BACKLOG: i32 = 4096;

/// The pause after a failed `accept`: the process may be out of descriptors for a while.
const ACCEPT_RETRY: Duration = Duration::from_millis(10);

/// A scripted WebSocket server on a loopback port.
///
/// Each connection runs the script on a thread of its own, with a stack of 512 KiB. The server
/// records what comes: the methods `wait_for_*` block the calling thread until the record has what
/// they ask for, and may be called from any thread.
///
/// Dropping the server ends every connection without a close frame, and waits up to five seconds
/// for the scripts to return. A script that is still running then is reported in the log at level
/// error, and its thread is left behind.
pub struct TestServer {
    address: SocketAddr,
    is_tls: bool,
    threads: Arc<Threads>,
    recorder: Arc<Recorder>,
}

/// The settings of a [`TestServer`].
#[derive(Clone, Debug, Default)]
pub struct TestServerBuilder {
    address: Option<SocketAddr>,
    certificate: Option<Certificate>,
    discards_messages: bool,
    write_limits: WriteLimits,
}

#[derive(Clone, Copy, Debug)]
enum Certificate {
    Localhost,
    WrongHost,
}

impl TestServer {
    /// Starts a server without TLS on a free port of 127.0.0.1.
    ///
    /// `script` plays the server's side of every connection. The connection ends when it returns;
    /// an error is ignored, a panic is reported in the log at level error.
    ///
    /// # Panics
    /// If the system has no free port or thread.
    pub fn start(
        script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) -> TestServer {
        TestServer::builder().start(script)
    }

    /// Returns the settings of a server that has not been started, for TLS and fixed ports.
    pub fn builder() -> TestServerBuilder {
        TestServerBuilder::default()
    }

    /// Returns `ws://127.0.0.1:PORT/`, or `wss://localhost:PORT/` with TLS.
    pub fn url(&self) -> String {
        match self.is_tls {
            true => format!("wss://localhost:{}/", self.address.port()),
            false => format!("ws://{}/", self.address),
        }
    }

    /// Returns the address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the root certificate of servers with TLS, in PEM, for
    /// [`Builder::tls_root`](crate::Builder::tls_root).
    pub fn root_pem() -> &'static [u8] {
        include_bytes!("certificates/root.pem")
    }

    /// Returns the number of connections that have been accepted.
    pub fn connections(&self) -> usize {
        self.recorder.read(|seen| seen.connections)
    }

    /// Returns the number of opening handshakes that [`Peer::upgrade`] has answered with 101.
    pub fn openings(&self) -> usize {
        self.recorder.read(|seen| seen.openings)
    }

    /// Returns the number of connections whose scripts are running.
    pub fn open_now(&self) -> usize {
        self.recorder.read(|seen| seen.open_now)
    }

    /// Returns the number of pings that scripts have received.
    pub fn pings(&self) -> usize {
        self.recorder.read(|seen| seen.pings)
    }

    /// Returns the codes of the close frames that scripts have received, the first 100,000 of all
    /// connections. `None` stands for a close frame without a code.
    pub fn closes(&self) -> Vec<Option<u16>> {
        self.recorder.read(|seen| seen.closes.clone())
    }

    /// Returns the text and binary messages that scripts have received, the first 100,000 of all
    /// connections.
    pub fn messages(&self) -> Vec<Vec<u8>> {
        self.recorder.read(|seen| seen.messages.clone())
    }

    /// Waits until `count` connections have been accepted. Returns whether they were within
    /// `timeout`.
    pub fn wait_for_connections(&self, count: usize, timeout: Duration) -> bool {
        self.recorder.wait(timeout, |seen| seen.connections >= count)
    }

    /// Waits until `count` opening handshakes have been answered with 101. Returns whether they
    /// were within `timeout`.
    pub fn wait_for_openings(&self, count: usize, timeout: Duration) -> bool {
        self.recorder.wait(timeout, |seen| seen.openings >= count)
    }

    /// Waits until `count` messages have been recorded. Returns whether they were within `timeout`.
    pub fn wait_for_messages(&self, count: usize, timeout: Duration) -> bool {
        self.recorder.wait(timeout, |seen| seen.messages.len() >= count)
    }

    /// Waits until `count` pings have been received. Returns whether they were within `timeout`.
    pub fn wait_for_pings(&self, count: usize, timeout: Duration) -> bool {
        self.recorder.wait(timeout, |seen| seen.pings >= count)
    }

    /// Waits until a close frame has been recorded. Returns whether one was within `timeout`.
    pub fn wait_for_close(&self, timeout: Duration) -> bool {
        self.recorder.wait(timeout, |seen| !seen.closes.is_empty())
    }

    /// Waits until the scripts of all connections have ended. Returns whether they had within
    /// `timeout`.
    pub fn wait_until_all_closed(&self, timeout: Duration) -> bool {
        self.recorder.wait(timeout, |seen| seen.open_now == 0)
    }

    /// Clears the recorded messages and close codes. The counts stay.
    pub fn clear_messages(&self) {
        self.recorder.clear();
    }

    /// Shuts down every connection that is open now, without a close frame.
    pub fn abort_all(&self) {
        self.recorder.abort_all();
    }
}

impl TestServerBuilder {
    /// Sets the address to listen on, for a server that comes back at the same port. Defaults to a
    /// free port of 127.0.0.1.
    pub fn address(mut self, address: SocketAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// Uses TLS, with a certificate for `localhost` under the root [`TestServer::root_pem`].
    /// Defaults to no TLS.
    pub fn tls(mut self) -> Self {
        self.certificate = Some(Certificate::Localhost);
        self
    }

    /// Uses TLS, with a certificate for another host under the same root, which clients must
    /// refuse.
    pub fn tls_wrong_host(mut self) -> Self {
        self.certificate = Some(Certificate::WrongHost);
        self
    }

    /// Stalls each connection after it has written this many bytes to TCP, TLS handshake included.
    /// The connection stays open. Defaults to no limit. [`Peer::stall_writes_after`] does the same
    /// from within a script.
    pub fn stall_writes_after(mut self, bytes: usize) -> Self {
        self.write_limits.allowance = Some(bytes);
        self
    }

    /// Writes to TCP one byte at a time and waits for `delay` before each, TLS handshake included.
    /// Defaults to writing without delay.
    pub fn trickle_writes(mut self, delay: Duration) -> Self {
        self.write_limits.byte_delay = Some(delay);
        self
    }

    /// Records neither messages nor close codes, for tests that run long. Then
    /// [`TestServer::wait_for_messages`] and [`TestServer::wait_for_close`] wait in vain. Defaults
    /// to recording them.
    pub fn discard_messages(mut self) -> Self {
        self.discards_messages = true;
        self
    }

    /// Starts the server. [`TestServer::start`] describes the script.
    ///
    /// # Panics
    /// If the system does not let it listen on the address, or has no thread.
    pub fn start(
        self,
        script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) -> TestServer {
        let wanted = self.address.unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        let listener = TcpListener::bind(wanted)
            .unwrap_or_else(|error| panic!("cannot listen on {wanted}: {error}"));
        self.start_on(listener, script)
    }

    /// Starts the server on a listener, whose address takes the place of
    /// [`address`](TestServerBuilder::address).
    ///
    /// # Panics
    /// If the system has no thread.
    pub fn start_on(
        self,
        listener: TcpListener,
        script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) -> TestServer {
        // The default of 128 is too short: a thousand clients that come back at once would wait a
        // second for their lost SYNs.
        SockRef::from(&listener).listen(BACKLOG).expect("a socket that listens may listen again");
        let address = listener.local_addr().expect("a bound socket has an address");
        let acceptor = self.certificate.map(acceptor);
        let is_tls = acceptor.is_some();
        let options = ThreadOptions {
            stack_size: Some(STACK_SIZE),
            client: ClientName::by_default("test server"),
            ..ThreadOptions::default()
        };
        let threads = Arc::new(Threads::new(options));
        let recorder = Arc::new(Recorder::new(self.discards_messages));
        let accept_loop = AcceptLoop {
            threads: Arc::clone(&threads),
            recorder: Arc::clone(&recorder),
            script: Arc::new(script),
            acceptor,
            write_limits: self.write_limits,
        };
        threads
            .spawn("server-accept", JoinTimeout::Deadline, move || accept_loop.run(&listener))
            .unwrap_or_else(|error| panic!("cannot start the server: {}", error.chain()));
        TestServer { address, is_tls, threads, recorder }
    }
}

fn acceptor(certificate: Certificate) -> TlsAcceptor {
    let identity = match certificate {
        Certificate::Localhost => Identity::from_pkcs8(
            include_bytes!("certificates/localhost.pem"),
            include_bytes!("certificates/localhost.key"),
        ),
        Certificate::WrongHost => Identity::from_pkcs8(
            include_bytes!("certificates/stranger.pem"),
            include_bytes!("certificates/stranger.key"),
        ),
    };
    let identity = identity.expect("the certificates of this module are valid");
    TlsAcceptor::new(identity).expect("a valid identity makes an acceptor")
}

type Script = Arc<dyn Fn(&mut Peer) -> io::Result<()> + Send + Sync>;

/// The accepting thread. It ends when a connection comes after the stop: `TestServer::drop` makes
/// one.
struct AcceptLoop {
    threads: Arc<Threads>,
    recorder: Arc<Recorder>,
    script: Script,
    acceptor: Option<TlsAcceptor>,
    write_limits: WriteLimits,
}

impl AcceptLoop {
    fn run(self, listener: &TcpListener) {
        for (number, socket) in listener.incoming().enumerate() {
            if self.recorder.is_stopped() {
                return;
            }
            match socket {
                Ok(socket) => self.serve(number, socket),
                Err(_) => {
                    self.recorder.wait_for_stop(Some(after(sync::now(), ACCEPT_RETRY)));
                }
            }
        }
    }

    fn serve(&self, number: usize, socket: TcpStream) {
        // Tests wait for single frames, which must not be held back.
        let _ = socket.set_nodelay(true);
        if !self.recorder.add(number, &socket) {
            return;
        }
        let (recorder, script) = (Arc::clone(&self.recorder), Arc::clone(&self.script));
        let (acceptor, write_limits) = (self.acceptor.clone(), self.write_limits);
        let play = move || {
            let played = catch(|| -> io::Result<()> {
                let acceptor = acceptor.as_ref();
                script(&mut Peer::accept(number, socket, acceptor, write_limits, &recorder)?)
            });
            // Before the log: a test may wait for it, and its logger may panic.
            recorder.remove(number);
            if played.is_err() {
                log::error!("a script of the test server panicked on connection {number}");
            }
        };
        if self.threads.spawn("server-peer", JoinTimeout::Deadline, play).is_err() {
            self.recorder.remove(number);
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.threads.shutdown();
        self.recorder.stop();
        // Nothing else wakes `accept` on every platform. If the backlog is full, it is about to
        // wake anyway.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_millis(100));
        let report = self.threads.join_until(after(sync::now(), DROP_TIMEOUT));
        if !report.is_clean() && !std::thread::panicking() {
            let report = report.without_name();
            log::error!("a script of the test server did not end when it was dropped: {report}");
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

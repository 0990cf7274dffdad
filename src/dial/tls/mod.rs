//! The TLS handshake, over buffers in memory so that it never blocks, and the connectors for it.

use std::convert::Infallible;
use std::error::Error as _;
use std::fmt;
use std::io::Read;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use native_tls::{
    Certificate, HandshakeError, Identity, MidHandshakeTlsStream, Protocol, TlsConnector,
};
use parking_lot::Mutex;
use socket2::Socket;

use crate::config::endpoint::{Target, TargetLabel};
use crate::connection::tls_buffers::TlsBuffers;
use crate::connection::tls_connection::{TlsConnection, clear_error_queue};
use crate::dial::io::DialIo;
use crate::dial::pin::Pin;
use crate::error::{Error, ErrorKind};
use crate::sync::channel::{Receiver, bounded};
use crate::sync::threads::{JoinTimeout, Threads};
use crate::sync::wait::{Woken, wait};
use crate::sync::{self, panic};
use crate::time::after;

/// The size of the buffer for what the peer sends during the handshake.
const CIPHER_SIZE: usize = 16 * 1024;

/// The TLS settings of a client: the roots that it trusts and the certificate that it presents.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsOptions {
    pub(crate) extra_roots: Vec<Vec<u8>>,
    pub(crate) only_extra_roots: bool,
    identity: Option<IdentitySource>,
    /// As the program gave them.
    pub(crate) pins: Vec<String>,
    pub(crate) danger_allow_old_tls: bool,
    pub(crate) danger_accept_invalid_certificates: bool,
    pub(crate) danger_accept_invalid_hostnames: bool,
}

/// A client certificate and its key, as the program gave them.
#[derive(Clone, PartialEq, Eq)]
enum IdentitySource {
    Pem { certificate: Vec<u8>, key: Vec<u8> },
    Pkcs12 { archive: Vec<u8>, password: String },
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions")
            .field("extra_roots", &self.extra_roots.len())
            .finish_non_exhaustive()
    }
}

impl TlsOptions {
    pub(crate) fn set_identity_pem(&mut self, certificate: Vec<u8>, key: Vec<u8>) {
        self.identity = Some(IdentitySource::Pem { certificate, key });
    }

    pub(crate) fn set_identity_pkcs12(&mut self, archive: Vec<u8>, password: String) {
        self.identity = Some(IdentitySource::Pkcs12 { archive, password });
    }

    /// Checks the certificates, the key and the pins. It reads none of the system's roots.
    ///
    /// # Errors
    /// `Config`.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        self.roots()?;
        self.identity()?;
        self.pins()?;
        Ok(())
    }

    fn pins(&self) -> Result<Vec<Pin>, Error> {
        self.pins.iter().map(|pin| Pin::parse(pin)).collect()
    }

    /// The settings for an HTTPS proxy: the same roots, and nothing that is meant for the server.
    pub(crate) fn for_proxy(&self) -> Self {
        TlsOptions {
            extra_roots: self.extra_roots.clone(),
            only_extra_roots: self.only_extra_roots,
            ..TlsOptions::default()
        }
    }

    fn roots(&self) -> Result<Vec<Certificate>, Error> {
        let mut roots = Vec::new();
        for bytes in &self.extra_roots {
            let parsed = match is_pem(bytes) {
                true => Certificate::stack_from_pem(bytes),
                false => Certificate::from_der(bytes).map(|certificate| vec![certificate]),
            };
            let parsed = parsed.map_err(|error| {
                Error::caused(
                    ErrorKind::Config,
                    "a root certificate that is neither PEM nor DER",
                    error,
                )
            })?;
            if parsed.is_empty() {
                return Err(Error::config("a root certificate file without a certificate in it"));
            }
            roots.extend(parsed);
        }
        Ok(roots)
    }

    fn identity(&self) -> Result<Option<Identity>, Error> {
        let parsed = match &self.identity {
            None => return Ok(None),
            Some(IdentitySource::Pem { certificate, key }) => {
                let key = without_preamble(key);
                check_pair(certificate, key)?;
                Identity::from_pkcs8(certificate, key)
            }
            Some(IdentitySource::Pkcs12 { archive, password }) => {
                Identity::from_pkcs12(archive, password)
            }
        };
        parsed.map(Some).map_err(|error| Error::caused(ErrorKind::Config, BAD_IDENTITY, error))
    }

    fn connector(&self) -> Result<TlsConnector, Error> {
        let mut builder = TlsConnector::builder();
        let oldest = if self.danger_allow_old_tls { Protocol::Tlsv10 } else { Protocol::Tlsv12 };
        builder.min_protocol_version(Some(oldest));
        for root in self.roots()? {
            builder.add_root_certificate(root);
        }
        if let Some(identity) = self.identity()? {
            builder.identity(identity);
        }
        builder
            .disable_built_in_roots(self.only_extra_roots)
            .danger_accept_invalid_certs(self.danger_accept_invalid_certificates)
            .danger_accept_invalid_hostnames(self.danger_accept_invalid_hostnames)
            .build()
            .map_err(|error| Error::caused(ErrorKind::Tls, "preparing TLS", error))
    }
}

const BAD_IDENTITY: &str =
    "the client certificate: it has to be PEM with a PKCS#8 key, or PKCS#12 with its password";

/// Returns the text from its first PKCS#8 key on. native-tls accepts nothing before the key, but
/// `openssl pkcs12 -nodes` writes "Bag Attributes" there, and text outside of the PEM blocks has no
/// meaning (RFC 7468 section 2).
fn without_preamble(key: &[u8]) -> &[u8] {
    const BEGIN: &[u8] = b"-----BEGIN PRIVATE KEY-----";
    let start = key.windows(BEGIN.len()).position(|window| window == BEGIN);
    &key[start.unwrap_or_default()..]
}

/// Checks that the key belongs to the first certificate.
///
/// OpenSSL itself refuses a wrong key of the same algorithm only when a connector is made. If the
/// algorithms differ, it presents no certificate and reports no error.
#[cfg(not(any(target_os = "windows", target_vendor = "apple")))]
fn check_pair(certificate: &[u8], key: &[u8]) -> Result<(), Error> {
    use openssl::error::ErrorStack;
    use openssl::pkey::PKey;
    use openssl::x509::X509;

    let is_pair = || -> Result<bool, ErrorStack> {
        let key = PKey::private_key_from_pem(key)?;
        let Some(first) = X509::stack_from_pem(certificate)?.into_iter().next() else {
            // native-tls reports that there is no certificate.
            return Ok(true);
        };
        Ok(first.public_key()?.public_eq(&key))
    };
    match is_pair() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::config(
            "the client certificate and its key do not belong together: \
             the first certificate has to be that of the key",
        )),
        Err(error) => Err(Error::caused(ErrorKind::Config, BAD_IDENTITY, error)),
    }
}

/// The other platforms have no call that compares the two.
#[cfg(any(target_os = "windows", target_vendor = "apple"))]
fn check_pair(_certificate: &[u8], _key: &[u8]) -> Result<(), Error> {
    Ok(())
}

fn is_pem(bytes: &[u8]) -> bool {
    bytes.windows(11).any(|window| window == b"-----BEGIN ")
}

/// A connector that is being made, or has been made. Making one reads all roots of the system; with
/// OpenSSL it does so even if only the given roots are trusted.
struct Load {
    options: TlsOptions,
    /// Set before `done` disconnects, unless the thread could not be started.
    result: OnceLock<Result<TlsConnector, Error>>,
    /// Nothing is ever sent on it. It disconnects when the load is over.
    done: Receiver<Infallible>,
}

/// The connectors of this process, newest first.
///
/// Reading the roots of the system takes from ten milliseconds to seconds, and a connector most of
/// a mebibyte, so clients with the same options share one. It lives as long as one of them does.
/// The newest [`KEPT`] without a client certificate stay for the clients that follow.
static LOADS: Mutex<Vec<Arc<Load>>> = Mutex::new(Vec::new());

/// The number of connectors that are kept while no client uses them.
const KEPT: usize = 4;

/// The time that a stop waits for a load, which nothing can interrupt.
const LOAD_JOIN_TIMEOUT: Duration = Duration::from_millis(200);

/// The time between two warnings of a certificate that has expired or is not yet valid.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Shakes hands for one client, and keeps its connector from dial to dial.
pub(crate) struct Connectors {
    options: TlsOptions,
    /// The public keys that a server may have. Empty: any.
    pins: Vec<Pin>,
    threads: Arc<Threads>,
    connector: Option<Arc<Load>>,
    /// The server's certificate was refused at this dial, so the connector was discarded.
    has_failed: bool,
    /// The same of the previous dial.
    had_failed: bool,
    /// The time of the last warning of a certificate's dates.
    warned_at: Option<Instant>,
}

impl Connectors {
    pub(crate) fn new(options: TlsOptions, threads: Arc<Threads>) -> Self {
        Connectors {
            // They have been checked.
            pins: options.pins().unwrap_or_default(),
            options,
            threads,
            connector: None,
            has_failed: false,
            had_failed: false,
            warned_at: None,
        }
    }

    /// Begins a dial, which may fail before it comes to TLS.
    pub(crate) fn begin_dial(&mut self) {
        self.had_failed = std::mem::take(&mut self.has_failed);
    }

    /// Performs the TLS handshake over a non-blocking socket. `buffers` are those of the engine.
    ///
    /// When a certificate is refused, the connector is discarded. The error is permanent only if
    /// the next dial fails in the same way, with a new connector that was made while descriptors
    /// were left: a connector that was made without any has no roots, and refuses every
    /// certificate. A certificate that has expired or is not yet valid is never a permanent error,
    /// because it may be renewed, or the clock corrected.
    pub(crate) fn handshake(
        &mut self,
        label: &TargetLabel<'_>,
        socket: &Socket,
        buffers: TlsBuffers,
        io: &DialIo<'_>,
    ) -> Result<TlsConnection, Error> {
        let target = label.target;
        let had_spare = self.had_failed && has_spare_descriptor();
        let load = match self.connector.take() {
            Some(load) => load,
            None => self.load(io)?,
        };
        let connector = load.connector()?;
        // Checked before and after the load, because other threads take descriptors too.
        let had_spare = had_spare && has_spare_descriptor();
        let result = shake_hands(connector, target, socket, buffers, io);
        match result {
            Err(error) if is_refused_for_its_dates(&error) => {
                self.connector = Some(load);
                if self.is_warning_due(sync::now()) {
                    log::warn!(
                        "{label}: the certificate has expired or is not yet valid, or the clock of \
                         this machine is wrong: {}",
                        error.chain()
                    );
                }
                Err(error)
            }
            Err(error) if error.is_verification_failure() => {
                self.has_failed = true;
                Err(if had_spare { error.permanent() } else { error })
            }
            result => {
                self.connector = Some(load);
                let engine = result?;
                self.check_pins(&engine, target)?;
                Ok(engine)
            }
        }
    }

    fn check_pins(&self, engine: &TlsConnection, target: &Target) -> Result<(), Error> {
        if self.pins.is_empty() {
            return Ok(());
        }
        let seen = engine.peer_certificate().and_then(|certificate| Pin::of(&certificate));
        if seen.is_some_and(|seen| self.pins.contains(&seen)) {
            return Ok(());
        }
        let seen = seen.map_or("none that can be read".to_owned(), |pin| pin.to_string());
        Err(Error::pin_mismatch(format!(
            "{target} has another public key than the tls_pin allows: {seen}"
        )))
    }

    fn is_warning_due(&mut self, now: Instant) -> bool {
        let is_due = self.warned_at.is_none_or(|at| now >= after(at, WARN_EVERY));
        if is_due {
            self.warned_at = Some(now);
        }
        is_due
    }

    /// Returns a connector, for which it waits within the deadline of the dial.
    fn load(&self, io: &DialIo<'_>) -> Result<Arc<Load>, Error> {
        loop {
            let load = self.find_or_start()?;
            match wait(io.shutdown, &load.done, Some(io.deadline.at())) {
                Woken::Shutdown => return Err(Error::stopped()),
                Woken::TimedOut => {
                    return Err(io.deadline.error("reading the root certificates of the system"));
                }
                Woken::Disconnected | Woken::Received(_) => {}
            }
            match load.result.get() {
                Some(Ok(_)) => return Ok(load),
                Some(Err(error)) => return Err(error.clone()),
                // The client that was to make it could not start a thread. This one tries itself.
                None => {}
            }
        }
    }

    /// Returns a load with the same options that another client has started, or starts one. After a
    /// certificate was refused it always starts one.
    fn find_or_start(&self) -> Result<Arc<Load>, Error> {
        let (running, done) = bounded::<Infallible>(0);
        let load = {
            let mut loads = LOADS.lock();
            forget_unused(&mut loads);
            if !self.had_failed {
                let mut same = loads.iter().filter(|load| load.options == self.options);
                // A finished one comes before a newer one, which may hang.
                let known = same.clone().find(|load| load.is_made()).or_else(|| same.next());
                if let Some(known) = known {
                    return Ok(Arc::clone(known));
                }
            }
            let load = Load { options: self.options.clone(), result: OnceLock::new(), done };
            let load = Arc::new(load);
            loads.insert(0, Arc::clone(&load));
            load
        };
        let made = Arc::clone(&load);
        let body = move || {
            let result = panic::catch(|| made.options.connector()).unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Tls, "preparing TLS: the platform's TLS panicked"))
            });
            let _ = made.result.set(result);
            drop(made);
            drop(running);
            // The client may have gone in the meantime.
            forget_unused(&mut LOADS.lock());
        };
        let join_timeout = JoinTimeout::AtMost(LOAD_JOIN_TIMEOUT);
        if let Err(error) = self.threads.spawn("taut-roots", join_timeout, body) {
            LOADS.lock().retain(|known| !Arc::ptr_eq(known, &load));
            return Err(error);
        }
        Ok(load)
    }
}

impl Drop for Connectors {
    fn drop(&mut self) {
        self.connector = None;
        forget_unused(&mut LOADS.lock());
    }
}

impl Load {
    fn connector(&self) -> Result<&TlsConnector, Error> {
        match self.result.get() {
            Some(Ok(connector)) => Ok(connector),
            Some(Err(error)) => Err(error.clone()),
            None => Err(Error::new(ErrorKind::Tls, "preparing TLS")),
        }
    }

    fn is_made(&self) -> bool {
        matches!(self.result.get(), Some(Ok(_)))
    }
}

/// Removes the loads that have failed, and those that nobody uses except the newest.
fn forget_unused(loads: &mut Vec<Arc<Load>>) {
    let mut kept = 0;
    loads.retain(|load| match load.result.get() {
        Some(Err(_)) => false,
        // A client uses it, or its thread is still making it.
        _ if Arc::strong_count(load) > 1 => true,
        // A key is not kept longer than its client.
        _ => {
            kept += 1;
            load.options.identity.is_none() && kept <= KEPT
        }
    });
}

/// Returns `true` if the process can open another descriptor.
fn has_spare_descriptor() -> bool {
    std::net::UdpSocket::bind(("127.0.0.1", 0)).is_ok()
}

/// Returns `true` if the server's certificate was refused because it has expired or is not yet
/// valid. native-tls has no kind for this, so the text decides.
fn is_refused_for_its_dates(error: &Error) -> bool {
    const WORDINGS: [&str; 4] = [
        // OpenSSL.
        "certificate has expired",
        "certificate is not yet valid",
        // Security.framework.
        "certificate was expired",
        // SChannel.
        "not within its validity period",
    ];
    // The error's own text names the host, which may contain anything.
    let cause = error.source().filter(|_| error.kind() == ErrorKind::Tls).map(ToString::to_string);
    cause.is_some_and(|text| WORDINGS.iter().any(|wording| text.contains(wording)))
}

/// Performs the handshake. The server's certificate is checked for the host of the target.
fn shake_hands(
    connector: &TlsConnector,
    target: &Target,
    socket: &Socket,
    buffers: TlsBuffers,
    io: &DialIo<'_>,
) -> Result<TlsConnection, Error> {
    let context = || format!("TLS handshake with {target}");
    let failed = |error: std::io::Error| Error::caused(ErrorKind::Tls, context(), error);
    let mut cipher = vec![0; CIPHER_SIZE];
    let mut output = Vec::new();
    clear_error_queue();
    let mut result = connector.connect(target.server_name(), buffers);
    loop {
        output.clear();
        let mut waiting: MidHandshakeTlsStream<TlsBuffers> = match result {
            Ok(mut stream) => {
                stream.get_mut().take_output(&mut output).map_err(failed)?;
                let mut engine = TlsConnection::new(stream);
                return match io.send(socket, &output, &context) {
                    Ok(()) => Ok(engine),
                    Err(error) => Err(unread_alert(&mut engine, socket, error, &context)),
                };
            }
            Err(HandshakeError::Failure(error)) => {
                return Err(Error::caused(ErrorKind::Tls, context(), error));
            }
            Err(HandshakeError::WouldBlock(waiting)) => waiting,
        };
        waiting.get_mut().take_output(&mut output).map_err(failed)?;
        if let Err(error) = io.send(socket, &output, &context) {
            return Err(unread_alert_in_handshake(waiting, socket, error, &context));
        }
        let filled = io.recv(socket, &mut cipher, &context)?;
        if filled == 0 {
            let ended = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(Error::caused(ErrorKind::Tls, context(), ended));
        }
        waiting.get_mut().feed(&mut cipher, filled);
        clear_error_queue();
        result = waiting.handshake();
    }
}

/// The number of reads after a failed send, which is more than the rest of a handshake takes.
const UNREAD_MAX: usize = 8;

/// Returns the alert that the peer sent before a send failed with `error`, or `error` if there is
/// none.
///
/// A peer that refuses a handshake sends an alert and closes, which may reset the connection before
/// the alert is read.
pub(crate) fn unread_alert(
    engine: &mut TlsConnection,
    socket: &Socket,
    error: Error,
    context: &dyn Fn() -> String,
) -> Error {
    for _ in 0..UNREAD_MAX {
        let Some((mut cipher, filled)) = unread(socket, &error) else { break };
        engine.get_mut().feed(&mut cipher, filled);
        match engine.enter().read(&mut [0; 1]) {
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
    mut waiting: MidHandshakeTlsStream<TlsBuffers>,
    socket: &Socket,
    error: Error,
    context: &dyn Fn() -> String,
) -> Error {
    for _ in 0..UNREAD_MAX {
        let Some((mut cipher, filled)) = unread(socket, &error) else { break };
        waiting.get_mut().feed(&mut cipher, filled);
        clear_error_queue();
        match waiting.handshake() {
            Err(HandshakeError::WouldBlock(again)) => waiting = again,
            Err(HandshakeError::Failure(alert)) => {
                return Error::caused(ErrorKind::Tls, context(), alert);
            }
            Ok(stream) => {
                return unread_alert(&mut TlsConnection::new(stream), socket, error, context);
            }
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

    use native_tls::TlsAcceptor;

    use super::*;
    use crate::config::endpoint::Endpoint;
    use crate::error::Timeout;
    use crate::sync::threads::ThreadOptions;
    use crate::sync::wait::Shutdown;
    use crate::sync::wake_pair::WakePair;
    use crate::time::Deadline;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn expired_certificates_are_warned_of_once_a_minute() {
        let threads = Arc::new(Threads::new(ThreadOptions::default()));
        let mut connectors = Connectors::new(TlsOptions::default(), threads);
        let now = Instant::now();
        let seconds = [0, 1, 59, 60, 61, 119, 300];
        let due = seconds.map(|s| connectors.is_warning_due(now + Duration::from_secs(s)));
        assert_eq!(due, [true, false, false, true, false, false, true]);
    }

    #[test]
    fn a_connector_without_a_key_stays_for_the_clients_that_follow() {
        let pem: [&[u8]; 2] = [
            include_bytes!("../testing/certificates/localhost.pem"),
            include_bytes!("../testing/certificates/localhost.key"),
        ];
        let without = TlsOptions { extra_roots: vec![pem[0].to_vec()], ..TlsOptions::default() };
        let mut with = without.clone();
        with.set_identity_pem(pem[0].to_vec(), pem[1].to_vec());
        let is_there = |options: &TlsOptions| {
            LOADS.lock().iter().any(|load| load.options == *options && load.is_made())
        };
        for (options, stays) in [(without, true), (with, false)] {
            let threads = Arc::new(Threads::new(ThreadOptions::default()));
            let connectors = Connectors::new(options.clone(), Arc::clone(&threads));
            with_io(|io| connectors.load(io).map(drop)).expect("OpenSSL is there");
            assert!(is_there(&options));
            drop(connectors);
            threads.shutdown();
            let by = Instant::now() + SOON;
            while !threads.join_until(by).is_clean() {
                assert!(Instant::now() < by, "the load is over");
            }
            assert_eq!(is_there(&options), stays);
        }
    }

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
        with_io(|io| shake_hands(&connector, &target, socket, TlsBuffers::default(), io))
    }

    fn with_io<T>(act: impl FnOnce(&DialIo<'_>) -> T) -> T {
        let pair = WakePair::new().expect("descriptors are there");
        let (_trigger, shutdown) = Shutdown::new();
        let deadline = Deadline::new(Timeout::Connect, SOON, Instant::now());
        act(&DialIo { pair: &pair, shutdown: &shutdown, deadline })
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
            assert!(error.chain().contains(words), "{}", error.chain());
        }
    }

    #[test]
    fn what_lies_unread_when_a_later_send_fails_is_the_reason() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let ours = listener.local_addr().and_then(TcpStream::connect).expect("it listens");
        let (released, held) = bounded::<()>(1);
        let server = std::thread::spawn(move || {
            let identity = Identity::from_pkcs8(
                include_bytes!("../testing/certificates/localhost.pem"),
                include_bytes!("../testing/certificates/localhost.key"),
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
        options.extra_roots.push(include_bytes!("../testing/certificates/root.pem").to_vec());
        let mut engine = shake_hands_with(&socket, &options).expect("both shake hands");
        (&socket).write_all(b"unread").expect("it is open");
        released.send(()).expect("the server waits");
        server.join().expect("it does not panic");
        await_reset(&socket);
        let refused = (&socket).write_all(b"too late").expect_err("it has been reset");
        let context = || "sending".to_owned();
        let error = Error::caused(ErrorKind::Io, context(), refused);
        let error = unread_alert(&mut engine, &socket, error, &context);
        assert_eq!(error.kind(), ErrorKind::Tls, "{}", error.chain());
    }
}

//! Makes the connectors of a process's clients, and keeps them from dial to dial.

use std::convert::Infallible;
use std::error::Error as _;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use socket2::Socket;

use crate::config::endpoint::{Target, TargetLabel};
use crate::connection::tls_connection::{TlsBuffers, TlsConnection};
use crate::dial::io::DialIo;
use crate::dial::pin::Pin;
use crate::dial::tls::handshake::shake_hands;
use crate::dial::tls::{Connector, TlsOptions};
use crate::error::{Error, ErrorKind};
use crate::sync::channel::{Receiver, bounded};
use crate::sync::threads::{JoinTimeout, Threads};
use crate::sync::wait::{Woken, wait};
use crate::sync::{self, panic};
use crate::time::after;

/// A connector that is being made, or has been made. Making one reads all roots of the system; with
/// OpenSSL it does so even if only the given roots are trusted.
struct Load {
    options: TlsOptions,
    /// Set before `done` disconnects, unless the thread could not be started.
    result: OnceLock<Result<Box<dyn Connector>, Error>>,
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
pub(in crate::dial) struct Connectors {
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

    /// Performs the TLS handshake over a non-blocking socket. `buffers` are for the connection.
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
                let connection = result?;
                self.check_pins(&connection, target)?;
                Ok(connection)
            }
        }
    }

    fn check_pins(&self, connection: &TlsConnection, target: &Target) -> Result<(), Error> {
        if self.pins.is_empty() {
            return Ok(());
        }
        let seen = connection.peer_certificate().and_then(|certificate| Pin::of(&certificate));
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
    fn connector(&self) -> Result<&dyn Connector, Error> {
        match self.result.get() {
            Some(Ok(connector)) => Ok(&**connector),
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
    const WORDINGS: [&str; 6] = [
        // OpenSSL.
        "certificate has expired",
        "certificate is not yet valid",
        // Security.framework.
        "certificate was expired",
        // SChannel.
        "not within its validity period",
        // rustls.
        "invalid peer certificate: certificate expired",
        "invalid peer certificate: certificate not valid yet",
    ];
    // The error's own text names the host, which may contain anything.
    let cause = error.source().filter(|_| error.kind() == ErrorKind::Tls).map(ToString::to_string);
    cause.is_some_and(|text| WORDINGS.iter().any(|wording| text.contains(wording)))
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::dial::io::testing::with_io;
    use crate::sync::threads::ThreadOptions;

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
            include_bytes!("../../testing/certificates/localhost.pem"),
            include_bytes!("../../testing/certificates/localhost.key"),
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
}

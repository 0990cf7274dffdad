//! An HTTP server for one scraper: it answers one request at a time, and closes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;

/// The longest head of a request.
const HEAD_MAX: u64 = 8 << 10;

/// The time for a whole request and its answer, however slowly they go.
const BUDGET: Duration = Duration::from_secs(2);

/// The pause after an `accept` that failed: no descriptor may be free for a while.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A server that runs until it is stopped.
pub(crate) struct Scrapes {
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// Serves the metrics on a thread of its own.
pub(crate) fn serve(listener: TcpListener, metrics: PrometheusHandle) -> io::Result<Scrapes> {
    let address = listener.local_addr()?;
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let thread = std::thread::spawn(move || {
        for stream in listener.incoming() {
            if over.load(Ordering::Relaxed) {
                return;
            }
            match stream {
                // Whoever asks badly or goes away has no answer.
                Ok(stream) => drop(answer(&stream, &metrics)),
                Err(_) => std::thread::sleep(ACCEPT_PAUSE),
            }
        }
    });
    Ok(Scrapes { address, is_over, thread })
}

impl Scrapes {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn stop(self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Ends the `accept` that the thread is in.
        if TcpStream::connect(self.address).is_ok() {
            let _ = self.thread.join();
        }
    }
}

/// A socket each of whose reads and writes may take what is left until a deadline.
struct Timed<'a> {
    stream: &'a TcpStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(into)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn answer(stream: &TcpStream, metrics: &PrometheusHandle) -> io::Result<()> {
    let mut stream = Timed { stream, deadline: Instant::now() + BUDGET };
    let mut head = BufReader::new((&mut stream).take(HEAD_MAX)).lines();
    let request = head.next().transpose()?.unwrap_or_default();
    // All of it is read: closing a socket with bytes unread would reset the answer.
    for field in head {
        if field?.is_empty() {
            break;
        }
    }
    let (status, body) = match request.split(' ').collect::<Vec<_>>()[..] {
        ["GET", "/metrics", _] => ("200 OK", metrics.render()),
        _ => ("404 Not Found", "the metrics are at /metrics\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())
}

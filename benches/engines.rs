//! Measures the two TLS engines beside a bare socket that reads through OpenSSL, over TLS 1.3 with
//! AES-128-GCM: messages a second, CPU, round trips and handshakes.
//!
//! `cargo bench --features rustls --bench engines` prints the table, with ` -- PART` behind it a
//! part: `flood`, `round trip` or `handshake`.
//!
//! The server is a process of its own, which has rustls: OpenSSL would encrypt more slowly than the
//! clients decrypt. In each row all take turns in short rounds, and a ratio is the median of the
//! ratios of the rounds. A flood has the server on another CPU than the client; what waits for
//! answers has both on one.

mod cpu;
mod process;
mod server;

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use tautline::testing::TestServer;
use tautline::{Builder, Client, Connection, Disconnect, Handler, MessageRef, TlsEngine};

use cpu::cpu;
use process::{ServerProcess, stay_on};
use server::{listen, read_request};

/// The environment variable of the server's process.
const SERVER: &str = "TAUTLINE_ENGINES_SERVER";

const ROUNDS: usize = 15;

/// The round trips of a round, and the size of their messages.
const TRIPS: usize = 2000;
const TRIP: usize = 128;

/// The handshakes of a round.
const HANDSHAKES: usize = 40;

/// The size of the buffers of the bare socket, above and below TLS.
const BARE_BUFFER: usize = 128 * 1024;

/// The most that the server sends at once.
const AT_ONCE: usize = 64 * 1024;

const SOON: Duration = Duration::from_secs(30);

fn main() {
    if std::env::var_os(SERVER).is_some() {
        return serve();
    }
    let word = std::env::args().skip(1).find(|argument| argument != "--bench").unwrap_or_default();
    let asks_for = |part: &str| part.starts_with(&word);
    stay_on(&[0]);
    let far = ServerProcess::start(SERVER);
    stay_on(&[1]);
    let near = ServerProcess::start(SERVER);
    println!("| | rustls | native-tls | bare OpenSSL | rustls / native-tls | rustls / bare |");
    println!("|---|---:|---:|---:|---:|---:|");
    for (name, count, size, in_records) in [
        ("200 bytes, a record each", 400_000, 200, true),
        ("200 bytes, records of 16 KiB", 2_000_000, 200, false),
        ("2 KiB, a record each", 200_000, 2048, true),
        ("64 KiB", 10_000, 65_536, false),
    ] {
        if !asks_for("flood") {
            break;
        }
        let flood = Flood { count, size, in_records };
        let rows = rounds(|client| flood.measure(&far.address, client));
        print(&format!("{name}: messages per second, thousands"), &rows, |row| row.0 / 1e3);
        print(&format!("{name}: CPU per message, ns"), &rows, |row| row.1);
    }
    if asks_for("round trip") {
        let rows = rounds(|client| round_trips(&near.address, client));
        print("128-byte round trip, median, µs", &rows, |row| *row);
    }
    if !asks_for("handshake") {
        return;
    }
    // These are of the engines alone, since a client starts threads too.
    let mut figures: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        let round = handshakes(&near.address);
        figures.iter_mut().zip(round).for_each(|(figures, figure)| figures.push(figure));
    }
    let [tcp, openssl, full, resumed] = figures.map(median);
    println!(
        "\nCPU of a TCP connection: {tcp:.1} µs; with a handshake of OpenSSL {openssl:.1} µs, of \
         rustls {full:.1} µs, of rustls resumed {resumed:.1} µs"
    );
}

/// A client that is measured.
#[derive(Clone, Copy)]
enum Measured {
    Tautline(TlsEngine),
    /// A bare socket with OpenSSL.
    Bare,
}

/// Returns what each of the three has measured, round by round.
fn rounds<T>(mut measure: impl FnMut(Measured) -> T) -> Vec<[T; 3]> {
    // What the first round pays for, such as files that are read, is not counted.
    let mut round = || {
        [
            measure(Measured::Tautline(TlsEngine::Rustls)),
            measure(Measured::Tautline(TlsEngine::NativeTls)),
            measure(Measured::Bare),
        ]
    };
    round();
    (0..ROUNDS).map(|_| round()).collect()
}

fn print<T>(title: &str, rows: &[[T; 3]], figure: impl Fn(&T) -> f64) {
    let column = |place: usize| median(rows.iter().map(|row| figure(&row[place])).collect());
    let ratio = |other: usize| {
        median(rows.iter().map(|row| figure(&row[0]) / figure(&row[other])).collect())
    };
    println!(
        "| {title} | {:.1} | {:.1} | {:.1} | {:.2} | {:.2} |",
        column(0),
        column(1),
        column(2),
        ratio(1),
        ratio(2)
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn builder(address: &str, path: &str, engine: TlsEngine) -> Builder {
    let port = address.rsplit(':').next().expect("an address has a port");
    Client::builder(format!("wss://localhost:{port}{path}"))
        .tls_root(TestServer::root_pem())
        .tls_only_given_roots()
        .tls_engine(engine)
        .max_attempts(1)
}

/// Messages as fast as they come.
struct Flood {
    count: usize,
    size: usize,
    in_records: bool,
}

impl Flood {
    /// Returns the messages per second, and the CPU that each took in nanoseconds. Both count from
    /// the opening on.
    fn measure(&self, address: &str, client: Measured) -> (f64, f64) {
        let path = format!("/flood/{}/{}/{}", self.count, self.size, u8::from(self.in_records));
        let (took, used) = match client {
            Measured::Tautline(engine) => {
                let (tell, told) = channel();
                let handler = Counts { left: self.count, began: None, tell };
                let client = builder(address, &path, engine).start_with(handler);
                let client = client.expect("it starts");
                let told = told.recv_timeout(SOON).expect("the server sends them all");
                assert!(client.stop(SOON).is_clean());
                told
            }
            Measured::Bare => {
                let mut stream = bare(address, &path);
                let began = (Instant::now(), cpu());
                count_frames(&mut stream, self.count).expect("the server sends them all");
                (began.0.elapsed(), cpu() - began.1)
            }
        };
        let count = self.count as f64;
        (count / took.as_secs_f64(), used.as_secs_f64() * 1e9 / count)
    }
}

/// Counts messages, and tells when they are all there.
struct Counts {
    left: usize,
    began: Option<(Instant, Duration)>,
    tell: Sender<(Duration, Duration)>,
}

impl Handler for Counts {
    fn opened(&mut self, _: &mut Connection<'_>) {
        self.began = Some((Instant::now(), cpu()));
    }

    fn message(&mut self, _: &mut Connection<'_>, message: MessageRef<'_>) {
        assert!(message.text().is_some());
        self.left -= 1;
        if let (0, Some((began, used))) = (self.left, self.began) {
            self.tell.send((began.elapsed(), cpu() - used)).expect("the bench waits");
        }
    }

    fn disconnected(&mut self, end: &Disconnect) {
        assert_eq!(self.left, 0, "{}", end.error);
    }
}

/// Returns the median of round trips, in microseconds.
fn round_trips(address: &str, client: Measured) -> f64 {
    let payload = "x".repeat(TRIP);
    match client {
        Measured::Tautline(engine) => {
            let (tell, told) = channel();
            let handler = Trips { payload, sent: Instant::now(), times: Vec::new(), tell };
            let client = builder(address, "/echo", engine).start_with(handler).expect("it starts");
            let times = told.recv_timeout(SOON).expect("the server answers");
            assert!(client.stop(SOON).is_clean());
            median(times)
        }
        Measured::Bare => {
            let mut stream = bare(address, "/echo");
            let frame = masked(payload.as_bytes());
            let times = (0..TRIPS).map(|_| {
                let sent = Instant::now();
                stream.write_all(&frame).expect("the server reads");
                count_frames(&mut stream, 1).expect("the server answers");
                sent.elapsed().as_secs_f64() * 1e6
            });
            median(times.collect())
        }
    }
}

/// Sends the next message when the last has come back.
struct Trips {
    payload: String,
    sent: Instant,
    times: Vec<f64>,
    tell: Sender<Vec<f64>>,
}

impl Trips {
    fn send(&mut self, connection: &mut Connection<'_>) {
        self.sent = Instant::now();
        connection.send_text(&self.payload).expect("it is open");
    }
}

impl Handler for Trips {
    fn opened(&mut self, connection: &mut Connection<'_>) {
        self.send(connection);
    }

    fn message(&mut self, connection: &mut Connection<'_>, _: MessageRef<'_>) {
        self.times.push(self.sent.elapsed().as_secs_f64() * 1e6);
        match self.times.len() {
            TRIPS => self.tell.send(std::mem::take(&mut self.times)).expect("the bench waits"),
            _ => self.send(connection),
        }
    }
}

/// Returns the CPU of TCP connections, in microseconds: without TLS, with a handshake of OpenSSL,
/// of rustls, and of rustls that resumes a session.
fn handshakes(address: &str) -> [f64; 4] {
    let connect = || TcpStream::connect(address).expect("the server listens");
    let connector = native_connector();
    let mut without_resumption = client_config();
    without_resumption.resumption = Resumption::disabled();
    let (full, resumed) = (Arc::new(without_resumption), Arc::new(client_config()));
    [
        cpu_of(|| drop(connect())),
        cpu_of(|| drop(connector.connect("localhost", connect()).expect("it shakes hands"))),
        cpu_of(|| drop(rustls_handshake(connect(), &full))),
        cpu_of(|| {
            let (mut connection, mut socket) = rustls_handshake(connect(), &resumed);
            // The server sends the tickets of the next handshake behind this one.
            while connection.tls13_tickets_received() == 0 {
                connection.read_tls(&mut socket).expect("the server sends tickets");
                connection.process_new_packets().expect("they are tickets");
            }
        }),
    ]
}

/// Returns the CPU that a call takes on average, in microseconds.
fn cpu_of(mut act: impl FnMut()) -> f64 {
    act();
    let before = cpu();
    (0..HANDSHAKES).for_each(|_| act());
    (cpu() - before).as_secs_f64() * 1e6 / HANDSHAKES as f64
}

fn rustls_handshake(
    mut socket: TcpStream,
    config: &Arc<ClientConfig>,
) -> (ClientConnection, TcpStream) {
    let name = ServerName::try_from("localhost").expect("it is a name");
    let mut connection =
        ClientConnection::new(Arc::clone(config), name).expect("the settings are good");
    while connection.is_handshaking() {
        connection.complete_io(&mut socket).expect("it shakes hands");
    }
    (connection, socket)
}

fn provider() -> Arc<CryptoProvider> {
    let suites = vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(CryptoProvider { cipher_suites: suites, ..ring::default_provider() })
}

fn client_config() -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(TestServer::root_pem()).expect("it is PEM");
    roots.add(root).expect("it is a certificate");
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the suite is of TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn native_connector() -> native_tls::TlsConnector {
    let root =
        native_tls::Certificate::from_pem(TestServer::root_pem()).expect("it is a certificate");
    native_tls::TlsConnector::builder()
        .disable_built_in_roots(true)
        .add_root_certificate(root)
        .build()
        .expect("the settings are good")
}

/// A socket that asks the kernel for much at once.
#[derive(Debug)]
struct Buffered(BufReader<TcpStream>);

impl Read for Buffered {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Buffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens a connection by hand.
fn bare(address: &str, path: &str) -> native_tls::TlsStream<Buffered> {
    let socket = TcpStream::connect(address).expect("the server listens");
    socket.set_nodelay(true).expect("it is connected");
    let socket = Buffered(BufReader::with_capacity(BARE_BUFFER, socket));
    let mut stream = native_connector().connect("localhost", socket).expect("it shakes hands");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("the server reads");
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("the server answers");
        head.extend(byte);
    }
    stream
}

/// Reads frames until there have been `count`, and looks at their lengths alone.
fn count_frames(stream: &mut impl Read, mut count: usize) -> io::Result<()> {
    let mut buffer = vec![0; BARE_BUFFER];
    let (mut start, mut end) = (0, 0);
    // The rest of the frame that is being skipped.
    let mut skip = 0;
    while count > 0 {
        if end - start < 10 {
            buffer.copy_within(start..end, 0);
            (start, end) = (0, end - start);
            end += match stream.read(&mut buffer[end..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => read,
            };
        }
        loop {
            let step = (end - start).min(skip);
            start += step;
            skip -= step;
            let header = match buffer[start..end] {
                _ if skip > 0 => break,
                [_, length @ ..=125, ..] => (2, usize::from(length)),
                [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
                [_, 127, a, b, c, d, e, f, g, h, ..] => {
                    (10, u64::from_be_bytes([a, b, c, d, e, f, g, h]) as usize)
                }
                _ => break,
            };
            start += header.0;
            skip = header.1;
            count -= 1;
        }
    }
    // The last payload: all of it has to come.
    skip -= skip.min(end - start);
    while skip > 0 {
        skip -= stream.read(&mut buffer[..skip.min(BARE_BUFFER)])?;
    }
    Ok(())
}

/// Returns a text frame with a mask of zeros, which changes nothing.
fn masked(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x81];
    match u8::try_from(payload.len()) {
        Ok(length @ ..=125) => frame.push(0x80 | length),
        _ => {
            frame.push(0x80 | 126);
            frame.extend((payload.len() as u16).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// Runs the server.
fn serve() {
    let chain = CertificateDer::pem_slice_iter(CERTIFICATE).map(|one| one.expect("it is PEM"));
    let key = PrivateKeyDer::from_pem_slice(KEY).expect("it is PEM");
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the suite is of TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(chain.collect(), key);
    let config = Arc::new(config.expect("they belong together"));
    for socket in listen().incoming() {
        let (Ok(socket), config) = (socket, Arc::clone(&config)) else { continue };
        // An error is the end of the client.
        thread::spawn(move || drop(converse(socket, config)));
    }
}

const CERTIFICATE: &[u8] = include_bytes!("../src/testing/certificates/localhost.pem");
const KEY: &[u8] = include_bytes!("../src/testing/certificates/localhost.key");

fn converse(socket: TcpStream, config: Arc<ServerConfig>) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
    connection.set_buffer_limit(None);
    let mut stream = BufReader::new(rustls::StreamOwned::new(connection, socket));
    let request = read_request(&mut stream)?;
    stream.get_mut().write_all(request.acceptance("").as_bytes())?;
    let words: Vec<&str> = request.path.split('/').collect();
    let ["", "flood", words @ ..] = words.as_slice() else { return echo(&mut stream) };
    let [count, size, in_records] = words else { return Ok(()) };
    let number = |word: &str| word.parse::<usize>().map_err(io::Error::other);
    let (count, size) = (number(count)?, number(size)?);
    let mut frame = vec![0x81];
    match u16::try_from(size) {
        Ok(size) if size > 125 => frame.extend([&[126][..], &size.to_be_bytes()].concat()),
        _ => frame.extend([&[127][..], &(size as u64).to_be_bytes()].concat()),
    }
    frame.resize(frame.len() + size, b'x');
    let per_batch = (AT_ONCE / frame.len()).clamp(1, count);
    let batch = frame.repeat(per_batch);
    let record = if *in_records == "1" { frame.len() } else { batch.len() };
    let rustls::StreamOwned { conn, sock } = stream.get_mut();
    let mut cipher = Vec::new();
    for _ in 0..count / per_batch {
        for plain in batch.chunks(record) {
            conn.writer().write_all(plain)?;
        }
        while conn.wants_write() {
            conn.write_tls(&mut cipher)?;
        }
        sock.write_all(&cipher)?;
        cipher.clear();
    }
    stream.get_mut().write_all(&frame.repeat(count % per_batch))?;
    // Until the client closes.
    while stream.read(&mut [0; 1024])? > 0 {}
    Ok(())
}

/// Returns every message of up to 64 KiB.
fn echo(
    stream: &mut BufReader<rustls::StreamOwned<ServerConnection, TcpStream>>,
) -> io::Result<()> {
    loop {
        let mut head = [0; 2];
        stream.read_exact(&mut head)?;
        let mut length = usize::from(head[1] & 0x7f);
        let mut answer = vec![head[0], head[1] & 0x7f];
        if length == 126 {
            let mut long = [0; 2];
            stream.read_exact(&mut long)?;
            length = usize::from(u16::from_be_bytes(long));
            answer.extend(long);
        }
        let mut mask = [0; 4];
        stream.read_exact(&mut mask)?;
        let start = answer.len();
        answer.resize(start + length, 0);
        stream.read_exact(&mut answer[start..])?;
        for (place, byte) in answer[start..].iter_mut().enumerate() {
            *byte ^= mask[place % 4];
        }
        stream.get_mut().write_all(&answer)?;
    }
}

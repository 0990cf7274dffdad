//! Measures what a session costs beside a client without one: messages a second, round trips of
//! calls, sends under rate limits, the opening script, and subscriptions under limits.
//!
//! `cargo bench --bench session` prints the table. `cargo bench --bench session -- PART` prints a
//! part: `flood`, `round trip`, `callers`, `send`, `opening`, `replay`, `call while` or `calls
//! under`.
//!
//! The server is a process of its own. In each row both sides take their turns in short rounds, and
//! the ratio is the median of the ratios of the rounds. Where the time of one message counts, the
//! server and the threads of the client share a CPU and the thread that calls has another.

mod process;
mod server;

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tautline::session::{
    CallContext, Class, Context, OpeningScript, Outgoing, Protocol, ReplyRef, Request,
    SessionBuilder, SessionEvent, SessionHandle, StepOutcome, SubscriptionRequest,
};
use tautline::{
    Builder, Client, Connection, Error, Event, Events, Handler, MessageRef, Push, RateLimit,
    SendKind, WhenFull,
};

use process::{ServerProcess, stay_on};
use server::{listen, read_request};

/// The environment variable of the server's process.
const SERVER: &str = "TAUTLINE_SESSION_SERVER";

/// The number of rounds of a row.
const ROUNDS: usize = 21;

/// The messages of a flood that come before the clock runs, and those that are timed.
const FLOOD_WARM_UP: u64 = 50_000;
const FLOOD: u64 = 1_000_000;

/// The round trips of a round.
const TRIPS: usize = 1000;

/// The threads that call at once, and the calls that each makes in a round.
const CALLERS: usize = 64;
const CALLS_EACH: usize = 50;

/// The sends of a round.
const SENDS: usize = 5000;

/// The time that the server of `/slow` takes for an answer: the distance to a server nearby.
const SLOW: Duration = Duration::from_millis(1);

/// The size of the requests.
const REQUEST: usize = 128;

/// The limits of subscriptions: one request within `SUBSCRIBE_EVERY`, of `BATCH` of the `TOPICS`.
const TOPICS: usize = 1000;
const BATCH: usize = 200;
const SUBSCRIBE_EVERY: Duration = Duration::from_millis(250);

/// The interval between calls while topics are asked for.
const CALL_EVERY: Duration = Duration::from_millis(2);

const SOON: Duration = Duration::from_secs(30);

/// The CPU of the server and of the client's threads.
const READING: usize = 0;

/// The CPU of the thread that calls or sends.
const CALLING: usize = 1;

fn main() {
    if std::env::var_os(SERVER).is_some() {
        return serve();
    }
    let word = std::env::args().skip(1).find(|argument| argument != "--bench").unwrap_or_default();
    let server = Server(ServerProcess::start(SERVER));
    println!("load before: {}", load());
    println!("{:<66} {:>9} {:>9} {:>6}  goal", "", "session", "without", "ratio");
    let run = |name: &str, row: fn(&Server)| {
        if name.starts_with(&word) {
            row(&server);
        }
    };
    run("flood", flood);
    run("round trip", round_trips);
    run("callers", callers);
    run("send", sends);
    run("opening", opening);
    run("replay", replay);
    run("call while", calls_while_subscribing);
    run("calls under", share);
    println!("load after: {}", load());
}

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort();
    times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e6
}

/// Lets both sides take turns. Returns their values of each round.
fn take_turns<T>(
    rounds: usize,
    mut session: impl FnMut() -> T,
    mut without: impl FnMut() -> T,
) -> Vec<(T, T)> {
    let mut round = |number| {
        // Neither is always the first.
        if number % 2 == 0 {
            let ours = session();
            (ours, without())
        } else {
            let theirs = without();
            (session(), theirs)
        }
    };
    (0..rounds).map(&mut round).collect()
}

/// Prints a row: the medians of both sides, and that of the ratios.
fn print_row(name: &str, goal: &str, rounds: impl IntoIterator<Item = (f64, f64)>) {
    let mut columns: [Vec<f64>; 3] = Default::default();
    for (ours, theirs) in rounds {
        let values = [ours, theirs, ours / theirs];
        columns.iter_mut().zip(values).for_each(|(column, value)| column.push(value));
    }
    let [ours, theirs, ratio] = columns.map(median);
    println!("{name:<66} {ours:>9.2} {theirs:>9.2} {ratio:>6.3}  {goal}");
}

fn compare(name: &str, goal: &str, session: impl FnMut() -> f64, without: impl FnMut() -> f64) {
    print_row(name, goal, take_turns(ROUNDS, session, without));
}

/// A protocol whose requests are echoed: data and replies are told by their first bytes.
#[derive(Default)]
struct Echoes {
    script: OpeningScript,
}

const ID: &[u8] = br#"{"id":"#;

impl Protocol for Echoes {
    fn opening(&self) -> OpeningScript {
        self.script.clone()
    }

    #[inline]
    fn classify<'m>(&self, message: MessageRef<'m>, _: &Context) -> Class<'m> {
        match message.bytes().strip_prefix(ID) {
            None => Class::Data,
            Some(rest) => Class::Reply(number(rest)),
        }
    }

    fn subscription_request(&self, request: &SubscriptionRequest, _: &Context) -> Outgoing {
        let topics: Vec<&str> = request.topics().collect();
        format!(r#"{{"id":{},"topics":{topics:?}}}"#, request.id()).into()
    }
}

/// Returns the number that the text begins with.
#[inline]
fn number(text: &[u8]) -> u64 {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| 10 * number + u64::from(digit - b'0'))
}

/// Returns a request that carries a number.
fn text(id: u64) -> String {
    let mut text = format!(r#"{{"id":{id},"op":"order.place","params":""#);
    text.extend(std::iter::repeat_n('x', REQUEST - 2 - text.len()));
    text + "\"}"
}

fn request() -> Request<impl FnOnce(&CallContext<'_>) -> Outgoing> {
    Request::new(|context| text(context.id()).into()).within(SOON)
}

struct Server(ServerProcess);

impl Server {
    fn builder(&self, path: &str) -> Builder {
        Client::builder(format!("ws://{}{path}", self.0.address)).ping_interval(None)
    }

    /// The threads of the client are on the CPU of the server.
    fn near(&self, path: &str) -> Builder {
        self.builder(path).on_thread_start(|_| stay_on(&[READING]))
    }
}

fn ignore(_: &mut Connection<'_>, _: MessageRef<'_>) {}

// ---- Floods ----

fn flood(server: &Server) {
    let builder = || server.builder("/flood").on_thread_start(|_| stay_on(&[CALLING]));
    let rounds = take_turns(
        ROUNDS,
        || pushed(|count| builder().session(Echoes::default()).start_with(count)),
        || pushed(|count| builder().start_with(count)),
    );
    print_flood("flood to a handler, millions a second", ">= 0.95", &rounds);

    stay_on(&[READING, CALLING]);
    let builder = || server.builder("/flood").when_full(WhenFull::Block);
    let rounds = take_turns(
        ROUNDS,
        || {
            let session = builder().session(Echoes::default()).start().expect("it starts");
            pulled(session.events())
        },
        || {
            let client = builder().start().expect("it starts");
            pulled(client.events())
        },
    );
    print_flood("flood to events(), millions a second", ">= 0.97", &rounds);
}

fn print_flood(name: &str, goal: &str, rounds: &[(Taken, Taken)]) {
    let of_both = |of: fn(Taken) -> f64| rounds.iter().map(move |(a, b)| (of(*a), of(*b)));
    print_row(name, goal, of_both(|taken| FLOOD as f64 / taken.wall / 1e6));
    print_row("  its CPU per message, ns", "", of_both(|taken| taken.cpu / FLOOD as f64 * 1e9));
}

/// The time that a flood took, and the CPU, in seconds.
#[derive(Clone, Copy)]
struct Taken {
    wall: f64,
    cpu: f64,
}

struct Since(Instant, Duration, ClockId);

impl Since {
    fn now(clock: ClockId) -> Self {
        Since(Instant::now(), cpu_time(clock), clock)
    }

    fn taken(&self) -> Taken {
        let Since(wall, cpu, clock) = self;
        let cpu = cpu_time(*clock) - *cpu;
        Taken { wall: wall.elapsed().as_secs_f64(), cpu: cpu.as_secs_f64() }
    }
}

fn cpu_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Counts messages on the reader thread.
struct Count {
    messages: u64,
    since: Since,
    tell: SyncSender<Taken>,
}

impl Handler for Count {
    #[inline]
    fn message(&mut self, connection: &mut Connection<'_>, _: MessageRef<'_>) {
        self.messages += 1;
        if self.messages == FLOOD_WARM_UP {
            self.since = Since::now(ClockId::ThreadCPUTime);
        } else if self.messages == FLOOD_WARM_UP + FLOOD {
            self.tell.send(self.since.taken()).expect("the bench waits");
            connection.stop();
        }
    }
}

fn pushed<C>(start: impl FnOnce(Count) -> Result<C, Error>) -> Taken {
    let (tell, told) = sync_channel(1);
    let since = Since::now(ClockId::ThreadCPUTime);
    let client = start(Count { messages: 0, since, tell }).expect("it starts");
    let taken = told.recv_timeout(SOON).expect("the flood comes");
    drop(client);
    taken
}

fn pulled(events: Events) -> Taken {
    let mut messages = 0;
    let mut since = Since::now(ClockId::ProcessCPUTime);
    for event in events {
        if let Event::Message(_) = event {
            messages += 1;
            if messages == FLOOD_WARM_UP {
                since = Since::now(ClockId::ProcessCPUTime);
            } else if messages == FLOOD_WARM_UP + FLOOD {
                break;
            }
        }
    }
    since.taken()
}

// ---- Round trips ----

fn round_trips(server: &Server) {
    let (tell, told) = channel();
    let plain = server.near("/echo").start_with(Trips {
        left: 0,
        began: Instant::now(),
        times: Vec::new(),
        tell,
    });
    let plain = plain.expect("it starts");
    plain.wait_open(SOON).expect("the server answers");
    let session =
        server.near("/echo").session(Echoes::default()).connect_with(ignore).expect("it is ready");
    compare(
        "round trip of call_with / echo in a handler, p50, us",
        "<= 1.05",
        || {
            let (tell, told) = channel();
            trip(session.handle().clone(), Vec::with_capacity(TRIPS), tell);
            percentile(&mut told.recv_timeout(SOON).expect("all are answered"), 50)
        },
        || {
            plain.send_text(START).expect("it is open");
            percentile(&mut told.recv_timeout(SOON).expect("all are answered"), 50)
        },
    );

    stay_on(&[CALLING]);
    let plain = server.near("/echo").connect().expect("the server answers");
    let mut events = plain.events();
    let _ = events.next();
    compare(
        "round trip of call / send and events(), p50, us",
        "<= 1.10",
        || {
            let mut times = timed(TRIPS, |_| {
                session.handle().call(request()).expect("it is answered");
            });
            percentile(&mut times, 50)
        },
        || {
            let mut times = timed(TRIPS, |n| {
                plain.send_text(&text(n as u64)).expect("it is open");
                assert!(matches!(events.next(), Some(Event::Message(_))));
            });
            percentile(&mut times, 50)
        },
    );
}

fn timed(count: usize, mut run: impl FnMut(usize)) -> Vec<Duration> {
    let one = |n| {
        let began = Instant::now();
        run(n);
        began.elapsed()
    };
    (0..count).map(one).collect()
}

/// The message that has the handler begin a round.
const START: &str = "start";

/// Sends one message after the other inside the handler.
struct Trips {
    left: usize,
    began: Instant,
    times: Vec<Duration>,
    tell: Sender<Vec<Duration>>,
}

impl Handler for Trips {
    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
        if message.bytes() == START.as_bytes() {
            self.left = TRIPS;
        } else {
            self.times.push(self.began.elapsed());
            self.left -= 1;
        }
        if self.left == 0 {
            self.tell.send(std::mem::take(&mut self.times)).expect("the bench waits");
            return;
        }
        self.began = Instant::now();
        connection.send_text(&text(1000 + self.left as u64)).expect("it is open");
    }
}

/// Makes one call after the other inside their closures.
fn trip(handle: SessionHandle, mut times: Vec<Duration>, tell: Sender<Vec<Duration>>) {
    let next = handle.clone();
    let began = Instant::now();
    let then = move |reply: Result<ReplyRef<'_>, _>| {
        assert!(reply.is_ok());
        times.push(began.elapsed());
        match times.len() {
            TRIPS => tell.send(times).expect("the bench waits"),
            _ => trip(next, times, tell),
        }
    };
    handle.call_with(request(), then).expect("the session is ready");
}

// ---- Many callers ----

fn callers(server: &Server) {
    stay_on(&[READING, CALLING]);
    let session = server
        .builder("/echo")
        .session(Echoes::default())
        .connect_with(ignore)
        .expect("it is ready");
    let (tells, tolds): (Vec<_>, Vec<_>) = (0..CALLERS).map(|_| sync_channel::<()>(1)).unzip();
    let notify = move |_: &mut Connection<'_>, message: MessageRef<'_>| {
        let id = message.bytes().strip_prefix(ID).map_or(0, number);
        tells[id as usize - 1000].send(()).expect("the caller waits");
    };
    let plain = server.builder("/echo").start_with(notify).expect("it starts");
    plain.wait_open(SOON).expect("the server answers");
    let mut tolds: Vec<Receiver<()>> = tolds;
    compare(
        "callers: 64 threads at once / send and a channel, 1,000 a second",
        ">= 0.9",
        || {
            at_once([(); CALLERS].iter_mut(), |_, ()| {
                session.handle().call(request()).expect("it is answered");
            })
        },
        || {
            at_once(tolds.iter_mut(), |number, told| {
                plain.send_text(&text(1000 + number as u64)).expect("it is open");
                told.recv_timeout(SOON).expect("it is answered");
            })
        },
    );
}

/// Returns how many thousand times a second `run` was called, by a thread for each of `states`.
fn at_once<'s, T: Send + 's>(
    states: impl Iterator<Item = &'s mut T>,
    run: impl Fn(usize, &mut T) + Sync,
) -> f64 {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for (number, state) in states.enumerate() {
            let run = &run;
            scope.spawn(move || (0..CALLS_EACH).for_each(|_| run(number, state)));
        }
    });
    (CALLERS * CALLS_EACH) as f64 / began.elapsed().as_secs_f64() / 1e3
}

// ---- Sends ----

fn sends(server: &Server) {
    stay_on(&[CALLING]);
    let limit = RateLimit::per_connection()
        .window(100_000, Duration::from_millis(100))
        .window(20_000, Duration::from_millis(10))
        .margin(Duration::ZERO);
    let open = |builder: Builder| {
        let client = builder.start_with(ignore).expect("it starts");
        client.wait_open(SOON).expect("the server answers");
        client
    };
    let limited = open(server.near("/discard").send_limit(limit));
    let plain = open(server.near("/discard"));
    let order = text(1000);
    let send = |client: &Client<Push>| {
        let began = Instant::now();
        client.send_text(&order).expect("it is open");
        began.elapsed()
    };
    let rounds = (0..ROUNDS).map(|_| {
        // One by one: the machine is as busy for both.
        let times = take_turns(SENDS, || send(&limited), || send(&plain));
        let (mut ours, mut theirs): (Vec<_>, Vec<_>) = times.into_iter().unzip();
        (percentile(&mut ours, 50) * 1e3, percentile(&mut theirs, 50) * 1e3)
    });
    let name = "send under two windows / without limits, p50, ns";
    print_row(name, "<= 1.02, <= 80 ns more", rounds);
}

// ---- The opening script ----

fn opening(server: &Server) {
    stay_on(&[READING, CALLING]);
    for (path, place) in [("/echo", "on loopback"), ("/slow", "answers take 1 ms")] {
        let ready = || ready_after(server, path);
        let name = format!("opening to ready, two requests, {place} / blocking client, us");
        compare(&name, "<= 1.1", ready, || blocking(server, path));
        compare("  / client with a reading and a writing thread, us", "", ready, || {
            two_threads(server, path)
        });
    }
}

/// Opens a session whose script makes two requests. Returns the time from the opening until it is
/// ready, in microseconds.
fn ready_after(server: &Server, path: &str) -> f64 {
    let script = ["login", "settings"].into_iter().zip(1..).fold(
        OpeningScript::new(),
        |script, (step, id)| {
            script.request(
                step,
                SOON,
                move |_| text(id).into(),
                move |message, _| match message.bytes().strip_prefix(ID).map(number) {
                    Some(answered) if answered == id => StepOutcome::Accepted,
                    _ => StepOutcome::Unrelated,
                },
            )
        },
    );
    let (tell, told) = channel();
    let session = server.builder(path).session(Echoes { script }).on_event(move |event| {
        if let SessionEvent::Ready { took, .. } = event {
            let _ = tell.send(*took);
        }
    });
    let session = session.connect_with(ignore).expect("it is ready");
    let took = told.recv_timeout(SOON).expect("it is ready");
    drop(session);
    took.as_secs_f64() * 1e6
}

/// A client by hand that makes two round trips on one thread.
fn blocking(server: &Server, path: &str) -> f64 {
    let (mut socket, mut reader) = bare(server, path);
    let began = Instant::now();
    for id in 1..=2 {
        socket.write_all(&frame(&text(id))).expect("it is open");
        assert!(read_frame(&mut reader).ends_with(b"\"}"));
    }
    began.elapsed().as_secs_f64() * 1e6
}

/// A client by hand with a thread that reads and one that writes, as every client has that reads
/// while it writes.
fn two_threads(server: &Server, path: &str) -> f64 {
    let (mut socket, mut reader) = bare(server, path);
    let (write, to_write) = sync_channel::<u64>(1);
    let writer = std::thread::spawn(move || {
        for id in to_write {
            socket.write_all(&frame(&text(id))).expect("it is open");
        }
    });
    let began = Instant::now();
    for id in 1..=2 {
        write.send(id).expect("the writer runs");
        assert!(read_frame(&mut reader).ends_with(b"\"}"));
    }
    let took = began.elapsed();
    drop(write);
    writer.join().expect("it ends with the channel");
    took.as_secs_f64() * 1e6
}

fn bare(server: &Server, path: &str) -> (TcpStream, BufReader<TcpStream>) {
    let mut socket = TcpStream::connect(&server.0.address).expect("the server listens");
    socket.set_nodelay(true).expect("it is connected");
    write!(socket, "GET {path} HTTP/1.1\r\nSec-WebSocket-Key: x\r\n\r\n").expect("it is connected");
    let mut reader = BufReader::new(socket.try_clone().expect("there are descriptors"));
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        reader.read_exact(&mut byte).expect("the server answers");
        head.extend(byte);
    }
    (socket, reader)
}

/// Returns a masked frame, whose key of zeros changes nothing.
fn frame(text: &str) -> Vec<u8> {
    let size = (text.len() as u16).to_be_bytes();
    [&[0x81, 0x80 | 126, size[0], size[1], 0, 0, 0, 0], text.as_bytes()].concat()
}

/// Reads a short frame without a mask.
fn read_frame(reader: &mut impl Read) -> Vec<u8> {
    let mut head = [0; 4];
    reader.read_exact(&mut head).expect("the server answers");
    assert_eq!(head[1], 126);
    let mut payload = vec![0; usize::from(u16::from_be_bytes([head[2], head[3]]))];
    reader.read_exact(&mut payload).expect("the server answers");
    payload
}

// ---- Subscriptions and calls under limits ----

fn subscriptions_limit() -> RateLimit {
    let limit = RateLimit::per_connection().window(1, SUBSCRIBE_EVERY).margin(Duration::ZERO);
    limit.only(&[SendKind::Subscriptions])
}

fn replaying(server: &Server) -> SessionBuilder<Echoes> {
    let limited = server.near("/echo").send_limit(subscriptions_limit());
    let at_once = Duration::from_nanos(1);
    let limited = limited.retry_delay_min(at_once).retry_delay_max(at_once);
    limited.session(Echoes::default()).batch(BATCH, 64 << 10)
}

fn topics() -> impl Iterator<Item = String> {
    (0..TOPICS).map(|number| format!("instrument{number:05}@bookTop"))
}

/// The time that the limits ask for: the first request leaves at once.
fn limits_minimum() -> f64 {
    (SUBSCRIBE_EVERY * (TOPICS / BATCH - 1) as u32).as_secs_f64() * 1e3
}

fn replay(server: &Server) {
    let (tell, told) = channel();
    let replaying = replaying(server).on_event(move |event| {
        // The events come in this order.
        if let SessionEvent::Ready { .. } | SessionEvent::Subscribed(_) = event {
            let _ = tell.send(Instant::now());
        }
    });
    replaying.handle().subscribe(topics()).expect("there is no limit");
    let session = replaying.connect_with(ignore).expect("it is ready");
    let next = || told.recv_timeout(SOON).expect("all are answered");
    let took = || (next(), next());
    took();
    let rounds = (0..3).map(|_| {
        session.sender().reconnect().expect("it is open");
        let (ready, subscribed) = took();
        (subscribed.duration_since(ready).as_secs_f64() * 1e3, limits_minimum())
    });
    print_row("replay of 1,000 topics by 200 / minimum of the limits, ms", "<= 1.05", rounds);
}

fn calls_while_subscribing(server: &Server) {
    stay_on(&[CALLING]);
    let session = replaying(server).connect_with(ignore).expect("it is ready");
    let handle = session.handle();
    let calls = |until: &dyn Fn() -> bool| {
        let mut times = Vec::new();
        while !until() {
            let began = Instant::now();
            handle.call(request()).expect("it is answered");
            times.push(began.elapsed());
            std::thread::sleep(CALL_EVERY);
        }
        times
    };
    let (mut busy, mut idle) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        handle.subscribe(topics()).expect("there is no limit");
        busy.extend(calls(&|| handle.wait_subscribed(Duration::ZERO).is_ok()));
        handle.unsubscribe(topics());
        let until = || handle.subscriptions().is_empty();
        while !until() {
            std::thread::sleep(CALL_EVERY);
        }
        let end = Instant::now() + Duration::from_millis(limits_minimum() as u64);
        idle.extend(calls(&|| Instant::now() > end));
    }
    for (percent, goal) in [(50, ""), (99, "<= 1.2")] {
        let name = format!("call while 1,000 topics are asked for / idle, p{percent}, us");
        let both = (percentile(&mut busy, percent), percentile(&mut idle, percent));
        print_row(&name, goal, [both]);
    }
}

/// Four threads call as fast as a limit lets them.
fn share(server: &Server) {
    const COUNT: u32 = 50;
    const PER: Duration = Duration::from_millis(100);
    const WINDOWS: u32 = 20;
    stay_on(&[READING, CALLING]);
    let limit = RateLimit::per_connection().window(COUNT, PER).margin(Duration::from_millis(1));
    let session = server.builder("/echo").send_limit(limit).session(Echoes::default());
    let session = session.connect_with(ignore).expect("it is ready");
    let call = || session.handle().call(request()).expect("it is answered");
    // What a whole window lets through at once tells nothing.
    (0..COUNT).for_each(|_| drop(call()));
    let (began, next) = (Instant::now(), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < WINDOWS * COUNT {
                    call();
                }
            });
        }
    });
    let per_window = began.elapsed().div_duration_f64(PER * WINDOWS);
    let (made, allowed) = (f64::from(COUNT) / per_window, f64::from(COUNT));
    print_row("calls under 50 per 100 ms, in 100 ms / allowed", ">= 0.9", [(made, allowed)]);
}

// ---- The server ----

fn serve() {
    stay_on(&[READING]);
    for socket in listen().incoming().flatten() {
        // The thread ends with its connection. Errors do not matter.
        std::thread::spawn(move || serve_connection(socket).is_ok());
    }
}

fn serve_connection(mut socket: TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut reader = BufReader::new(socket.try_clone()?);
    let request = read_request(&mut reader)?;
    socket.write_all(request.acceptance("").as_bytes())?;
    match request.path.as_str() {
        "/flood" => {
            let mut message =
                br#"{"ch":"market.btcusdt.depth","ts":1764460800000,"bids":""#.to_vec();
            message.resize(198, b'x');
            let frame = [&[0x81, 126, 0, 200][..], &message, b"\"}"].concat().repeat(64);
            let mut ends = socket.try_clone()?;
            std::thread::spawn(move || while ends.write_all(&frame).is_ok() {});
            discard(reader)
        }
        "/discard" => discard(reader),
        path => {
            let delay = (path == "/slow").then_some(SLOW);
            let mut out = Vec::new();
            loop {
                let is_close = echo(&mut reader, &mut out)?;
                if let Some(delay) = delay {
                    std::thread::sleep(delay);
                }
                // What has come together goes back together.
                if reader.buffer().is_empty() || is_close {
                    socket.write_all(&out)?;
                    out.clear();
                }
                if is_close {
                    return Ok(());
                }
            }
        }
    }
}

fn discard(mut reader: impl Read) -> std::io::Result<()> {
    let mut bytes = vec![0; 256 * 1024];
    while reader.read(&mut bytes)? > 0 {}
    Ok(())
}

/// Reads a frame and adds it without its mask to `out`. Returns `true` if it is a close frame.
fn echo(reader: &mut impl Read, out: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut head = [0; 2];
    reader.read_exact(&mut head)?;
    out.extend([head[0], head[1] & 0x7f]);
    let mut size = usize::from(head[1] & 0x7f);
    if size == 126 {
        let mut long = [0; 2];
        reader.read_exact(&mut long)?;
        out.extend(long);
        size = usize::from(u16::from_be_bytes(long));
    }
    let mut key = [0; 4];
    reader.read_exact(&mut key)?;
    let start = out.len();
    out.resize(start + size, 0);
    reader.read_exact(&mut out[start..])?;
    out[start..].iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
    Ok(head[0] & 0x0f == 8)
}

//! Sessions: a data message costs no allocation, the heap does not grow with calls or with epochs,
//! and a topic and a pending call take no more bytes than they may.

use std::io;
use std::time::Duration;

use crossbeam_channel::bounded;
use tautline::session::{
    CallContext, Class, Context, Outgoing, Protocol, Request, Session, SessionBuilder,
    SubscriptionRequest,
};
use tautline::testing::{Peer, Received, TestServer};
use tautline::{Connection, MessageRef, Push};

use crate::{Count, SOON, client, count, count_in_batches, live_heap, queued};

/// The calls by which the heap may not grow.
const CALLS: u64 = 10_000;

/// The epochs by which the heap may not grow, each with as many topics.
const EPOCHS: u64 = 200;
const EPOCH_TOPICS: usize = 1000;

/// The bytes that calls, or epochs, may leave: a read buffer, which grows and shrinks with time, or
/// what the server of the test keeps of connections. A call or an epoch that left an entry in a
/// table would leave more than 100 bytes each time.
const GROWTH_BOUND: isize = 96 * 1024;

/// The topics, and the calls, that are weighed.
const WEIGHED: usize = 10_000;

/// The most bytes that an active topic takes, its name of 24 bytes included.
const TOPIC_BOUND: isize = 300;

/// The most bytes that a call takes of which no thread awaits the reply.
const CALL_BOUND: isize = 400;

/// A protocol of which data is told by its first bytes.
struct Words;

impl Protocol for Words {
    fn classify<'m>(&self, message: MessageRef<'m>, _: &Context) -> Class<'m> {
        let Some(id) = message.bytes().strip_prefix(b"reply ") else { return Class::Data };
        std::str::from_utf8(id)
            .ok()
            .and_then(|id| id.parse().ok())
            .map_or(Class::Data, Class::Reply)
    }

    fn subscription_request(&self, request: &SubscriptionRequest, _: &Context) -> Outgoing {
        format!("subscribe {}", request.id()).into()
    }
}

/// Reports the allocations that data messages cost which the server floods.
pub(crate) fn count_messages(server: &TestServer, report: impl Fn(usize, &str)) {
    let start = |handler: Count| client(server).session(Words).start_with(handler);
    let stop = |session: Session<Push>| session.stop(SOON);
    report(count(start, stop), "through a session to a handler");
    let session = queued(client(server)).session(Words).start().expect("the settings are good");
    let counted = count_in_batches(session.events(), || session.stats());
    assert!(session.stop(SOON).is_clean());
    report(counted, "through a session in batches");
}

pub(crate) fn run() {
    calls_leave_nothing_behind();
    epochs_leave_nothing_behind();
    a_topic_takes_few_bytes();
    a_pending_call_takes_few_bytes();
}

fn server(script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static) -> TestServer {
    TestServer::builder().discard_messages().start(move |peer| {
        peer.upgrade()?;
        script(peer)
    })
}

/// Answers the next request.
fn answer(peer: &mut Peer) -> io::Result<()> {
    if let Received::Text(text) = peer.receive_message()? {
        let id = text.split(' ').nth(1).unwrap_or_default();
        peer.send_text(&format!("reply {id}"))?;
    }
    Ok(())
}

fn answer_all(peer: &mut Peer) -> io::Result<()> {
    loop {
        answer(peer)?;
    }
}

fn session(server: &TestServer) -> SessionBuilder<Words> {
    client(server).session(Words).batch(WEIGHED, 1 << 20)
}

fn ready(builder: SessionBuilder<Words>) -> Session<Push> {
    builder.connect_with(|_: &mut Connection<'_>, _: MessageRef<'_>| {}).expect("it is ready")
}

fn request() -> Request<impl FnOnce(&CallContext<'_>) -> Outgoing> {
    Request::new(|context| format!("call {}", context.id()).into()).within(SOON)
}

fn topics(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("instrument{number:05}@bookTop"))
}

fn calls_leave_nothing_behind() {
    let server = server(answer_all);
    let session = ready(session(&server));
    let handle = session.handle();
    let run = |calls| {
        let (tell, told) = bounded(1);
        for _ in 0..calls / 2 {
            handle.call(request()).expect("it is answered");
            let tell = tell.clone();
            handle
                .call_with(request(), move |reply| {
                    tell.send(reply.is_ok()).expect("the test waits");
                })
                .expect("it leaves");
            assert_eq!(told.recv_timeout(SOON), Ok(true));
        }
        live_heap()
    };
    let before = run(CALLS / 10);
    let left = run(CALLS) - before;
    println!("{CALLS} calls leave {left} bytes");
    assert!(left <= GROWTH_BOUND);
    assert!(session.stop(SOON).is_clean());
}

fn epochs_leave_nothing_behind() {
    let (go, gone) = bounded(1);
    // Every connection ends once its topics are active; some wait to be looked at.
    let is_looked_at = |epoch| epoch == EPOCHS / 10 || epoch == EPOCHS / 10 + EPOCHS;
    let server = server(move |peer| {
        answer(peer)?;
        if is_looked_at(1 + peer.number() as u64) {
            gone.recv_timeout(SOON).map_err(io::Error::other)?;
        }
        peer.close(1000, "")?;
        peer.drain()
    });
    let at_once = Duration::from_nanos(1);
    let builder = client(&server).retry_delay_min(at_once).retry_delay_max(at_once);
    let builder = builder.session(Words).batch(EPOCH_TOPICS, 1 << 20);
    builder.handle().subscribe(topics(EPOCH_TOPICS)).expect("there is no limit");
    let session = ready(builder);
    let heap_at = |epoch| {
        loop {
            let subscribed = session.handle().wait_subscribed(SOON).expect("all are answered");
            if subscribed.epoch == epoch {
                assert_eq!(subscribed.active, EPOCH_TOPICS);
                return live_heap();
            }
            std::thread::yield_now();
        }
    };
    let before = heap_at(EPOCHS / 10);
    go.send(()).expect("the server waits");
    let left = heap_at(EPOCHS / 10 + EPOCHS) - before;
    go.send(()).expect("the server waits");
    println!("{EPOCHS} epochs of {EPOCH_TOPICS} topics leave {left} bytes");
    assert!(left <= GROWTH_BOUND);
    assert!(session.stop(SOON).is_clean());
}

fn a_topic_takes_few_bytes() {
    let server = server(answer_all);
    let session = ready(session(&server));
    let before = live_heap();
    session.handle().subscribe(topics(WEIGHED)).expect("there is no limit");
    let subscribed = session.handle().wait_subscribed(SOON).expect("all are answered");
    assert_eq!(subscribed.active, WEIGHED);
    // Its reply comes when the reader has put the long acknowledgement away.
    session.handle().call(request()).expect("it is answered");
    let each = (live_heap() - before) / WEIGHED as isize;
    println!("a topic takes {each} bytes");
    assert!(each <= TOPIC_BOUND);
    assert!(session.stop(SOON).is_clean());
}

fn a_pending_call_takes_few_bytes() {
    // It reads, and answers nothing.
    let server = server(Peer::drain);
    let session = ready(session(&server));
    let (tell, told) = bounded(WEIGHED);
    let before = live_heap();
    for _ in 0..WEIGHED {
        let tell = tell.clone();
        session
            .handle()
            .call_with(request(), move |reply| {
                tell.send(reply.is_err()).expect("the test waits");
            })
            .expect("it leaves");
    }
    let each = (live_heap() - before) / WEIGHED as isize;
    println!("a pending call takes {each} bytes");
    assert!(each <= CALL_BOUND);
    assert!(session.stop(SOON).is_clean());
    for _ in 0..WEIGHED {
        assert_eq!(told.recv_timeout(SOON), Ok(true));
    }
}

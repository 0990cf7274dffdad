//! Stops a client in each of its states, and prints how long that took.
//!
//! `cargo run --release --example stop_anywhere`

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use tautline::testing::{Peer, TestServer};
use tautline::{Builder, Client, Connection, Event, MessageRef, State, StopReport};

const SOON: Duration = Duration::from_secs(10);
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

fn main() {
    env_logger::init();
    println!(
        "close_timeout is {CLOSE_TIMEOUT:?}; a stop takes that long only if the peer does not \
         answer the close frame, and 200 ms at most for a lookup that hangs\n"
    );
    show("resolving, the lookup hangs", resolving);
    show("connecting, no answer", connecting);
    show("TLS handshake, the peer is silent", || stalled("wss://localhost"));
    show("upgrade, the peer is silent", || stalled("ws://127.0.0.1"));
    show("open, idle", idle);
    show("open, flooded with messages", flooded);
    show("open, the handler is busy", busy);
    show("open, a send is blocked", blocked);
    show("open, the peer never answers", unanswered);
    show("closing, the peer keeps TCP open", closing);
    show("backoff before a retry", backoff);
}

fn show(state: &str, stop: impl FnOnce() -> StopReport) {
    println!("{state:36} {}", stop());
}

/// Starts a server that runs `script` after the opening handshake, and returns the settings of a
/// client for it.
fn server(
    script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
) -> (TestServer, Builder) {
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        script(peer)
    });
    let builder = Client::builder(server.url()).close_timeout(CLOSE_TIMEOUT);
    (server, builder)
}

fn ignore(_: &mut Connection<'_>, _: MessageRef<'_>) {}

fn resolving() -> StopReport {
    let (begun, wait) = bounded(1);
    let (release, held) = bounded::<()>(0);
    let resolver = move |_: &str, _: u16| -> io::Result<Vec<SocketAddr>> {
        // The example waits for the first lookup only.
        let _ = begun.send(());
        let _ = held.recv();
        Err(io::Error::other("released"))
    };
    let client = Client::builder("ws://server.example/")
        .resolver(resolver)
        .start_with(ignore)
        .expect("it starts");
    wait.recv_timeout(SOON).expect("it resolves");
    let report = client.stop(SOON);
    drop(release);
    report
}

fn connecting() -> StopReport {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    socket2::SockRef::from(&listener).listen(0).expect("it listens");
    let address = listener.local_addr().expect("an address");
    // The queue of the listener has room for this connection and no other.
    let _filler = TcpStream::connect(address).expect("the queue has room");
    let client = Client::builder(format!("ws://{address}/")).start_with(ignore).expect("it starts");
    client.stop(SOON)
}

fn stalled(host: &str) -> StopReport {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let client = Client::builder(format!("{host}:{port}/")).start_with(ignore).expect("it starts");
    let _silent = listener.accept().expect("it dials");
    client.stop(SOON)
}

fn idle() -> StopReport {
    let (_server, builder) = server(|peer| peer.echo());
    builder.connect().expect("it opens").stop(SOON)
}

fn flooded() -> StopReport {
    let (_server, builder) = server(|peer| peer.flood(200));
    let (tell, told) = bounded(1);
    let client = builder.start_with(telling(tell)).expect("it starts");
    told.recv_timeout(SOON).expect("the flood comes");
    client.stop(SOON)
}

fn telling(tell: Sender<()>) -> impl tautline::Handler {
    move |_: &mut Connection<'_>, _: MessageRef<'_>| {
        // The channel is full after the first message. One is enough.
        let _ = tell.try_send(());
    }
}

fn busy() -> StopReport {
    let (_server, builder) = server(|peer| {
        peer.send_text("work")?;
        peer.drain()
    });
    let (tell, told) = bounded(1);
    let (release, held) = bounded::<()>(0);
    let handler = move |_: &mut Connection<'_>, _: MessageRef<'_>| {
        tell.send(()).expect("the example waits");
        // Returns when the example drops the sender.
        let _ = held.recv();
    };
    let client = builder.start_with(handler).expect("it starts");
    told.recv_timeout(SOON).expect("it is called");
    let report = client.stop(Duration::from_millis(500));
    drop(release);
    report
}

fn blocked() -> StopReport {
    let (_server, builder) = server(|peer| peer.stall());
    let client = builder.send_timeout(Duration::from_secs(3600)).connect().expect("it opens");
    std::thread::scope(|scope| {
        let sender = client.sender();
        let (tell, told) = bounded(1000);
        scope.spawn(move || {
            let large = vec![0; 1 << 20];
            while sender.send_binary(&large).is_ok() {
                tell.send(()).expect("the example waits");
            }
        });
        // The send is blocked once none has returned for a while.
        while told.recv_timeout(Duration::from_millis(200)).is_ok() {}
        client.stop(SOON)
    })
}

fn backoff() -> StopReport {
    let server = TestServer::start(|_| Ok(()));
    let hour = Duration::from_secs(3600);
    let client = Client::builder(server.url())
        .retry_delay_min(hour)
        .retry_delay_max(hour)
        .start()
        .expect("it starts");
    assert!(matches!(client.events().next(), Some(Event::DialFailed(_))));
    client.stop(SOON)
}

fn unanswered() -> StopReport {
    let (_server, builder) = server(|peer| peer.drain());
    builder.connect().expect("it opens").stop(SOON)
}

fn closing() -> StopReport {
    let (_server, builder) = server(|peer| {
        peer.close(1001, "going away")?;
        peer.stall()
    });
    // The close frames are exchanged, and the client waits for the server to close TCP.
    let client = builder.close_timeout(SOON).start_with(ignore).expect("it starts");
    while client.state() != State::Closing {
        std::thread::yield_now();
    }
    // The budget of the stop is far below `close_timeout`, and cuts that wait short.
    client.stop(Duration::from_millis(100))
}

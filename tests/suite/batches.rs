//! The end of a batch, which the handler is told of.

use std::sync::Arc;

use crossbeam_channel::{Sender, unbounded};
use parking_lot::Mutex;
use tautline::testing::{Peer, Received, TestServer};
use tautline::{Connection, Disconnect, ErrorKind, Handler, MessageRef};

use crate::support::{MS, SOON, builder, plain_and_tls};

/// A handler that writes down its calls, and does in `batch_end` what it is told to.
struct Notes<F> {
    calls: Arc<Mutex<String>>,
    act: F,
    done: Sender<String>,
}

impl<F: FnMut(&mut Connection<'_>) + Send + 'static> Handler for Notes<F> {
    fn message(&mut self, _: &mut Connection<'_>, message: MessageRef<'_>) {
        self.calls.lock().push_str(message.text().unwrap_or("?"));
    }

    fn batch_end(&mut self, connection: &mut Connection<'_>) {
        self.calls.lock().push_str(". ");
        (self.act)(connection);
    }

    fn disconnected(&mut self, _: &Disconnect) {
        self.calls.lock().push('!');
        // The test may wait for the first end alone.
        self.done.send(self.calls.lock().clone()).ok();
    }
}

/// Returns the calls up to the first end of a connection.
fn calls(
    server: &TestServer,
    act: impl FnMut(&mut Connection<'_>) + Send + 'static,
) -> (String, ErrorKind) {
    let (done, ends) = unbounded();
    let notes = Notes { calls: Arc::default(), act, done };
    let client = builder(server).max_attempts(1).start_with(notes).expect("it starts");
    let told = ends.recv_timeout(SOON).expect("the connection ends");
    let reason = client.wait_closed(SOON).expect("there is a single dial");
    (told, reason.kind())
}

/// The frames of short text messages, for one write.
fn frames(texts: &[&str]) -> Vec<u8> {
    texts.iter().flat_map(|text| [&[0x81, text.len() as u8], text.as_bytes()].concat()).collect()
}

/// Pings, and reads on until the pong has come: everything that was written before has been read.
fn is_read(peer: &mut Peer) -> std::io::Result<()> {
    peer.ping(b"read?")?;
    while !matches!(peer.receive()?, Received::Pong(_) | Received::End) {}
    Ok(())
}

#[test]
fn the_end_of_a_batch_is_told_once_for_all_messages_of_a_read_and_never_without_one() {
    plain_and_tls(|server| {
        let server = server().start(|peer| {
            peer.upgrade()?;
            is_read(peer)?;
            peer.write(&frames(&["a", "b", "c"]))?;
            is_read(peer)?;
            // Half a message is none, and a message that comes in two pieces is one.
            peer.write(&[0x81, 4, b'd'])?;
            peer.wait(20 * MS)?;
            peer.write(b"one")?;
            is_read(peer)?;
            // The last messages come with the close frame.
            peer.write(&[frames(&["e", "f"]), vec![0x88, 2, 0x03, 0xe9]].concat())?;
            peer.echo()
        });
        let (told, _) = calls(&server, |_| ());
        assert_eq!(told, "abc. done. ef. !");
    });
}

#[test]
fn a_batch_that_ends_in_a_violation_is_told_before_the_end() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        is_read(peer)?;
        peer.write(&[frames(&["a", "b"]), vec![0xff, 0]].concat())?;
        peer.echo()
    });
    assert_eq!(calls(&server, |_| ()), ("ab. !".to_owned(), ErrorKind::Protocol));
}

#[test]
fn after_a_stop_or_a_reconnect_nothing_more_is_delivered_and_no_end_of_a_batch_is_told() {
    /// Ends delivery in its second message, and says so if it is told of the end of a batch.
    struct EndsIt(fn(&mut Connection<'_>), Sender<&'static str>);
    impl Handler for EndsIt {
        fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
            if message.text() == Some("b") {
                (self.0)(connection);
            }
        }
        fn batch_end(&mut self, _: &mut Connection<'_>) {
            self.1.send("the end of a batch").expect("the test waits");
        }
        fn disconnected(&mut self, _: &Disconnect) {
            self.1.send("the end of the connection").ok();
        }
    }
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        is_read(peer)?;
        peer.write(&frames(&["a", "b", "c"]))?;
        peer.echo()
    });
    let ways: [fn(&mut Connection<'_>); 3] = [
        |connection| connection.stop(),
        |connection| connection.reconnect(),
        |connection| connection.sender().stopper().request_stop(),
    ];
    for end in ways {
        let (tell, told) = unbounded();
        let client = builder(&server).start_with(EndsIt(end, tell)).expect("it starts");
        let first = told.recv_timeout(SOON).expect("the connection ends");
        assert_eq!(first, "the end of the connection");
        assert!(client.stop(SOON).is_clean());
    }
    // A stop in `batch_end` is heeded before whatever comes next.
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        is_read(peer)?;
        peer.write(&frames(&["a", "b"]))?;
        peer.write(&frames(&["c"]).repeat(100))?;
        peer.echo()
    });
    let mut times = 0;
    let (told, _) = calls(&server, move |connection| {
        times += 1;
        assert_eq!(times, 1, "it has stopped");
        connection.stop();
    });
    assert!(told.starts_with("ab") && told.ends_with(". !"), "{told}");
}

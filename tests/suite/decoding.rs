//! Messages that are compressed inside their frames, and how they are decoded.

use std::io::Write;

use crossbeam_channel::bounded;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use tautline::testing::{Received, TestServer};
use tautline::{Connection, Decode, Disconnect, ErrorKind, Handler, MessageRef};

use crate::support::{SOON, builder, disconnected, message, opened, plain_and_tls, until};

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(content).and_then(|()| encoder.finish()).expect("memory takes it")
}

fn zlib(content: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(content).and_then(|()| encoder.finish()).expect("memory takes it")
}

fn deflate(content: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(content).and_then(|()| encoder.finish()).expect("memory takes it")
}

#[test]
fn binary_messages_are_decoded_and_text_is_delivered_as_it_is() {
    type Encode = fn(&[u8]) -> Vec<u8>;
    let formats: [(Decode, Encode); 3] =
        [(Decode::gzip(), gzip), (Decode::zlib(), zlib), (Decode::deflate(), deflate)];
    plain_and_tls(|server_builder| {
        for (decode, encode) in formats {
            let long = "grüße €".repeat(20_000);
            let sent = long.clone();
            let server = server_builder().start(move |peer| {
                peer.upgrade()?;
                peer.send_text("text")?;
                peer.send_binary(&encode(b"binary"))?;
                peer.send_binary(&encode(b""))?;
                // In fragments, with a ping between them.
                let payload = encode(sent.as_bytes());
                let (first, second) = payload.split_at(payload.len() / 2);
                peer.send_frame(0x02, first)?;
                peer.ping(b"between")?;
                peer.send_frame(0x80, second)?;
                peer.send_text("last")?;
                peer.echo()
            });
            for is_text in [false, true] {
                let decode = if is_text { decode.as_text() } else { decode };
                let client = builder(&server).decode(decode).connect().expect("it opens");
                let mut events = client.events();
                opened(&mut events);
                let expected = [("text", true), ("binary", is_text), ("", is_text)];
                let expected = expected.into_iter().chain([(&long[..], is_text), ("last", true)]);
                let mut bytes = 0;
                for (content, is_text) in expected {
                    let message = message(&mut events);
                    assert_eq!(message.bytes(), content.as_bytes());
                    assert_eq!(message.text(), is_text.then_some(content));
                    bytes += content.len() as u64;
                }
                let stats = client.stats();
                assert_eq!((stats.messages_received, stats.bytes_received), (5, bytes));
            }
        }
    });
}

#[test]
fn a_handler_gets_what_was_decoded() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_binary(&[gzip(b"two "), gzip(b"members")].concat())?;
        peer.echo()
    });
    let (tell, told) = bounded(1);
    let handler = move |_: &mut Connection<'_>, message: MessageRef<'_>| {
        tell.send(message.to_owned()).expect("the test waits");
    };
    let builder = builder(&server).decode(Decode::gzip().as_text());
    let client = builder.start_with(handler).expect("it starts");
    let message = told.recv_timeout(SOON).expect("it comes");
    assert_eq!((message.text(), message.epoch()), (Some("two members"), 1));
    assert!(client.stop(SOON).is_clean());
}

/// Keeps what it is told.
struct Keeps {
    messages: Vec<String>,
    tell: crossbeam_channel::Sender<(Vec<String>, Disconnect)>,
}

impl Handler for Keeps {
    fn message(&mut self, _: &mut Connection<'_>, message: MessageRef<'_>) {
        self.messages.push(message.text().unwrap_or("(binary)").to_owned());
    }

    fn disconnected(&mut self, disconnect: &Disconnect) {
        let messages = std::mem::take(&mut self.messages);
        self.tell.send((messages, disconnect.clone())).expect("the test waits");
    }
}

#[test]
fn a_message_that_does_not_decode_ends_the_connection_with_1007_behind_those_before_it() {
    let good = gzip(br#"{"ch":"market.btcusdt.bbo"}"#);
    let mut corrupt = good.clone();
    corrupt[12] ^= 0xff;
    let bad = [
        b"no gzip".to_vec(),
        Vec::new(),
        good[..good.len() - 1].to_vec(),
        [&good[..], b"x"].concat(),
        corrupt,
        gzip(b"\xff"),
        zlib(b"another format"),
    ];
    plain_and_tls(|server_builder| {
        for payload in bad.clone() {
            let good = good.clone();
            let server = server_builder().start(move |peer| {
                peer.upgrade()?;
                peer.send_binary(&good)?;
                peer.send_text("text")?;
                peer.send_binary(&payload)?;
                peer.send_text("never delivered")?;
                peer.echo()
            });
            let (tell, told) = bounded(10);
            let client = builder(&server)
                .decode(Decode::gzip().as_text())
                .close_timeout(SOON / 100)
                .start_with(Keeps { messages: Vec::new(), tell })
                .expect("it starts");
            // The client comes back, and meets the same again.
            for epoch in 1..=2 {
                let (messages, disconnect) = told.recv_timeout(SOON).expect("it ends");
                assert_eq!(messages, [r#"{"ch":"market.btcusdt.bbo"}"#, "text"]);
                assert_eq!((disconnect.epoch, disconnect.close.code), (epoch, 1007));
                let error = disconnect.error;
                assert!(error.kind() == ErrorKind::Undecodable && error.is_retryable(), "{error}");
            }
            until("the close frame comes", || server.closes().contains(&Some(1007)));
            assert!(client.stats().drops["undecodable"] >= 2);
            drop(told);
            drop(client);
        }
    });
}

#[test]
fn a_bomb_ends_the_connection_with_1009() {
    let bomb = gzip(&vec![0; 10 << 20]);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        peer.send_binary(&bomb)?;
        peer.echo()
    });
    let client = builder(&server)
        .decode(Decode::gzip())
        .max_message_size(100_000)
        .max_attempts(1)
        .start()
        .expect("it starts");
    let mut events = client.events();
    opened(&mut events);
    let disconnect = disconnected(&mut events);
    assert_eq!((disconnect.error.kind(), disconnect.close.code), (ErrorKind::TooBig, 1009));
    assert!(disconnect.error.to_string().contains("100000 bytes"), "{}", disconnect.error);
}

#[test]
fn what_was_decoded_is_what_closures_see() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_binary(&gzip(br#"{"ping":1492420473027}"#))?;
        let pong = Received::Text(r#"{"pong":1492420473027}"#.to_owned());
        assert_eq!(peer.receive_message()?, pong);
        peer.send_binary(&gzip(b"ponged"))?;
        peer.echo()
    });
    let client = builder(&server)
        .decode(Decode::gzip().as_text())
        .auto_respond(|message| {
            let rest = message.text()?.strip_prefix(r#"{"ping":"#)?;
            Some(format!(r#"{{"pong":{rest}"#).into())
        })
        .connect()
        .expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(message(&mut events).text(), Some("ponged"));
}

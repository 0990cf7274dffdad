//! The server that the examples and tests of the C interface run against.
//!
//! It prints the URL of a plain server and, below it, that of one with TLS. The path of a
//! connection chooses what it plays; `script` lists the paths. It ends when its standard input
//! does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use client::testing::{Peer, Received, Request, TestServer};

fn main() -> io::Result<()> {
    let runs = Arc::new(Runs::default());
    let (plain, tls) = (Arc::clone(&runs), runs);
    let plain = TestServer::builder().discard_messages().start(move |peer| script(peer, &plain));
    let tls = TestServer::builder().tls().discard_messages().start(move |peer| script(peer, &tls));
    println!("{}\n{}", plain.url(), tls.url());
    io::stdout().flush()?;
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    Ok(())
}

/// The runs of programs, by the query of their URLs: what happens only once in each.
#[derive(Default)]
struct Runs(Mutex<BTreeMap<String, Run>>);

#[derive(Default)]
struct Run {
    connections: usize,
    executed: BTreeSet<String>,
    duplicates: usize,
}

impl Runs {
    fn with<T>(&self, path: &str, act: impl FnOnce(&mut Run) -> T) -> T {
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        act(runs.entry(path.to_owned()).or_default())
    }
}

fn script(peer: &mut Peer, runs: &Runs) -> io::Result<()> {
    let request = peer.read_request()?;
    match request.path.split('?').next().unwrap_or_default() {
        // Answers the opening handshake with nothing, a refusal, or the end of the connection.
        "/silent" => return peer.stall(),
        "/hangup" => return Ok(()),
        "/forbidden" => return refuse(peer, "403 Forbidden", "", "banned"),
        "/busy" => return refuse(peer, "503 Service Unavailable", "Retry-After: 7\r\n", ""),
        _ => {}
    }
    let extra = "X-Server: test\r\nX-Empty:\r\n";
    peer.write(request.acceptance(extra).as_bytes())?;
    match request.path.split('?').next().unwrap_or_default() {
        "/feed" => feed(peer, runs.with(&request.path, Run::next_connection)),
        "/orders" => trade(peer, &request.path, runs),
        "/inspect" => inspect(peer, &request),
        "/burst" => burst(peer, &request),
        "/flood" => peer.flood(200),
        // Ends without a close frame.
        "/drop" => Ok(()),
        // Never reads; never answers a close frame; closes, and keeps TCP open.
        "/stall" => peer.stall(),
        "/drain" => peer.drain(),
        "/closing" => {
            peer.close(1001, "going away")?;
            peer.stall()
        }
        "/work" => {
            peer.send_text("work")?;
            peer.drain()
        }
        "/binary" => {
            peer.send_binary(&[0, 255, 0])?;
            peer.send_text("")?;
            peer.echo()
        }
        _ => peer.echo(),
    }
}

fn refuse(peer: &mut Peer, status: &str, headers: &str, body: &str) -> io::Result<()> {
    let len = body.len();
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\n{headers}\r\n{body}");
    peer.write(answer.as_bytes())?;
    peer.half_close()?;
    peer.drain()
}

impl Run {
    fn next_connection(&mut self) -> usize {
        self.connections += 1;
        self.connections
    }
}

/// The number of quotes on a connection.
const QUOTES: usize = 500;

/// Streams quotes once `subscribe` came. The first connection of a run is reset after half of them,
/// the others say `end` after all.
fn feed(peer: &mut Peer, connection: usize) -> io::Result<()> {
    while peer.receive_message()? != Received::Text("subscribe BTCUSDT".to_owned()) {}
    let count = if connection == 1 { QUOTES / 2 } else { QUOTES };
    for number in 1..=count {
        let (bid, ask) = (60_000 + number % 100, 60_001 + number % 100);
        peer.send_text(&format!(
            r#"{{"s":"BTCUSDT","n":{number},"b":"{bid}.10","a":"{ask}.20"}}"#
        ))?;
    }
    if connection == 1 {
        return peer.reset();
    }
    peer.send_text("end")?;
    peer.drain_and_close()
}

/// Executes orders, each by its number. On the first connection of a run the third is executed, and
/// the connection is reset before the reply.
fn trade(peer: &mut Peer, path: &str, runs: &Runs) -> io::Result<()> {
    let connection = runs.with(path, Run::next_connection);
    loop {
        let text = match peer.receive_message()? {
            Received::Text(text) => text,
            Received::Close(..) | Received::End => return peer.answer_close(),
            _ => continue,
        };
        let (what, number) = text.split_once(' ').unwrap_or((&text, ""));
        let number = number.to_owned();
        match what {
            "order" => {
                let executed = runs.with(path, |run| {
                    let is_new = run.executed.insert(number.clone());
                    run.duplicates += usize::from(!is_new);
                    run.executed.len()
                });
                if connection == 1 && executed == 3 {
                    return peer.reset();
                }
                peer.send_text(&format!("filled {number}"))?;
            }
            "status" => {
                let is_filled = runs.with(path, |run| run.executed.contains(&number));
                let status = if is_filled { "filled" } else { "unknown" };
                peer.send_text(&format!("{status} {number}"))?;
            }
            "count" => {
                let (count, duplicates) =
                    runs.with(path, |run| (run.executed.len(), run.duplicates));
                peer.send_text(&format!("count {count} {duplicates}"))?;
            }
            _ => peer.send_text("what")?,
        }
    }
}

/// Tells the client what it has asked for, then echoes.
fn inspect(peer: &mut Peer, request: &Request) -> io::Result<()> {
    let mut text = format!("path: {}", request.path);
    for (name, value) in &request.headers {
        text.push_str(&format!("\n{name}: {value}"));
    }
    peer.send_text(&text)?;
    peer.echo()
}

/// Sends as many messages as the query says, at once, then echoes.
fn burst(peer: &mut Peer, request: &Request) -> io::Result<()> {
    let count = request.path.split('=').nth(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut frames = Vec::new();
    for number in 0..count {
        let text = format!("{number:08}");
        frames.extend_from_slice(&[0x81, text.len() as u8]);
        frames.extend_from_slice(text.as_bytes());
    }
    peer.write(&frames)?;
    peer.echo()
}

/// The end of a script, for clients that close.
trait Closing {
    fn drain_and_close(&mut self) -> io::Result<()>;
    fn answer_close(&mut self) -> io::Result<()>;
}

impl Closing for Peer {
    /// Reads until the client closes, and answers that.
    fn drain_and_close(&mut self) -> io::Result<()> {
        loop {
            match self.receive()? {
                Received::Ping(payload) => self.pong(&payload)?,
                Received::Close(..) => return self.answer_close(),
                Received::End => return Ok(()),
                _ => {}
            }
        }
    }

    fn answer_close(&mut self) -> io::Result<()> {
        self.close(1000, "")
    }
}

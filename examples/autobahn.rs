//! The client's side of the Autobahn test suite: `autobahn URL AGENT` runs every case of the
//! fuzzing server at URL. Without arguments it rehearses with a server of its own.
//!
//! Each case is a connection of its own, on which every message is sent back as it came until the
//! server ends it, well or not.

use std::process::ExitCode;
use std::time::Duration;

use tautline::testing::TestServer;
use tautline::{Builder, Client, Connection, Deflate, Event, Handler, MessageRef, Payload};

/// What a case may take: some send a quarter of a gigabyte.
const CASE_WITHIN: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    env_logger::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [] => rehearse(),
        [url, agent] => run(url, agent),
        _ => {
            eprintln!("usage: autobahn [URL AGENT]");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("autobahn: {error}");
            ExitCode::from(1)
        }
    }
}

fn run(url: &str, agent: &str) -> Result<(), String> {
    let count = case_count(url)?;
    for case in 1..=count {
        // Compression is offered to every case; only those about it accept.
        let builder = connection(&format!("{url}/runCase?case={case}&agent={agent}"))
            .compress(Deflate::new());
        let client = builder.start_with(Echo).map_err(|error| error.chain())?;
        // A case may break the connection in any way: only that it ends matters here, the server
        // judges how.
        if client.wait_closed(CASE_WITHIN).is_none() {
            return Err(format!("case {case} of {count} took longer than {CASE_WITHIN:?}"));
        }
    }
    let reports = connection(&format!("{url}/updateReports?agent={agent}"))
        .start()
        .map_err(|error| error.chain())?;
    reports.events().for_each(drop);
    Ok(())
}

/// A case such as the suite's, from a server in this process.
fn rehearse() -> Result<(), String> {
    const TEXT: &str = "κόσμε";
    const BYTES: &[u8] = &[0, 254, 255];
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text(TEXT)?;
        peer.send_binary(BYTES)?;
        for _ in 0..2 {
            peer.receive_message()?;
        }
        peer.close(1000, "")?;
        peer.drain()
    });
    let client = connection(&server.url()).start_with(Echo).map_err(|error| error.chain())?;
    client.wait_closed(CASE_WITHIN).ok_or("the rehearsal took too long")?;
    if server.messages() != [TEXT.as_bytes(), BYTES] {
        return Err("the server did not get back what it had sent".to_owned());
    }
    println!(
        "rehearsed: 2 messages came back as they were sent; `autobahn URL AGENT` runs the suite"
    );
    Ok(())
}

fn connection(url: &str) -> Builder {
    Client::builder(url).max_attempts(1).send_timeout(Duration::from_secs(60))
}

/// Anything but a number is an error: a run of no cases would look like one in which all of them
/// passed.
fn case_count(url: &str) -> Result<usize, String> {
    let client =
        connection(&format!("{url}/getCaseCount")).connect().map_err(|error| error.chain())?;
    let answer = client.events().find_map(|event| match event {
        Event::Message(message) => Some(message),
        _ => None,
    });
    let answer = answer.ok_or("the server ended the connection without a count of its cases")?;
    let text = answer.text().ok_or("the server gave its count of cases in a binary message")?;
    text.trim().parse().map_err(|error| format!("the server's count of cases is {text:?}: {error}"))
}

/// Sends everything back.
struct Echo;

impl Handler for Echo {
    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
        let result = match message.payload() {
            Payload::Text(text) => connection.send_text(text),
            Payload::Binary(bytes) => connection.send_binary(bytes),
        };
        if let Err(error) = result {
            log::info!("{error}: {}", error.reason().chain());
        }
    }
}

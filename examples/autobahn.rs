//! The client's side of the Autobahn test suite: `autobahn URL AGENT` runs every case of the
//! fuzzing server at URL. Without arguments it runs one case against a server of its own.
//!
//! Each case is a connection of its own, on which every message is echoed until the server ends it.

use std::process::ExitCode;
use std::time::Duration;

use tautline::testing::TestServer;
use tautline::{Builder, Client, Connection, Deflate, Event, Handler, MessageRef, Payload};

/// The limit for one case: some send a quarter of a gigabyte.
const CASE_TIMEOUT: Duration = Duration::from_secs(300);

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
        // Compression is offered in every case. Only the cases about compression accept it.
        let builder = connection(&format!("{url}/runCase?case={case}&agent={agent}"))
            .compress(Deflate::new());
        let client = builder.start_with(Echo).map_err(|error| error.chain())?;
        // A case may end the connection in any way, and the server judges how. Here it only has to
        // end.
        if client.wait_closed(CASE_TIMEOUT).is_none() {
            return Err(format!("case {case} of {count} took longer than {CASE_TIMEOUT:?}"));
        }
    }
    let reports = connection(&format!("{url}/updateReports?agent={agent}"))
        .start()
        .map_err(|error| error.chain())?;
    reports.events().for_each(drop);
    Ok(())
}

/// Runs one case like those of the suite, against a server in this process.
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
    client
        .wait_closed(CASE_TIMEOUT)
        .ok_or_else(|| format!("the rehearsal took longer than {CASE_TIMEOUT:?}"))?;
    if server.messages() != [TEXT.as_bytes(), BYTES] {
        return Err("the echoes differ from what the server sent".to_owned());
    }
    println!("rehearsal passed: 2 messages were echoed; `autobahn URL AGENT` runs the suite");
    Ok(())
}

fn connection(url: &str) -> Builder {
    Client::builder(url).max_attempts(1).send_timeout(Duration::from_secs(60))
}

/// Asks the server for the number of cases. Anything but a number is an error, because a run
/// without cases would look like one that passed.
fn case_count(url: &str) -> Result<usize, String> {
    let client =
        connection(&format!("{url}/getCaseCount")).connect().map_err(|error| error.chain())?;
    let answer = client.events().find_map(|event| match event {
        Event::Message(message) => Some(message),
        _ => None,
    });
    let answer = answer.ok_or("the server closed without sending the number of cases")?;
    let text = answer.text().ok_or("the server sent the number of cases in a binary message")?;
    text.trim()
        .parse()
        .map_err(|error| format!("the server sent {text:?} as the number of cases: {error}"))
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

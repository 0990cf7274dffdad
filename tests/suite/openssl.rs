//! `openssl s_server`, which can do to a TLS connection what a server cannot. It speaks no
//! WebSocket, so whoever drives it does that for it.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;

use crossbeam_channel::{Receiver, unbounded};
use tungstenite::handshake::derive_accept_key;

use crate::support::{SOON, skipped};

pub(crate) struct Server {
    process: Child,
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
    seen: Vec<u8>,
    /// Everything that it has printed.
    pub(crate) printed: Vec<u8>,
}

impl Server {
    /// For one connection, with the server's certificate for localhost unless the arguments name
    /// another. `None`, and said loudly, where there is no `openssl`.
    pub(crate) fn start(arguments: &[&str]) -> Option<(Server, u16)> {
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", "127.0.0.1:0", "-naccept", "1"]);
        command
            .args(["-cert", &certificate("localhost.pem"), "-key", &certificate("localhost.key")])
            .args(arguments);
        let process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(mut process) = process else {
            skipped("there is no openssl command");
            return None;
        };
        let input = process.stdin.take()?;
        let output = told_by(process.stdout.take()?);
        let mut server = Server { process, input, output, seen: Vec::new(), printed: Vec::new() };
        // `ACCEPT 127.0.0.1:40000`
        let told = server.read_until("ACCEPT ", "\n");
        let port = told.rsplit(':').next().and_then(|port| port.trim().parse().ok());
        Some((server, port.unwrap_or_else(|| panic!("no port in {told:?}"))))
    }

    /// What comes between the first `from` and the next `to`; all of it is used up.
    pub(crate) fn read_until(&mut self, from: &str, to: &str) -> String {
        loop {
            let find = |what: &str, start: usize| {
                let rest = &self.seen[start..];
                rest.windows(what.len())
                    .position(|window| window == what.as_bytes())
                    .map(|at| start + at)
            };
            if let Some(start) = find(from, 0).map(|at| at + from.len()) {
                if let Some(end) = find(to, start) {
                    let text = String::from_utf8_lossy(&self.seen[start..end]).into_owned();
                    self.seen.drain(..end + to.len());
                    return text;
                }
            }
            self.read_more();
        }
    }

    fn read_more(&mut self) {
        let bytes = self.output.recv_timeout(SOON);
        let bytes = bytes
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.seen)));
        self.seen.extend_from_slice(&bytes);
        self.printed.extend_from_slice(&bytes);
    }

    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.input.write_all(bytes).and_then(|()| self.input.flush()).expect("the server reads");
    }

    /// Answers the opening handshake.
    pub(crate) fn accept(&mut self) {
        let key = self.read_until("Sec-WebSocket-Key: ", "\r\n");
        self.read_until("Sec-WebSocket-Version", "\r\n\r\n");
        let accept = derive_accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        self.say(answer.as_bytes());
    }

    /// The next text of the client, among what the server prints of its own.
    pub(crate) fn expect_text(&mut self, text: &str) {
        loop {
            let found = (0..self.seen.len().saturating_sub(6)).rfind(|&at| {
                let frame = &self.seen[at..];
                let len = usize::from(frame[1] & 0x7f);
                let key = &frame[2..6];
                let payload =
                    frame[6..].iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key);
                frame[0] == 0x81 && len == text.len() && payload.take(len).eq(text.bytes())
            });
            if let Some(at) = found {
                self.seen.drain(..at);
                return;
            }
            self.read_more();
        }
    }
}

/// The file of a certificate or a key of the scripted server.
pub(crate) fn certificate(name: &str) -> String {
    format!("{}/src/testing/certificates/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// What a process prints, so that it can be waited for with a deadline.
fn told_by(mut output: ChildStdout) -> Receiver<Vec<u8>> {
    let (tell, told) = unbounded();
    // Ends with the process, whose output it reads.
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut bytes) {
            if tell.send(bytes[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    told
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

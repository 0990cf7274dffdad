//! A driver for `openssl s_server`, which can do to a TLS connection what the scripted server
//! cannot. It does not speak WebSocket, so the driver writes and reads the frames.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;

use crossbeam_channel::{Receiver, unbounded};
use tungstenite::handshake::derive_accept_key;

use crate::support::{SOON, skipped};

/// A running `openssl s_server`. Dropping it ends the process.
pub(crate) struct Server {
    process: Child,
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
    /// Output that no call has consumed yet.
    seen: Vec<u8>,
    /// Everything that the process has printed.
    pub(crate) printed: Vec<u8>,
}

impl Server {
    /// Starts a server for one connection, and returns its port beside it. It shows the certificate
    /// for localhost unless the arguments name another. Returns `None`, and reports the test as
    /// skipped, if there is no `openssl` command.
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
        let output = forwarded(process.stdout.take()?);
        let mut server = Server { process, input, output, seen: Vec::new(), printed: Vec::new() };
        // `ACCEPT 127.0.0.1:40000`
        let told = server.read_until("ACCEPT ", "\n");
        let port = told.rsplit(':').next().and_then(|port| port.trim().parse().ok());
        Some((server, port.unwrap_or_else(|| panic!("no port in {told:?}"))))
    }

    /// Waits for `from` and a later `to`, and returns the text between them. All of it is consumed.
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

    /// Has the server send these bytes, or carry out a command such as `K\n` (key update).
    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.input.write_all(bytes).and_then(|()| self.input.flush()).expect("the server reads");
    }

    /// Answers the opening handshake.
    pub(crate) fn accept(&mut self) {
        let key = self.read_until("Sec-WebSocket-Key: ", "\r\n");
        self.read_until("Sec-WebSocket-Version", "\r\n\r\n");
        let accept = derive_accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\n\
             Upgrade: websocket\r\n\
             Connection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        self.say(answer.as_bytes());
    }

    /// Waits until the client has sent this text. The server prints it among messages of its own.
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

/// Returns the path of a certificate or key of the scripted server.
pub(crate) fn certificate(name: &str) -> String {
    format!("{}/src/testing/certificates/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Forwards the output of a process to a channel, which can be read with a deadline.
fn forwarded(mut output: ChildStdout) -> Receiver<Vec<u8>> {
    let (tell, told) = unbounded();
    // The thread ends with the process whose output it reads.
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
        // The process may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

//! A client in a process of its own. It takes orders and reports events, one per line.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use tautline::testing::TestServer;
use tautline::{Client, Connection, DialFailure, Disconnect, Handler, MessageRef, Push, Stopped};

use crate::ROLE;

/// Long enough for anything on a busy machine. A test that passes never waits this long.
const SOON: Duration = Duration::from_secs(30);

pub(crate) const PING_INTERVAL: Duration = Duration::from_millis(50);

/// The `pong_timeout` for connections that have to be found dead.
pub(crate) const PONG_TIMEOUT: Duration = Duration::from_millis(400);

/// The `pong_timeout` for connections that have to survive on a busy machine.
const LONG_PONG_TIMEOUT: Duration = Duration::from_secs(2);

/// A child process with a client in it, as the test sees it.
pub(crate) struct Bot {
    child: Child,
    /// `None` after the last order.
    orders: Option<ChildStdin>,
    told: Receiver<String>,
}

impl Bot {
    pub(crate) fn spawn() -> Bot {
        Bot::spawn_by(&[], &[])
    }

    /// Starts a server instead of a client.
    pub(crate) fn spawn_server() -> Bot {
        Bot::spawn_as("server", &[], &[])
    }

    /// Starts a bot by way of another program: `wrapper` and its arguments come before the bot's
    /// own command.
    pub(crate) fn spawn_by(wrapper: &[&str], variables: &[(&str, &str)]) -> Bot {
        Bot::spawn_as("bot", wrapper, variables)
    }

    fn spawn_as(role: &str, wrapper: &[&str], variables: &[(&str, &str)]) -> Bot {
        let own = std::env::current_exe().expect("this program has a path");
        let mut words: Vec<&std::ffi::OsStr> = wrapper.iter().map(AsRef::as_ref).collect();
        words.push(own.as_os_str());
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env(ROLE, role).envs(variables.iter().copied());
        Bot::spawn_program(&mut command)
    }

    /// Starts another program, whose input and output are used in the same way.
    pub(crate) fn spawn_program(command: &mut Command) -> Bot {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let output = child.stdout.take().expect("it is piped");
        let orders = child.stdin.take().expect("it is piped");
        let (teller, told) = channel();
        // The thread ends with the process whose output it reads.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if teller.send(line).is_err() {
                    return;
                }
            }
        });
        Bot { child, orders: Some(orders), told }
    }

    pub(crate) fn order(&mut self, order: &str) {
        writeln!(self.orders.as_mut().expect("it is open until the end"), "{order}")
            .expect("the bot lives");
    }

    /// Has the bot dial a server.
    pub(crate) fn start(&mut self, url: &str) {
        self.order(&format!("start {url}"));
    }

    /// Has the bot dial a server with one of the named settings of [`builder`].
    pub(crate) fn start_with(&mut self, setting: &str, url: &str) {
        self.order(&format!("start_with {setting} {url}"));
    }

    /// Returns the next line that starts with `beginning`, and skips others.
    pub(crate) fn expect(&self, beginning: &str) -> String {
        let mut others = Vec::new();
        let deadline = Instant::now() + SOON;
        loop {
            match self.told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with(beginning) => return line,
                Ok(line) => others.push(line),
                Err(_) => {
                    panic!(
                        "{beginning:?} was expected, and what came ends with {:?}",
                        others.iter().rev().take(9)
                    )
                }
            }
        }
    }

    /// Returns the lines that no call has read yet.
    pub(crate) fn told_so_far(&self) -> Vec<String> {
        self.told.try_iter().collect()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let process = Pid::from_child(&self.child);
        kill_process(process, signal).expect("the bot lives");
    }

    /// Has the bot stop its client, which has to be clean, and exit.
    pub(crate) fn stop(mut self) {
        self.order("stop");
        let report = self.expect("report ");
        assert!(report.contains(": clean, "), "{report}");
        drop(self.orders.take());
        let status = self.child.wait().expect("it is a child of ours");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Bot {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a server in this process, which can be suspended alone.
pub(crate) fn run_server() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.echo()
    });
    println!("listening {}", server.url());
    // The server runs until its parent writes a line or is gone.
    let _ = std::io::stdin().lock().lines().next();
}

/// Carries out orders until standard input ends.
pub(crate) fn run() {
    let mut client: Option<Client<Push>> = None;
    let mut hoard: Vec<File> = Vec::new();
    let threads = getrlimit(Resource::Nproc);
    for order in std::io::stdin().lock().lines().map_while(Result::ok) {
        match order.split_once(' ').unwrap_or((order.as_str(), "")) {
            (what @ ("start" | "start_with"), rest) => {
                let (setting, url) = if what == "start" {
                    ("", rest)
                } else {
                    rest.split_once(' ').unwrap_or_default()
                };
                match builder(url, setting).start_with(Prints) {
                    Ok(started) => client = Some(started),
                    Err(error) => {
                        println!("not_started {} {}", error.kind().as_str(), error.chain())
                    }
                }
            }
            // Opens all descriptors that are left.
            ("hoard", _) => {
                while let Ok(file) = File::open("/dev/null") {
                    hoard.push(file);
                }
                println!("hoarded {}", hoard.len());
            }
            // Closes this many of them, or all.
            ("release", count) => {
                hoard.truncate(count.parse().map_or(0, |count: usize| hoard.len() - count))
            }
            ("no_threads", _) => limit_threads(Rlimit { current: Some(1), ..threads }),
            ("threads", _) => limit_threads(threads),
            ("clock", _) => {
                let hours = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs() / 3600;
                println!("clock {hours}");
            }
            ("send", text) => {
                let sent = client.as_ref().map(|client| client.send_text(text));
                println!("sent {sent:?}");
            }
            ("stop", _) => {
                let Some(client) = client.take() else { continue };
                println!("report {}", client.stop(SOON));
            }
            _ => println!("no such order: {order}"),
        }
    }
}

fn limit_threads(limit: Rlimit) {
    match setrlimit(Resource::Nproc, limit) {
        Ok(()) => println!("limited"),
        Err(error) => println!("not limited: {error}"),
    }
}

fn builder(url: &str, setting: &str) -> tautline::Builder {
    let builder = Client::builder(url)
        .ping_interval(PING_INTERVAL)
        .pong_timeout(PONG_TIMEOUT)
        .connect_timeout(Duration::from_secs(1))
        .retry_delay_min(Duration::from_millis(20))
        .retry_delay_max(Duration::from_millis(100));
    match setting {
        "roots_of_the_system" => builder,
        "only_the_root_of_others" => builder.tls_root(OTHERS).tls_only_given_roots(),
        "old_tls" => builder.tls_root(TestServer::root_pem()).danger_allow_old_tls(),
        "long_pong_timeout" => {
            builder.tls_root(TestServer::root_pem()).pong_timeout(LONG_PONG_TIMEOUT)
        }
        "" => builder.tls_root(TestServer::root_pem()),
        _ => panic!("no such setting: {setting}"),
    }
}

/// A root certificate that has not signed the server's.
const OTHERS: &[u8] = include_bytes!("../../src/testing/certificates/stranger.pem");

/// Prints every event.
struct Prints;

impl Handler for Prints {
    fn opened(&mut self, connection: &mut Connection<'_>) {
        let opening = connection.opening();
        println!(
            "opened {} peer {} took {}",
            opening.epoch,
            opening.peer,
            opening.took.as_millis()
        );
    }

    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
        println!("message {} {}", connection.epoch(), message.text().unwrap_or_default());
    }

    fn disconnected(&mut self, disconnect: &Disconnect) {
        let kind = disconnect.error.kind().as_str();
        println!(
            "disconnected {kind} after {} {}",
            disconnect.lasted.as_millis(),
            disconnect.error.chain()
        );
    }

    fn dial_failed(&mut self, failure: &DialFailure) {
        println!("dial_failed {} {}", failure.error.kind().as_str(), failure.error.chain());
    }

    fn stopped(&mut self, stopped: &Stopped) {
        println!("stopped {}", stopped.reason.kind().as_str());
    }
}

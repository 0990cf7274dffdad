//! Processes without descriptors or threads, and calls interrupted by signals, over TLS. The
//! connection comes back when the shortage ends.

use tautline::testing::{Peer, TestServer};

use crate::bot::Bot;
use crate::trust::ROOTS;
use crate::{scenario, skip, succeeds};

pub(crate) fn run() {
    scenario("no descriptors while the connection is down", no_descriptors_later);
    scenario("no descriptors from the start", no_descriptors_at_first);
    scenario("no descriptor for the roots of the system", no_descriptor_for_the_roots);
    threads();
    interruptions();
}

pub(crate) fn echo() -> TestServer {
    TestServer::builder().tls().start(|peer: &mut Peer| {
        peer.upgrade()?;
        peer.echo()
    })
}

/// Starts a bot with a low limit of descriptors, so that it exhausts them quickly.
const FEW: [&str; 3] = ["sh", "-c", "ulimit -n 64; exec \"$0\""];

fn no_descriptors_later() {
    let server = echo();
    let mut bot = Bot::spawn_by(&FEW, &[]);
    bot.start(&server.url());
    bot.expect("opened 1");
    bot.order("hoard");
    bot.expect("hoarded");
    server.abort_all();
    bot.expect("disconnected");
    for _ in 0..3 {
        let failure = bot.expect("dial_failed");
        assert!(
            failure.contains("Too many open files"),
            "the error says what is missing: {failure}"
        );
    }
    bot.order("release");
    bot.expect("opened 2");
    bot.stop();
}

/// The first TLS connector is built while the process has no descriptor to read the system's roots
/// with, so it must not be kept.
fn no_descriptors_at_first() {
    let server = echo();
    let mut bot = Bot::spawn_by(&FEW, &[]);
    bot.order("hoard");
    bot.expect("hoarded");
    bot.start(&server.url());
    for _ in 0..3 {
        bot.expect("dial_failed");
    }
    bot.order("release");
    bot.expect("opened 1");
    bot.stop();
}

/// The dial gets as far as TLS, and no descriptor is left to read the system's roots, so no
/// certificate can be verified. That is not the certificate's fault: the client keeps dialing.
fn no_descriptor_for_the_roots() {
    // Two to wake the dial, and the socket. A lookup would need more, so the URL has an address.
    const FOR_A_DIAL: usize = 3;
    let server = echo();
    let mut bot = Bot::spawn_by(&FEW, &ROOTS);
    bot.order("hoard");
    bot.expect("hoarded");
    bot.order(&format!("release {FOR_A_DIAL}"));
    bot.start_with("roots_of_the_system", &server.url().replace("localhost", "127.0.0.1"));
    for _ in 0..3 {
        let failure = bot.expect("dial_failed tls");
        // OpenSSL only notices that it trusts nobody. rustls tells why.
        let words = ["certificate verify failed", "Too many open files"];
        assert!(words.iter().any(|words| failure.contains(words)), "{failure}");
    }
    bot.order("release");
    bot.expect("opened 1");
    bot.stop();
}

/// The limit on threads counts all threads of a user, and does not apply to root. So the bot runs
/// as a user without other processes.
fn threads() {
    const NAME: &str = "no threads";
    const NOBODY: [&str; 4] = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"];
    let own = std::env::current_exe().expect("this program has a path");
    let own = own.to_str().expect("a path in UTF-8");
    let is_root = rustix::process::getuid().is_root();
    if !is_root || !succeeds(NOBODY[0], &[&NOBODY[1..], &["test", "-x", own]].concat()) {
        return skip(NAME, "it needs root, setpriv, and a program that other users may run");
    }
    scenario(NAME, || {
        let server = echo();
        let mut bot = Bot::spawn_by(&NOBODY, &[]);
        bot.start(&server.url());
        bot.expect("opened 1");
        // Every dial of a host name needs a thread for its lookup.
        bot.order("no_threads");
        bot.expect("limited");
        server.abort_all();
        bot.expect("disconnected");
        for _ in 0..3 {
            let failure = bot.expect("dial_failed io");
            assert!(failure.contains("starting the thread taut-resolver"), "{failure}");
        }
        bot.order("threads");
        bot.expect("limited");
        bot.expect("opened 2");
        bot.stop();

        let mut bot = Bot::spawn_by(&NOBODY, &[]);
        bot.order("no_threads");
        bot.expect("limited");
        bot.start(&server.url());
        bot.expect("not_started io");
    });
}

/// Every third call that can block fails with EINTR, as it does after a signal whose handler does
/// not restart calls.
fn interruptions() {
    const NAME: &str = "interruptions";
    const INJECT: &str = "inject=recvfrom,sendto,poll,ppoll,connect:error=EINTR:when=2+3";
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", INJECT];
    if !succeeds(strace[0], &[&strace[1..], &["true"]].concat()) {
        return skip(NAME, "it needs strace, and the right to trace");
    }
    scenario(NAME, || {
        let server = echo();
        let mut bot = Bot::spawn_by(&strace, &[]);
        bot.start(&server.url());
        bot.expect("opened 1");
        for number in 0..100 {
            bot.order(&format!("send {number}"));
            assert_eq!(bot.expect("message"), format!("message 1 {number}"));
        }
        let pings = server.pings();
        assert!(server.wait_for_pings(pings + 3, std::time::Duration::from_secs(20)));
        server.abort_all();
        bot.expect("opened 2");
        bot.stop();
    });
}

//! Networks that swallow packets, and resolvers that do not answer: in a network namespace, where a
//! packet filter may be had.

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use tautline::testing::TestServer;

use crate::bot::{Bot, PING_EVERY, PONG_WITHIN};
use crate::{ROLE, scenario, skip, succeeds};

const SOON: Duration = Duration::from_secs(20);

/// Runs [`run`] in namespaces of its own, if they may be had.
pub(crate) fn run_in_namespace() {
    const PROBE: &str = "ip link set lo up && iptables -L -n && ip6tables -L -n && mount --bind /etc/hosts /etc/hosts";
    let entries = [&["--net", "--mount"][..], &["--map-root-user", "--net", "--mount"]];
    let enter = entries
        .into_iter()
        .find(|enter| succeeds("unshare", &[enter, &["sh", "-c", PROBE][..]].concat()));
    let Some(enter) = enter else {
        return skip(
            "network",
            "it needs namespaces (root, or user namespaces), iproute2 and iptables",
        );
    };
    let own = std::env::current_exe().expect("this program has a path");
    let status = Command::new("unshare").args(enter).arg(own).env(ROLE, "namespace").status();
    let status = status.expect("it was run a moment ago");
    assert!(status.success(), "{status}");
}

pub(crate) fn run() {
    sh("ip link set lo up");
    for is_tls in [false, true] {
        let name = |what: &str| format!("{what}, {}", if is_tls { "TLS" } else { "plain" });
        scenario(&name("a connection that a black hole swallows"), || black_hole(is_tls));
        scenario(&name("a black hole that heals in time"), || healed_in_time(is_tls));
        scenario(&name("a connection that a middlebox resets"), || reset(is_tls));
    }
    scenario("a resolver that does not answer", silent_resolver);
    scenario("dead IPv6 before live IPv4", dead_ipv6);
}

fn sh(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().expect("there is a shell");
    assert!(status.success(), "{command}: {status}");
}

/// Swallows the packets of the server's port, both ways.
fn swallow(server: &TestServer) {
    let port = server.address().port();
    sh(&format!("iptables -A INPUT -p tcp --dport {port} -j DROP"));
    sh(&format!("iptables -A INPUT -p tcp --sport {port} -j DROP"));
}

fn heal() {
    sh("iptables -F");
}

fn echo(is_tls: bool) -> TestServer {
    let builder = if is_tls { TestServer::builder().tls() } else { TestServer::builder() };
    builder.start(|peer| {
        peer.upgrade()?;
        peer.echo()
    })
}

fn milliseconds(told: &str, behind: &str) -> u128 {
    let mut words = told.split(' ').skip_while(|word| *word != behind);
    words
        .nth(1)
        .and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("no number behind {behind} in {told:?}"))
}

fn black_hole(is_tls: bool) {
    let server = echo(is_tls);
    let mut bot = Bot::spawn();
    bot.start(&server.url());
    bot.expect("opened 1");
    assert!(server.wait_for_pings(2, SOON));
    swallow(&server);
    let began = Instant::now();
    bot.expect("disconnected pong_timeout");
    // The ping before the hole may have been answered just before it.
    assert!(began.elapsed() + Duration::from_millis(50) >= PONG_WITHIN);
    assert!(
        began.elapsed() < SOON / 4,
        "{:?}, after {PING_EVERY:?} and {PONG_WITHIN:?}",
        began.elapsed()
    );
    // The dials that follow meet the same hole, and end in their budget.
    let failure = bot.expect("dial_failed timeout");
    assert!(failure.contains("connecting to"), "{failure}");
    heal();
    bot.expect("opened 2");
    bot.stop();
}

/// TCP repeats what was lost, and the connection is none the worse for it.
fn healed_in_time(is_tls: bool) {
    let server = echo(is_tls);
    let mut bot = Bot::spawn();
    bot.start_with("join_timeout", &server.url());
    bot.expect("opened 1");
    assert!(server.wait_for_pings(2, SOON));
    swallow(&server);
    bot.order("send into the hole");
    bot.expect("sent Some(Ok");
    std::thread::sleep(2 * PING_EVERY);
    heal();
    assert_eq!(bot.expect("message"), "message 1 into the hole");
    assert!(!bot.told_so_far().iter().any(|line| line.starts_with("disconnected")));
    assert_eq!(server.openings(), 1);
    bot.stop();
}

fn reset(is_tls: bool) {
    let server = echo(is_tls);
    let mut bot = Bot::spawn();
    bot.start(&server.url());
    bot.expect("opened 1");
    // The client's packets alone: the resets themselves have to arrive.
    sh(&format!(
        "iptables -A INPUT -p tcp --dport {} -j REJECT --reject-with tcp-reset",
        server.address().port()
    ));
    // The next packet, which is a ping, is answered by one.
    let end = bot.expect("disconnected");
    // Whoever asks the kernel first is told of the reset: the heart may be about to tell the
    // reader, who sees an end without a reason.
    assert!(end.starts_with("disconnected io") || end.starts_with("disconnected closed"), "{end}");
    bot.expect("dial_failed connect");
    heal();
    bot.expect("opened 2");
    bot.stop();
}

/// A file of the system's in the place of another, in this mount namespace alone.
fn replace(path: &str, text: &str) {
    let file = std::env::temp_dir().join(format!(
        "tautline-{}-{}",
        path.replace('/', "-"),
        std::process::id()
    ));
    std::fs::write(&file, text).expect("the folder for temporary files can be written to");
    sh(&format!("mount --bind {} {path}", file.display()));
    // The mount keeps what the name no longer has to.
    std::fs::remove_file(&file).expect("it has just been written");
}

fn silent_resolver() {
    let silent = UdpSocket::bind("127.0.0.1:53").expect("the port is free in a new namespace");
    replace("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:3 attempts:1\n");
    let mut bot = Bot::spawn();
    bot.start("ws://server.example:9/");
    // The lookup takes three seconds, a dial one: three dials wait for the same lookup, the fourth
    // may ask again.
    for _ in 0..2 {
        let failure = bot.expect("dial_failed timeout");
        assert!(failure.contains("resolving server.example"), "{failure}");
    }
    let mut question = [0; 512];
    assert!(silent.recv(&mut question).is_ok_and(|count| count > 0), "it asked");
    let began = Instant::now();
    bot.order("stop");
    let report = bot.expect("report ");
    assert!(report.contains("taut-resolver LATE") && !report.contains("reader LATE"), "{report}");
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "a lookup that hangs is not waited for: {:?}",
        began.elapsed()
    );
}

fn dead_ipv6() {
    // Usable at once: an address that is still being looked for twice on the network would not be
    // dialed, or not first.
    sh("ip -6 address add fd00::1/128 dev lo nodad && ip6tables -A INPUT -d fd00::1 -j DROP");
    replace("/etc/hosts", "fd00::1 server.example\n127.0.0.1 server.example\n");
    let server = echo(false);
    let mut bot = Bot::spawn();
    bot.start(&format!("ws://server.example:{}/", server.address().port()));
    let opened = bot.expect("opened 1");
    assert!(opened.contains("peer 127.0.0.1:"), "{opened}");
    let took = milliseconds(&opened, "took");
    assert!(
        (200..900).contains(&took),
        "the dead one is tried first, and passed after 250 ms: {opened}"
    );
    bot.stop();
}

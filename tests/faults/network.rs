//! Networks that drop packets, and resolvers that do not answer. These run in a network namespace,
//! where they may set up a packet filter.

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use tautline::testing::TestServer;

use crate::bot::{Bot, PING_INTERVAL, PONG_TIMEOUT};
use crate::{ROLE, scenario, skip, succeeds};

const SOON: Duration = Duration::from_secs(20);

/// Runs [`run`] in namespaces of its own, or skips it if they are not available.
pub(crate) fn run_in_namespace() {
    const PROBE: &str = "ip link set lo up && iptables -L -n && ip6tables -L -n \
                         && mount --bind /etc/hosts /etc/hosts";
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
        scenario(&name("a connection whose packets are dropped"), || long_outage(is_tls));
        scenario(&name("packets that are dropped for a moment"), || short_outage(is_tls));
        scenario(&name("a connection that a middlebox resets"), || reset(is_tls));
    }
    scenario("a resolver that does not answer", silent_resolver);
    scenario("dead IPv6 before live IPv4", dead_ipv6);
}

fn sh(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().expect("there is a shell");
    assert!(status.success(), "{command}: {status}");
}

/// Drops all packets from and to the server's port.
fn drop_packets(server: &TestServer) {
    let port = server.address().port();
    sh(&format!("iptables -A INPUT -p tcp --dport {port} -j DROP"));
    sh(&format!("iptables -A INPUT -p tcp --sport {port} -j DROP"));
}

fn stop_dropping() {
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

fn long_outage(is_tls: bool) {
    let server = echo(is_tls);
    let mut bot = Bot::spawn();
    bot.start(&server.url());
    bot.expect("opened 1");
    assert!(server.wait_for_pings(2, SOON));
    drop_packets(&server);
    let began = Instant::now();
    bot.expect("disconnected pong_timeout");
    assert!(
        began.elapsed() < SOON / 4,
        "{:?}, after {PING_INTERVAL:?} and {PONG_TIMEOUT:?}",
        began.elapsed()
    );
    // The dials that follow get no answer either, and end within their timeout.
    let failure = bot.expect("dial_failed timeout");
    assert!(failure.contains("connecting to"), "{failure}");
    stop_dropping();
    bot.expect("opened 2");
    bot.stop();
}

/// TCP retransmits what was lost, and the connection survives.
fn short_outage(is_tls: bool) {
    let server = echo(is_tls);
    let mut bot = Bot::spawn();
    bot.start_with("long_pong_timeout", &server.url());
    bot.expect("opened 1");
    assert!(server.wait_for_pings(2, SOON));
    drop_packets(&server);
    bot.order("send during the outage");
    bot.expect("sent Some(Ok");
    std::thread::sleep(2 * PING_INTERVAL);
    stop_dropping();
    assert_eq!(bot.expect("message"), "message 1 during the outage");
    assert!(!bot.told_so_far().iter().any(|line| line.starts_with("disconnected")));
    assert_eq!(server.openings(), 1);
    bot.stop();
}

fn reset(is_tls: bool) {
    let server = echo(is_tls);
    let mut bot = Bot::spawn();
    bot.start(&server.url());
    bot.expect("opened 1");
    // Only packets of the client are rejected: the resets have to arrive.
    sh(&format!(
        "iptables -A INPUT -p tcp --dport {} -j REJECT --reject-with tcp-reset",
        server.address().port()
    ));
    // The next packet, which is a ping, is answered with a reset.
    let end = bot.expect("disconnected");
    // The kernel reports a reset to the first caller only. If that is the heartbeat, the reader may
    // see an end without a reason before it learns of the reset.
    assert!(end.starts_with("disconnected io") || end.starts_with("disconnected closed"), "{end}");
    bot.expect("dial_failed connect");
    stop_dropping();
    bot.expect("opened 2");
    bot.stop();
}

/// Replaces a file of the system, in this mount namespace alone.
fn replace(path: &str, text: &str) {
    let file = std::env::temp_dir().join(format!(
        "tautline-{}-{}",
        path.replace('/', "-"),
        std::process::id()
    ));
    std::fs::write(&file, text).expect("the folder for temporary files can be written to");
    sh(&format!("mount --bind {} {path}", file.display()));
    // The mount keeps the file, so its name can go.
    std::fs::remove_file(&file).expect("it has just been written");
}

fn silent_resolver() {
    let silent = UdpSocket::bind("127.0.0.1:53").expect("the port is free in a new namespace");
    replace("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:3 attempts:1\n");
    let mut bot = Bot::spawn();
    bot.start("ws://server.example:9/");
    // A lookup takes three seconds and a dial one, so three dials wait for the same lookup.
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
    // `nodad` makes the address usable at once. During duplicate address detection it would not be
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
        "the dead address is tried first, and the next one 250 ms later: {opened}"
    );
    bot.stop();
}

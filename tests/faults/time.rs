//! Processes that are suspended while time goes on, and a wall clock that jumps.

use std::time::Duration;

use rustix::process::Signal;
use tautline::testing::TestServer;

use crate::bot::{Bot, PING_INTERVAL};
use crate::{scenario, skip};

const SOON: Duration = Duration::from_secs(20);

/// Longer than the long `pong_timeout` of the bot.
const ASLEEP: Duration = Duration::from_millis(2500);

pub(crate) fn run() {
    scenario("a process that sleeps and wakes", sleep);
    scenario("a machine that sleeps and wakes", machine_sleeps);
    scenario("a peer that sleeps while its kernel acknowledges", peer_sleeps);
    wall_clock();
}

/// The bot is suspended for longer than `pong_timeout`. When it resumes, its connection is alive.
/// It pings at once, and does not make up for the pings it missed.
fn sleep() {
    let server = TestServer::builder().tls().start(|peer| {
        peer.upgrade()?;
        peer.echo()
    });
    let mut bot = Bot::spawn();
    bot.start_with("long_pong_timeout", &server.url());
    bot.expect("opened 1");
    assert!(server.wait_for_pings(3, SOON));
    for _ in 0..2 {
        bot.signal(Signal::STOP);
        std::thread::sleep(ASLEEP);
        let before = server.pings();
        bot.signal(Signal::CONT);
        assert!(server.wait_for_pings(before + 1, SOON), "it pings");
        let missed = ASLEEP.as_millis() / PING_INTERVAL.as_millis();
        assert!(
            server.pings() - before < missed as usize / 2,
            "it does not make up for what it missed"
        );
        bot.order("send awake");
        assert_eq!(bot.expect("message"), "message 1 awake");
    }
    let told = bot.told_so_far();
    assert!(!told.iter().any(|line| line.starts_with("disconnected")), "{told:?}");
    assert_eq!(server.openings(), 1);
    bot.stop();
}

/// Both ends are suspended, as when the machine sleeps. A ping stays unanswered for longer than
/// `pong_timeout`, and yet the connection survives.
fn machine_sleeps() {
    let server = Bot::spawn_server();
    let address = server.expect("listening ");
    let mut bot = Bot::spawn();
    bot.start_with("long_pong_timeout", address.trim_start_matches("listening "));
    bot.expect("opened 1");
    server.signal(Signal::STOP);
    // Long enough to send a ping, and too short to miss its pong.
    std::thread::sleep(2 * PING_INTERVAL);
    bot.signal(Signal::STOP);
    std::thread::sleep(ASLEEP);
    bot.signal(Signal::CONT);
    std::thread::sleep(2 * PING_INTERVAL);
    server.signal(Signal::CONT);
    bot.order("send awake");
    assert_eq!(bot.expect("message"), "message 1 awake");
    bot.stop();
}

/// The server's process is suspended: its kernel goes on acknowledging, and nothing else comes.
fn peer_sleeps() {
    let server = Bot::spawn_server();
    let address = server.expect("listening ");
    let url = address.trim_start_matches("listening ");
    let mut bot = Bot::spawn();
    bot.start(url);
    bot.expect("opened 1");
    server.signal(Signal::STOP);
    bot.expect("disconnected pong_timeout");
    bot.expect("dial_failed timeout");
    server.signal(Signal::CONT);
    bot.expect("opened 2");
    bot.stop();
}

/// The wall clock jumps an hour ahead, an hour back and a day ahead: no deadline depends on it.
fn wall_clock() {
    const NAME: &str = "a wall clock that jumps";
    let library = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    ];
    let Some(library) = library.into_iter().find(|path| std::path::Path::new(path).exists()) else {
        return skip(NAME, "it needs libfaketime");
    };
    scenario(NAME, || {
        let file = std::env::temp_dir().join(format!("tautline-clock-{}", std::process::id()));
        let set = |offset: &str| {
            std::fs::write(&file, offset).expect("the folder for temporary files can be written to")
        };
        set("+0");
        let path = file.to_str().expect("a path in UTF-8");
        let variables = [
            ("LD_PRELOAD", library),
            ("FAKETIME_TIMESTAMP_FILE", path),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        let server = TestServer::builder().tls().start(|peer| {
            peer.upgrade()?;
            peer.echo()
        });
        let mut bot = Bot::spawn_by(&["env"], &variables);
        bot.start(&server.url());
        bot.expect("opened 1");
        bot.order("clock");
        let mut clock = bot.expect("clock ");
        for offset in ["+1h", "-1h", "+1d"] {
            set(offset);
            let pings = server.pings();
            assert!(server.wait_for_pings(pings + 10, SOON), "the pings go on");
            bot.order("send still here");
            assert_eq!(bot.expect("message"), "message 1 still here");
            bot.order("clock");
            let jumped = bot.expect("clock ");
            assert_ne!(jumped, clock, "the clock has not jumped, so this proves nothing");
            clock = jumped;
        }
        // Dials and the delays between them do not depend on it either.
        server.abort_all();
        bot.expect("opened 2");
        bot.stop();
        std::fs::remove_file(&file).expect("it was written above");
    });
}

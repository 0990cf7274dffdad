//! `tautline watch` in a terminal: what it shows, and how it leaves the terminal.

use std::io;
use std::time::Duration;

use rustix::process::Signal;
use tautline::testing::{Peer, Received, TestServer};

use crate::support::*;
use crate::terminal::Terminal;

/// Accepts the connection, and answers what comes until its end.
fn quiet(peer: &mut Peer) -> io::Result<()> {
    peer.upgrade()?;
    peer.echo()
}

/// Each connection of the server ends in this way, after a message.
fn ends_by(end: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static) -> TestServer {
    TestServer::start(move |peer| {
        peer.upgrade()?;
        peer.send_text("tick")?;
        end(peer)
    })
}

#[test]
fn states_and_drops_by_kind_are_shown_and_q_leaves_the_terminal_as_it_was() {
    let (open, resets) = (TestServer::start(quiet), ends_by(Peer::reset));
    let urls = [open.url() + "path?key=secret", resets.url()];
    let [first, second] = [&open, &resets].map(|server| server.address().to_string());
    let delays = ["--retry-delay-min", "1ms", "--retry-delay-max", "1ms"];
    let pings = ["--ping-interval", "50ms"];
    let arguments = [&["watch", &urls[0], &urls[1]], &delays[..], &pings].concat();
    let Some(terminal) = Terminal::run(&arguments) else { return };
    let row = |name: &str, screen: &str| {
        let row =
            screen.lines().find(|line| line.get(1..).is_some_and(|row| row.starts_with(name)));
        row.map(|row| {
            row[1 + name.len()..].split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        })
    };
    // Name, state, epoch, msg/s, B/s, bytes, rtt, age, queue, drops.
    let screen = terminal.wait_until("a round trip, and three drops", |screen| {
        let is_measured = |row: Vec<String>| row.get(5).is_some_and(|trip| trip.ends_with('s'));
        let has_drops = |row: Vec<String>| {
            row.last().and_then(|drops| drops.parse::<u64>().ok()).is_some_and(|drops| drops > 2)
        };
        row(&first, screen).is_some_and(is_measured) && row(&second, screen).is_some_and(has_drops)
    });
    assert!(terminal.is_taken());
    assert_eq!(row(&first, &screen).expect("a row")[..2], ["Open", "1"]);
    assert!(!screen.contains("secret") && !screen.contains("path"), "{screen}");
    assert!(screen.contains(&format!("─ {first} ─")), "{screen}");
    terminal.keys(&["Down"]);
    terminal.wait_for(&format!(">{second}"));
    let screen = terminal.wait_for("code 1006");
    assert!(screen.contains(" io") && screen.contains("failed dials: 0"), "{screen}");
    terminal.keys(&["q"]);
    let history = terminal.assert_ends(0);
    assert!(history.contains(&format!("{first}: epoch 1, 0 messages, 0 B, drops: none; stopped")));
    assert!(history.contains(&format!("{second}: epoch ")), "{history}");
    assert!(open.wait_until_all_closed(SOON));
    assert_eq!(open.closes(), [Some(1000)]);
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was_and_closes_the_connections() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
        let servers = [TestServer::start(quiet), TestServer::start(quiet)];
        let urls = servers.each_ref().map(TestServer::url);
        let Some(terminal) = Terminal::run(&["watch", &urls[0], &urls[1]]) else { return };
        terminal.wait_for("2 of 2 open");
        assert!(terminal.is_taken());
        terminal.signal(signal);
        terminal.assert_ends(0);
        for server in servers {
            assert!(server.wait_until_all_closed(SOON));
            assert_eq!(server.closes(), [Some(1000)]);
        }
    }
}

#[test]
fn keys_that_end_it_in_raw_mode_do_so() {
    for key in ["q", "Escape", "C-c"] {
        let server = TestServer::start(quiet);
        let Some(terminal) = Terminal::run(&["watch", &server.url()]) else { return };
        terminal.wait_for("1 of 1 open");
        terminal.keys(&[key]);
        terminal.assert_ends(0);
    }
}

#[test]
fn a_second_signal_ends_it_at_once_and_the_terminal_is_as_it_was() {
    // The close frame is not answered, and nobody has the time that is granted.
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.stall()
    });
    let url = server.url();
    let timeouts = ["--close-timeout", "10m", "--stop-timeout", "10m"];
    // By a key or by a signal, and then by a signal.
    for by_key in [true, false] {
        let Some(terminal) = Terminal::run(&[&["watch", url.as_str()], &timeouts[..]].concat())
        else {
            return;
        };
        terminal.wait_for("1 of 1 open");
        match by_key {
            true => terminal.keys(&["q"]),
            false => terminal.signal(Signal::TERM),
        }
        // At the first the terminal is given back, and the client is stopped.
        terminal.wait_until("no view", |screen| !screen.contains("tautline watch"));
        assert!(!terminal.is_taken());
        // A terminal that closes may say so several times, which is no second signal.
        terminal.signal(Signal::HUP);
        terminal.signal(Signal::INT);
        terminal.assert_ends(128 + Signal::INT.as_raw());
    }
}

#[test]
fn what_a_server_writes_is_shown_and_steers_nothing() {
    let closes = ends_by(|peer| {
        peer.close(4000, "\x1b[2J\x1b]0;owned\x07\r\u{9b}31m\u{202e}bye")?;
        peer.drain()
    });
    let refuses = TestServer::start(|peer| peer.refuse(503, "", "\x1b[?1049lfull"));
    let urls = [closes.url(), refuses.url()];
    let Some(terminal) = Terminal::run(&["watch", &urls[0], &urls[1]]) else { return };
    let shown = r#"\u{1b}[2J\u{1b}]0;owned\u{7}\r\u{9b}31m\u{202e}bye"#;
    // It may be split anywhere, and the continuation is indented.
    let joined = |screen: &str| screen.split_whitespace().collect::<String>();
    let screen = terminal.wait_until(shown, |screen| joined(screen).contains(shown));
    assert!(screen.contains("closed; failed dials"), "{screen}");
    terminal.keys(&["j"]);
    terminal.wait_until("the body", |screen| joined(screen).contains(r#""\u{1b}[?1049lfull""#));
    assert!(terminal.is_taken());
    terminal.keys(&["q"]);
    terminal.assert_ends(0);
}

#[test]
fn every_size_is_drawn_anew() {
    let server = TestServer::start(quiet);
    let Some(terminal) = Terminal::run(&["watch", &server.url()]) else { return };
    terminal.wait_for("1 of 1 open");
    for (columns, rows, last) in [
        (60, 15, " q quit   ↑ ↓ select   r reconnect"),
        (10, 3, "least"),
        (140, 50, " q quit   ↑ ↓ select   r reconnect"),
        (80, 24, " q quit   ↑ ↓ select   r reconnect"),
    ] {
        terminal.resize(columns, rows);
        let is_drawn = |screen: &str| {
            let lines: Vec<_> = screen.lines().collect();
            let widest = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
            lines.len() == usize::from(rows)
                && lines.last() == Some(&last)
                // The line above the details is as wide as the terminal.
                && (columns == 10 || widest == usize::from(columns))
        };
        terminal.wait_until(&format!("a view of {columns} by {rows}"), is_drawn);
    }
    terminal.keys(&["q"]);
    terminal.assert_ends(0);
}

#[test]
fn a_stop_by_sigtstp_gives_the_terminal_back_until_sigcont() {
    let server = TestServer::start(quiet);
    for by_key in [true, false] {
        let Some(terminal) = Terminal::run(&["watch", &server.url()]) else { return };
        terminal.wait_for("1 of 1 open");
        match by_key {
            true => terminal.keys(&["C-z"]),
            false => terminal.signal(Signal::TSTP),
        }
        terminal.wait_until("no view", |screen| !screen.contains("tautline watch"));
        assert!(!terminal.is_taken());
        terminal.signal(Signal::CONT);
        terminal.wait_for("1 of 1 open");
        assert!(terminal.is_taken());
        terminal.keys(&["q"]);
        terminal.assert_ends(0);
    }
}

#[test]
fn clients_that_have_given_up_are_shown_until_it_is_ended() {
    let server = TestServer::start(|peer| peer.refuse(401, "", "no such key"));
    let Some(terminal) = Terminal::run(&["watch", &server.url()]) else { return };
    let screen = terminal.wait_for("gave up");
    assert!(screen.contains("Closed") && screen.contains("status 401: \"no such"), "{screen}");
    terminal.keys(&["q"]);
    let history = terminal.assert_ends(1);
    assert!(history.contains("; gave up: "), "{history}");
}

#[test]
fn texts_are_sent_on_each_connection_and_r_dials_anew() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        for text in ["login", "it's"] {
            assert_eq!(peer.receive_message()?, Received::Text(text.into()));
        }
        peer.echo()
    });
    let url = server.url();
    let arguments = ["watch", &url, "-x", "login", "--send", "it's", "--retry-delay-min", "1ms"];
    let Some(terminal) = Terminal::run(&arguments) else { return };
    terminal.wait_for("2 messages, ");
    terminal.keys(&["r"]);
    terminal.wait_for("4 messages, ");
    terminal.wait_for("1 closed; failed dials: 0");
    assert_eq!((server.openings(), server.closes()), (2, vec![Some(1000)]));
    terminal.keys(&["q"]);
    terminal.assert_ends(0);
}

#[test]
fn the_log_does_not_disturb_the_view_and_is_shown_after_it() {
    let server = TestServer::start(quiet);
    let variables = "RUST_LOG=tautline=trace";
    let arguments = ["watch", &server.url(), "--ping-interval", "20ms"];
    let Some(terminal) = Terminal::run_with(variables, &arguments) else { return };
    terminal.wait_until("ten pings", |_| server.pings() > 10);
    let screen = terminal.wait_for("1 of 1 open");
    assert!(screen.starts_with(" tautline watch ") && !screen.contains("TRACE"), "{screen}");
    terminal.keys(&["q"]);
    let history = terminal.assert_ends(0);
    assert!(history.contains("open, epoch 1") && history.contains("TRACE"), "{history}");
    let (log, summary) = (history.find("TRACE"), history.find(": epoch 1, 0 messages"));
    assert!(log < summary, "{history}");
}

#[test]
fn without_a_terminal_it_says_what_to_use_and_connects_to_nothing() {
    let server = TestServer::start(quiet);
    let says_so = "tautline: watch draws on a terminal: use `tautline tail --json` or `tautline \
                   bench` instead";
    let output = tautline(&["watch", &server.url()]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stderr).trim_end(), says_so);
    assert!(output.stdout.is_empty());
    // A terminal that can do no more than print.
    if let Some(terminal) = Terminal::run_with("TERM=dumb", &["watch", &server.url()]) {
        assert!(terminal.assert_ends(2).contains(says_so));
    }
    assert!(!server.wait_for_connections(1, Duration::ZERO));
}

#[test]
fn a_url_that_cannot_work_is_wrong_usage_and_leaves_the_terminal_alone() {
    let server = TestServer::start(quiet);
    let Some(terminal) = Terminal::run(&["watch", &server.url(), "http://127.0.0.1:1/"]) else {
        return;
    };
    assert!(terminal.assert_ends(2).contains("tautline: URL 2: "));
}

#[test]
fn a_terminal_that_goes_away_ends_it_and_closes_the_connections() {
    let server = TestServer::start(quiet);
    let Some(terminal) = Terminal::run(&["watch", &server.url()]) else { return };
    terminal.wait_for("1 of 1 open");
    // Its last lines have no place to go, which is a failure.
    assert_eq!(terminal.hang_up(), "1");
    assert!(server.wait_until_all_closed(SOON));
    assert_eq!(server.closes(), [Some(1000)]);
}

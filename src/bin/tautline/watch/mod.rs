//! `tautline watch`: a live view of several connections in the terminal.
//!
//! One thread takes what all clients have queued and draws, ten times a second at most; another
//! reads keys. Messages are counted by their clients and not looked at.

mod feed;
mod history;
mod screen;
mod view;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clap::Args;
use crossbeam_channel::{Receiver, Select, Sender, TryRecvError, bounded};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::widgets::TableState;
use tautline::stop_all;

pub(crate) use self::screen::LogWriter;

use self::feed::Feed;
use self::screen::Screen;
use crate::printer::{Printed, complain, print};
use crate::signals::Ending;
use crate::{Done, connection, help, signals};

/// Shows several connections in the terminal, live
#[derive(Args)]
#[command(help_template = help::TEMPLATE, after_help = help::connects!("  \
tautline watch wss://ws.kraken.com/v2 wss://stream.binance.com/ws
  tautline watch -x '{\"op\":\"ping\"}' wss://ws.okx.com/ws/v5/public

Keys: q or Ctrl-C quits, up and down (or k and j) select a connection, whose
details are below the table, r reconnects it. The status is 1 if all clients
have given up by themselves. The log is shown at the end."))]
pub(crate) struct Options {
    /// The servers: ws:// or wss://
    #[arg(hide = true, required = true, value_name = "URL")]
    urls: Vec<String>,
    /// Send TEXT on each connection that opens [repeatable]
    #[arg(short = 'x', long, value_name = "TEXT")]
    send: Vec<String>,
    #[command(flatten)]
    connection: connection::Options,
}

/// The time between two frames when something is to be shown at once, and when nothing is.
const FRAME: Duration = Duration::from_millis(100);
const IDLE_FRAME: Duration = Duration::from_millis(250);

/// Returns true after an end that was asked for, and false if all clients have given up or the
/// terminal has gone. An error is wrong usage.
pub(crate) fn run(options: &Options) -> Result<Done, String> {
    if !screen::is_terminal() {
        return Err("watch draws on a terminal: use `tautline tail --json` or `tautline bench` \
                    instead"
            .to_owned());
    }
    let ending = signals::watch_on_screen(screen::restore_before_exit, screen::suspend)?;
    let texts: Arc<[String]> = options.send.as_slice().into();
    let mut feeds = Vec::new();
    let names = feed::names(&options.urls);
    for (number, (url, name)) in options.urls.iter().zip(names).enumerate() {
        let started = Feed::start(&options.connection, url, name, &texts);
        feeds.push(started.map_err(|error| match options.urls.len() {
            1 => error,
            _ => format!("URL {}: {error}", number + 1),
        })?);
    }
    let shown = Screen::enter().and_then(|mut screen| {
        let keys = Keys::read();
        let shown = show(&mut feeds, &mut screen, &keys, &ending);
        // Before Ctrl-C is a signal again.
        ending.begin();
        shown
    });
    let has_given_up = feeds.iter().all(Feed::has_given_up);
    let stoppers: Vec<_> = feeds.iter().map(Feed::stopper).collect();
    let reports = stop_all(&stoppers, options.connection.stop_timeout());
    let lines = feeds.into_iter().zip(&reports).map(|(feed, report)| feed.summary(report) + "\n");
    let printed = print(&lines.collect::<String>());
    if let Err(error) = &shown {
        complain(&format!("cannot draw on the terminal: {error}"));
    }
    Ok(!has_given_up && printed != Printed::Failed && shown.is_ok())
}

/// Shows the feeds until a key or a signal ends it.
fn show(feeds: &mut [Feed], screen: &mut Screen, keys: &Keys, ending: &Ending) -> io::Result<()> {
    let mut table = TableState::new().with_selected(0);
    let (mut drawn, mut has_news) = (None::<Instant>, true);
    loop {
        let now = Instant::now();
        let due = drawn.map_or(now, |drawn| drawn + if has_news { FRAME } else { IDLE_FRAME });
        if now >= due {
            let rows: Vec<_> = feeds.iter_mut().map(|feed| feed.row(now)).collect();
            screen.draw(|frame| view::draw(frame, &rows, &mut table, now))?;
            (drawn, has_news) = (Some(now), false);
            continue;
        }
        let mut select = Select::new();
        select.recv(&ending.signaled);
        select.recv(&keys.events);
        let mut numbers = Vec::with_capacity(feeds.len());
        for (number, feed) in feeds.iter().enumerate() {
            if let Some(ready) = feed.ready() {
                select.recv(ready);
                numbers.push(number);
            }
        }
        let Ok(ready) = select.ready_deadline(due) else { continue };
        match ready {
            0 => return Ok(()),
            1 => {
                let event = match keys.events.try_recv() {
                    Ok(event) => event,
                    Err(TryRecvError::Empty) => continue,
                    // Without keys nobody could quit.
                    Err(TryRecvError::Disconnected) => return Ok(()),
                };
                has_news = true;
                match action(&event) {
                    Some(Action::Quit) => return Ok(()),
                    Some(Action::Suspend) => signals::raise_stop(),
                    Some(Action::Up) => table.select_previous(),
                    Some(Action::Down) => table.select_next(),
                    Some(Action::First) => table.select_first(),
                    Some(Action::Last) => table.select(Some(feeds.len().saturating_sub(1))),
                    Some(Action::Reconnect) => {
                        if let Some(feed) = table.selected().and_then(|at| feeds.get(at)) {
                            feed.reconnect();
                        }
                    }
                    None => {}
                }
            }
            other => {
                let number = numbers[other - 2];
                if let Some(is_ready) = feeds[number].ready() {
                    // It says no more than that something may wait.
                    let _ = is_ready.try_recv();
                }
                has_news |= feeds[number].pull();
            }
        }
    }
}

#[derive(Debug, PartialEq)]
enum Action {
    Quit,
    Suspend,
    Up,
    Down,
    First,
    Last,
    Reconnect,
}

fn action(event: &Event) -> Option<Action> {
    let Event::Key(key) = event else { return None };
    if key.kind == KeyEventKind::Release {
        return None;
    }
    Some(match (key.code, key.modifiers.contains(KeyModifiers::CONTROL)) {
        // In raw mode these are no signals.
        (KeyCode::Char('c'), true) => Action::Quit,
        (KeyCode::Char('z'), true) => Action::Suspend,
        (_, true) => return None,
        (KeyCode::Char('q') | KeyCode::Esc, _) => Action::Quit,
        (KeyCode::Up | KeyCode::Char('k'), _) => Action::Up,
        (KeyCode::Down | KeyCode::Char('j'), _) => Action::Down,
        (KeyCode::Home | KeyCode::Char('g'), _) => Action::First,
        (KeyCode::End | KeyCode::Char('G'), _) => Action::Last,
        (KeyCode::Char('r'), _) => Action::Reconnect,
        _ => return None,
    })
}

/// Keys and new sizes of the terminal, read on a thread of their own.
struct Keys {
    events: Receiver<Event>,
    is_done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The time after which the thread looks whether it is to end.
const KEYS: Duration = Duration::from_millis(100);

impl Keys {
    fn read() -> Self {
        let is_done = Arc::new(AtomicBool::new(false));
        // Keys that nobody has taken wait in the terminal.
        let (sender, events) = bounded(1);
        let told = Arc::clone(&is_done);
        let thread = thread::spawn(move || read_keys(&sender, &told));
        Keys { events, is_done, thread: Some(thread) }
    }
}

impl Drop for Keys {
    /// Waits for the thread, unless half a key keeps it: nothing can interrupt that read.
    fn drop(&mut self) {
        self.is_done.store(true, Ordering::Relaxed);
        let until = Instant::now() + 2 * KEYS;
        // What it still sends is of no use. Its end disconnects the channel.
        while self.events.recv_deadline(until).is_ok() {}
        if let Some(thread) = self.thread.take().filter(JoinHandle::is_finished) {
            // A panic has been printed by its hook.
            let _ = thread.join();
        }
    }
}

fn read_keys(events: &Sender<Event>, is_done: &AtomicBool) {
    while !is_done.load(Ordering::Relaxed) {
        match event::poll(KEYS) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(_) => return,
        }
        let Ok(event) = event::read() else { return };
        if events.send(event).is_err() {
            return;
        }
    }
}

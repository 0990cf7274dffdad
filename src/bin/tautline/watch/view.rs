//! Draws the view: a table of connections, and the details of the selected one. Pure.
//!
//! Text that a server may have written is drawn through [`Visible`]. Names come from the command
//! line.

use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, HighlightSpacing, Paragraph, Sparkline, Table, TableState, Wrap};
use tautline::{State, Stats};

use super::feed::{Note, Notes};
use super::history::History;
use crate::visible::Visible;

/// All that is shown of a connection.
pub(crate) struct Row<'a> {
    pub(crate) name: &'a str,
    pub(crate) state: State,
    pub(crate) stats: Stats,
    pub(crate) history: &'a History,
    pub(crate) notes: &'a Notes,
}

/// The smallest terminal that a table of names and states fits on.
const SMALLEST: (u16, u16) = (24, 4);

/// The rows that a table of many connections leaves to the details, if it has `TABLE` itself.
const DETAILS: u16 = 12;

/// The rows that the details leave to a table of many connections, its header included.
const TABLE: u16 = 5;

/// Draws all of it. `table` keeps the selection and how far the table is scrolled.
pub(crate) fn draw(frame: &mut Frame<'_>, rows: &[Row<'_>], table: &mut TableState, now: Instant) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        let text = format!("too small: {} by {} at least", SMALLEST.0, SMALLEST.1);
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
        return;
    }
    let wanted = u16::try_from(rows.len()).unwrap_or(u16::MAX).saturating_add(1);
    let room = area.height - 2;
    let in_table = wanted.min(TABLE.max(room.saturating_sub(DETAILS)));
    let [title, body, details, keys] = Layout::vertical([
        Constraint::Length(1),
        // Details of one row, which is their title, would say nothing.
        Constraint::Length(if room - in_table.min(room) < 2 { room } else { in_table }),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(title_line(rows), title);
    draw_table(frame, body, rows, table, now);
    if let Some(row) = table.selected().and_then(|selected| rows.get(selected)) {
        draw_details(frame, details, row, now);
    }
    frame.render_widget(Line::from(" q quit   ↑ ↓ select   r reconnect").dim(), keys);
}

fn title_line(rows: &[Row<'_>]) -> Line<'static> {
    let open = rows.iter().filter(|row| matches!(row.state, State::Open { .. })).count();
    let rate = |of: fn(&Row<'_>) -> f64| rows.iter().map(of).sum();
    Line::from(vec![
        " tautline watch".bold(),
        format!(
            "   {open} of {} open   {} msg/s   {}/s",
            rows.len(),
            si(rate(|row| row.history.rate().messages)),
            bytes(rate(|row| row.history.rate().bytes))
        )
        .into(),
    ])
}

/// A column of the table beside the names.
struct Column {
    title: &'static str,
    width: u16,
    /// A narrow terminal has the columns of the lowest ranks.
    rank: u8,
    place: Place,
    cell: fn(&Row<'_>, Instant) -> Cell<'static>,
}

/// The place of a column's text within its width.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Left,
    Right,
    /// On the left, and the width is all that the other columns leave.
    Rest,
}

impl Column {
    const fn new(
        title: &'static str,
        width: u16,
        rank: u8,
        place: Place,
        cell: fn(&Row<'_>, Instant) -> Cell<'static>,
    ) -> Self {
        Column { title, width, rank, place, cell }
    }
}

/// The seconds in the sparkline of each row.
const SPARK: u16 = 20;

const COLUMNS: [Column; 11] = [
    Column::new("state", 12, 0, Place::Left, |row, now| state(row.state, now)),
    Column::new("epoch", 5, 6, Place::Right, |row, _| right(exact(row.stats.epochs))),
    Column::new("msg/s", 5, 1, Place::Right, |row, _| right(si(row.history.rate().messages))),
    Column::new("B/s", 5, 4, Place::Right, |row, _| right(si(row.history.rate().bytes))),
    Column::new("bytes", 5, 8, Place::Right, |row, _| right(si(row.stats.bytes_received as f64))),
    Column::new("rtt", 6, 5, Place::Right, |row, _| right(round_trip(&row.stats))),
    Column::new("age", 4, 3, Place::Right, |row, _| right(age(row.stats.last_byte_age))),
    Column::new("queue", 5, 7, Place::Right, |row, _| right(exact(row.stats.queue_depth as u64))),
    Column::new("drops", 5, 2, Place::Right, |row, _| right(exact(drops(&row.stats)))),
    Column::new("msg/s, last 20 s", SPARK, 9, Place::Left, |row, _| {
        Cell::from(spark(&row.history.last_seconds(usize::from(SPARK))))
    }),
    Column::new("drops by kind", 16, 10, Place::Rest, |row, _| {
        Cell::from(describe_drops(&row.stats))
    }),
];

/// The columns that a name takes at least, before a narrow terminal leaves out another column.
const NAME_MIN: usize = 12;

/// The columns that a name takes at most while another column could have them.
const NAME_MAX: usize = 18;

/// Returns the columns that fit beside names of this length, in their order.
fn columns(width: u16, name: usize) -> Vec<&'static Column> {
    let name = name.clamp(NAME_MIN, NAME_MAX) as u16 + 1;
    let mut by_rank: Vec<&Column> = COLUMNS.iter().collect();
    by_rank.sort_by_key(|column| column.rank);
    let mut left = width.saturating_sub(name);
    let mut rank = 0;
    for column in by_rank {
        match left.checked_sub(column.width + 1) {
            Some(rest) => (left, rank) = (rest, column.rank),
            None => break,
        }
    }
    COLUMNS.iter().filter(|column| column.rank <= rank).collect()
}

fn draw_table(
    frame: &mut Frame<'_>,
    area: Rect,
    rows: &[Row<'_>],
    state: &mut TableState,
    now: Instant,
) {
    let longest = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let columns = columns(area.width, longest);
    let taken: u16 = columns.iter().map(|column| column.width + 1).sum();
    let room = usize::from(area.width.saturating_sub(taken + 1)).min(longest.max(NAME_MIN));
    let widths =
        std::iter::once(Constraint::Length(room as u16)).chain(columns.iter().map(|column| {
            match column.place {
                Place::Rest => Constraint::Min(column.width),
                _ => Constraint::Length(column.width),
            }
        }));
    let header = std::iter::once(Cell::from("connection"))
        .chain(columns.iter().map(|column| match column.place {
            Place::Right => right(column.title),
            _ => Cell::from(column.title),
        }))
        .collect::<ratatui::widgets::Row<'_>>()
        .style(Style::new().underlined());
    let body = rows.iter().map(|row| {
        std::iter::once(Cell::from(shortened(row.name, room)))
            .chain(columns.iter().map(|column| (column.cell)(row, now)))
            .collect::<ratatui::widgets::Row<'_>>()
    });
    let table = Table::new(body, widths)
        .header(header)
        .column_spacing(1)
        .highlight_symbol(">")
        .highlight_spacing(HighlightSpacing::Always)
        .row_highlight_style(Style::new().bold());
    frame.render_stateful_widget(table, area, state);
}

/// The rows that one of the details takes at most: a server can be wordy.
const PARTS: usize = 4;

/// The columns of the labels before the details, and a space.
const LABEL: usize = 8;

/// The rows of the chart at most. It has what the details in words leave.
const CHART: u16 = 10;

fn draw_details(frame: &mut Frame<'_>, area: Rect, row: &Row<'_>, now: Instant) {
    let width = usize::from(area.width);
    let lines = details(row, now, width.saturating_sub(LABEL + 2));
    // The chart has the rows that are left.
    let [title, text, chart] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(u16::try_from(lines.len()).unwrap_or(u16::MAX)),
        Constraint::Fill(1),
    ])
    .areas(area);
    let chart = Rect { height: chart.height.min(CHART), ..chart };
    let name = format!("─ {} ", row.name);
    let rule = "─".repeat(width.saturating_sub(Span::raw(&*name).width()));
    frame.render_widget(Line::from(vec![name.bold(), rule.dim()]), title);
    frame.render_widget(Text::from(lines), text);
    draw_chart(frame, chart, row);
}

/// Returns the details in words, wrapped to this width behind their labels.
fn details(row: &Row<'_>, now: Instant, width: usize) -> Vec<Line<'static>> {
    let Row { stats, notes, .. } = row;
    let mut lines = Vec::new();
    let mut add = |label: &'static str, style: Style, text: &str| {
        let text = Visible(text).to_string();
        let mut parts = wrapped(&text, width);
        if parts.len() > PARTS {
            parts.truncate(PARTS);
            parts[PARTS - 1] += "…";
        }
        for (number, part) in parts.into_iter().enumerate() {
            let label = if number == 0 { label } else { "" };
            let label = format!(" {label:<LABEL$}");
            lines.push(Line::from(vec![Span::from(label).dim(), Span::styled(part, style)]));
        }
    };
    let ago = |note: &Note| {
        let ago = age(Some(now.saturating_duration_since(note.at)));
        format!("{ago} ago: {}", note.text)
    };
    let (plain, bad) = (Style::new(), Style::new().fg(Color::Red));
    match (&notes.gave_up, &notes.dial_failed) {
        (Some(reason), _) => add("gave up", bad, reason),
        (None, Some(failure)) => add("dial", plain, &ago(failure)),
        (None, None) => {}
    }
    if let Some(ended) = &notes.ended {
        add("end", plain, &ago(ended));
    }
    if let Some(failure) = &notes.not_sent {
        add("send", bad, failure);
    }
    add(
        "drops",
        plain,
        &format!("{}; failed dials: {}", describe_drops(stats), stats.failed_dials),
    );
    if stats.messages_lost > 0 {
        add("lost", bad, &format!("{} messages: the queue was full", stats.messages_lost));
    }
    if let Some(opened) = &notes.opened {
        add("peer", plain, opened);
    }
    add(
        "total",
        plain,
        &format!(
            "{} messages, {} received; {} messages, {} sent",
            si(stats.messages_received as f64),
            bytes(stats.bytes_received as f64),
            si(stats.messages_sent as f64),
            bytes(stats.bytes_sent as f64)
        ),
    );
    let trips = stats.round_trip;
    if trips.count > 0 {
        let [last, min, mean, max] = [trips.last, trips.min, trips.mean, trips.max].map(short);
        add("rtt", plain, &format!("last {last}, min {min}, mean {mean}, max {max}"));
    }
    lines
}

/// Splits text at spaces, and words that are too long anywhere, into parts of at most this width.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut parts = vec![String::new()];
    let mut used = 0;
    for word in text.split_inclusive(' ') {
        let wide = Span::raw(word.trim_end()).width();
        if used > 0 && used + wide > width && wide <= width {
            parts.push(String::new());
            used = 0;
        }
        for character in word.chars() {
            let wide = Span::raw(character.encode_utf8(&mut [0; 4]) as &str).width();
            if used + wide > width {
                if character == ' ' {
                    continue;
                }
                parts.push(String::new());
                used = 0;
            }
            parts.last_mut().expect("there is one from the start").push(character);
            used += wide;
        }
    }
    parts
}

fn draw_chart(frame: &mut Frame<'_>, area: Rect, row: &Row<'_>) {
    if area.height == 0 {
        return;
    }
    let width = usize::from(area.width.saturating_sub(2 + LABEL as u16)).min(60);
    let seconds = row.history.last_seconds(width);
    let most = seconds.iter().copied().max().unwrap_or(0);
    let [label, bars] = Layout::horizontal([
        Constraint::Length(1 + LABEL as u16),
        Constraint::Length(width as u16),
    ])
    .areas(area);
    let label_lines =
        ["msg/s".to_owned(), format!("{width} s"), format!("max {}", si(most as f64))];
    let label_lines = label_lines.map(|text| Line::from(format!(" {text}")).dim());
    frame.render_widget(Text::from_iter(label_lines), label);
    let chart = Sparkline::default().data(&seconds).max(most.max(1)).style(Color::Cyan);
    frame.render_widget(chart, bars);
}

fn state(state: State, now: Instant) -> Cell<'static> {
    let (text, color) = match state {
        State::Connecting { attempt: attempt @ ..10 } => {
            (format!("Connecting {attempt}"), Color::Yellow)
        }
        // Twelve characters are all there is.
        State::Connecting { attempt } => (format!("Connect {}", attempt.min(9999)), Color::Yellow),
        State::Open { .. } => ("Open".to_owned(), Color::Green),
        State::Closing => ("Closing".to_owned(), Color::Yellow),
        State::Backoff { until, .. } => {
            let left = age(Some(until.saturating_duration_since(now)));
            (format!("Backoff {left}"), Color::Yellow)
        }
        State::Closed => ("Closed".to_owned(), Color::Red),
        // A state of a later version.
        _ => ("?".to_owned(), Color::Reset),
    };
    Cell::from(text).style(color)
}

/// Returns the drops that nobody asked for.
fn unasked(stats: &Stats) -> impl Iterator<Item = (&'static str, u64)> + '_ {
    stats.drops.iter().map(|(&kind, &count)| (kind, count)).filter(|&(kind, _)| kind != "stopped")
}

fn drops(stats: &Stats) -> u64 {
    unasked(stats).map(|(_, count)| count).sum()
}

/// Returns the drops by their kinds, the most frequent first.
pub(crate) fn describe_drops(stats: &Stats) -> String {
    let mut drops: Vec<_> = unasked(stats).collect();
    if drops.is_empty() {
        return "none".to_owned();
    }
    drops.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    let drops: Vec<_> = drops.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    drops.join(", ")
}

fn right(text: impl Into<String>) -> Cell<'static> {
    Cell::from(Text::raw(text.into()).right_aligned())
}

/// Returns the latest round trip.
fn round_trip(stats: &Stats) -> String {
    match stats.round_trip.count {
        0 => "-".to_owned(),
        _ => short(stats.round_trip.last),
    }
}

/// Returns a count in at most five characters, exactly if that is possible.
fn exact(count: u64) -> String {
    if count < 100_000 { count.to_string() } else { si(count as f64) }
}

/// Returns a count in at most five characters, with the prefixes of the SI.
pub(crate) fn si(count: f64) -> String {
    let (number, prefix) = scaled(count);
    number + prefix
}

/// Returns a number of bytes, with its unit.
pub(crate) fn bytes(count: f64) -> String {
    let (number, prefix) = scaled(count);
    format!("{number} {prefix}B")
}

fn scaled(count: f64) -> (String, &'static str) {
    let mut scaled = count;
    let mut prefix = "";
    for next in ["k", "M", "G", "T", "P", "E"] {
        if scaled < 999.5 {
            break;
        }
        (scaled, prefix) = (scaled / 1000.0, next);
    }
    let is_whole = scaled >= 99.95 || prefix.is_empty() && count.fract() == 0.0;
    (if is_whole { format!("{scaled:.0}") } else { format!("{scaled:.1}") }, prefix)
}

/// Returns a short time in at most six characters.
fn short(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        0.0..0.0009995 => format!("{:.0}µs", seconds * 1e6),
        0.0..0.09995 => format!("{:.1}ms", seconds * 1e3),
        0.0..0.9995 => format!("{:.0}ms", seconds * 1e3),
        0.0..99.95 => format!("{seconds:.1}s"),
        _ => age(Some(time)),
    }
}

/// Returns a time in at most four characters.
fn age(time: Option<Duration>) -> String {
    let Some(time) = time else { return "-".to_owned() };
    let seconds = time.as_secs();
    match seconds {
        0..10 => format!("{seconds}.{}s", time.subsec_millis() / 100),
        10..100 => format!("{seconds}s"),
        100..6000 => format!("{}m", seconds / 60),
        6000..360_000 => format!("{}h", seconds / 3600),
        _ => format!("{}d", (seconds / 86400).min(999)),
    }
}

/// Returns bars on one row, the highest of them for the greatest value.
fn spark(values: &[u64]) -> String {
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    let bar = |value: u64| match value {
        0 => ' ',
        _ => ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']
            [((value * 8).div_ceil(most) as usize - 1).min(7)],
    };
    values.iter().map(|&value| bar(value)).collect()
}

/// Returns the name in at most `room` characters. Its end stays, which tells it from its like.
fn shortened(name: &str, room: usize) -> String {
    let characters: Vec<char> = name.chars().collect();
    let Some(excess) = characters.len().checked_sub(room).filter(|&excess| excess > 0) else {
        return name.to_owned();
    };
    let kept_before = room.saturating_sub(1) * 2 / 3;
    let after = (kept_before + excess + 1).min(characters.len());
    let (before, after) = (&characters[..kept_before], &characters[after..]);
    before.iter().chain(&['…']).chain(after).collect()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    const STATES: usize = 5;

    fn state_number(number: usize, now: Instant) -> State {
        match number % STATES {
            0 => State::Open { epoch: 1 },
            1 => State::Connecting { attempt: u32::MAX },
            2 => State::Backoff { attempt: 3, until: now + Duration::from_secs(12) },
            3 => State::Closing,
            _ => State::Closed,
        }
    }

    /// Long text of a server that means no good.
    const HOSTILE: &str = "a\x1b[2J\x1b]0;title\x07\n\r\t\u{9b}31m\u{202e} 日本語 🦀 e\u{301} \
                           averylongwordthatfitsonnonarrowscreenandhastobecutsomewhere end";

    fn notes(now: Instant) -> Notes {
        let note = || Some(Note { at: now, text: HOSTILE.to_owned() });
        Notes {
            opened: Some(HOSTILE.to_owned()),
            ended: note(),
            dial_failed: note(),
            gave_up: None,
            not_sent: Some(HOSTILE.to_owned()),
        }
    }

    fn stats(count: u64) -> Stats {
        let mut stats = Stats::default();
        (stats.messages_received, stats.bytes_received) = (count, count);
        (stats.epochs, stats.failed_dials, stats.messages_lost) = (count, count, count);
        stats.queue_depth = 65_536;
        stats.drops = [("closed", 3), ("pong_timeout", count / 2), ("stopped", 9)].into();
        stats.last_byte_age = Some(Duration::from_millis(count % 1_000_000));
        stats.round_trip.count = count;
        stats
    }

    /// Returns the lines of the screen, without the spaces at their ends.
    fn screen(terminal: &Terminal<TestBackend>) -> Vec<String> {
        let buffer = terminal.backend().buffer();
        let cells = |y| (0..buffer.area.width).map(move |x| buffer[(x, y)].symbol());
        (0..buffer.area.height)
            .map(|y| cells(y).collect::<String>().trim_end().to_owned())
            .collect()
    }

    fn drawn(size: (u16, u16), rows: &[Row<'_>], selected: usize, now: Instant) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).expect("it is memory");
        let mut table = TableState::new().with_selected(selected);
        terminal.draw(|frame| draw(frame, rows, &mut table, now)).expect("it is memory");
        screen(&terminal)
    }

    #[test]
    fn every_size_is_drawn_with_any_number_of_rows_and_nothing_steers_the_terminal() {
        let now = Instant::now();
        let mut history = History::new(now);
        history.sample(now + Duration::from_secs(5), &stats(u64::MAX));
        let notes = notes(now);
        let names: Vec<String> =
            (0..30).map(|number| format!("{number}.{}", "x".repeat(number * 3))).collect();
        let row = |number: usize| Row {
            name: &names[number],
            state: state_number(number, now),
            stats: stats([0, 1, 12_345_678, u64::MAX][number % 4]),
            history: &history,
            notes: &notes,
        };
        // The numbers of rows and the selection differ from each size to the next. Of the large
        // sizes, which take long without optimization, every 47th is enough.
        for width in 0..=140u16 {
            for height in 0..=50u16 {
                if (width > 32 || height > 16) && (width * 3 + height * 5) % 47 != 0 {
                    continue;
                }
                let count = usize::from(width * 7 + height * 3) % 31;
                let rows: Vec<_> = (0..count).map(row).collect();
                let selected = usize::from(height * 5 + width) % 32;
                let lines = drawn((width, height), &rows, selected, now);
                assert_eq!(lines.len(), usize::from(height));
                let steers =
                    |line: &String| line.chars().any(|c| c.is_control() || c == '\u{202e}');
                assert!(!lines.iter().any(steers), "{lines:?}");
                let is_large = width >= SMALLEST.0 && height >= SMALLEST.1;
                if is_large && selected < count {
                    // However many there are, the selected one can be seen.
                    let marked: Vec<_> =
                        lines.iter().filter(|line| line.starts_with('>')).collect();
                    assert_eq!(marked.len(), 1, "{width}x{height}: {lines:#?}");
                }
            }
        }
    }

    #[test]
    fn at_80_columns_each_row_has_all_that_was_asked_for() {
        let now = Instant::now();
        let mut history = History::new(now);
        history.sample(now + Duration::from_secs(1), &stats(1500));
        let mut stats = stats(1500);
        (stats.queue_depth, stats.failed_dials, stats.messages_lost) = (7, 2, 0);
        stats.drops = [("closed", 1), ("pong_timeout", 3), ("stopped", 1)].into();
        stats.round_trip.last = Duration::from_micros(1250);
        stats.epochs = 5;
        let notes = Notes {
            ended: Some(Note { at: now, text: "bye \x1b[2J".to_owned() }),
            ..Notes::default()
        };
        let row = Row {
            name: "stream.example.com",
            state: State::Open { epoch: 5 },
            stats,
            history: &history,
            notes: &notes,
        };
        let lines = drawn((80, 24), &[row], 0, now + Duration::from_secs(4));
        assert_eq!(lines[0], " tautline watch   1 of 1 open   1.5k msg/s   1.5 kB/s");
        assert_eq!(
            lines[1],
            " connection         state        epoch msg/s   B/s bytes    rtt  age queue drops"
        );
        assert_eq!(
            lines[2],
            ">stream.example.com Open             5  1.5k  1.5k  1.5k  1.2ms 1.5s     7     4"
        );
        assert!(lines[3].starts_with("─ stream.example.com ───"), "{lines:#?}");
        assert_eq!(lines[4], " end     4.0s ago: bye \\u{1b}[2J");
        assert_eq!(lines[5], " drops   3 pong_timeout, 1 closed; failed dials: 2");
        assert_eq!(lines[8], format!(" msg/s   {}█", " ".repeat(59)));
        assert_eq!(lines[23], " q quit   ↑ ↓ select   r reconnect");
    }

    #[test]
    fn a_table_with_more_rows_than_there_is_room_for_follows_the_selection() {
        let now = Instant::now();
        let (history, notes) = (History::new(now), Notes::default());
        let names: Vec<String> = (0..30).map(|number| format!("host{number}")).collect();
        let row = |name| Row {
            name,
            state: State::Closed,
            stats: Stats::default(),
            history: &history,
            notes: &notes,
        };
        let rows: Vec<_> = names.iter().map(|name| row(name)).collect();
        let lines = drawn((80, 24), &rows, 20, now);
        let shown = lines.iter().filter(|line| line.contains("Closed")).count();
        assert_eq!(shown, 9, "{lines:#?}");
        assert!(lines.iter().any(|line| line.starts_with(">host20 ")), "{lines:#?}");
        assert!(lines.iter().any(|line| line.starts_with("─ host20 ")), "{lines:#?}");
    }

    #[test]
    fn narrow_terminals_have_the_columns_that_matter_most() {
        let titles =
            |width| columns(width, 18).iter().map(|column| column.title).collect::<Vec<_>>();
        assert_eq!(titles(24), ["state"]);
        assert_eq!(titles(60), ["state", "msg/s", "B/s", "age", "drops"]);
        assert_eq!(
            titles(80),
            ["state", "epoch", "msg/s", "B/s", "bytes", "rtt", "age", "queue", "drops"]
        );
        assert_eq!(titles(101)[9..], ["msg/s, last 20 s"]);
        assert_eq!(titles(120)[9..], ["msg/s, last 20 s", "drops by kind"]);
    }

    #[test]
    fn numbers_and_times_are_short() {
        for (count, shown) in [
            (0.0, "0"),
            (0.25, "0.2"),
            (7.0, "7"),
            (99.96, "100"),
            (999.4, "999"),
            (999.5, "1.0k"),
            (12_345.0, "12.3k"),
            (99_960.0, "100k"),
            (999_499.0, "999k"),
            (999_999.0, "1.0M"),
            (u64::MAX as f64, "18.4E"),
        ] {
            assert_eq!(si(count), shown);
        }
        assert_eq!(bytes(1500.0), "1.5 kB");
        assert_eq!((exact(99_999), exact(100_000)), ("99999".to_owned(), "100k".to_owned()));
        for (micros, shown) in [
            (0, "0µs"),
            (999, "999µs"),
            (1000, "1.0ms"),
            (99_940, "99.9ms"),
            (99_960, "100ms"),
            (999_400, "999ms"),
            (999_600, "1.0s"),
            (100_000_000, "1m"),
        ] {
            assert_eq!(short(Duration::from_micros(micros)), shown);
        }
        for (seconds, shown) in [
            (9.99, "9.9s"),
            (99.0, "99s"),
            (100.0, "1m"),
            (5999.0, "99m"),
            (6000.0, "1h"),
            (359_999.0, "99h"),
            (360_000.0, "4d"),
            (1e12, "999d"),
        ] {
            assert_eq!(age(Some(Duration::from_secs_f64(seconds))), shown);
        }
    }

    #[test]
    fn names_and_text_are_cut_where_they_have_to_be() {
        assert_eq!(shortened("127.0.0.1:7001#2", 16), "127.0.0.1:7001#2");
        assert_eq!(shortened("127.0.0.1:7001#2", 13), "127.0.0.…01#2");
        assert_eq!(shortened("abc", 1), "…");
        assert_eq!(wrapped("one two three", 8), ["one two ", "three"]);
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("abcdefgh ij", 3), ["abc", "def", "gh ", "ij"]);
        assert_eq!(wrapped("日本語", 4), ["日本", "語"]);
        assert_eq!(wrapped("", 4), [""]);
        assert_eq!(spark(&[0, 1, 4, 8]), " ▁▄█");
    }
}

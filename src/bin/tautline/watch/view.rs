//! Draws the view: a table of connections, and the details of the selected one. Pure.
//!
//! Everything that a server may have written is drawn through [`Visible`].

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

/// What is shown of a connection.
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
    let rate = |of: fn(&Row<'_>) -> f64| si(rows.iter().map(of).sum());
    Line::from(vec![
        " tautline watch".bold(),
        format!(
            "   {open} of {} open   {} msg/s   {}B/s",
            rows.len(),
            rate(|row| row.history.rate().messages),
            rate(|row| row.history.rate().bytes)
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
    cell: fn(&Row<'_>, u16, Instant) -> Cell<'static>,
}

const COLUMNS: [Column; 11] = [
    Column { title: "state", width: 12, rank: 0, cell: |row, _, now| state(row.state, now) },
    Column { title: "epoch", width: 5, rank: 6, cell: |row, _, _| right(row.stats.epochs, 5) },
    Column {
        title: "msg/s",
        width: 5,
        rank: 1,
        cell: |row, _, _| right(si(row.history.rate().messages), 5),
    },
    Column {
        title: "B/s",
        width: 5,
        rank: 4,
        cell: |row, _, _| right(si(row.history.rate().bytes), 5),
    },
    Column {
        title: "bytes",
        width: 5,
        rank: 8,
        cell: |row, _, _| right(si(row.stats.bytes_received as f64), 5),
    },
    Column { title: "trip", width: 6, rank: 5, cell: |row, _, _| right(trip(&row.stats), 6) },
    Column {
        title: "age",
        width: 4,
        rank: 3,
        cell: |row, _, _| right(age(row.stats.last_byte_age), 4),
    },
    Column { title: "queue", width: 5, rank: 7, cell: |row, _, _| right(row.stats.queue_depth, 5) },
    Column { title: "drops", width: 5, rank: 2, cell: |row, _, _| right(drops(&row.stats), 5) },
    Column {
        title: "msg/s, last 20 s",
        width: 20,
        rank: 9,
        cell: |row, width, _| Cell::from(spark(&row.history.last_seconds(usize::from(width)))),
    },
    Column {
        title: "drops by kind",
        width: 28,
        rank: 10,
        cell: |row, _, _| Cell::from(describe_drops(&row.stats)),
    },
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
    let widths = std::iter::once(Constraint::Length(room as u16))
        .chain(columns.iter().map(|column| Constraint::Length(column.width)));
    let header = std::iter::once(Cell::from("connection"))
        .chain(columns.iter().map(|column| title(column)))
        .collect::<ratatui::widgets::Row<'_>>()
        .style(Style::new().underlined());
    let body = rows.iter().map(|row| {
        std::iter::once(Cell::from(shortened(row.name, room)))
            .chain(columns.iter().map(|column| (column.cell)(row, column.width, now)))
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

/// Titles stand over their numbers on the right, and over text on the left.
fn title(column: &Column) -> Cell<'static> {
    match column.rank {
        0 | 9 | 10 => Cell::from(column.title),
        _ => right(column.title, usize::from(column.width)),
    }
}

/// The columns of the labels before the details, and a space.
const LABEL: usize = 8;

fn draw_details(frame: &mut Frame<'_>, area: Rect, row: &Row<'_>, now: Instant) {
    let width = usize::from(area.width);
    let lines = details(row, now, width.saturating_sub(LABEL + 2));
    // The text comes first, and the chart has the rest, within reason.
    let left = area.height.saturating_sub(1 + u16::try_from(lines.len()).unwrap_or(u16::MAX));
    let [title, text, chart] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(match left {
            0 => 0,
            1..=10 => left,
            _ => 10,
        }),
    ])
    .areas(area);
    let name = format!("─ {} ", Visible(row.name));
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
        for (number, part) in wrapped(&text, width).into_iter().enumerate() {
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
    if let Some(reason) = &notes.gave_up {
        add("gave up", bad, reason);
    }
    if let Some(failure) = &notes.dial_failed {
        add("dial", plain, &ago(failure));
    }
    if let Some(ended) = &notes.ended {
        add("end", plain, &ago(ended));
    }
    if let Some(failure) = &notes.not_sent {
        add("send", bad, failure);
    }
    let failed = match stats.failed_dials {
        0 => String::new(),
        failed => format!("; {failed} dials failed"),
    };
    add("drops", plain, &format!("{}{failed}", describe_drops(stats)));
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
            "{} messages, {}B received; {} messages, {}B sent",
            si(stats.messages_received as f64),
            si(stats.bytes_received as f64),
            si(stats.messages_sent as f64),
            si(stats.bytes_sent as f64)
        ),
    );
    let trips = stats.round_trip;
    if trips.count > 0 {
        let [last, min, mean, max] = [trips.last, trips.min, trips.mean, trips.max].map(short);
        add("trip", plain, &format!("last {last}, min {min}, mean {mean}, max {max}"));
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
        State::Connecting { attempt } => (format!("Connecting {attempt}"), Color::Yellow),
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

fn right(text: impl ToString, width: usize) -> Cell<'static> {
    Cell::from(format!("{:>width$}", text.to_string()))
}

/// Returns the latest round trip.
fn trip(stats: &Stats) -> String {
    match stats.round_trip.count {
        0 => "-".to_owned(),
        _ => short(stats.round_trip.last),
    }
}

/// Returns a count in at most five characters, with the prefixes of the SI.
pub(crate) fn si(count: f64) -> String {
    let mut scaled = count;
    let mut prefixes = ["", "k", "M", "G", "T", "P", "E"].iter();
    let mut prefix = prefixes.next().copied().unwrap_or_default();
    while scaled >= 999.5 {
        let Some(next) = prefixes.next() else { break };
        (scaled, prefix) = (scaled / 1000.0, next);
    }
    let is_whole = prefix.is_empty() && (count.fract() == 0.0 || count >= 99.95);
    match scaled {
        _ if is_whole => format!("{scaled:.0}"),
        0.0..99.95 => format!("{scaled:.1}{prefix}"),
        _ => format!("{scaled:.0}{prefix}"),
    }
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
    let kept_before = room.saturating_sub(1) / 2;
    let after = (kept_before + excess + 1).min(characters.len());
    let (before, after) = (&characters[..kept_before], &characters[after..]);
    before.iter().chain(&['…']).chain(after).collect()
}

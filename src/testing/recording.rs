//! Reads recordings: the objects of `tautline record`, one on a line, perhaps compressed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use serde_json::Value;

/// The length from which on a line is refused: a text of 64 MiB, all of it escaped, has room.
const LINE_MAX: u64 = 512 * 1024 * 1024;

/// A recording that is read from its start, one line at a time.
pub(super) struct Recording {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    line: Vec<u8>,
    /// The number of the line that was read last, from 1.
    number: u64,
    /// The object of the first line, until it is used.
    first: Option<Value>,
    timeline: Timeline,
}

/// A message of a recording.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RecordedMessage {
    /// The nanoseconds from the first message until this one.
    pub(super) at_ns: u64,
    pub(super) payload: RecordedPayload,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum RecordedPayload {
    Text(String),
    Binary(Vec<u8>),
}

impl Recording {
    /// Opens a recording and reads its first line.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut recording = Recording {
            path: path.to_owned(),
            reader: reader(path)?,
            line: Vec::new(),
            number: 0,
            first: None,
            timeline: Timeline::default(),
        };
        match recording.next_object()? {
            Some(first) => recording.first = Some(first),
            None => return Err(invalid(format!("{} holds no recording", path.display()))),
        }
        Ok(recording)
    }

    /// Returns the next message, or `None` at the end.
    ///
    /// The last line may be incomplete, and so may the last frame of a compressed file: whoever
    /// wrote them was killed. They are left out, and the log says so at level warn.
    ///
    /// # Errors
    /// `InvalidData` where another line is no object of a recording. It names the file and the
    /// number of the line.
    pub(super) fn next_message(&mut self) -> io::Result<Option<RecordedMessage>> {
        while let Some(mut object) = self.next_object()? {
            match object["event"].as_str() {
                Some("started") => self.timeline.start(object["unix_ns"].as_u64()),
                Some("message") => return self.message(&mut object).map(Some),
                _ => {}
            }
        }
        Ok(None)
    }

    fn message(&mut self, object: &mut Value) -> io::Result<RecordedMessage> {
        let ns = object["ns"].as_u64().ok_or_else(|| self.damaged("the message has no `ns`"))?;
        let payload = match (object["text"].take(), &object["binary"]) {
            (Value::String(text), Value::Null) => RecordedPayload::Text(text),
            (Value::Null, Value::String(coded)) => RecordedPayload::Binary(
                BASE64
                    .decode(coded.as_bytes())
                    .map_err(|_| self.damaged("`binary` is not base64"))?,
            ),
            _ => return Err(self.damaged("the message needs either `text` or `binary`")),
        };
        Ok(RecordedMessage { at_ns: self.timeline.place(ns), payload })
    }

    /// Returns the object of the next line that is not blank, or `None` at the end.
    fn next_object(&mut self) -> io::Result<Option<Value>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        loop {
            self.line.clear();
            self.number += 1;
            let mut limited = self.reader.by_ref().take(LINE_MAX);
            let is_cut = match limited.read_until(b'\n', &mut self.line) {
                Ok(_) => false,
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => true,
                Err(error) => {
                    return Err(io::Error::new(error.kind(), self.describe(&error.to_string())));
                }
            };
            if self.line.len() as u64 == LINE_MAX {
                return Err(self.damaged("it is longer than 512 MiB"));
            }
            let is_last = self.line.last() != Some(&b'\n');
            if !self.line.trim_ascii().is_empty() {
                let object = serde_json::from_slice::<Value>(&self.line).ok();
                match object.filter(|object| object["event"].is_string()) {
                    Some(object) => return Ok(Some(object)),
                    None if !is_last => return Err(self.damaged("no object of a recording")),
                    None => {}
                }
            }
            if is_last {
                if is_cut || !self.line.is_empty() {
                    log::warn!("{} is incomplete: its last line is left out", self.path.display());
                }
                return Ok(None);
            }
        }
    }

    fn damaged(&self, reason: &str) -> io::Error {
        invalid(self.describe(reason))
    }

    fn describe(&self, reason: &str) -> String {
        format!("{}, line {}: {reason}", self.path.display(), self.number)
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text)
}

fn reader(path: &Path) -> io::Result<Box<dyn BufRead>> {
    let explain = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display()))
    };
    let file = File::open(path).map_err(explain)?;
    match path.extension().is_some_and(|extension| extension == "zst") {
        true => decompress(file).map_err(explain),
        false => Ok(Box::new(BufReader::with_capacity(64 * 1024, file))),
    }
}

/// Returns a reader of all frames, one after the other: what was appended is a frame of its own.
#[cfg(feature = "zstd")]
fn decompress(file: File) -> io::Result<Box<dyn BufRead>> {
    let decoder = zstd::Decoder::new(file)?;
    Ok(Box::new(BufReader::with_capacity(
        zstd::Decoder::<'_, BufReader<File>>::recommended_output_size(),
        decoder,
    )))
}

#[cfg(not(feature = "zstd"))]
fn decompress(_: File) -> io::Result<Box<dyn BufRead>> {
    Err(io::Error::new(ErrorKind::Unsupported, "tautline was built without its feature `zstd`"))
}

/// The places of messages in the time that a replay takes. It begins with the first message, and
/// never goes back.
#[derive(Default)]
struct Timeline {
    /// The start of the run that recorded these objects, as its `started` says. Files that one run
    /// wrote have the same.
    run: Option<u64>,
    /// The place of the first message of this run, and the `ns` that it has.
    first: Option<(u64, u64)>,
    last: u64,
}

impl Timeline {
    /// Takes note of a `started`. The first message of another run follows the last one of this
    /// run at once, however long nobody recorded.
    fn start(&mut self, unix_ns: Option<u64>) {
        if unix_ns.is_none() || unix_ns != self.run {
            self.run = unix_ns;
            self.first = None;
        }
    }

    /// Returns the place of a message.
    fn place(&mut self, ns: u64) -> u64 {
        let (place, first_ns) = *self.first.get_or_insert((self.last, ns));
        self.last = self.last.max(place.saturating_add(ns.saturating_sub(first_ns)));
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a file that this test alone has, and reads it to its end or to an error.
    fn read(name: &str, content: &[u8]) -> Result<Vec<RecordedMessage>, (ErrorKind, String)> {
        let name = format!("tautline-recording-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, content).expect("there is room for a file");
        let read = (|| {
            let mut recording = Recording::open(&path)?;
            let mut messages = Vec::new();
            while let Some(message) = recording.next_message()? {
                messages.push(message);
            }
            Ok(messages)
        })();
        std::fs::remove_file(&path).expect("it is there");
        read.map_err(|error: io::Error| (error.kind(), error.to_string()))
    }

    fn text(at_ns: u64, text: &str) -> RecordedMessage {
        RecordedMessage { at_ns, payload: RecordedPayload::Text(text.into()) }
    }

    const STARTED: &str = "{\"event\":\"started\",\"unix_ns\":1}\n";

    #[test]
    fn messages_are_read_in_order_and_other_objects_are_passed_over() {
        let content = format!(
            "{STARTED}{}\n\n{}\n{}\n{}\n{}",
            r#"{"event":"opened","ns":3,"epoch":1}"#,
            r#"{"event":"message","epoch":1,"ns":10,"text":"né \"x\" \u0000"}"#,
            r#"{"event":"sent","ns":11,"text":"to the server"}"#,
            r#"{"binary":"AAH/","ns":25,"event":"message"}"#,
            // The last line feed may be missing.
            r#"{"event":"message","ns":25,"text":""}"#,
        );
        let binary = RecordedPayload::Binary(vec![0, 1, 255]);
        let expected =
            [text(0, "né \"x\" \0"), RecordedMessage { at_ns: 15, payload: binary }, text(15, "")];
        assert_eq!(read("order", content.as_bytes()).expect("it is whole"), expected);
    }

    #[test]
    fn a_recording_without_its_end_is_read_up_to_its_last_whole_line() {
        let one = r#"{"event":"message","ns":1,"text":"one"}"#;
        let whole = format!("{STARTED}{one}\n{}\n", one.replace("one", "two"));
        // A line is whole without its line feed.
        let ends = [STARTED.len() + one.len(), whole.len() - 1];
        for len in STARTED.len()..=whole.len() {
            let read = read("cut", &whole.as_bytes()[..len]).expect("a cut end is no error");
            let count = ends.iter().filter(|&&end| len >= end).count();
            assert_eq!(read, [text(0, "one"), text(0, "two")][..count], "{len} bytes");
        }
        // Nothing says that the beginning of its first line is one of a recording.
        let (kind, error) = read("cut", &STARTED.as_bytes()[..9]).expect_err("it has no line");
        assert!(kind == ErrorKind::InvalidData && error.contains("holds no recording"), "{error}");
    }

    #[test]
    fn a_damaged_line_is_an_error_with_its_number() {
        for (damaged, reason) in [
            ("{\"event\":\"mess", "no object of a recording"),
            ("[1]", "no object of a recording"),
            ("\"event\"", "no object of a recording"),
            ("{\"event\":1}", "no object of a recording"),
            ("\u{0}\u{0}\u{0}", "no object of a recording"),
            (r#"{"event":"message","text":"a"}"#, "no `ns`"),
            (r#"{"event":"message","ns":-1,"text":"a"}"#, "no `ns`"),
            (r#"{"event":"message","ns":1}"#, "`text` or `binary`"),
            (r#"{"event":"message","ns":1,"text":"a","binary":"AA=="}"#, "`text` or `binary`"),
            (r#"{"event":"message","ns":1,"text":5}"#, "`text` or `binary`"),
            (r#"{"event":"message","ns":1,"binary":"A*"}"#, "not base64"),
        ] {
            let content = format!("{STARTED}{damaged}\n{STARTED}");
            let (kind, error) = read("damaged", content.as_bytes()).expect_err(damaged);
            assert_eq!(kind, ErrorKind::InvalidData, "{error}");
            assert!(error.contains(", line 2: ") && error.contains(reason), "{damaged}: {error}");
        }
    }

    #[test]
    fn what_is_no_recording_is_refused_when_it_is_opened() {
        for (content, reason) in
            [("", "holds no recording"), ("\n\n", "holds no recording"), ("a,b\n1,2\n", "line 1")]
        {
            let (kind, error) = read("other", content.as_bytes()).expect_err(content);
            assert!(kind == ErrorKind::InvalidData && error.contains(reason), "{error}");
        }
        let missing = Recording::open(Path::new("/does/not/exist.jsonl")).err().expect("an error");
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        assert!(missing.to_string().contains("/does/not/exist.jsonl"), "{missing}");
    }

    #[test]
    fn time_goes_on_between_the_files_of_a_run_and_stands_still_between_runs() {
        let mut timeline = Timeline::default();
        timeline.start(Some(100));
        assert_eq!([timeline.place(50), timeline.place(70)], [0, 20]);
        // The next file of the same run.
        timeline.start(Some(100));
        assert_eq!(timeline.place(90), 40);
        // Another run, whose clock began anew.
        timeline.start(Some(900));
        assert_eq!([timeline.place(5), timeline.place(7)], [40, 42]);
        // A clock does not go back, but whoever edits a recording may swap lines.
        assert_eq!([timeline.place(0), timeline.place(8)], [42, 43]);
        timeline.start(None);
        assert_eq!([timeline.place(0), timeline.place(u64::MAX)], [43, u64::MAX]);
    }

    #[cfg(feature = "zstd")]
    mod compressed {
        use std::io::Write;

        use super::*;

        fn frame(lines: &[&str]) -> Vec<u8> {
            let mut encoder = zstd::Encoder::new(Vec::new(), 3).expect("it takes the level");
            for line in lines {
                writeln!(encoder, "{line}").expect("a Vec takes everything");
                // The end of a block.
                encoder.flush().expect("a Vec takes everything");
            }
            encoder.finish().expect("a Vec takes everything")
        }

        const ONE: &str = r#"{"event":"message","ns":1,"text":"one"}"#;
        const TWO: &str = r#"{"event":"message","ns":2,"text":"two"}"#;

        #[test]
        fn frames_follow_each_other() {
            let content = [frame(&[STARTED.trim(), ONE]), frame(&[TWO])].concat();
            let read = read("frames.zst", &content).expect("it is whole");
            assert_eq!(read, [text(0, "one"), text(1, "two")]);
        }

        #[test]
        fn a_frame_without_its_end_is_read_up_to_its_last_whole_block() {
            let content = frame(&[STARTED.trim(), ONE, TWO]);
            let mut counts = Vec::new();
            for len in frame(&[STARTED.trim()]).len()..=content.len() {
                let read = read("cut.zst", &content[..len]).expect("a cut end is no error");
                assert_eq!(read, [text(0, "one"), text(1, "two")][..read.len()]);
                counts.push(read.len());
            }
            assert!(counts.is_sorted() && counts.contains(&1), "{counts:?}");
            assert_eq!(counts.last(), Some(&2));
        }

        #[test]
        fn what_is_not_compressed_is_an_error() {
            let (_, error) = read("plain.zst", STARTED.as_bytes()).expect_err("it has no frame");
            assert!(error.contains("plain.zst, line 1: "), "{error}");
        }
    }

    #[cfg(not(feature = "zstd"))]
    #[test]
    fn a_compressed_recording_needs_the_feature() {
        let (kind, error) = read("any.jsonl.zst", b"").expect_err("it cannot be read");
        assert!(kind == ErrorKind::Unsupported && error.contains("feature `zstd`"), "{error}");
    }
}

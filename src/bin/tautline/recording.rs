//! The file of a recording, or its files: opens them, writes objects, begins the next in time.
//!
//! Lines are collected up to [`BUFFER`], and [`Recording::flush`] hands them to the kernel, those
//! of a compressed file as a block that can be decompressed by itself. So a process that is killed
//! leaves a file whose last line alone may be incomplete. Nothing is synchronized to the disk:
//! what a crash of the machine takes is the kernel's choice.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tautline::MessageRef;

use crate::objects::Clock;

/// Bytes that wait for a flush. Beyond them they are written before one is asked for.
const BUFFER: usize = 64 << 10;

/// The level of `zstd` itself. Higher ones take several times the CPU for a few percent.
const LEVEL: i32 = 3;

/// The beginning of each recording.
const START: &[u8] = b"{\"event\":\"started\"";

/// The treatment of a file that exists already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    Refuse,
    Append,
    Overwrite,
}

/// The occasions to begin another file.
pub(crate) struct Rotation {
    /// The file has so many bytes.
    pub(crate) size: Option<u64>,
    /// The file is so old.
    pub(crate) every: Option<Duration>,
}

/// The open file of a recording that has not begun.
pub(crate) struct Prepared {
    files: Files,
    path: PathBuf,
    file: File,
    content: Content,
}

/// The content of a file before the recording.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    /// The file is new.
    None,
    /// It is not a regular file, but a device or a pipe.
    Special,
    /// It is kept.
    Recording,
    /// It is removed.
    Obsolete,
}

/// Opens the file of a recording, and leaves its content alone. With a rotation, this is the first
/// numbered file behind those that exist: `feed.jsonl` makes `feed.000001.jsonl`.
///
/// # Errors
/// A text for whoever named the file.
pub(crate) fn prepare(
    path: &Path,
    existing: Existing,
    rotation: Rotation,
) -> Result<Prepared, String> {
    let name = path.file_name().and_then(|name| name.to_str());
    let Some(name) = name else {
        return Err(format!("{} is no name of a file", path.display()));
    };
    let mut files = Files::new(path, name, rotation);
    if files.rotation.size.is_some() || files.rotation.every.is_some() {
        let (path, file) = files.next()?;
        return Ok(Prepared { files, path, file, content: Content::None });
    }
    let path = path.to_owned();
    let cannot = |error: io::Error| cannot_write(&path, &error);
    let mut options = OpenOptions::new();
    options.write(true);
    let (file, content) = match options.clone().create_new(true).open(&path) {
        Ok(file) => (file, Content::None),
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(cannot(error)),
        Err(_) if !fs::metadata(&path).map_err(cannot)?.is_file() => {
            (options.open(&path).map_err(cannot)?, Content::Special)
        }
        Err(_) => match existing {
            Existing::Refuse => {
                let path = path.display();
                return Err(format!("{path} exists: choose another file, --append or --overwrite"));
            }
            Existing::Append => {
                let mut file = options.read(true).open(&path).map_err(cannot)?;
                files.check(&path, &mut file)?;
                (file, Content::Recording)
            }
            Existing::Overwrite => (options.open(&path).map_err(cannot)?, Content::Obsolete),
        },
    };
    Ok(Prepared { files, path, file, content })
}

fn cannot_write(path: &Path, error: &io::Error) -> String {
    format!("cannot write {}: {error}", path.display())
}

impl Prepared {
    /// Removes the file, if it is new: there will be no recording.
    pub(crate) fn discard(self) {
        if self.content == Content::None {
            // It may be gone.
            let _ = fs::remove_file(self.path);
        }
    }

    /// Begins the recording of what `server`, a host with its port, sends.
    pub(crate) fn start(mut self, server: &str) -> Result<Recording, String> {
        let positioned = match self.content {
            Content::None | Content::Special => Ok(()),
            Content::Recording => self.files.seek_end(&mut self.file),
            Content::Obsolete => self.file.set_len(0),
        };
        positioned.map_err(|error| cannot_write(&self.path, &error))?;
        let clock = Clock::start();
        let mut started = clock.started();
        started["server"] = server.into();
        let mut recording = Recording {
            output: self.files.output(self.file),
            files: self.files,
            clock,
            started: format!("{started}\n").into_bytes(),
            path: self.path,
            opened: Instant::now(),
            waiting: Vec::new(),
            count: 1,
            finished_bytes: 0,
        };
        recording.begin_file()?;
        Ok(recording)
    }
}

/// A recording that is being written.
pub(crate) struct Recording {
    pub(crate) clock: Clock,
    files: Files,
    /// The first line of each file: the time that its objects count from.
    started: Vec<u8>,
    path: PathBuf,
    output: Output,
    /// The time when the current file was begun.
    opened: Instant,
    /// Whole lines that are not written yet, at most [`BUFFER`] bytes and one line.
    waiting: Vec<u8>,
    count: u64,
    /// The bytes of all files before the current one.
    finished_bytes: u64,
}

/// Each error names the file. Nothing can be written after it.
impl Recording {
    pub(crate) fn message(&mut self, message: MessageRef<'_>) -> Result<(), String> {
        self.clock.message(message, &mut self.waiting);
        self.write_if_long()
    }

    pub(crate) fn object(&mut self, object: &Value) -> Result<(), String> {
        writeln!(self.waiting, "{object}").expect("a Vec takes everything");
        self.write_if_long()
    }

    fn write_if_long(&mut self) -> Result<(), String> {
        if self.waiting.len() > BUFFER { self.write() } else { Ok(()) }
    }

    /// Hands everything to the kernel, and begins another file if it is time for one.
    pub(crate) fn flush(&mut self) -> Result<(), String> {
        if !self.waiting.is_empty() {
            self.write()?;
            self.output.flush().map_err(|error| cannot_write(&self.path, &error))?;
        }
        let rotation = &self.files.rotation;
        let is_large = rotation.size.is_some_and(|size| self.output.bytes() >= size);
        let is_old = rotation.every.is_some_and(|every| self.opened.elapsed() >= every);
        if is_large || is_old { self.rotate() } else { Ok(()) }
    }

    fn rotate(&mut self) -> Result<(), String> {
        self.end_file()?;
        let (path, file) = self.files.next()?;
        self.path = path;
        self.finished_bytes += self.output.bytes();
        self.output = self.files.output(file);
        self.count += 1;
        self.begin_file()
    }

    fn begin_file(&mut self) -> Result<(), String> {
        self.opened = Instant::now();
        let begun = self.output.write_all(&self.started).and_then(|()| self.output.flush());
        begun.map_err(|error| cannot_write(&self.path, &error))
    }

    fn write(&mut self) -> Result<(), String> {
        let written = self.output.write_all(&self.waiting);
        self.waiting.clear();
        // A long message took it.
        self.waiting.shrink_to(2 * BUFFER);
        written.map_err(|error| cannot_write(&self.path, &error))
    }

    fn end_file(&mut self) -> Result<(), String> {
        self.output.finish().map_err(|error| cannot_write(&self.path, &error))
    }

    /// Writes the end of the recording.
    pub(crate) fn finish(&mut self) -> Result<(), String> {
        self.write()?;
        self.end_file()
    }

    /// Returns the number of files.
    pub(crate) fn files(&self) -> u64 {
        self.count
    }

    /// Returns the bytes that this program has written to them.
    pub(crate) fn bytes(&self) -> u64 {
        self.finished_bytes + self.output.bytes()
    }
}

/// The names of the files, and their kind.
struct Files {
    folder: PathBuf,
    /// These stand before the number and behind it.
    stem: String,
    suffix: String,
    is_compressed: bool,
    rotation: Rotation,
    last_number: Option<u64>,
}

impl Files {
    fn new(path: &Path, name: &str, rotation: Rotation) -> Self {
        let plain = name.strip_suffix(".zst");
        let rest = plain.unwrap_or(name);
        // A name may begin with a dot.
        let end = rest.rfind('.').filter(|&at| at > 0).unwrap_or(rest.len());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        Files {
            folder: folder.unwrap_or(Path::new(".")).to_owned(),
            stem: format!("{}.", &name[..end]),
            suffix: name[end..].to_owned(),
            is_compressed: plain.is_some(),
            rotation,
            last_number: None,
        }
    }

    /// Creates the next numbered file, behind all that exist.
    fn next(&mut self) -> Result<(PathBuf, File), String> {
        let mut number = match self.last_number {
            Some(number) => number + 1,
            None => self.last_existing().map_err(|error| cannot_write(&self.folder, &error))? + 1,
        };
        loop {
            let path = self.folder.join(format!("{}{number:06}{}", self.stem, self.suffix));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    self.last_number = Some(number);
                    return Ok((path, file));
                }
                // Another program has been quicker.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(cannot_write(&path, &error)),
            }
        }
    }

    fn last_existing(&self) -> io::Result<u64> {
        let mut last = 0;
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_prefix(&self.stem)?.strip_suffix(&self.suffix))
                .filter(|number| number.len() >= 6 && number.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|number| number.parse().ok());
            last = last.max(number.unwrap_or(0));
        }
        Ok(last)
    }

    fn output(&self, file: File) -> Output {
        let file = Counted { file, bytes: 0 };
        match self.is_compressed {
            true => Output::Compressed(Box::new(
                zstd::Encoder::new(file, LEVEL).expect("the level is one that exists"),
            )),
            false => Output::Plain(file),
        }
    }

    /// Checks that a recording can be appended to a file.
    fn check(&self, path: &Path, file: &mut File) -> Result<(), String> {
        match self.obstacle(file) {
            Ok(None) => Ok(()),
            Ok(Some(reason)) => Err(format!("{} {reason}", path.display())),
            Err(error) => Err(format!("cannot append to {}: {error}", path.display())),
        }
    }

    /// Returns the reason why nothing can be appended to a file.
    fn obstacle(&self, file: &mut File) -> io::Result<Option<&'static str>> {
        if file.metadata()?.len() == 0 {
            return Ok(None);
        }
        if !self.is_compressed {
            return Ok((!begins_with_start(file)?).then_some("is no recording"));
        }
        let mut content = zstd::Decoder::new(file)?;
        let read = begins_with_start(&mut content)
            .and_then(|begins| io::copy(&mut content, &mut io::sink()).map(|_| begins));
        match read {
            Ok(begins) => Ok((!begins).then_some("is no recording")),
            // No frame can follow one without an end.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Ok(Some("has no end, since its recorder was killed: record to another file"))
            }
            Err(error) => Err(error),
        }
    }

    /// Goes to the end of a recording. A line that a killed recorder left incomplete is cut off.
    fn seek_end(&self, file: &mut File) -> io::Result<()> {
        if !self.is_compressed {
            let end = end_of_lines(file)?;
            file.set_len(end)?;
        }
        file.seek(SeekFrom::End(0)).map(|_| ())
    }
}

fn begins_with_start(content: &mut impl Read) -> io::Result<bool> {
    let mut beginning = Vec::new();
    content.take(START.len() as u64).read_to_end(&mut beginning)?;
    Ok(beginning == START)
}

/// Returns the length of the whole lines of a file.
fn end_of_lines(file: &mut File) -> io::Result<u64> {
    const CHUNK: u64 = 64 << 10;
    let mut end = file.seek(SeekFrom::End(0))?;
    while end > 0 {
        let start = end.saturating_sub(CHUNK);
        file.seek(SeekFrom::Start(start))?;
        let mut chunk = Vec::new();
        Read::by_ref(file).take(end - start).read_to_end(&mut chunk)?;
        if let Some(at) = chunk.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

enum Output {
    Plain(Counted),
    Compressed(Box<zstd::Encoder<'static, Counted>>),
}

impl Output {
    /// Returns the bytes that the file has got.
    fn bytes(&self) -> u64 {
        match self {
            Output::Plain(file) => file.bytes,
            Output::Compressed(encoder) => encoder.get_ref().bytes,
        }
    }

    /// Writes the end of the frame, where there are frames.
    fn finish(&mut self) -> io::Result<()> {
        match self {
            Output::Plain(_) => Ok(()),
            Output::Compressed(encoder) => encoder.do_finish(),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Plain(file) => file.write(bytes),
            Output::Compressed(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Plain(file) => file.flush(),
            Output::Compressed(encoder) => encoder.flush(),
        }
    }
}

/// A file, and the number of bytes written to it.
struct Counted {
    file: File,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_file_stands_before_its_suffix() {
        for (path, folder, numbered, is_compressed) in [
            ("feed.jsonl", ".", "feed.000001.jsonl", false),
            ("a/b.c/feed.jsonl.zst", "a/b.c", "feed.000001.jsonl.zst", true),
            ("/btc.usdt.jsonl", "/", "btc.usdt.000001.jsonl", false),
            ("feed", ".", "feed.000001", false),
            ("feed.zst", ".", "feed.000001.zst", true),
            (".feed.jsonl", ".", ".feed.000001.jsonl", false),
            (".feed", ".", ".feed.000001", false),
        ] {
            let path = Path::new(path);
            let name = path.file_name().and_then(|name| name.to_str()).expect("it has a name");
            let files = Files::new(path, name, Rotation { size: None, every: None });
            assert_eq!(format!("{}{:06}{}", files.stem, 1, files.suffix), numbered);
            assert_eq!(
                (files.folder.as_path(), files.is_compressed),
                (Path::new(folder), is_compressed)
            );
        }
    }
}

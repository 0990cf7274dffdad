//! The start of a refusal's body: where it ends (RFC 9112 section 6.3), and chunks put together.

use http::header::{CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};
use http::{HeaderValue, StatusCode};

/// The number of bytes of a refusal's body that are kept.
pub(super) const BODY_MAX: usize = 4 * 1024;

/// A chunk's size with its extensions, or the line break behind a chunk, is at most this long.
const LINE_MAX: usize = 4 * 1024;

/// A body under construction.
pub(super) struct Body {
    framing: Framing,
    bytes: Vec<u8>,
}

/// The mark of the end of a body.
enum Framing {
    /// `Content-Length`, or a status that has no body.
    Length(u64),
    Chunked(Chunked),
    /// The end of the connection.
    Connection,
}

impl Body {
    /// The body of a response with this head.
    pub(super) fn new(status: StatusCode, headers: &HeaderMap) -> Self {
        let framing = if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            Framing::Length(0)
        } else if let Some(last) = last_coding(headers) {
            // A `Content-Length` beside it does not count.
            match last.eq_ignore_ascii_case(b"chunked") {
                true => Framing::Chunked(Chunked::default()),
                false => Framing::Connection,
            }
        } else {
            headers
                .get(CONTENT_LENGTH)
                .and_then(length)
                .map_or(Framing::Connection, Framing::Length)
        };
        Body { framing, bytes: Vec::new() }
    }

    /// Takes what has been received.
    pub(super) fn push(&mut self, received: &[u8]) {
        match &mut self.framing {
            Framing::Chunked(chunked) => chunked.decode(received, &mut self.bytes),
            Framing::Length(_) | Framing::Connection => self.bytes.extend_from_slice(received),
        }
    }

    /// Returns whether nothing more is wanted.
    pub(super) fn is_complete(&self) -> bool {
        let len = self.bytes.len();
        len >= BODY_MAX
            || match &self.framing {
                Framing::Length(length) => len as u64 >= *length,
                Framing::Chunked(chunked) => matches!(chunked, Chunked::Ended),
                Framing::Connection => false,
            }
    }

    /// The body as far as it has come, at most [`BODY_MAX`] bytes.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        let end = match self.framing {
            Framing::Length(length) => length.min(BODY_MAX as u64) as usize,
            Framing::Chunked(_) | Framing::Connection => BODY_MAX,
        };
        self.bytes.truncate(end);
        // The events queue may hold it for long, and counts its length.
        self.bytes.shrink_to_fit();
        self.bytes
    }
}

/// The transfer coding that was applied last.
fn last_coding(headers: &HeaderMap) -> Option<&[u8]> {
    let list = headers.get_all(TRANSFER_ENCODING).iter().next_back()?.as_bytes();
    list.rsplit(|&byte| byte == b',').next().map(<[u8]>::trim_ascii)
}

fn length(value: &HeaderValue) -> Option<u64> {
    value.to_str().ok()?.trim().parse().ok()
}

/// The position of the decoder in a chunked body (RFC 9112 section 7.1).
enum Chunked {
    /// In the line with the size of a chunk, of which these bytes have come.
    Size(Vec<u8>),
    Data {
        remaining: u64,
    },
    /// In the line break behind a chunk.
    Break {
        has_return: bool,
    },
    /// The last chunk has come, or something that is no chunk. Trailers are of no interest.
    Ended,
}

impl Default for Chunked {
    fn default() -> Self {
        Chunked::Size(Vec::new())
    }
}

impl Chunked {
    fn decode(&mut self, mut bytes: &[u8], body: &mut Vec<u8>) {
        while let [byte, rest @ ..] = bytes {
            match self {
                Chunked::Size(line) => {
                    line.push(*byte);
                    bytes = rest;
                    if *byte == b'\n' || line.len() >= LINE_MAX {
                        *self = Self::behind(std::mem::take(line));
                    }
                }
                Chunked::Data { remaining } => {
                    let count = bytes.len().min(usize::try_from(*remaining).unwrap_or(usize::MAX));
                    let (data, rest) = bytes.split_at(count);
                    body.extend_from_slice(data);
                    bytes = rest;
                    *remaining -= count as u64;
                    if *remaining == 0 {
                        *self = Chunked::Break { has_return: false };
                    }
                }
                Chunked::Break { has_return } => {
                    bytes = rest;
                    *self = match (*byte, *has_return) {
                        (b'\r', false) => Chunked::Break { has_return: true },
                        (b'\n', true) => Chunked::default(),
                        _ => Chunked::Ended,
                    };
                }
                Chunked::Ended => return,
            }
        }
    }

    /// The state behind a line that should hold a size.
    fn behind(line: Vec<u8>) -> Self {
        match httparse::parse_chunk_size(&line) {
            Ok(httparse::Status::Complete((_, 0))) => Chunked::Ended,
            Ok(httparse::Status::Complete((_, remaining))) => Chunked::Data { remaining },
            // An extension may hold a line feed by itself.
            Ok(httparse::Status::Partial) if line.len() < LINE_MAX => Chunked::Size(line),
            Ok(httparse::Status::Partial) | Err(_) => Chunked::Ended,
        }
    }
}

/// Decodes chunked bodies in pieces of any size, whose content is known and is not.
#[cfg(all(feature = "_internals", unix))]
pub(crate) fn fuzz_body(bytes: &[u8]) {
    let Some((&[shape, step], content)) = bytes.split_first_chunk::<2>() else { return };
    let mut headers = HeaderMap::new();
    headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("Chunked"));
    let decode = |stream: &[u8], step: usize| {
        let mut body = Body::new(StatusCode::FORBIDDEN, &headers);
        for piece in stream.chunks(step.max(1)) {
            body.push(piece);
            if body.is_complete() {
                break;
            }
        }
        (body.is_complete(), body.into_bytes())
    };
    let step = usize::from(step) + 1;
    // Whatever the bytes are, the pieces in which they come make no difference.
    assert_eq!(decode(content, content.len()), decode(content, step));

    let mut stream = Vec::new();
    for chunk in content.chunks(usize::from(shape) + 1) {
        let size = chunk.len();
        let head = match shape % 3 {
            0 => format!("{size:x}\r\n"),
            1 => format!("{size:X};name=value\r\n"),
            _ => format!("00{size:x} ; name=\"value\"\r\n"),
        };
        stream.extend_from_slice(head.as_bytes());
        stream.extend_from_slice(chunk);
        stream.extend_from_slice(b"\r\n");
    }
    stream.extend_from_slice(b"0\r\nTrailer: value\r\n\r\n");
    let expected = &content[..content.len().min(BODY_MAX)];
    assert_eq!(decode(&stream, step), (true, expected.to_vec()));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body, and whether it is known to be complete, of `received`, fed `step` bytes at a time.
    fn body(headers: &[(&'static str, &str)], received: &[u8], step: usize) -> (String, bool) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().expect("a legal value"));
        }
        let mut body = Body::new(StatusCode::FORBIDDEN, &map);
        for piece in received.chunks(step) {
            if body.is_complete() {
                break;
            }
            body.push(piece);
        }
        let is_complete = body.is_complete();
        (String::from_utf8(body.into_bytes()).expect("it is text"), is_complete)
    }

    const CHUNKED: &[(&str, &str)] = &[("transfer-encoding", "chunked")];

    #[test]
    fn chunks_are_put_together_however_they_are_cut() {
        let bodies: [&[u8]; 5] = [
            b"8\r\n{\"code\":\r\n6\r\n-2015}\r\n0\r\n\r\n",
            b"8;name=value\r\n{\"code\":\r\n6 ; a=\"\n\"\r\n-2015}\r\n0\r\n\r\n",
            b"008\r\n{\"code\":\r\n6\r\n-2015}\r\n0\r\nX-Trailer: 1\r\n\r\n",
            b"E\r\n{\"code\":-2015}\r\n0\r\n",
            b"e\r\n{\"code\":-2015}\r\n00\r\nwhatever follows",
        ];
        let headers: [&[(&str, &str)]; 4] = [
            CHUNKED,
            &[("transfer-encoding", "Chunked"), ("content-length", "5")],
            &[("transfer-encoding", "gzip, CHUNKED")],
            &[("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")],
        ];
        for received in bodies {
            for headers in headers {
                for step in 1..=received.len() {
                    let expected = ("{\"code\":-2015}".to_owned(), true);
                    assert_eq!(body(headers, received, step), expected, "{headers:?}, {step}");
                }
            }
        }
    }

    #[test]
    fn a_chunked_body_that_breaks_off_is_kept_as_far_as_it_came() {
        for (received, expected, is_complete) in [
            (&b"5\r\nhel"[..], "hel", false),
            (b"5\r\nhello", "hello", false),
            (b"5\r\nhelloX", "hello", true),
            (b"5\r\nhello\r\nx\r\nno", "hello", true),
            (b"5\r\nhello\r\n-1\r\nno", "hello", true),
            (b"5\r\nhello\r\n11111111111111111\r\nno", "hello", true),
            (b"5\r\nhello\r\nffffffffffffffff\r\nyes", "helloyes", false),
            (b"<html>\r\n", "", true),
            (b"", "", false),
        ] {
            assert_eq!(body(CHUNKED, received, 3), (expected.to_owned(), is_complete));
        }
        let endless = vec![b'1'; 2 * LINE_MAX];
        assert_eq!(body(CHUNKED, &endless, 100), (String::new(), true));
    }

    #[test]
    fn the_length_ends_a_body_and_nothing_else_but_the_connection_does() {
        let length = |value| body(&[("content-length", value)], b"refused and more", 4);
        assert_eq!(length("7"), ("refused".to_owned(), true));
        assert_eq!(length("0"), (String::new(), true));
        assert_eq!(length("100"), ("refused and more".to_owned(), false));
        assert_eq!(length("seven"), ("refused and more".to_owned(), false));
        assert_eq!(body(&[], b"refused", 4), ("refused".to_owned(), false));
        let gzip = [("transfer-encoding", "chunked, gzip"), ("content-length", "2")];
        assert_eq!(body(&gzip, b"7\r\n", 9), ("7\r\n".to_owned(), false));
        let mut none = Body::new(StatusCode::NO_CONTENT, &HeaderMap::new());
        assert!(none.is_complete());
        none.push(b"x");
        assert!(none.into_bytes().is_empty());
    }

    #[test]
    fn no_more_than_the_start_of_a_body_is_kept() {
        let long = "x".repeat(3 * BODY_MAX);
        let chunked = format!("{:X}\r\n{long}\r\n0\r\n\r\n", long.len());
        for (headers, received) in [(CHUNKED, chunked.as_bytes()), (&[], long.as_bytes())] {
            let (kept, is_complete) = body(headers, received, 1000);
            assert!(is_complete);
            assert_eq!(kept.len(), BODY_MAX);
        }
    }
}

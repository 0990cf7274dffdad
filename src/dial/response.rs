//! The response of a server or of a proxy (RFC 9112): its head, and the body of a refusal.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::dial::body::Body;
use crate::dial::io::DialIo;
use crate::dial::stream::Stream;
use crate::error::{Error, Timeout};
use crate::sync;
use crate::time::Deadline;

/// A response head longer than this is refused, however slowly it comes.
pub(super) const HEAD_MAX: usize = 64 * 1024;

/// A response with more headers than this is refused.
const HEADERS_MAX: usize = 128;

/// The body of a refusal is waited for this long. It only explains what the status has said.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// The status line and the headers of a response.
pub(super) struct ResponseHead {
    /// HTTP/1.0 knows no upgrade. A refusal in it is a refusal all the same.
    pub(super) is_http_1_0: bool,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// The number of bytes up to the body. `None` for a refusal whose headers are too many, too
    /// long or too broken for its body to be found.
    pub(super) len: Option<usize>,
}

/// Reads a final response, or a 101, and the bytes behind its head, which are `None` if they cannot
/// be told from it. `bytes` have been received before. Interim responses may come first (RFC 9110
/// section 15.2). `broken` makes the error for what is no response.
pub(super) fn read_response(
    stream: &mut Stream<'_>,
    mut bytes: Vec<u8>,
    io: &DialIo<'_>,
    context: &dyn Fn() -> String,
    broken: &dyn Fn(&str) -> Error,
) -> Result<(ResponseHead, Option<Vec<u8>>), Error> {
    let mut interim = 0;
    loop {
        let head = read_head(stream, &mut bytes, io, context, broken)?;
        let rest = head.len.map(|len| bytes.split_off(len));
        match (head.status.as_u16(), rest) {
            (100 | 102..=199, Some(rest)) => {
                interim += bytes.len();
                if interim > HEAD_MAX {
                    return Err(broken("with more than 64 KiB of interim answers"));
                }
                bytes = rest;
            }
            (_, rest) => return Ok((head, rest)),
        }
    }
}

/// Returns a refusal with the start of its body, of which `rest` has come, and the delay that it
/// asks for.
pub(super) fn refusal(
    stream: &mut Stream<'_>,
    head: ResponseHead,
    rest: Option<Vec<u8>>,
    io: &DialIo<'_>,
    context: &dyn Fn() -> String,
) -> (http::Response<Vec<u8>>, Option<Duration>) {
    let body = rest.map(|start| read_body(stream, start, &head, io, context));
    let retry_after = retry_after(&head.headers, SystemTime::now());
    let mut response = http::Response::new(body.unwrap_or_default());
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    (response, retry_after)
}

fn read_head(
    stream: &mut Stream<'_>,
    bytes: &mut Vec<u8>,
    io: &DialIo<'_>,
    context: &dyn Fn() -> String,
    broken: &dyn Fn(&str) -> Error,
) -> Result<ResponseHead, Error> {
    loop {
        if let Some(head) = parse_head(bytes).map_err(broken)? {
            return Ok(head);
        }
        if stream.receive(bytes, io, context)? == 0 {
            let what = match bytes.is_empty() {
                true => "by ending the connection; expected an HTTP/1.1 response",
                false => "by ending the connection inside the response's head",
            };
            return Err(broken(what));
        }
    }
}

const NOT_HTTP: &str = "with something that is not an HTTP/1.1 response";

/// Parses the head at the front of `bytes`; `None` when more bytes are needed.
pub(super) fn parse_head(bytes: &[u8]) -> Result<Option<ResponseHead>, &'static str> {
    // First frames may follow the head.
    let window = &bytes[..bytes.len().min(HEAD_MAX)];
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let what = match parser().parse_response(&mut response, window) {
        Ok(httparse::Status::Complete(len)) => match ResponseHead::new(&response, Some(len)) {
            Some(head) => return Ok(Some(head)),
            None => NOT_HTTP,
        },
        Ok(httparse::Status::Partial) if window.len() < HEAD_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => "with a head of more than 64 KiB",
        Err(httparse::Error::TooManyHeaders) => "with more than 128 headers",
        Err(
            httparse::Error::HeaderName | httparse::Error::HeaderValue | httparse::Error::NewLine,
        ) => "with a header that is not legal",
        Err(_) => NOT_HTTP,
    };
    parse_refusal(window, what)
}

fn parser() -> httparse::ParserConfig {
    let mut parser = httparse::ParserConfig::default();
    parser.allow_obsolete_multiline_headers_in_responses(true);
    parser
}

/// Parses the head of a refusal that the strict parser does not take, because of `what`. The status
/// and the headers that can be read decide what happens next, so the others do no harm.
fn parse_refusal(window: &[u8], what: &'static str) -> Result<Option<ResponseHead>, &'static str> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = parser()
        .allow_spaces_after_header_name_in_responses(true)
        .allow_space_before_first_header_name(true)
        .ignore_invalid_headers_in_responses(true)
        .parse_response(&mut response, window);
    // A 101 has to be right in every respect, and an answer before it says nothing.
    if response.code.is_none_or(|code| code < 200) || parsed == Err(httparse::Error::Status) {
        return Err(what);
    }
    let len = match parsed {
        Ok(httparse::Status::Complete(len)) => Some(len),
        Ok(httparse::Status::Partial) if window.len() < HEAD_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(_) => None,
    };
    ResponseHead::new(&response, len).map(Some).ok_or(what)
}

impl ResponseHead {
    /// `None` for a status that is none, and for a 101 with a header that is not legal.
    fn new(response: &httparse::Response<'_, '_>, len: Option<usize>) -> Option<Self> {
        let status = StatusCode::from_u16(response.code?).ok()?;
        let mut headers = HeaderMap::with_capacity(response.headers.len());
        // Where the parser has given up, fields without a name are left.
        for field in response.headers.iter().filter(|field| !field.name.is_empty()) {
            let name = HeaderName::from_bytes(field.name.as_bytes());
            let value = HeaderValue::from_bytes(&unfolded(field.value));
            match (name, value) {
                (Ok(name), Ok(value)) => drop(headers.append(name, value)),
                _ if status == StatusCode::SWITCHING_PROTOCOLS => return None,
                _ => {}
            }
        }
        Some(ResponseHead { is_http_1_0: response.version != Some(1), status, headers, len })
    }
}

/// A header's value in one line: a line break and the blanks behind it count as a blank (RFC 9112
/// section 5.2).
fn unfolded(value: &[u8]) -> Cow<'_, [u8]> {
    if !value.contains(&b'\n') {
        return Cow::Borrowed(value);
    }
    Cow::Owned(
        value.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).collect::<Vec<_>>().join(&b' '),
    )
}

/// Reads the start of a refusal's body, until it is complete, the connection ends or the time for
/// it is over. Whatever goes wrong here, the status has said what matters.
fn read_body(
    stream: &mut Stream<'_>,
    mut received: Vec<u8>,
    head: &ResponseHead,
    io: &DialIo<'_>,
    context: &dyn Fn() -> String,
) -> Vec<u8> {
    let now = sync::now();
    let timeout = io.deadline.left(now).unwrap_or_default().min(BODY_TIMEOUT);
    let io = DialIo { deadline: Deadline::new(Timeout::Connect, timeout, now), ..*io };
    let mut body = Body::new(head.status, &head.headers);
    loop {
        body.push(&received);
        received.clear();
        if body.is_complete() || !matches!(stream.receive(&mut received, &io, context), Ok(1..)) {
            return body.into_bytes();
        }
    }
}

/// `Retry-After` in both forms (RFC 9110 section 10.2.3). A date in the past means at once.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than fits is for ever, or as long as `retry_after_max` lets it be.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folded_header_is_one_connection() {
        let text = b"HTTP/1.1 503 Busy\r\nX-Why: we are\r\n \t very busy\r\nRetry-After: 5\r\n\r\n";
        let head = parse_head(text).expect("it parses").expect("it is whole");
        assert_eq!(head.headers["x-why"], "we are very busy");
        assert_eq!(head.headers["retry-after"], "5");
    }

    #[test]
    fn heads_that_are_not_http_1_1_are_refused() {
        assert!(parse_head(b"SSH-2.0-OpenSSH\r\n").is_err());
        assert!(parse_head(b"\x16\x03\x01").is_err());
        assert!(parse_head(b"HTTP/1.1 101 Swit").expect("so far so good").is_none());
        let many = format!("HTTP/1.1 101 Switching Protocols\r\n{}\r\n", "a: b\r\n".repeat(129));
        assert_eq!(parse_head(many.as_bytes()).err(), Some("with more than 128 headers"));
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", text.parse().expect("a legal header"));
            retry_after(&headers, SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_000))
        };
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(777)));
        assert_eq!(read("Sat, 06 Nov 1993 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(read("99999999999999999999999"), Some(Duration::from_secs(u64::MAX)));
        for neither in ["soon", "+5", ""] {
            assert_eq!(read(neither), None);
        }
    }

    #[test]
    fn a_refusal_is_understood_whose_headers_are_slightly_wrong() {
        let many = format!("{}Retry-After: 9\r\n", "a: b\r\n".repeat(129));
        let long = format!("Retry-After: 7\r\nX: {}", "x".repeat(HEAD_MAX));
        for (headers, retry_after) in [
            ("X-Y : v\r\nRetry-After: 7\r\n\r\n", Some("7")),
            ("X Y: v\r\nRetry-After: 7\r\n\r\n", Some("7")),
            ("Retry-After : 7\r\n\r\n", Some("7")),
            ("Retry-After: 7\r\nno colon\r\n\r\n", Some("7")),
            (" X: v\r\nRetry-After: 7\r\n\r\n", Some("7")),
            ("Retry-After: 7\r\nX: \u{1}\r\n\r\n", Some("7")),
            ("Retry-After: 7\r\nX: \0\r\n\r\n", Some("7")),
            ("Retry-After: 7\r\nX: a\rb\r\n\r\n", Some("7")),
            (&many, None),
            (&long, Some("7")),
        ] {
            let text = format!("HTTP/1.1 429 Too Many Requests\r\n{headers}");
            let head = parse_head(text.as_bytes()).expect("it is a refusal").expect("it is whole");
            assert_eq!(head.status, 429);
            let told = head.headers.get("retry-after").and_then(|value| value.to_str().ok());
            assert_eq!(told, retry_after, "{headers:.60}");
            let accepted = text.replacen("429 Too Many Requests", "101 Switching Protocols", 1);
            assert!(parse_head(accepted.as_bytes()).is_err(), "{headers:.60}");
        }
        let started = b"HTTP/1.1 429 Too Many Requests\r\nX Y: v\r\nRetry-Af";
        assert!(parse_head(started).is_ok_and(|head| head.is_none()));
        assert!(parse_head(b"HTTP/1.1 4290 Too Many Requests\r\n\r\n").is_err());
    }
}

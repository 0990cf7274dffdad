//! The opening handshake (RFC 6455 section 4.1), by the letter.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use socket2::Socket;
use std::io::{self, Read, Write};
use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;

use crate::config::endpoint::Target;
use crate::connection::tls_engine::TlsEngine;
use crate::dial::body::Body;
use crate::dial::io::DialIo;
use crate::dial::tls::unread_alert;
use crate::error::{Error, ErrorKind, Timeout};
use crate::sync;
use crate::time::Deadline;

/// A response head longer than this is refused, however slowly it comes.
const HEAD_MAX: usize = 64 * 1024;

/// A response with more headers than this is refused.
const HEADERS_MAX: usize = 128;

/// The body of a refusal is waited for this long. It only explains what the status has said.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// The stream during the handshake: TLS or not, without blocking.
pub(crate) struct Stream<'a> {
    pub(crate) socket: &'a Socket,
    pub(crate) tls: Option<&'a mut TlsEngine>,
}

/// The server's response, accepted.
pub(crate) struct UpgradeResponse {
    pub(crate) subprotocol: Option<String>,
    pub(crate) headers: HeaderMap,
    /// The values of `Sec-WebSocket-Extensions`. Empty where nothing was offered.
    pub(crate) extensions: Vec<String>,
    /// The bytes behind the response: the first frames.
    pub(crate) leftover: Vec<u8>,
}

/// Shakes hands.
pub(crate) fn upgrade(
    stream: &mut Stream<'_>,
    target: &Target,
    offer: Option<&str>,
    io: &DialIo<'_>,
) -> Result<UpgradeResponse, Error> {
    let context = || format!("upgrade with {target}");
    let key = generate_key();
    stream.send(request(target, &key, offer).as_slice(), io, &context)?;
    let mut bytes = Vec::new();
    let mut interim = 0;
    loop {
        let head = read_head(stream, &mut bytes, target, io, &context)?;
        let rest = head.len.map(|len| bytes.split_off(len));
        match (head.status.as_u16(), rest) {
            (101, Some(leftover)) => return accept(head, leftover, target, &key, offer.is_some()),
            // RFC 9110 section 15.2: other interim answers may come first.
            (100..=199, Some(rest)) => {
                interim += bytes.len();
                if interim > HEAD_MAX {
                    return Err(broken(target, "with more than 64 KiB of interim answers"));
                }
                bytes = rest;
            }
            (_, rest) => {
                let body = rest.map(|start| read_body(stream, start, &head, io, &context));
                let retry_after = retry_after(&head.headers, SystemTime::now());
                let mut response = http::Response::new(body.unwrap_or_default());
                *response.status_mut() = head.status;
                *response.headers_mut() = head.headers;
                return Err(Error::refused(&target.to_string(), response, retry_after));
            }
        }
    }
}

fn request(target: &Target, key: &str, offer: Option<&str>) -> Vec<u8> {
    let mut text = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\n\
         Sec-WebSocket-Version: 13\r\n",
        target.path_and_query, target.host_header
    )
    .into_bytes();
    let mut put = |name: &str, value: &[u8]| {
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value);
        text.extend_from_slice(b"\r\n");
    };
    if !target.subprotocols.is_empty() {
        put("Sec-WebSocket-Protocol", target.subprotocols.join(", ").as_bytes());
    }
    if let Some(offer) = offer {
        put("Sec-WebSocket-Extensions", offer.as_bytes());
    }
    if !target.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("user-agent")) {
        // Several servers refuse requests without one.
        put("User-Agent", concat!("tautline/", env!("CARGO_PKG_VERSION")).as_bytes());
    }
    for (name, value) in &target.headers {
        put(name, value.as_bytes());
    }
    text.extend_from_slice(b"\r\n");
    text
}

/// The status line and the headers of a response.
struct ResponseHead {
    /// HTTP/1.0 knows no upgrade. A refusal in it is a refusal all the same.
    is_http_1_0: bool,
    status: StatusCode,
    headers: HeaderMap,
    /// The number of bytes up to the body. `None` for a refusal whose headers are too many, too
    /// long or too broken for its body to be found.
    len: Option<usize>,
}

fn broken(target: &Target, what: &str) -> Error {
    Error::new(ErrorKind::Upgrade, format!("{target} answered the upgrade {what}"))
}

fn read_head(
    stream: &mut Stream<'_>,
    bytes: &mut Vec<u8>,
    target: &Target,
    io: &DialIo<'_>,
    context: &dyn Fn() -> String,
) -> Result<ResponseHead, Error> {
    loop {
        if let Some(head) = parse_head(bytes).map_err(|what| broken(target, what))? {
            return Ok(head);
        }
        if stream.receive(bytes, io, context)? == 0 {
            let what = match bytes.is_empty() {
                true => "by ending the connection; expected an HTTP/1.1 response",
                false => "by ending the connection inside the response's head",
            };
            return Err(broken(target, what));
        }
    }
}

const NOT_HTTP: &str = "with something that is not an HTTP/1.1 response";

/// Parses the head at the front of `bytes`; `None` when more bytes are needed.
fn parse_head(bytes: &[u8]) -> Result<Option<ResponseHead>, &'static str> {
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

/// The rules of RFC 6455 section 4.1 for a 101, in their order.
fn accept(
    head: ResponseHead,
    leftover: Vec<u8>,
    target: &Target,
    key: &str,
    has_offered: bool,
) -> Result<UpgradeResponse, Error> {
    let headers = &head.headers;
    let broken = |what: &str| broken(target, what);
    if head.is_http_1_0 {
        return Err(broken("in HTTP/1.0; expected HTTP/1.1"));
    }
    // One value, and no list: that is what the RFC says of this header, and of this header alone.
    match values(headers, "upgrade").as_slice() {
        [one] if one.eq_ignore_ascii_case("websocket") => {}
        [_] => return Err(broken("with another Upgrade header than \"Upgrade: websocket\"")),
        other => {
            let what = format!("with {}; expected one: websocket", count(other.len(), "Upgrade"));
            return Err(broken(&what));
        }
    }
    if !has_token(headers, "connection", "upgrade") {
        let what = count(headers.get_all("connection").iter().count(), "Connection");
        return Err(broken(&format!("with {what}; expected one that lists \"upgrade\"")));
    }
    let expected = derive_accept_key(key.as_bytes());
    match values(headers, "sec-websocket-accept").as_slice() {
        [one] if *one == expected => {}
        [_] => return Err(broken("with a Sec-WebSocket-Accept that does not match the key sent")),
        other => {
            let what = count(other.len(), "Sec-WebSocket-Accept");
            return Err(broken(&format!("with {what}; expected one that matches the key sent")));
        }
    }
    let extensions = values(headers, "sec-websocket-extensions");
    if !has_offered && extensions.iter().any(|value| !value.is_empty()) {
        return Err(broken("with an extension; expected none, as none was offered"));
    }
    let subprotocol = match values(headers, "sec-websocket-protocol").as_slice() {
        [] => None,
        [one] if target.subprotocols.contains(one) => Some(one.clone()),
        [_] => {
            let offered = target.subprotocols.len();
            let what = format!("with a subprotocol that is none of the {offered} offered");
            return Err(broken(&what));
        }
        other => {
            let what = count(other.len(), "Sec-WebSocket-Protocol");
            return Err(broken(&format!("with {what}; expected one at most")));
        }
    };
    Ok(UpgradeResponse { subprotocol, extensions, leftover, headers: head.headers })
}

/// Names a number of headers.
fn count(count: usize, name: &str) -> String {
    match count {
        0 => format!("no header {name}"),
        1 => format!("one header {name}"),
        _ => format!("{count} headers {name}"),
    }
}

/// Returns `true` if one of the headers called `name` lists `token`, in any case.
fn has_token(headers: &HeaderMap, name: &str, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|listed| listed.trim().eq_ignore_ascii_case(token)))
}

fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).trim().to_owned();
    headers.get_all(name).iter().map(text).collect()
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
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than fits is for ever, or as long as `retry_after_max` lets it be.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

impl Stream<'_> {
    fn send(
        &mut self,
        bytes: &[u8],
        io: &DialIo<'_>,
        context: &dyn Fn() -> String,
    ) -> Result<(), Error> {
        let Some(tls) = &mut self.tls else { return io.send(self.socket, bytes, context) };
        tls.enter()
            .write_all(bytes)
            .map_err(|error| Error::caused(ErrorKind::Tls, context(), error))?;
        let mut cipher = Vec::new();
        tls.get_mut().take_output(&mut cipher);
        io.send(self.socket, &cipher, context)
            .map_err(|error| unread_alert(tls, self.socket, error, context))
    }

    /// Appends what comes; 0 at the end of the connection.
    fn receive(
        &mut self,
        into: &mut Vec<u8>,
        io: &DialIo<'_>,
        context: &dyn Fn() -> String,
    ) -> Result<usize, Error> {
        let mut bytes = vec![0; 4096];
        let count = match &mut self.tls {
            None => io.recv(self.socket, &mut bytes, context)?,
            Some(tls) => loop {
                match tls.enter().read(&mut bytes) {
                    Ok(count) => break count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(Error::caused(ErrorKind::Tls, context(), error)),
                }
                let mut output = Vec::new();
                tls.get_mut().take_output(&mut output);
                io.send(self.socket, &output, context)?;
                let mut cipher = vec![0; 16 * 1024];
                match io.recv(self.socket, &mut cipher, context)? {
                    0 => break 0,
                    filled => tls.get_mut().feed(&mut cipher, filled),
                }
            },
        };
        into.extend_from_slice(&bytes[..count]);
        Ok(count)
    }
}

/// Parses bytes as an answer, and judges it by all rules.
#[cfg(all(feature = "internals", unix))]
pub(crate) fn fuzz_head(bytes: &[u8]) {
    let Ok(target) =
        crate::config::endpoint::Endpoint::new("ws://a.example/").subprotocol("one").target()
    else {
        return;
    };
    let Ok(Some(head)) = parse_head(bytes) else { return };
    let Some(len) = head.len else { return };
    assert!(len <= bytes.len().min(HEAD_MAX));
    let _ = retry_after(&head.headers, SystemTime::UNIX_EPOCH);
    let leftover = bytes[len..].to_vec();
    if let Ok(answer) = accept(head, leftover, &target, "dGhlIHNhbXBsZSBub25jZQ==", true) {
        let _ = crate::protocol::deflate::Deflate::new().accept(&answer.extensions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::endpoint::Endpoint;

    fn target() -> Target {
        Endpoint::new("ws://a.example:8080/path?key=v")
            .header("X-Key", "1")
            .subprotocol("one")
            .subprotocol("two")
            .target()
            .expect("a good endpoint")
    }

    fn check(lines: &str, has_offered: bool) -> Result<UpgradeResponse, Error> {
        let text = format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n\r\n");
        let head = parse_head(text.as_bytes()).expect("it parses").expect("it is whole");
        accept(head, Vec::new(), &target(), "dGhlIHNhbXBsZSBub25jZQ==", has_offered)
    }

    const GOOD: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    #[test]
    fn the_request_has_what_the_rfc_asks_for() {
        let text = String::from_utf8(request(&target(), "KEY", Some("x"))).expect("it is text");
        for line in [
            "GET /path?key=v HTTP/1.1\r\n",
            "Host: a.example:8080\r\n",
            "Sec-WebSocket-Key: KEY\r\n",
            "Sec-WebSocket-Version: 13\r\n",
            "Sec-WebSocket-Protocol: one, two\r\n",
            "Sec-WebSocket-Extensions: x\r\n",
            "User-Agent: tautline/",
            "X-Key: 1\r\n\r\n",
        ] {
            assert!(text.contains(line), "{line:?} is missing from {text:?}");
        }
    }

    #[test]
    fn good_answers_are_accepted_whatever_their_case_and_lists() {
        assert!(check(GOOD, false).is_ok());
        let lists = "upgrade: WebSocket\r\nCONNECTION: keep-alive\r\n\
                     Connection: close , uPGRADE\r\n\
                     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
                     Sec-WebSocket-Protocol: two";
        assert_eq!(
            check(lists, false).ok().and_then(|answer| answer.subprotocol).as_deref(),
            Some("two")
        );
        let extended = format!("{GOOD}\r\nSec-WebSocket-Extensions: permessage-deflate");
        assert_eq!(
            check(&extended, true).map(|answer| answer.extensions).ok(),
            Some(vec!["permessage-deflate".to_owned()])
        );
    }

    #[test]
    fn lies_in_the_upgrade_are_refused() {
        let without = |line: &str| {
            GOOD.lines().filter(|known| !known.starts_with(line)).collect::<Vec<_>>().join("\r\n")
        };
        for lie in [
            without("Upgrade"),
            without("Connection"),
            without("Sec-WebSocket-Accept"),
            GOOD.replace("s3pP", "S3pP"),
            GOOD.replace("websocket", "h2c"),
            GOOD.replace("websocket", "h2c, websocket"),
            format!("{GOOD}\r\nUpgrade: websocket"),
            GOOD.replace(": Upgrade", ": close"),
            format!("{GOOD}\r\nSec-WebSocket-Extensions: permessage-deflate"),
            format!("{GOOD}\r\nSec-WebSocket-Protocol: three"),
            format!("{GOOD}\r\nSec-WebSocket-Protocol: one\r\nSec-WebSocket-Protocol: two"),
            format!("{GOOD}\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ] {
            let error = check(&lie, false).err().unwrap_or_else(|| panic!("{lie:?} is a lie"));
            assert_eq!(error.kind(), ErrorKind::Upgrade);
        }
    }

    #[test]
    fn an_upgrade_in_http_1_0_is_none_and_a_refusal_in_it_is_one() {
        let text = format!("HTTP/1.0 101 Switching Protocols\r\n{GOOD}\r\n\r\n");
        let head = parse_head(text.as_bytes()).expect("it parses").expect("it is whole");
        assert!(accept(head, Vec::new(), &target(), "dGhlIHNhbXBsZSBub25jZQ==", false).is_err());
        let refusal = parse_head(b"HTTP/1.0 401 Unauthorized\r\n\r\n")
            .expect("it parses")
            .expect("it is whole");
        assert_eq!(refusal.status, 401);
    }

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

    #[test]
    fn what_is_wrong_with_an_upgrade_names_what_was_seen_and_what_was_expected() {
        for (lines, expected) in [
            (format!("{GOOD}\r\nUpgrade: websocket"), "2 headers Upgrade; expected one: websocket"),
            (GOOD.replace("Upgrade: w", "X: w"), "no header Upgrade; expected one: websocket"),
            (
                GOOD.replace("websocket", "h2c"),
                "another Upgrade header than \"Upgrade: websocket\"",
            ),
            (
                GOOD.replace(": Upgrade", ": close"),
                "one header Connection; expected one that lists \"upgrade\"",
            ),
            (
                format!("{GOOD}\r\nSec-WebSocket-Protocol: three"),
                "a subprotocol that is none of the 2 offered",
            ),
        ] {
            let error = check(&lines, false).err().expect("it is wrong");
            assert!(error.to_string().ends_with(expected), "{error}");
            assert!(error.to_string().starts_with("a.example:8080 answered the upgrade with "));
        }
    }
}

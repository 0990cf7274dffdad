//! The opening handshake (RFC 6455 section 4.1), by the letter.

use http::{HeaderMap, HeaderValue, StatusCode};
use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;

use crate::config::endpoint::Target;
use crate::dial::io::DialIo;
use crate::dial::response::{ResponseHead, read_response, refusal};
use crate::dial::stream::Stream;
use crate::error::{Error, ErrorKind};

/// The server's response, accepted.
pub(super) struct UpgradeResponse {
    pub(crate) subprotocol: Option<String>,
    pub(crate) headers: HeaderMap,
    /// The values of `Sec-WebSocket-Extensions`. Empty where nothing was offered.
    pub(crate) extensions: Vec<String>,
    /// The bytes behind the response: the first frames.
    pub(crate) leftover: Vec<u8>,
}

/// Shakes hands. `received` has come already.
pub(super) fn upgrade(
    stream: &mut Stream<'_>,
    target: &Target,
    offer: Option<&str>,
    received: Vec<u8>,
    io: &DialIo<'_>,
) -> Result<UpgradeResponse, Error> {
    let context = || format!("upgrade with {target}");
    let key = generate_key();
    stream.send(request(target, &key, offer).as_slice(), io, &context)?;
    let broken = |what: &str| broken(target, what);
    match read_response(stream, received, io, &context, &broken)? {
        (head, Some(leftover)) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
            accept(head, leftover, target, &key, offer.is_some())
        }
        (head, rest) => {
            let (response, retry_after) = refusal(stream, head, rest, io, &context);
            Err(Error::refused(&target.to_string(), response, retry_after))
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

fn broken(target: &Target, what: &str) -> Error {
    Error::new(ErrorKind::Upgrade, format!("{target} answered the upgrade {what}"))
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

/// Parses bytes as an answer, and judges it by all rules.
#[cfg(all(feature = "_internals", unix))]
pub(crate) fn fuzz_head(bytes: &[u8]) {
    let Ok(target) =
        crate::config::endpoint::Endpoint::new("ws://a.example/").subprotocol("one").target()
    else {
        return;
    };
    use crate::dial::response::{HEAD_MAX, parse_head, retry_after};
    let Ok(Some(head)) = parse_head(bytes) else { return };
    let Some(len) = head.len else { return };
    assert!(len <= bytes.len().min(HEAD_MAX));
    let _ = retry_after(&head.headers, std::time::SystemTime::UNIX_EPOCH);
    let leftover = bytes[len..].to_vec();
    if let Ok(answer) = accept(head, leftover, &target, "dGhlIHNhbXBsZSBub25jZQ==", true) {
        let _ = crate::protocol::deflate::Deflate::new().accept(&answer.extensions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::endpoint::Endpoint;
    use crate::dial::response::parse_head;

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

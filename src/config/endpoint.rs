//! Endpoints as the program gives them, and as they are dialed once they have been checked.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::uri::Uri;

use crate::error::{Error, ErrorKind};
use crate::event::Carried;
use crate::name::Label;

/// A URL to dial, with its own headers and subprotocols, and with what else is known of the
/// connection that is dialed there.
///
/// It is checked when the client is built, or before the dial if the endpoint closure returned it.
///
/// ```
/// use std::time::Duration;
/// use tautline::{AppPing, Client, Endpoint};
///
/// # struct Answer { url: String, token: String, ping_interval: Duration }
/// # fn ask_for_a_token(_: Duration) -> Result<Answer, std::io::Error> { unimplemented!() }
/// // KuCoin: a call by REST returns the URL, a token and the interval of pings.
/// let builder = Client::builder_from_fn(|context| {
///     let answer = ask_for_a_token(context.remaining())?;
///     Ok(Endpoint::new(answer.url)
///         .carry("token", answer.token)
///         .app_ping_interval(answer.ping_interval))
/// })
/// .app_ping(AppPing::text(r#"{"id":"1","type":"ping"}"#, Duration::from_secs(18)));
/// ```
#[derive(Clone)]
pub struct Endpoint {
    url: String,
    headers: Vec<(String, String)>,
    subprotocols: Vec<String>,
    /// Each key once.
    carried: Vec<(String, String)>,
    app_ping_interval: Option<Duration>,
}

impl Endpoint {
    /// Creates the endpoint at `url`, which starts with `ws://` or `wss://` and has a host name, an
    /// IPv4 address or an IPv6 address in brackets.
    ///
    /// The port defaults to 80 or 443. A host name may end with the dot of the DNS root, which
    /// keeps the resolver from trying search domains; the certificate is verified without it.
    pub fn new(url: impl Into<String>) -> Self {
        Endpoint {
            url: url.into(),
            headers: Vec::new(),
            subprotocols: Vec::new(),
            carried: Vec::new(),
            app_ping_interval: None,
        }
    }

    /// Adds a header to the opening handshake, spelled as it is here. Headers that belong to the
    /// handshake itself, such as `Host`, are refused.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Offers a subprotocol (RFC 6455 section 1.9). The first one is preferred.
    pub fn subprotocol(mut self, name: impl Into<String>) -> Self {
        self.subprotocols.push(name.into());
        self
    }

    /// Carries a value to the connection that is dialed at this endpoint, where
    /// [`Opened::carried`](crate::Opened::carried) returns it: a token, for example, that came with
    /// the URL and that a log-on needs.
    ///
    /// May be called several times; the last value of a key counts. It is not sent to the server,
    /// and no log or `Debug` shows it. A connection keeps it for as long as it is open, and an
    /// [`Opened`](crate::Opened) for as long as it lives.
    pub fn carry(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value) = (key.into(), value.into());
        match self.carried.iter_mut().find(|(carried, _)| *carried == key) {
            Some((_, earlier)) => *earlier = value,
            None => self.carried.push((key, value)),
        }
        self
    }

    /// Sets the interval of application pings on the connection that is dialed at this endpoint, in
    /// the place of the one that each [`app_ping`](crate::Builder::app_ping) has. For venues that
    /// name it together with the URL.
    ///
    /// It applies to every application ping of the client, and has no effect where there is none.
    /// An interval of zero is refused like a bad URL, with the kind `Config`. Defaults to the
    /// interval of each ping.
    pub fn app_ping_interval(mut self, interval: Duration) -> Self {
        self.app_ping_interval = Some(interval);
        self
    }

    /// Checks the endpoint.
    ///
    /// # Errors
    /// `Config`, with a text that holds no part of a path, query, header value or subprotocol.
    pub(crate) fn target(&self) -> Result<Target, Error> {
        // `Uri` drops a fragment silently.
        if self.url.contains('#') {
            return Err(Error::config(
                "the URL has a fragment (#): RFC 6455 section 3 forbids it, write %23 for a \
                 literal #",
            ));
        }
        // A URI is ASCII (RFC 3986 section 2), and the parser accepts more.
        if !self.url.is_ascii() {
            return Err(Error::config(
                "the URL has characters beyond ASCII: percent-encode them, or write the host in \
                 punycode",
            ));
        }
        let is_tls = match self
            .url
            .split_once("://")
            .map(|(scheme, _)| scheme.to_ascii_lowercase())
            .as_deref()
        {
            Some("ws") => false,
            Some("wss") => true,
            Some("http") => return Err(Error::config("the URL starts with http://: write ws://")),
            Some("https") => {
                return Err(Error::config("the URL starts with https://: write wss://"));
            }
            _ => return Err(Error::config("the URL has to start with ws:// or wss://")),
        };
        let uri: Uri = self
            .url
            .parse()
            .map_err(|error| Error::caused(ErrorKind::Config, "the URL cannot be parsed", error))?;
        let authority = uri.authority().ok_or_else(|| Error::config("the URL has no host"))?;
        if authority.as_str().contains('@') {
            return Err(Error::config(
                "the URL holds a user name or password: send an Authorization header instead",
            ));
        }
        if self.app_ping_interval == Some(Duration::ZERO) {
            return Err(Error::config(
                "the app_ping_interval of the endpoint is zero: it must be longer",
            ));
        }
        let (written, host, port) = host_and_port(authority.as_str())?;
        let default_port = if is_tls { 443 } else { 80 };
        let port = port.unwrap_or(default_port);
        let host_header =
            if port == default_port { written.to_owned() } else { format!("{written}:{port}") };
        let path_and_query = match uri.path_and_query().map(|path| path.as_str()) {
            None | Some("") => "/".to_owned(),
            Some(query) if query.starts_with('?') => format!("/{query}"),
            Some(path) => path.to_owned(),
        };
        Ok(Target {
            host: host.to_owned(),
            port,
            is_tls,
            path_and_query,
            host_header,
            headers: self.headers.iter().enumerate().map(check_header).collect::<Result<_, _>>()?,
            subprotocols: check_subprotocols(&self.subprotocols)?,
            carried: Carried::new(&self.carried),
            app_ping_interval: self.app_ping_interval,
        })
    }
}

/// Splits an authority into the host as written, the host without brackets, and the port if there
/// is one.
pub(super) fn host_and_port(authority: &str) -> Result<(&str, &str, Option<u16>), Error> {
    let (written, host, rest) = match authority.split_once(']') {
        Some((bracketed, rest)) => {
            let address =
                bracketed.strip_prefix('[').filter(|address| address.parse::<Ipv6Addr>().is_ok());
            let refused = || {
                Error::config("the URL has brackets around something that is not an IPv6 address")
            };
            (&authority[..=bracketed.len()], address.ok_or_else(refused)?, rest)
        }
        None => {
            let host = authority.split(':').next().unwrap_or_default();
            (host, host, &authority[host.len()..])
        }
    };
    if host.trim_end_matches('.').is_empty() {
        return Err(Error::config("the URL has no host"));
    }
    let no_number = || Error::config("the URL has a port that is not a number up to 65535");
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        // A colon alone means the default port (RFC 3986 section 3.2.3).
        Some("") => None,
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
            Some(digits.parse().map_err(|_| no_number())?)
        }
        _ => return Err(no_number()),
    };
    if port == Some(0) {
        return Err(Error::config("the URL has port 0: nobody can listen there"));
    }
    Ok((written, host, port))
}

fn check_header(
    (index, (name, value)): (usize, &(String, String)),
) -> Result<(String, HeaderValue), Error> {
    // A bad name may be a whole header with a secret in it, so the error gives its position only.
    let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
        Error::config(format!("header {} has a name that is not a token", index + 1))
    })?;
    let refused = |what: &str| Error::config(format!("the header {name:?} {what}"));
    let lower = parsed.as_str();
    let is_ours = lower.starts_with("sec-websocket-")
        || ["host", "upgrade", "connection", "content-length", "transfer-encoding"]
            .contains(&lower);
    if is_ours {
        return Err(refused("belongs to the handshake itself: leave it out"));
    }
    // The value may be a secret, so the error leaves it out.
    let value = HeaderValue::from_str(value).map_err(|_| {
        refused("has a value with a line break or another byte that is not allowed")
    })?;
    Ok((name.clone(), value))
}

fn check_subprotocols(names: &[String]) -> Result<Vec<String>, Error> {
    for (index, name) in names.iter().enumerate() {
        // Some venues take an access token this way, so the error gives the position only.
        let refused = |what: &str| Error::config(format!("subprotocol {} {what}", index + 1));
        // A subprotocol is a token like the name of a header (RFC 6455 section 4.1).
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err(refused("is not a token"));
        }
        if names[..index].contains(name) {
            return Err(refused("is offered already"));
        }
    }
    Ok(names.to_vec())
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Paths and queries may hold keys, so only the host is shown.
        match self.target() {
            Ok(target) => {
                write!(f, "Endpoint({}{target})", if target.is_tls { "wss://" } else { "ws://" })
            }
            Err(error) => write!(f, "Endpoint(invalid: {error})"),
        }
    }
}

impl From<&str> for Endpoint {
    fn from(url: &str) -> Self {
        Endpoint::new(url)
    }
}

impl From<String> for Endpoint {
    fn from(url: String) -> Self {
        Endpoint::new(url)
    }
}

impl From<&String> for Endpoint {
    fn from(url: &String) -> Self {
        Endpoint::new(url.as_str())
    }
}

/// An endpoint that has been checked. Displayed as `host:port`.
#[derive(Clone)]
pub(crate) struct Target {
    /// Without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) is_tls: bool,
    pub(crate) path_and_query: String,
    /// The value of the Host header: with brackets, and without the port if it is the default.
    pub(crate) host_header: String,
    /// Names are in the spelling of the program.
    pub(crate) headers: Vec<(String, HeaderValue)>,
    pub(crate) subprotocols: Vec<String>,
    pub(crate) carried: Carried,
    pub(crate) app_ping_interval: Option<Duration>,
}

/// The target of a dial, with the client that makes it.
pub(crate) type TargetLabel<'a> = Label<'a, &'a Target>;

impl Target {
    /// A host of which only the address counts, and whether it is spoken to over TLS: a proxy.
    pub(crate) fn bare(host: &str, port: u16, is_tls: bool) -> Self {
        Target {
            host: host.to_owned(),
            port,
            is_tls,
            path_and_query: String::new(),
            host_header: String::new(),
            headers: Vec::new(),
            subprotocols: Vec::new(),
            carried: Carried::new(&[]),
            app_ping_interval: None,
        }
    }

    /// Returns the name that TLS asks for and verifies: the host without the dot of the DNS root
    /// (RFC 6066 section 3). The lookup and the Host header keep that dot.
    pub(crate) fn server_name(&self) -> &str {
        self.host.strip_suffix('.').unwrap_or(&self.host)
    }

    /// Returns the host if it is an address, which needs no lookup.
    pub(crate) fn literal(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(url: &str) -> String {
        let target = Endpoint::new(url).target().expect("a good URL");
        format!("{target} {} {} {}", target.host_header, target.path_and_query, target.is_tls)
    }

    #[test]
    fn urls_are_taken_apart() {
        assert_eq!(shown("ws://a.example"), "a.example:80 a.example / false");
        assert_eq!(shown("wss://a.example:443/ws?k=v"), "a.example:443 a.example /ws?k=v true");
        assert_eq!(shown("wss://a.example?k=v"), "a.example:443 a.example /?k=v true");
        assert_eq!(shown("ws://127.0.0.1:8080/x"), "127.0.0.1:8080 127.0.0.1:8080 /x false");
        assert_eq!(shown("ws://[::1]:9/"), "[::1]:9 [::1]:9 / false");
        assert_eq!(shown("wss://[::1]"), "[::1]:443 [::1] / true");
        assert_eq!(shown("wss://a.example./"), "a.example.:443 a.example. / true");
        // RFC 3986 section 3.2.3.
        assert_eq!(shown("ws://a.example:/ws"), "a.example:80 a.example /ws false");
        assert_eq!(shown("wss://a.example:"), "a.example:443 a.example / true");
        assert_eq!(shown("wss://[::1]:?k=v"), "[::1]:443 [::1] /?k=v true");
    }

    #[test]
    fn bad_urls_are_refused_and_told_apart() {
        for (url, word) in [
            ("http://a/", "starts with http://: write ws://"),
            ("https://a/", "starts with https://: write wss://"),
            ("ftp://a/", "ws://"),
            ("a.example/ws", "ws://"),
            ("", "ws://"),
            ("ws://", "parsed"),
            ("ws://u:p@a/", "Authorization"),
            ("ws://:/", "host"),
            ("ws://./", "host"),
            ("ws://a/#b", "fragment"),
            ("ws://a:0/", "port 0"),
            ("ws://a:99999/", "port"),
            ("ws://a:+1/", "port"),
            ("ws://a:1:2/", "parsed"),
            ("ws://[::1]x:1/", "port"),
            ("ws://[a.example]/", "IPv6"),
            ("ws://[fe80::1%25eth0]/", "IPv6"),
            ("ws://a/é", "ASCII"),
            ("ws://é/", "ASCII"),
            ("ws://a/\r\nX: y", "parsed"),
            ("ws://a b/", "parsed"),
        ] {
            let error = Endpoint::new(url)
                .target()
                .err()
                .unwrap_or_else(|| panic!("{url:?} is not a good URL"));
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(word), "{url:?}: {error}");
        }
    }

    #[test]
    fn headers_of_the_handshake_and_line_breaks_are_refused_without_showing_values() {
        for (name, value) in [
            ("Host", "x"),
            ("upgrade", "x"),
            ("Sec-WebSocket-Key", "x"),
            ("X-Key", "se\r\ncret"),
            ("X Key", "secret"),
        ] {
            let error =
                Endpoint::new("ws://a").header(name, value).target().err().expect("it is refused");
            assert!(!error.chain().contains("cret"), "{error}");
        }
        let target = Endpoint::new("ws://a").header("X-MBX-APIKEY", "Bearer x").target();
        let headers = target.expect("a good header").headers;
        assert_eq!(
            (headers[0].0.as_str(), headers[0].1.as_bytes()),
            ("X-MBX-APIKEY", &b"Bearer x"[..])
        );
        let mistaken = Endpoint::new("ws://a").header("Authorization: Bearer secret", "");
        assert!(!format!("{mistaken:?}").contains("secret"));
    }

    #[test]
    fn subprotocols_are_tokens_and_offered_once() {
        assert!(Endpoint::new("ws://a").subprotocol("a").subprotocol("b.c").target().is_ok());
        assert!(Endpoint::new("ws://a").subprotocol("a").subprotocol("a").target().is_err());
        assert!(Endpoint::new("ws://a").subprotocol("a,b").target().is_err());
        assert!(Endpoint::new("ws://a").subprotocol("").target().is_err());
        for secret in [["bearer secret", "x"], ["bearer.secret", "bearer.secret"]] {
            let endpoint = Endpoint::new("ws://a").subprotocol(secret[0]).subprotocol(secret[1]);
            assert!(!format!("{endpoint:?}").contains("secret"), "{endpoint:?}");
        }
    }

    #[test]
    fn debug_hides_the_path_and_the_query() {
        let endpoint = Endpoint::new("wss://a.example/secret?key=secret")
            .header("X", "secret")
            .carry("secret", "secret");
        assert_eq!(format!("{endpoint:?}"), "Endpoint(wss://a.example:443)");
        let refused = format!("{:?}", endpoint.app_ping_interval(Duration::ZERO));
        assert!(refused.contains("app_ping_interval") && !refused.contains("secret"), "{refused}");
    }

    #[test]
    fn the_last_value_of_a_key_is_carried() {
        let endpoint = Endpoint::new("ws://a").carry("a", "1").carry("b", "2").carry("a", "3");
        let carried = endpoint.target().expect("a good endpoint").carried;
        assert_eq!(["a", "b", "c"].map(|key| carried.get(key)), [Some("3"), Some("2"), None]);
        assert_eq!(carried.bytes(), 4);
        let none = Endpoint::new("ws://a").target().expect("a good endpoint").carried;
        assert_eq!((none.get("a"), none.bytes()), (None, 0));
    }
}

//! Proxies as the program gives them, and as they are dialed once they have been checked.

use std::fmt;

use percent_encoding::percent_decode_str;

use crate::config::direct_hosts::DirectHosts;
use crate::config::endpoint::{Target, host_and_port};
use crate::error::Error;

/// The port of an HTTP or SOCKS proxy that is given without one, as curl has it.
const DEFAULT_PORT: u16 = 1080;

/// A proxy that tunnels every connection of a client, or a choice of proxies by scheme and host.
///
/// An HTTP proxy is asked by `CONNECT` (RFC 9110 section 9.3.6), for `ws://` too. Names of servers
/// are resolved by the proxy. TLS goes through the tunnel, so that the proxy sees none of it, and
/// the certificate that is verified is the server's.
///
/// It is checked when the client is built: a bad address is an error of kind
/// [`Config`](crate::ErrorKind::Config). No log, error or `Debug` shows user or password.
///
/// ```
/// use tautline::{Client, Proxy};
/// let proxy = Proxy::http("proxy.example:3128").credentials("user", "password");
/// let builder = Client::builder("wss://stream.example.com/ws").proxy(proxy);
/// ```
#[derive(Clone)]
pub struct Proxy {
    /// For `ws://`.
    plain: Option<Result<ProxyOptions, Error>>,
    /// For `wss://`.
    tls: Option<Result<ProxyOptions, Error>>,
    direct: DirectHosts,
}

/// A proxy as the program gave it.
#[derive(Clone)]
struct ProxyOptions {
    scheme: Scheme,
    address: String,
    credentials: Option<Credentials>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
    Socks5 { has_local_dns: bool },
}

/// The user and the password that a proxy asks for.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl Proxy {
    /// Creates an HTTP proxy at `address`, which is `host:port`. The host is a name, an IPv4
    /// address or an IPv6 address in brackets; the port defaults to 1080, as for curl.
    pub fn http(address: impl Into<String>) -> Self {
        Proxy::of(Scheme::Http, address)
    }

    /// Creates an HTTP proxy that is itself spoken to over TLS. The port defaults to 443.
    ///
    /// Its certificate is verified with the client's roots. A client certificate is not presented
    /// to it, and the `danger_` settings do not hold for it. A renegotiation that it asks for ends
    /// the connection.
    pub fn https(address: impl Into<String>) -> Self {
        Proxy::of(Scheme::Https, address)
    }

    /// Creates a SOCKS proxy of version 5 (RFC 1928, and RFC 1929 for the login). The port defaults
    /// to 1080.
    pub fn socks5(address: impl Into<String>) -> Self {
        Proxy::of(Scheme::Socks5 { has_local_dns: false }, address)
    }

    /// Creates the proxy of a URL in curl's form: `http://`, `https://`, `socks5h://` or
    /// `socks5://`, perhaps `user:password@`, then the host and perhaps a port. Without a scheme it
    /// is an HTTP proxy. User and password are percent-encoded. A path does not count.
    ///
    /// As for curl, `socks5h` leaves names to the proxy, and `socks5` has them resolved by this
    /// machine.
    ///
    /// # Errors
    /// `Config`, with a text that holds no part of the URL.
    pub fn from_url(url: &str) -> Result<Self, Error> {
        ProxyOptions::parse(url).map(Proxy::both)
    }

    /// Creates what the environment says, in curl's way: for `wss://` the first of `wss_proxy`,
    /// `https_proxy` and `all_proxy` that is set and not empty, for `ws://` the first of
    /// `ws_proxy`, `http_proxy` and `all_proxy`. Each may be in capitals too, but for `HTTP_PROXY`,
    /// which a request to a CGI program can set. Their values are [URLs](Proxy::from_url).
    ///
    /// Hosts that `no_proxy` lists are dialed directly: names, which stand for all names below them
    /// too, addresses, and networks such as `10.0.0.0/8`, between commas or blanks. `*` is every
    /// host. Where no variable is set, every host is dialed directly.
    ///
    /// The environment is read now, and nothing else of this crate reads these variables. A value
    /// that is no proxy's URL is an error of kind [`Config`](crate::ErrorKind::Config), which names
    /// the variable, where a server is dialed for which it counts: at the start of the client if
    /// its endpoints are known.
    pub fn from_env() -> Self {
        Proxy::from_variables(&|name| match std::env::var(name) {
            Ok(value) => Some(value),
            Err(std::env::VarError::NotPresent) => None,
            // It is refused like other text that is no URL.
            Err(std::env::VarError::NotUnicode(value)) => Some(value.to_string_lossy().into()),
        })
    }

    fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let first =
            |names: &[&str]| {
                let in_both_cases = |name: &&str| [(*name).to_owned(), name.to_ascii_uppercase()];
                names.iter().flat_map(in_both_cases).filter(|name| name != "HTTP_PROXY").find_map(
                    |name| Some((variable(&name).filter(|value| !value.is_empty())?, name)),
                )
            };
        let proxy = |names: &[&str]| {
            first(names).map(|(url, name)| {
                let named = |error: Error| Error::config(format!("{name}: {error}"));
                let parsed = ProxyOptions::parse(&url).map_err(&named)?;
                parsed.check().map_err(&named)?;
                Ok(parsed)
            })
        };
        let direct = first(&["no_proxy"]).map(|(list, _)| DirectHosts::parse(&list));
        Proxy {
            plain: proxy(&["ws_proxy", "http_proxy", "all_proxy"]),
            tls: proxy(&["wss_proxy", "https_proxy", "all_proxy"]),
            direct: direct.unwrap_or_default(),
        }
    }

    /// Sets the user and the password: Basic authentication (RFC 7617) for HTTP, and RFC 1929 for
    /// SOCKS. Defaults to none.
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        let credentials = Credentials { user: user.into(), password: password.into() };
        for options in self.options() {
            options.credentials = Some(credentials.clone());
        }
        self
    }

    /// Has this machine resolve the names of servers, by the [`resolver`](crate::Builder::resolver)
    /// if there is one, and gives a SOCKS proxy their addresses. It changes nothing for HTTP.
    ///
    /// Defaults to the proxy's resolution.
    pub fn socks5_local_dns(mut self) -> Self {
        for options in self.options() {
            if let Scheme::Socks5 { has_local_dns } = &mut options.scheme {
                *has_local_dns = true;
            }
        }
        self
    }

    fn of(scheme: Scheme, address: impl Into<String>) -> Self {
        Proxy::both(ProxyOptions { scheme, address: address.into(), credentials: None })
    }

    fn both(options: ProxyOptions) -> Self {
        let plain = Some(Ok(options.clone()));
        Proxy { plain, tls: Some(Ok(options)), direct: DirectHosts::default() }
    }

    fn options(&mut self) -> impl Iterator<Item = &mut ProxyOptions> {
        [&mut self.plain, &mut self.tls].into_iter().flatten().flatten()
    }

    /// Checks the addresses and the credentials.
    pub(crate) fn check(&self) -> Proxies {
        let check = |options: &Option<Result<ProxyOptions, Error>>| {
            options.as_ref().map(|options| options.as_ref().map_err(Error::clone)?.check())
        };
        Proxies { plain: check(&self.plain), tls: check(&self.tls), direct: self.direct.clone() }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Proxies { plain, tls, .. } = self.check();
        let [plain, tls] = [plain, tls].map(|server| match server {
            None => "direct".to_owned(),
            Some(Ok(server)) => server.to_string(),
            Some(Err(error)) => format!("invalid: {error}"),
        });
        match plain == tls {
            true => write!(f, "Proxy({plain})"),
            false => write!(f, "Proxy(ws: {plain}, wss: {tls})"),
        }
    }
}

impl ProxyOptions {
    fn parse(url: &str) -> Result<Self, Error> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "socks5h" => Scheme::Socks5 { has_local_dns: false },
            "socks5" => Scheme::Socks5 { has_local_dns: true },
            _ => {
                return Err(Error::config(
                    "the URL of the proxy has another scheme than http, https, socks5h or socks5",
                ));
            }
        };
        let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (credentials, address) = match rest.rsplit_once('@') {
            None => (None, rest),
            Some((credentials, address)) => (Some(Credentials::parse(credentials)?), address),
        };
        Ok(ProxyOptions { scheme, address: address.to_owned(), credentials })
    }

    fn check(&self) -> Result<ProxyServer, Error> {
        // What is not an address may be a whole URL with a password in it.
        if self.address.contains(['/', '?', '#', '@']) || !self.address.is_ascii() {
            return Err(Error::config(
                "the address of the proxy is not host:port: Proxy::from_url takes URLs",
            ));
        }
        let (_, host, port) = host_and_port(&self.address).map_err(|error| {
            Error::config(error.to_string().replacen("the URL", "the address of the proxy", 1))
        })?;
        let is_name = |byte: u8| byte.is_ascii_graphic();
        if !host.bytes().all(is_name) {
            return Err(Error::config("the host of the proxy has a blank in it"));
        }
        let (kind, is_tls, default_port) = match self.scheme {
            Scheme::Http => (ProxyKind::Http, false, DEFAULT_PORT),
            Scheme::Https => (ProxyKind::Http, true, 443),
            Scheme::Socks5 { has_local_dns } => {
                (ProxyKind::Socks5 { has_local_dns }, false, DEFAULT_PORT)
            }
        };
        if let Some(credentials) = &self.credentials {
            credentials.check(kind)?;
        }
        Ok(ProxyServer {
            kind,
            target: Target::bare(host, port.unwrap_or(default_port), is_tls),
            credentials: self.credentials.clone(),
        })
    }
}

impl Credentials {
    fn parse(text: &str) -> Result<Self, Error> {
        let (user, password) = text.split_once(':').unwrap_or((text, ""));
        let decoded = |text: &str| {
            percent_decode_str(text).decode_utf8().map(String::from).map_err(|_| {
                Error::config("the user or the password of the proxy is not UTF-8 when decoded")
            })
        };
        Ok(Credentials { user: decoded(user)?, password: decoded(password)? })
    }

    fn check(&self, kind: ProxyKind) -> Result<(), Error> {
        let Credentials { user, password } = self;
        let refused = match kind {
            // RFC 7617 section 2.
            ProxyKind::Http if user.contains(':') => {
                Some("the user of the proxy has a colon in it")
            }
            ProxyKind::Http if user.chars().chain(password.chars()).any(char::is_control) => {
                Some("the user or the password of the proxy has a control character in it")
            }
            // RFC 1929 section 2. It asks for a password of at least one byte, and curl for none.
            ProxyKind::Socks5 { .. } if user.is_empty() || user.len().max(password.len()) > 255 => {
                Some("the user and the password of a SOCKS proxy have at most 255 bytes each")
            }
            _ => None,
        };
        refused.map_or(Ok(()), |what| Err(Error::config(what)))
    }
}

/// Proxies that have been checked.
pub(crate) struct Proxies {
    plain: Option<Result<ProxyServer, Error>>,
    tls: Option<Result<ProxyServer, Error>>,
    direct: DirectHosts,
}

/// A proxy that has been checked. Displayed as a URL without credentials.
pub(crate) struct ProxyServer {
    pub(crate) kind: ProxyKind,
    /// Its address, and whether it is spoken to over TLS.
    pub(crate) target: Target,
    pub(crate) credentials: Option<Credentials>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyKind {
    Http,
    Socks5 { has_local_dns: bool },
}

impl Proxies {
    /// Returns the proxy through which `target` is dialed. `None`: directly.
    ///
    /// # Errors
    /// `Config` if that proxy cannot work.
    pub(crate) fn for_target(&self, target: &Target) -> Result<Option<&ProxyServer>, Error> {
        let server = if target.is_tls { &self.tls } else { &self.plain };
        let Some(server) = server.as_ref().filter(|_| !self.direct.contains(&target.host)) else {
            return Ok(None);
        };
        let server = server.as_ref().map_err(Error::clone)?;
        let is_named = matches!(server.kind, ProxyKind::Socks5 { has_local_dns: false });
        if is_named && target.host.len() > 255 {
            return Err(Error::config(
                "the host has more than 255 bytes, for which SOCKS has no room",
            ));
        }
        Ok(Some(server))
    }

    /// Checks them for targets that are known, or that are not.
    ///
    /// # Errors
    /// `Config` if one that is needed, or all of them, cannot work.
    pub(crate) fn check(&self, targets: &[Target]) -> Result<(), Error> {
        if let (Some(Err(error)), Some(Err(_))) = (&self.plain, &self.tls) {
            return Err(error.clone());
        }
        targets.iter().try_for_each(|target| self.for_target(target).map(drop))
    }
}

impl fmt::Display for ProxyServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            ProxyKind::Http if self.target.is_tls => "https",
            ProxyKind::Http => "http",
            ProxyKind::Socks5 { .. } => "socks5",
        };
        write!(f, "{scheme}://{}", self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::endpoint::Endpoint;

    /// The proxy for a URL, and the credentials for it.
    fn route(proxy: &Proxy, url: &str) -> String {
        let target = Endpoint::new(url).target().expect("a good URL");
        let proxies = proxy.check();
        proxies.for_target(&target).expect("a good proxy").map_or("direct".to_owned(), |server| {
            let login = server.credentials.as_ref();
            let login = login.map(|login| format!(" {}:{}", login.user, login.password));
            format!("{:?} {server}{}", server.kind, login.unwrap_or_default())
        })
    }

    #[test]
    fn urls_are_read_as_curl_reads_them() {
        for (url, expected) in [
            ("proxy", "Http http://proxy:1080"),
            ("proxy:3128/", "Http http://proxy:3128"),
            ("http://proxy:3128/a/path?query", "Http http://proxy:3128"),
            ("HTTP://proxy:80", "Http http://proxy:80"),
            ("https://proxy", "Http https://proxy:443"),
            ("socks5h://[::1]:9", "Socks5 { has_local_dns: false } socks5://[::1]:9"),
            ("socks5://proxy", "Socks5 { has_local_dns: true } socks5://proxy:1080"),
            ("http://u:p@proxy", "Http http://proxy:1080 u:p"),
            ("u@proxy", "Http http://proxy:1080 u:"),
            ("socks5h://u@proxy", "Socks5 { has_local_dns: false } socks5://proxy:1080 u:"),
            ("http://a%40b:c%3a%C3%A9@d@proxy", "Http http://proxy:1080 a@b:c:é@d"),
        ] {
            let proxy = Proxy::from_url(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(route(&proxy, "ws://a.example/"), expected, "{url}");
        }
        for url in ["socks4://hunter2", "ftp://hunter2@proxy", "http://%ff:hunter2@proxy"] {
            let error = Proxy::from_url(url).expect_err("it cannot work");
            assert!(!error.chain().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_environment_is_read_as_curl_reads_it() {
        let routes = |variables: &[(&str, &str)]| {
            let variables: std::collections::HashMap<_, _> = variables.iter().copied().collect();
            let variable = |name: &str| variables.get(name).map(|value| (*value).to_owned());
            let proxy = Proxy::from_variables(&variable);
            ["ws://a.example/", "wss://a.example/"].map(|url| route(&proxy, url))
        };
        let http = |host: &str| format!("Http http://{host}:1080");
        let direct = || "direct".to_owned();
        assert_eq!(routes(&[]), [direct(), direct()]);
        assert_eq!(routes(&[("all_proxy", "all")]), [http("all"), http("all")]);
        assert_eq!(routes(&[("ALL_PROXY", "all")]), [http("all"), http("all")]);
        let schemes = [("http_proxy", "http"), ("https_proxy", "https"), ("all_proxy", "all")];
        assert_eq!(routes(&schemes), [http("http"), http("https")]);
        let own = [&schemes[..], &[("ws_proxy", "ws"), ("WSS_PROXY", "wss")]].concat();
        assert_eq!(routes(&own), [http("ws"), http("wss")]);
        // An empty one counts as none, and small letters come first.
        let empty = [("https_proxy", ""), ("HTTPS_PROXY", "upper"), ("all_proxy", "all")];
        assert_eq!(routes(&empty), [http("all"), http("upper")]);
        let both = [("https_proxy", "lower"), ("HTTPS_PROXY", "upper")];
        assert_eq!(routes(&both), [direct(), http("lower")]);
        // A request to a CGI program sets it by a header `Proxy`.
        assert_eq!(routes(&[("HTTP_PROXY", "evil")]), [direct(), direct()]);
        assert_eq!(routes(&[("all_proxy", "all"), ("NO_PROXY", "*")]), [direct(), direct()]);
    }

    #[test]
    fn a_bad_variable_is_named_where_it_counts_and_its_value_is_not_shown() {
        for bad in ["socks4://user:hunter2@proxy", "user:hunter2@proxy:x"] {
            let variable = |name: &str| match name {
                "all_proxy" => Some(bad.to_owned()),
                "https_proxy" => Some("proxy".to_owned()),
                "no_proxy" => Some("b.example".to_owned()),
                _ => None,
            };
            let proxy = Proxy::from_variables(&variable);
            assert_eq!(route(&proxy, "wss://a.example/"), "Http http://proxy:1080");
            assert_eq!(route(&proxy, "ws://b.example/"), "direct");
            let target = Endpoint::new("ws://a.example/").target().expect("a good URL");
            let proxies = proxy.check();
            let error = proxies.for_target(&target).map(drop).expect_err("it cannot work");
            let text = format!("{} {proxy:?}", error.chain());
            assert!(text.starts_with("all_proxy: ") && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn debug_shows_where_a_proxy_is_and_no_credentials() {
        let shown = |proxy: Proxy| format!("{proxy:?}");
        let proxy = Proxy::https("proxy:1").credentials("user", "hunter2");
        assert_eq!(shown(proxy), "Proxy(https://proxy:1)");
        let variable = |name: &str| (name == "wss_proxy").then(|| "u:hunter2@proxy".to_owned());
        let proxy = Proxy::from_variables(&variable);
        assert_eq!(shown(proxy), "Proxy(ws: direct, wss: http://proxy:1080)");
    }
}

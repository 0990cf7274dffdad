//! Settings as text: the keys, and how the value of each is read.

use std::net::IpAddr;
use std::time::Duration;

use client::{AppPing, Builder, Decode, Deflate, Endpoint, Proxy, RateLimit, TlsEngine, WhenFull};

/// The settings of a program.
#[derive(Default)]
pub(crate) struct Settings {
    /// The URLs, in the order in which they take turns.
    pub(crate) urls: Vec<String>,
    /// With the key of each.
    steps: Vec<(&'static str, Step)>,
    /// The key that is being set.
    current: &'static str,
    certificate: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
    archive: Option<Vec<u8>>,
    password: String,
    drop_timeout: Option<Duration>,
}

/// A call of a setter.
type Step = Box<dyn Fn(Builder) -> Builder + Send + Sync>;

/// Reads a value. An error says what was expected, and never the value: it may be a secret.
type Read = fn(&mut Settings, &str) -> Result<(), String>;

/// A key, what its value is, and how it is read.
struct Key {
    name: &'static str,
    read: Read,
    /// Nothing is its default, so `none` and `off` take back what was set.
    is_optional: bool,
}

const fn key(name: &'static str, read: Read) -> Key {
    Key { name, read, is_optional: false }
}

const fn optional(name: &'static str, read: Read) -> Key {
    Key { name, read, is_optional: true }
}

/// The keys, in the order in which the documentation has them.
const KEYS: [Key; 49] = [
    key("url", |settings, url| {
        settings.urls.push(url.to_owned());
        Ok(())
    }),
    key("name", |settings, name| settings.text(name, Builder::name)),
    optional("header", |settings, header| {
        let (name, value) = header.split_once(':').ok_or("wants `Name: value`")?;
        let (name, value) = (name.trim().to_owned(), value.trim().to_owned());
        settings.step(move |builder| builder.header(name.clone(), value.clone()))
    }),
    optional("subprotocol", |settings, name| settings.text(name, Builder::subprotocol)),
    key("connect_timeout", |settings, text| settings.time(text, Builder::connect_timeout)),
    key("send_timeout", |settings, text| settings.time(text, Builder::send_timeout)),
    key("close_timeout", |settings, text| settings.time(text, Builder::close_timeout)),
    key("drop_timeout", |settings, text| {
        settings.drop_timeout = Some(duration(text)?);
        settings.time(text, Builder::drop_timeout)
    }),
    key("ping_interval", |settings, text| {
        let interval = if is_none(text) { None } else { Some(duration(text)?) };
        settings.step(move |builder| builder.ping_interval(interval))
    }),
    key("pong_timeout", |settings, text| settings.time(text, Builder::pong_timeout)),
    optional("idle_timeout", |settings, text| settings.time(text, Builder::idle_timeout)),
    optional("app_ping", |settings, text| settings.app_ping(text, false)),
    optional("app_ping_when_quiet", |settings, text| settings.app_ping(text, true)),
    key("retry_delay_min", |settings, text| settings.time(text, Builder::retry_delay_min)),
    key("retry_delay_max", |settings, text| settings.time(text, Builder::retry_delay_max)),
    key("retry_after_max", |settings, text| settings.time(text, Builder::retry_after_max)),
    key("stable_after", |settings, text| settings.time(text, Builder::stable_after)),
    optional("max_attempts", |settings, text| {
        let attempts = number(text)?;
        settings.step(move |builder| builder.max_attempts(attempts))
    }),
    optional("send_limit", |settings, text| {
        let limit = rate_limit(text)?;
        settings.step(move |builder| builder.send_limit(limit.clone()))
    }),
    optional("connect_limit", |settings, text| {
        let limit = rate_limit(text)?;
        settings.step(move |builder| builder.connect_limit(limit.clone()))
    }),
    key("max_message_size", |settings, text| settings.size(text, Builder::max_message_size)),
    optional("max_outgoing_message_size", |settings, text| {
        settings.size(text, Builder::max_outgoing_message_size)
    }),
    optional("max_outgoing_frame_size", |settings, text| {
        settings.size(text, Builder::max_outgoing_frame_size)
    }),
    optional("decode", |settings, text| {
        let (format, rest) = text.split_once(' ').unwrap_or((text, ""));
        let format = match format {
            "gzip" => Decode::gzip(),
            "zlib" => Decode::zlib(),
            "deflate" => Decode::deflate(),
            _ => {
                return Err("wants `gzip`, `zlib` or `deflate`, perhaps with ` text` behind".into());
            }
        };
        let decode = match rest.trim() {
            "" => format,
            "text" => format.as_text(),
            _ => return Err("wants nothing but `text` behind the format".into()),
        };
        settings.step(move |builder| builder.decode(decode))
    }),
    optional("compress", |settings, text| {
        let deflate = deflate(text)?;
        settings.step(move |builder| builder.compress(deflate.clone()))
    }),
    key("queue_messages", |settings, text| {
        let messages = number(text)?;
        settings.step(move |builder| builder.queue_messages(messages))
    }),
    key("queue_bytes", |settings, text| settings.size(text, Builder::queue_bytes)),
    key("when_full", |settings, text| {
        let rule = match text {
            "disconnect" => WhenFull::Disconnect,
            "drop_oldest" => WhenFull::DropOldest,
            "drop_newest" => WhenFull::DropNewest,
            "block" => WhenFull::Block,
            _ => return Err("wants `disconnect`, `drop_oldest`, `drop_newest` or `block`".into()),
        };
        settings.step(move |builder| builder.when_full(rule))
    }),
    optional("proxy", |settings, text| {
        let proxy = match text {
            "env" => Proxy::from_env(),
            url if url.contains("://") => {
                Proxy::from_url(url).map_err(|error| error.to_string())?
            }
            // A word that is no URL would be taken for the name of a host.
            _ => {
                return Err(
                    "wants `env`, `none` or a URL with its scheme: `http://host:3128`".into()
                );
            }
        };
        settings.step(move |builder| builder.proxy(proxy.clone()))
    }),
    optional("bind_address", |settings, text| {
        let address: IpAddr = text.parse().map_err(|_| "wants an IPv4 or IPv6 address")?;
        settings.step(move |builder| builder.bind_address(address))
    }),
    optional("tcp_keepalive", |settings, text| settings.time(text, Builder::tcp_keepalive)),
    optional("tcp_receive_buffer", |settings, text| {
        settings.size(text, Builder::tcp_receive_buffer)
    }),
    optional("tcp_send_buffer", |settings, text| settings.size(text, Builder::tcp_send_buffer)),
    optional("busy_poll", |settings, text| settings.flag(text, busy_poll)),
    optional("kernel_timestamps", |settings, text| settings.flag(text, kernel_timestamps)),
    key("tls_engine", |settings, text| {
        let engine = match text {
            #[cfg(feature = "native-tls")]
            "native-tls" => TlsEngine::NativeTls,
            #[cfg(feature = "rustls")]
            "rustls" => TlsEngine::Rustls,
            _ => {
                return Err(format!("wants an engine that this library was built with: {ENGINES}"));
            }
        };
        settings.step(move |builder| builder.tls_engine(engine))
    }),
    optional("tls_root", |settings, pem| {
        let pem = pem.as_bytes().to_vec();
        settings.step(move |builder| builder.tls_root(pem.clone()))
    }),
    optional("tls_root_file", |settings, path| {
        let content = file(path)?;
        settings.step(move |builder| builder.tls_root(content.clone()))
    }),
    optional("tls_only_given_roots", |settings, text| {
        settings.flag(text, Builder::tls_only_given_roots)
    }),
    optional("tls_identity_certificate_file", |settings, path| {
        settings.certificate = Some(file(path)?);
        Ok(())
    }),
    optional("tls_identity_key_file", |settings, path| {
        settings.key = Some(file(path)?);
        Ok(())
    }),
    optional("tls_identity_pkcs12_file", |settings, path| {
        settings.archive = Some(file(path)?);
        Ok(())
    }),
    key("tls_identity_pkcs12_password", |settings, password| {
        settings.password = password.to_owned();
        Ok(())
    }),
    optional("tls_pin", |settings, pin| settings.text(pin, Builder::tls_pin)),
    optional("danger_allow_old_tls", |settings, text| {
        settings.flag(text, Builder::danger_allow_old_tls)
    }),
    optional("danger_accept_invalid_certificates", |settings, text| {
        settings.flag(text, Builder::danger_accept_invalid_certificates)
    }),
    optional("danger_accept_invalid_hostnames", |settings, text| {
        settings.flag(text, Builder::danger_accept_invalid_hostnames)
    }),
    key("thread_stack_size", |settings, text| settings.size(text, Builder::thread_stack_size)),
    optional("wakeups", |settings, text| settings.flag(text, Builder::wakeups)),
];

/// The keys that add to what was set. All others replace it.
const ADDING: [&str; 9] = [
    "url",
    "header",
    "subprotocol",
    "app_ping",
    "app_ping_when_quiet",
    "send_limit",
    "tls_root",
    "tls_root_file",
    "tls_pin",
];

#[allow(dead_code, reason = "with both engines every text is one of the others")]
const ENGINES: &str = match (cfg!(feature = "native-tls"), cfg!(feature = "rustls")) {
    (true, true) => "`native-tls` or `rustls`",
    (true, false) => "`native-tls`",
    _ => "`rustls`",
};

impl Settings {
    /// Sets `key` to `value`.
    ///
    /// # Errors
    /// A text that names the key, and holds no part of the value.
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let known = KEYS.iter().find(|known| known.name == key).ok_or_else(|| {
            let names = names().replace('\n', ", ");
            match is_name(key) {
                true => format!("there is no setting {key:?}; there are {names}"),
                // It may be a value, a secret perhaps, in the place of the key.
                false => format!("there is no such setting; there are {names}"),
            }
        })?;
        if known.is_optional && is_none(value) {
            self.unset(known.name);
            return Ok(());
        }
        let earlier = self.steps.len();
        self.current = known.name;
        (known.read)(self, value).map_err(|expected| format!("{key} {expected}"))?;
        if !ADDING.contains(&known.name) {
            let mut index = 0;
            self.steps.retain(|(name, _)| {
                index += 1;
                index > earlier || *name != known.name
            });
        }
        Ok(())
    }

    pub(crate) fn drop_timeout(&self) -> Duration {
        self.drop_timeout.unwrap_or(Duration::from_secs(5))
    }

    /// Returns `builder` with everything that was set, except the URLs.
    ///
    /// # Errors
    /// Settings that belong together and are not both set.
    pub(crate) fn apply(&self, builder: Builder) -> Result<Builder, String> {
        let builder = self.steps.iter().fold(builder, |builder, (_, step)| step(builder));
        let builder = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                builder.tls_identity_pem(certificate.clone(), key.clone())
            }
            (None, None) => builder,
            _ => {
                let both = "tls_identity_certificate_file and tls_identity_key_file";
                return Err(format!("{both} belong together: set both"));
            }
        };
        Ok(match &self.archive {
            Some(archive) => builder.tls_identity_pkcs12(archive.clone(), self.password.as_str()),
            None => builder,
        })
    }

    fn unset(&mut self, key: &'static str) {
        self.steps.retain(|(name, _)| *name != key);
        match key {
            "tls_identity_certificate_file" => self.certificate = None,
            "tls_identity_key_file" => self.key = None,
            "tls_identity_pkcs12_file" => self.archive = None,
            _ => {}
        }
    }

    fn step(
        &mut self,
        step: impl Fn(Builder) -> Builder + Send + Sync + 'static,
    ) -> Result<(), String> {
        self.steps.push((self.current, Box::new(step)));
        Ok(())
    }

    fn text(&mut self, text: &str, set: fn(Builder, String) -> Builder) -> Result<(), String> {
        let text = text.to_owned();
        self.step(move |builder| set(builder, text.clone()))
    }

    fn time(&mut self, text: &str, set: fn(Builder, Duration) -> Builder) -> Result<(), String> {
        let time = duration(text)?;
        self.step(move |builder| set(builder, time))
    }

    fn size(&mut self, text: &str, set: fn(Builder, usize) -> Builder) -> Result<(), String> {
        let bytes = size(text)?;
        self.step(move |builder| set(builder, bytes))
    }

    fn flag(&mut self, text: &str, set: fn(Builder) -> Builder) -> Result<(), String> {
        match text {
            "on" | "true" | "yes" | "1" => self.step(set),
            "off" | "false" | "no" | "0" => Ok(()),
            _ => Err("wants `on` or `off`".into()),
        }
    }

    fn app_ping(&mut self, text: &str, only_when_quiet: bool) -> Result<(), String> {
        let wants = "wants an interval, a blank and the text of the ping: `25s ping`";
        let (every, text) = text.split_once(' ').ok_or(wants)?;
        let ping = AppPing::text(text, duration(every).map_err(|_| wants)?);
        let ping = if only_when_quiet { ping.only_when_quiet() } else { ping };
        self.step(move |builder| builder.app_ping(ping.clone()))
    }
}

/// Returns the names of all keys, one below the other.
pub(crate) fn names() -> String {
    KEYS.map(|key| key.name).join("\n")
}

/// Adds the URLs after the first to a builder of the first.
pub(crate) fn add_endpoints(builder: Builder, urls: &[String]) -> Builder {
    urls.iter().fold(builder, |builder, url| builder.add_endpoint(Endpoint::new(url)))
}

fn busy_poll(builder: Builder) -> Builder {
    #[cfg(unix)]
    return builder.busy_poll();
    #[cfg(not(unix))]
    builder
}

fn kernel_timestamps(builder: Builder) -> Builder {
    #[cfg(target_os = "linux")]
    return builder.kernel_timestamps();
    #[cfg(not(target_os = "linux"))]
    builder
}

/// Returns true for what can be the name of a setting.
fn is_name(key: &str) -> bool {
    let is_letter = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
    (1..=40).contains(&key.len()) && key.bytes().all(is_letter)
}

fn is_none(text: &str) -> bool {
    matches!(text, "none" | "off")
}

fn duration(text: &str) -> Result<Duration, String> {
    match text {
        "never" => Ok(Duration::MAX),
        "0" => Ok(Duration::ZERO),
        _ => humantime::parse_duration(text)
            .map_err(|_| "wants a duration: `15s`, `250ms`, `1m 30s` or `never`".into()),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "wants a number".into())
}

fn size(text: &str) -> Result<usize, String> {
    let wants = || "wants a number of bytes: `65536`, `64KiB`, `16MiB` or `1GiB`".to_owned();
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: usize = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wants()),
    };
    number.parse::<usize>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wants)
}

/// Reads `10/1s`, `10/1s keep=2, 600/1m`, `margin=50ms`, `counting_pings` and `shared`.
fn rate_limit(text: &str) -> Result<RateLimit, String> {
    let wants = "wants windows, such as `10/1s` or `10/1s keep=2, 600/1m shared`";
    let words = || text.split([',', ' ']).filter(|word| !word.is_empty());
    let start = match words().any(|word| word == "shared") {
        true => RateLimit::shared(),
        false => RateLimit::per_connection(),
    };
    words().filter(|word| *word != "shared").try_fold(start, |limit, word| {
        if word == "counting_pings" {
            return Ok(limit.counting_pings());
        }
        if let Some(count) = word.strip_prefix("keep=") {
            return Ok(limit.keep(count.parse().map_err(|_| wants)?));
        }
        if let Some(margin) = word.strip_prefix("margin=") {
            return Ok(limit.margin(duration(margin).map_err(|_| wants)?));
        }
        let (count, per) = word.split_once('/').ok_or(wants)?;
        let count = count.parse().map_err(|_| wants)?;
        Ok(limit.window(count, duration(per).map_err(|_| wants)?))
    })
}

/// Reads `on`, and the parameters of RFC 7692 with `level` and `threshold` besides.
fn deflate(text: &str) -> Result<Deflate, String> {
    let wants = "wants `on`, `off`, or parameters such as `client_no_context_takeover; level=1`";
    if text == "on" {
        return Ok(Deflate::new());
    }
    let bits = |text: &str, least: u8| match text.parse::<u8>() {
        Ok(bits) if (least..=15).contains(&bits) => Ok(bits),
        _ => Err(format!("wants from {least} to 15 window bits")),
    };
    let mut result = Deflate::new();
    for parameter in text.split(';').map(str::trim) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        result = match (name, value) {
            ("client_no_context_takeover", "") => result.client_no_context_takeover(),
            ("server_no_context_takeover", "") => result.server_no_context_takeover(),
            ("omit_client_max_window_bits", "") => result.omit_client_max_window_bits(),
            ("client_max_window_bits", text) => result.client_max_window_bits(bits(text, 9)?),
            ("server_max_window_bits", text) => result.server_max_window_bits(bits(text, 8)?),
            ("threshold", text) => result.threshold(size(text).map_err(|_| wants)?),
            ("level", text) => match text.parse() {
                Ok(level) if level <= 9 => result.level(level),
                _ => return Err("wants a level from 0 to 9".into()),
            },
            _ => return Err(wants.into()),
        };
    }
    Ok(result)
}

fn file(path: &str) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("names a file that cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use client::Client;

    use super::*;

    fn set(key: &str, value: &str) -> Result<(), String> {
        Settings::default().set(key, value)
    }

    #[test]
    fn every_key_has_a_value_that_it_takes_and_one_that_it_refuses() {
        let some_file = "Cargo.toml";
        for Key { name, .. } in KEYS {
            let (good, bad) = match name {
                // Checked at the start, as in Rust.
                "url"
                | "name"
                | "subprotocol"
                | "tls_root"
                | "tls_pin"
                | "tls_identity_pkcs12_password" => ("ws://localhost", None),
                "header" => ("X-Key: secret", Some("secret")),
                "ping_interval" => ("none", Some("secret")),
                "app_ping" | "app_ping_when_quiet" => ("25s ping", Some("secret")),
                "max_attempts" | "queue_messages" => ("5", Some("secret")),
                "send_limit" | "connect_limit" => {
                    ("10/1s keep=2, 600/1m margin=1ms counting_pings shared", Some("secret"))
                }
                "decode" => ("gzip text", Some("secret")),
                "compress" => (
                    "client_no_context_takeover; client_max_window_bits=12; level=1; \
                     threshold=1KiB",
                    Some("secret"),
                ),
                "when_full" => ("drop_oldest", Some("secret")),
                "proxy" => ("http://user:pass@localhost:3128", Some("ftp://user:secret@host")),
                "bind_address" => ("::1", Some("secret")),
                "tls_engine" => (ENGINES.split('`').nth(1).expect("an engine"), Some("secret")),
                name if name.ends_with("_file") => (some_file, Some("no/secret")),
                name if name.contains("size")
                    || name.contains("buffer")
                    || name == "queue_bytes" =>
                {
                    ("64KiB", Some("secret"))
                }
                "busy_poll" | "kernel_timestamps" | "tls_only_given_roots" | "wakeups" => {
                    ("on", Some("secret"))
                }
                name if name.starts_with("danger") => ("on", Some("secret")),
                _ => ("1m 30s", Some("secret")),
            };
            assert_eq!(set(name, good), Ok(()), "{name}");
            if let Some(bad) = bad {
                let error = set(name, bad).expect_err(name);
                assert!(error.starts_with(name) && !error.contains("secret"), "{error}");
            }
        }
        let unknown = set("ping_intervall", "1s").expect_err("there is no such setting");
        assert!(unknown.contains("\"ping_intervall\"; there are"), "{unknown}");
        assert!(unknown.contains("ping_interval,"), "{unknown}");
        // A value in the place of the key.
        for secret in ["Authorization: Bearer secret", "SECRET", "wss://secret", &"s".repeat(41)] {
            let refused = set(secret, "header").expect_err("there is no such setting");
            assert!(refused.starts_with("there is no such setting;"), "{refused}");
            assert!(!refused.contains(secret), "{refused}");
        }
    }

    #[test]
    fn a_word_is_no_proxy() {
        for bad in ["localhost:3128", "direct", "None", ""] {
            let error = set("proxy", bad).expect_err("it has no scheme");
            assert!(error.contains("scheme"), "{error}");
        }
    }

    #[test]
    fn nothing_takes_back_what_was_set() {
        for Key { name, is_optional, .. } in KEYS.into_iter().filter(|key| key.is_optional) {
            let mut settings = Settings::default();
            let good = match name {
                "header" => "X-Key: 1",
                "app_ping" | "app_ping_when_quiet" => "25s ping",
                "send_limit" | "connect_limit" => "10/1s",
                "decode" => "gzip",
                "proxy" => "http://localhost:3128",
                "bind_address" => "::1",
                "max_attempts" => "5",
                name if name.ends_with("_file") => "Cargo.toml",
                name if name.contains("size") || name.contains("buffer") => "64KiB",
                "idle_timeout" | "tcp_keepalive" => "30s",
                _ => "on",
            };
            for word in ["none", "off"] {
                settings.set(name, good).expect(name);
                settings.set(name, word).expect(name);
                assert!(is_optional && settings.steps.is_empty(), "{name} {word}");
                let Settings { certificate, key, archive, .. } = &settings;
                assert!(certificate.is_none() && key.is_none() && archive.is_none(), "{name}");
            }
        }
    }

    #[test]
    fn each_default_of_the_readme_is_a_value() {
        let readme = include_str!("../README.md");
        let between = |text: &'static str| text.split('`').skip(1).step_by(2);
        let mut checked = 0;
        for row in readme.lines().filter(|row| row.starts_with("| `")) {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let [_, names, _, default, _] = cells[..] else { continue };
            if !KEYS.iter().any(|key| between(names).next() == Some(key.name)) {
                continue;
            }
            let defaults: Vec<_> = default.split(", ").collect();
            for (index, name) in between(names).enumerate() {
                // One stands for all keys of the row.
                let default = defaults.get(index).unwrap_or(&defaults[0]);
                let is_optional = KEYS.iter().any(|key| key.name == name && key.is_optional);
                assert!(defaults.len() == 1 || between(names).count() == defaults.len(), "{row}");
                match between(default).next() {
                    // The engine may be one that this library was built without.
                    Some(engine) if name == "tls_engine" => assert_eq!(engine, "native-tls"),
                    Some(value) => assert_eq!(set(name, value), Ok(()), "{name}"),
                    None => assert!(!is_optional, "{name} has a default that is no value"),
                }
                checked += 1;
            }
        }
        assert_eq!(checked, KEYS.len());
    }

    #[test]
    fn the_readme_has_every_key() {
        let readme = include_str!("../README.md");
        for Key { name, .. } in KEYS {
            assert!(readme.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn sizes_and_durations_are_read() {
        assert_eq!(size("65536"), Ok(65_536));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("16 MiB"), Ok(16 << 20));
        for bad in ["", "KiB", "-1", "1e3", "1KB", "99999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("never"), Ok(Duration::MAX));
        assert!(duration("-1s").is_err() && duration("").is_err());
    }

    #[test]
    fn parameters_out_of_range_are_refused_and_do_not_panic() {
        for bad in ["level=10", "client_max_window_bits=8", "server_max_window_bits=16", "", "x"] {
            assert!(deflate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_later_value_replaces_an_earlier_one_or_adds_to_it() {
        assert!(ADDING.iter().all(|name| KEYS.iter().any(|key| key.name == *name)));
        let mut settings = Settings::default();
        let mut steps = |key, value| {
            settings.set(key, value).expect("it is good");
            settings.steps.len()
        };
        assert_eq!(steps("wakeups", "on"), 1);
        assert_eq!(steps("ping_interval", "1s"), 2);
        assert_eq!(steps("ping_interval", "2s"), 2, "replaced");
        assert_eq!(steps("wakeups", "off"), 1, "taken back");
        assert_eq!(steps("header", "A: 1"), 2);
        assert_eq!(steps("header", "B: 2"), 3, "added");
        assert!(settings.set("ping_interval", "x").is_err());
        assert_eq!(settings.steps.len(), 3, "a value that is refused changes nothing");
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let mut settings = Settings::default();
        settings.set("tls_identity_certificate_file", "Cargo.toml").expect("it can be read");
        let error = settings.apply(Client::builder("ws://localhost")).expect_err("no key");
        assert!(error.contains("tls_identity_key_file"), "{error}");
    }
}

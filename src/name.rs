//! The name of a client, which tells it from others in everything that is printed.

use std::fmt;
use std::sync::Arc;

/// The number of bytes that Linux keeps of a thread's name.
const THREAD_LEN_MAX: usize = 15;

/// The name of a client: the one that the program gave it, or one by default. Cheap to clone.
///
/// A name by default says no more than the endpoint does, so it stands only where nothing else
/// tells the client.
#[derive(Clone)]
pub(crate) struct ClientName(Arc<Repr>);

struct Repr {
    text: String,
    is_given: bool,
}

impl ClientName {
    /// A name that the program gives.
    pub(crate) fn given(name: impl Into<String>) -> Self {
        ClientName(Arc::new(Repr { text: name.into(), is_given: true }))
    }

    /// The name of a client that was given none: its host, for example.
    pub(crate) fn by_default(name: impl Into<String>) -> Self {
        ClientName(Arc::new(Repr { text: name.into(), is_given: false }))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0.text
    }

    /// Returns the name if the program gave it.
    pub(crate) fn if_given(&self) -> Option<&str> {
        self.0.is_given.then_some(self.as_str())
    }

    /// Returns what a log record about a dial or connection to `target` begins with.
    pub(crate) fn label<T: fmt::Display>(&self, target: T) -> Label<'_, T> {
        Label { client: self, target }
    }

    /// Returns the system's name of the thread that the documentation calls `thread`: the given
    /// name and a suffix for the thread, in 15 bytes. Without a given name it is `thread`: the
    /// beginning of a host would say less.
    pub(crate) fn thread_name(&self, thread: &str) -> String {
        let Some(name) = self.if_given() else { return thread.to_owned() };
        let suffix = match thread {
            "taut-reader" => "rd",
            "taut-heartbeat" => "hb",
            "taut-resolver" => "dns",
            "taut-roots" => "tls",
            other => other,
        };
        let mut room = THREAD_LEN_MAX.saturating_sub(suffix.len() + 1).min(name.len());
        while !name.is_char_boundary(room) {
            room -= 1;
        }
        format!("{}-{suffix}", &name[..room])
    }
}

impl Default for ClientName {
    fn default() -> Self {
        ClientName::by_default("client")
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// The beginning of a log record: the given name and the target, or the target alone.
pub(crate) struct Label<'a, T> {
    client: &'a ClientName,
    pub(crate) target: T,
}

impl<T: fmt::Display> fmt::Display for Label<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.client.if_given() {
            Some(name) => write!(f, "{name} ({})", self.target),
            None => self.target.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_the_given_name_and_the_target() {
        assert_eq!(ClientName::given("okx").label("a:1").to_string(), "okx (a:1)");
        assert_eq!(ClientName::by_default("a").label("a:1").to_string(), "a:1");
    }

    #[test]
    fn thread_names_fit_in_15_bytes_and_keep_their_suffix() {
        let threads = ["taut-reader", "taut-heartbeat", "taut-resolver", "taut-roots"];
        let names = |name: &str| threads.map(|thread| ClientName::given(name).thread_name(thread));
        assert_eq!(names("one"), ["one-rd", "one-hb", "one-dns", "one-tls"]);
        assert_eq!(
            names("okx-public"),
            ["okx-public-rd", "okx-public-hb", "okx-public-dns", "okx-public-tls"]
        );
        assert_eq!(
            names("binance-futures"),
            ["binance-futu-rd", "binance-futu-hb", "binance-fut-dns", "binance-fut-tls"]
        );
        // Each letter has two bytes, and none is cut in two.
        assert_eq!(names("\u{e9}".repeat(32).as_str())[2], format!("{}-dns", "\u{e9}".repeat(5)));
        let unnamed = ClientName::by_default("stream.example.com");
        assert_eq!(threads.map(|thread| unnamed.thread_name(thread)), threads);
    }
}

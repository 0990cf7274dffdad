//! What is offered and what the server's answer makes of it (RFC 7692 section 7.1).

use std::fmt::Write as _;

use super::codec::{Deflater, Inflater};
use super::config::Deflate;

impl Deflate {
    /// The value of `Sec-WebSocket-Extensions` in the request.
    pub(crate) fn offer(&self) -> String {
        let mut offer = "permessage-deflate".to_owned();
        if self.client_no_context_takeover {
            offer.push_str("; client_no_context_takeover");
        }
        if self.server_no_context_takeover {
            offer.push_str("; server_no_context_takeover");
        }
        if let Some(bits) = self.server_max_window_bits {
            // Writing to a String cannot fail.
            let _ = write!(offer, "; server_max_window_bits={bits}");
        }
        // Without this the server may not ask for a smaller window of ours (RFC 7692 section
        // 7.1.2.2).
        match self.client_max_window_bits {
            15 => offer.push_str("; client_max_window_bits"),
            bits => drop(write!(offer, "; client_max_window_bits={bits}")),
        }
        offer
    }

    /// Judges the server's answer (RFC 7692 section 7.1). `Ok(None)`: it declined.
    pub(crate) fn accept(&self, answers: &[String]) -> Result<Option<DeflateParams>, String> {
        let joined = answers.join(",");
        let mut extensions =
            split_outside_quotes(&joined, ',').filter(|extension| !extension.is_empty());
        let Some(extension) = extensions.next() else { return Ok(None) };
        if extensions.next().is_some() {
            return Err("more than one extension, and one was offered".to_owned());
        }
        let mut parts = split_outside_quotes(extension, ';');
        let name = parts.next().unwrap_or_default();
        if !name.eq_ignore_ascii_case("permessage-deflate") {
            return Err("an extension that was not offered".to_owned());
        }
        let mut answer = DeflateResponse::default();
        for part in parts {
            answer.take(part)?;
        }
        self.agree(&answer).map(Some)
    }

    fn agree(&self, answer: &DeflateResponse) -> Result<DeflateParams, String> {
        // Section 7.1.1.1: a server that accepts the offer has to accept this part of it.
        if self.server_no_context_takeover && !answer.server_no_context_takeover {
            return Err("server_no_context_takeover was asked for and is missing".to_owned());
        }
        let server_max_window_bits =
            match (self.server_max_window_bits, answer.server_max_window_bits) {
                (Some(asked), None) => {
                    return Err(format!(
                        "server_max_window_bits={asked} was asked for and is missing"
                    ));
                }
                (Some(asked), Some(given)) if given > asked => {
                    return Err(format!(
                        "server_max_window_bits={given}, and at most {asked} was asked for"
                    ));
                }
                (_, given) => given.unwrap_or(15),
            };
        let client_max_window_bits = match answer.client_max_window_bits {
            Some(given) => given.min(self.client_max_window_bits),
            None => self.client_max_window_bits,
        };
        Ok(DeflateParams {
            client_context_takeover: !(answer.client_no_context_takeover
                || self.client_no_context_takeover),
            server_context_takeover: !answer.server_no_context_takeover,
            client_max_window_bits,
            server_max_window_bits,
            threshold: self.threshold,
            level: self.level,
        })
    }
}

/// The parameters of an answer, each at most once.
#[derive(Default)]
struct DeflateResponse {
    client_no_context_takeover: bool,
    server_no_context_takeover: bool,
    client_max_window_bits: Option<u8>,
    server_max_window_bits: Option<u8>,
}

impl DeflateResponse {
    fn take(&mut self, part: &str) -> Result<(), String> {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim(), Some(unquoted(value.trim()))),
            None => (part.trim(), None),
        };
        let flag = |flag: &mut bool| match value {
            Some(_) => Err(format!("{name} with a value")),
            None if std::mem::replace(flag, true) => Err(format!("{name} twice")),
            None => Ok(()),
        };
        let window = |bits: &mut Option<u8>| {
            let given = value
                .and_then(window_bits)
                .ok_or_else(|| format!("{name} without a window of 8 to 15 bits"))?;
            if bits.replace(given).is_some() { Err(format!("{name} twice")) } else { Ok(()) }
        };
        match name.to_ascii_lowercase().as_str() {
            "client_no_context_takeover" => flag(&mut self.client_no_context_takeover),
            "server_no_context_takeover" => flag(&mut self.server_no_context_takeover),
            "client_max_window_bits" => window(&mut self.client_max_window_bits),
            "server_max_window_bits" => window(&mut self.server_max_window_bits),
            // What the server made up is not repeated: it is its own text.
            _ => Err("a parameter that does not exist".to_owned()),
        }
    }
}

/// RFC 7692 section 7.1.2: a decimal integer without leading zeros, from 8 to 15.
fn window_bits(value: &str) -> Option<u8> {
    match value {
        "8" | "9" | "10" | "11" | "12" | "13" | "14" | "15" => value.parse().ok(),
        _ => None,
    }
}

/// A value may be a token or a quoted string that would be a token without its quotes (RFC 6455
/// section 9.1).
fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

fn split_outside_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    text.split(move |letter: char| {
        if letter == '"' {
            is_quoted = !is_quoted;
        }
        letter == separator && !is_quoted
    })
    .map(str::trim)
}

/// What client and server agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeflateParams {
    pub(super) client_context_takeover: bool,
    pub(super) server_context_takeover: bool,
    pub(super) client_max_window_bits: u8,
    pub(super) server_max_window_bits: u8,
    pub(super) threshold: usize,
    pub(super) level: u32,
}

impl DeflateParams {
    /// The engines for what comes and what goes.
    pub(crate) fn engines(&self) -> (Inflater, Deflater) {
        (Inflater::new(self), Deflater::new(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(deflate: &Deflate, answer: &str) -> Result<Option<DeflateParams>, String> {
        deflate.accept(&[answer.to_owned()])
    }

    #[test]
    fn offers_name_what_was_set() {
        assert_eq!(Deflate::default().offer(), "permessage-deflate; client_max_window_bits");
        let all = Deflate::new()
            .client_no_context_takeover()
            .server_no_context_takeover()
            .server_max_window_bits(10)
            .client_max_window_bits(12);
        assert_eq!(
            all.offer(),
            "permessage-deflate; client_no_context_takeover; server_no_context_takeover; server_max_window_bits=10; \
             client_max_window_bits=12"
        );
    }

    #[test]
    fn answers_within_the_offer_are_accepted() {
        let deflate = Deflate::default();
        assert_eq!(deflate.accept(&[]), Ok(None));
        let plain = accept(&deflate, "permessage-deflate").expect("legal").expect("accepted");
        assert_eq!(
            (
                plain.client_max_window_bits,
                plain.server_max_window_bits,
                plain.client_context_takeover
            ),
            (15, 15, true)
        );
        let full = accept(
            &deflate,
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover ; client_max_window_bits=\"9\"; \
             server_max_window_bits = 8",
        )
        .expect("legal")
        .expect("accepted");
        assert_eq!((full.client_max_window_bits, full.server_max_window_bits), (9, 8));
        assert!(!full.client_context_takeover && !full.server_context_takeover);
    }

    #[test]
    fn answers_beyond_the_offer_are_refused() {
        let deflate = Deflate::new().server_max_window_bits(10).server_no_context_takeover();
        let good = "permessage-deflate; server_no_context_takeover; server_max_window_bits=10";
        assert!(accept(&deflate, good).is_ok_and(|agreed| agreed.is_some()));
        for bad in [
            "permessage-deflate; server_no_context_takeover",
            "permessage-deflate; server_max_window_bits=10",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=11",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=7",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=010",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=10; server_max_window_bits=10",
            "permessage-deflate; server_no_context_takeover=1; server_max_window_bits=10",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=10; client_max_window_bits",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=10; x",
            "x-webkit-deflate-frame",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=10, permessage-deflate",
        ] {
            assert!(accept(&deflate, bad).is_err(), "{bad}");
        }
    }
}

//! The negotiation of permessage-deflate (RFC 7692 section 7.1).

use std::fmt::Write as _;

use super::codec::{Deflater, Inflater};
use super::config::{Deflate, DeflateParams};

/// Every server that knows permessage-deflate understands this offer.
const BARE_OFFER: &str = "permessage-deflate";

impl Deflate {
    /// Returns the value of `Sec-WebSocket-Extensions` for the request.
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
            _ if !self.offers_client_max_window_bits => {}
            15 => offer.push_str("; client_max_window_bits"),
            bits => drop(write!(offer, "; client_max_window_bits={bits}")),
        }
        // A server may refuse what it is asked for, so a bare offer follows (RFC 7692 section
        // 7.1.2.1).
        if self.server_no_context_takeover || self.server_max_window_bits.is_some() {
            offer = format!("{offer}, {BARE_OFFER}");
        }
        offer
    }

    /// Returns the offer for a server that has answered 400 to [`offer`](Deflate::offer): some
    /// refuse a request that asks for a window, whatever offer follows.
    pub(crate) fn bare_offer(&self) -> Option<&'static str> {
        self.server_max_window_bits.map(|_| BARE_OFFER)
    }

    /// Judges the server's answer (RFC 7692 section 7.1). `Ok(None)`: it declined.
    pub(crate) fn accept(&self, answers: &[String]) -> Result<Option<DeflateParams>, String> {
        let joined = answers.join(",");
        let mut extensions =
            split_outside_quotes(&joined, ',').filter(|extension| !extension.is_empty());
        let Some(extension) = extensions.next() else { return Ok(None) };
        if extensions.next().is_some() {
            return Err("more than one extension; expected one at most".to_owned());
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
        if answer.client_max_window_bits.is_some() && !self.offers_client_max_window_bits {
            return Err("client_max_window_bits, which was not offered".to_owned());
        }
        // Whatever the server says of its own side is legal: an answer that lacks what was asked
        // for accepts the bare offer, to which a server may add parameters (RFC 7692 section 7.1).
        let client_max_window_bits = match answer.client_max_window_bits {
            Some(given) => given.min(self.client_max_window_bits),
            None => self.client_max_window_bits,
        };
        Ok(DeflateParams {
            client_context_takeover: !(answer.client_no_context_takeover
                || self.client_no_context_takeover),
            server_context_takeover: !answer.server_no_context_takeover,
            client_max_window_bits,
            server_max_window_bits: answer.server_max_window_bits.unwrap_or(15),
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
            "permessage-deflate; client_no_context_takeover; server_no_context_takeover; \
             server_max_window_bits=10; client_max_window_bits=12, permessage-deflate"
        );
        let bare = Deflate::new().omit_client_max_window_bits();
        assert_eq!(bare.offer(), "permessage-deflate");
        assert_eq!(
            bare.server_max_window_bits(9).offer(),
            "permessage-deflate; server_max_window_bits=9, permessage-deflate"
        );
    }

    #[test]
    fn the_bare_offer_is_for_servers_that_refuse_a_window() {
        assert_eq!(Deflate::new().bare_offer(), None);
        assert_eq!(Deflate::new().server_no_context_takeover().bare_offer(), None);
        let window = Deflate::new().server_max_window_bits(10);
        assert_eq!(window.bare_offer(), Some("permessage-deflate"));
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
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover ; \
             client_max_window_bits=\"9\"; server_max_window_bits = 8",
        )
        .expect("legal")
        .expect("accepted");
        assert_eq!((full.client_max_window_bits, full.server_max_window_bits), (9, 8));
        assert!(!full.client_context_takeover && !full.server_context_takeover);
    }

    #[test]
    fn a_server_may_accept_the_second_offer_and_add_what_it_likes() {
        let deflate = Deflate::new().server_max_window_bits(10).server_no_context_takeover();
        for (answer, takeover, bits) in [
            (
                "permessage-deflate; server_no_context_takeover; server_max_window_bits=10",
                false,
                10,
            ),
            ("permessage-deflate; server_no_context_takeover", false, 15),
            ("permessage-deflate; server_max_window_bits=10", true, 10),
            ("permessage-deflate; server_max_window_bits=11", true, 11),
            ("permessage-deflate", true, 15),
        ] {
            let params = accept(&deflate, answer).expect("legal").expect("accepted");
            let seen = (params.server_context_takeover, params.server_max_window_bits);
            assert_eq!(seen, (takeover, bits), "{answer}");
        }
    }

    #[test]
    fn answers_beyond_the_offer_are_refused() {
        let deflate = Deflate::new().server_max_window_bits(10).server_no_context_takeover();
        for bad in [
            "permessage-deflate; server_max_window_bits=7",
            "permessage-deflate; server_max_window_bits=010",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; x",
            "x-webkit-deflate-frame",
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
        ] {
            assert!(accept(&deflate, bad).is_err(), "{bad}");
        }
        let bare = Deflate::new().omit_client_max_window_bits();
        assert!(accept(&bare, "permessage-deflate; client_max_window_bits=10").is_err());
        assert!(accept(&bare, "permessage-deflate").is_ok());
    }

    #[test]
    fn what_was_set_reaches_the_engines() {
        let deflate = Deflate::new().client_max_window_bits(11).threshold(7).level(3);
        let params = accept(&deflate, "permessage-deflate").expect("legal").expect("accepted");
        assert_eq!((params.client_max_window_bits, params.threshold, params.level), (11, 7, 3));
    }

    #[test]
    fn a_separator_in_quotes_separates_nothing() {
        let refused = |answer| accept(&Deflate::default(), answer).expect_err("it is refused");
        assert_eq!(refused("permessage-deflate; x=\"a,b\""), "a parameter that does not exist");
        assert_eq!(
            refused("permessage-deflate; server_no_context_takeover=\";\""),
            "server_no_context_takeover with a value"
        );
        assert_eq!(
            refused("permessage-deflate; server_max_window_bits=\"9\", x"),
            "more than one extension; expected one at most"
        );
    }
}

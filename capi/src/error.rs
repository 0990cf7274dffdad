//! Errors.

use std::error::Error as _;
use std::ffi::CString;
use std::ptr::null;
use std::sync::atomic::{AtomicU64, Ordering};

use client::{Error, ErrorKind};

use crate::border::{Reason, c_string, infallible};
use crate::clock::nanos_or_never;
use crate::endpoint::NoEndpoint;
use crate::handle::{FREED, Retired};
use crate::types::{tl_error, tl_error_kind};

/// Frees an error that a call handed out. NULL does nothing. An error inside an event or a report
/// is left alone, and so is one that was freed before, if it is among the last 1,024 of those; both
/// are logged. Pass the very pointer that the call has handed out: a copy of the struct must not be
/// freed.
///
/// Threads: any, one at a time. Blocks: never. Ownership: `error` and its texts are gone
/// afterwards. Errors: none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_error_free(error: *mut tl_error) {
    static RETIRED: Retired = Retired::new();
    infallible((), || {
        if error.is_null() {
            return;
        }
        let full = error.cast::<FullError>();
        let change = |magic: &AtomicU64| {
            magic.compare_exchange(OWNED, FREED, Ordering::AcqRel, Ordering::Acquire)
        };
        // SAFETY: every `tl_error` is the beginning of a `FullError`.
        if !full.is_aligned() || change(unsafe { &(*full).magic }).is_err() {
            log::error!(
                "a tl_error was freed that belongs to an event, was freed before, or is none"
            );
            return;
        }
        // SAFETY: `hand_out` made the box, and `magic` has made this the one call that takes it.
        let mut full = unsafe { Box::from_raw(full) };
        full.texts = Texts::default();
        full.view.text = c"(a freed error)".as_ptr();
        full.view.timeout = null();
        full.view.close_reason = null();
        full.view.endpoint_text = null();
        full.view.body = null();
        full.view.body_length = 0;
        RETIRED.keep(full);
    });
}

const OWNED: u64 = u64::from_be_bytes(*b"tl-error");
/// A part of an event.
const LENT: u64 = u64::from_be_bytes(*b"tl-event");

/// An error with the texts that its public part points to. It is not moved out of its box.
#[repr(C)]
pub(crate) struct FullError {
    view: tl_error,
    magic: AtomicU64,
    texts: Texts,
}

// SAFETY: the pointers of `view` are to constants and to `texts`, which it owns.
unsafe impl Send for FullError {}

#[derive(Default)]
struct Texts {
    text: CString,
    close_reason: Option<CString>,
    endpoint_text: Option<CString>,
    body: Vec<u8>,
}

/// Returns an error that the program frees.
pub(crate) fn hand_out(reason: Reason) -> *mut tl_error {
    let full = match reason {
        Reason::Client(error) => FullError::of_client(&error, OWNED),
        Reason::Own(kind, text) => FullError::own(kind, text),
    };
    // The pointer is to all of it, not to its public part alone: `tl_error_free` takes it back.
    Box::into_raw(full).cast()
}

impl FullError {
    /// Returns an error as a part of an event.
    pub(crate) fn lent(error: &Error) -> Box<FullError> {
        Self::of_client(error, LENT)
    }

    /// Returns the pointer for the program. It lives as long as the box.
    pub(crate) fn as_ptr(&self) -> *const tl_error {
        std::ptr::from_ref(self).cast()
    }

    fn of_client(error: &Error, magic: u64) -> Box<FullError> {
        let close = error.close_reason();
        let response = error.response();
        let is_endpoint = error.kind() == ErrorKind::Endpoint;
        let endpoint_text = error.source().filter(|_| is_endpoint).map(|cause| cause.to_string());
        let texts = Texts {
            text: c_string(match NoEndpoint::of(error) {
                Some(reason) => format!("{}: {reason}", error.chain()),
                None => error.chain(),
            }),
            close_reason: close.map(|close| c_string(close.reason.as_str())),
            endpoint_text: endpoint_text.map(c_string),
            body: response.map(|response| response.body().clone()).unwrap_or_default(),
        };
        let view = tl_error {
            size: size_of::<tl_error>(),
            kind: kind_of(error.kind()),
            status: error.status().map_or(0, |status| status.as_u16()),
            close_code: close.map_or(0, |close| close.code),
            is_retryable: error.is_retryable(),
            is_verification_failure: error.is_verification_failure(),
            text: null(),
            kind_name: constant(error.kind().as_str(), &KIND_NAMES),
            timeout: error
                .timeout()
                .map_or(null(), |timeout| constant(timeout.as_str(), &TIMEOUT_NAMES)),
            close_reason: null(),
            endpoint_text: null(),
            retry_after_ns: nanos_or_never(error.retry_after()),
            retry_in_ns: nanos_or_never(error.retry_in()),
            body: null(),
            body_length: texts.body.len(),
        };
        Self::with_texts(view, texts, magic)
    }

    fn own(kind: tl_error_kind, text: String) -> Box<FullError> {
        let kind_name = match kind {
            tl_error_kind::TL_ERROR_CONFIG => c"config",
            tl_error_kind::TL_ERROR_ABI => c"abi",
            tl_error_kind::TL_ERROR_INTERNAL => c"internal",
            tl_error_kind::TL_ERROR_INVALID_ARGUMENT => c"invalid_argument",
            _ => c"other",
        };
        let view = tl_error {
            size: size_of::<tl_error>(),
            kind,
            status: 0,
            close_code: 0,
            is_retryable: false,
            is_verification_failure: false,
            text: null(),
            kind_name: kind_name.as_ptr(),
            timeout: null(),
            close_reason: null(),
            endpoint_text: null(),
            retry_after_ns: -1,
            retry_in_ns: -1,
            body: null(),
            body_length: 0,
        };
        Self::with_texts(view, Texts { text: c_string(text), ..Texts::default() }, OWNED)
    }

    /// Points `view` to `texts`, once both are in their place.
    fn with_texts(view: tl_error, texts: Texts, magic: u64) -> Box<FullError> {
        let mut full = Box::new(FullError { view, magic: AtomicU64::new(magic), texts });
        let FullError { view, texts, .. } = &mut *full;
        view.text = texts.text.as_ptr();
        view.close_reason = texts.close_reason.as_ref().map_or(null(), |text| text.as_ptr());
        view.endpoint_text = texts.endpoint_text.as_ref().map_or(null(), |text| text.as_ptr());
        if !texts.body.is_empty() {
            view.body = texts.body.as_ptr().cast();
        }
        full
    }
}

/// The names of kinds and timeouts, as texts for C.
type Names<const N: usize> = [&'static std::ffi::CStr; N];

const KIND_NAMES: Names<22> = [
    c"config",
    c"endpoint",
    c"resolve",
    c"connect",
    c"tls",
    c"proxy",
    c"http",
    c"upgrade",
    c"timeout",
    c"protocol",
    c"closed",
    c"pong_timeout",
    c"idle",
    c"lagged",
    c"too_big",
    c"limited",
    c"undecodable",
    c"opening",
    c"not_ready",
    c"io",
    c"handler_panicked",
    c"stopped",
];

const TIMEOUT_NAMES: Names<7> = [
    c"connect_timeout",
    c"send_timeout",
    c"close_timeout",
    c"wait_open",
    c"wait_ready",
    c"wait_subscribed",
    c"within",
];

fn constant<const N: usize>(name: &str, names: &Names<N>) -> *const std::ffi::c_char {
    let found = names.iter().find(|known| known.to_bytes() == name.as_bytes());
    found.unwrap_or(&c"other").as_ptr()
}

/// Returns the number of a kind.
pub(crate) fn kind_of(kind: ErrorKind) -> tl_error_kind {
    use tl_error_kind as number;
    match kind {
        ErrorKind::Config => number::TL_ERROR_CONFIG,
        ErrorKind::Endpoint => number::TL_ERROR_ENDPOINT,
        ErrorKind::Resolve => number::TL_ERROR_RESOLVE,
        ErrorKind::Connect => number::TL_ERROR_CONNECT,
        ErrorKind::Tls => number::TL_ERROR_TLS,
        ErrorKind::Proxy => number::TL_ERROR_PROXY,
        ErrorKind::Http => number::TL_ERROR_HTTP,
        ErrorKind::Upgrade => number::TL_ERROR_UPGRADE,
        ErrorKind::Timeout => number::TL_ERROR_TIMEOUT,
        ErrorKind::Protocol => number::TL_ERROR_PROTOCOL,
        ErrorKind::Closed => number::TL_ERROR_CLOSED,
        ErrorKind::PongTimeout => number::TL_ERROR_PONG_TIMEOUT,
        ErrorKind::Idle => number::TL_ERROR_IDLE,
        ErrorKind::Lagged => number::TL_ERROR_LAGGED,
        ErrorKind::TooBig => number::TL_ERROR_TOO_BIG,
        ErrorKind::Limited => number::TL_ERROR_LIMITED,
        ErrorKind::Undecodable => number::TL_ERROR_UNDECODABLE,
        ErrorKind::Opening => number::TL_ERROR_OPENING,
        ErrorKind::NotReady => number::TL_ERROR_NOT_READY,
        ErrorKind::Io => number::TL_ERROR_IO,
        ErrorKind::HandlerPanicked => number::TL_ERROR_HANDLER_PANICKED,
        ErrorKind::Stopped => number::TL_ERROR_STOPPED,
        _ => number::TL_ERROR_OTHER,
    }
}

/// All kinds of the client, by their numbers from 1.
pub(crate) const KINDS: [ErrorKind; 22] = [
    ErrorKind::Config,
    ErrorKind::Endpoint,
    ErrorKind::Resolve,
    ErrorKind::Connect,
    ErrorKind::Tls,
    ErrorKind::Proxy,
    ErrorKind::Http,
    ErrorKind::Upgrade,
    ErrorKind::Timeout,
    ErrorKind::Protocol,
    ErrorKind::Closed,
    ErrorKind::PongTimeout,
    ErrorKind::Idle,
    ErrorKind::Lagged,
    ErrorKind::TooBig,
    ErrorKind::Limited,
    ErrorKind::Undecodable,
    ErrorKind::Opening,
    ErrorKind::NotReady,
    ErrorKind::Io,
    ErrorKind::HandlerPanicked,
    ErrorKind::Stopped,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_number_and_its_name() {
        for (index, kind) in KINDS.into_iter().enumerate() {
            assert_eq!(kind_of(kind) as usize, index + 1, "{kind}");
            assert_eq!(KIND_NAMES[index].to_bytes(), kind.as_str().as_bytes());
        }
    }
}

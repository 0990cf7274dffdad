//! The endpoint of a dial, as a callback names it.

use std::error::Error as StdError;
use std::ffi::{c_char, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use client::{DialContext, Endpoint, Error};

use crate::border::{enter, infallible, status, text};
use crate::callbacks::UserData;
use crate::clock::nanos_of;
use crate::handle::{self, opaque};
use crate::types::{tl_dial, tl_error, tl_status};

/// The endpoint that an endpoint callback names. It may be used inside that callback alone.
pub struct tl_endpoint {
    _opaque: (),
}

opaque!(tl_endpoint, Asked, b"tl-endpt");

pub(crate) struct Asked {
    answer: Mutex<Answered>,
    context: DialContext,
}

#[derive(Default)]
struct Answered {
    url: Option<String>,
    headers: Vec<(String, String)>,
    subprotocols: Vec<String>,
    carried: Vec<(String, String)>,
    failure: Option<String>,
}

impl Asked {
    fn lock(&self) -> MutexGuard<'_, Answered> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct EndpointCallback {
    pub(crate) call: unsafe extern "C" fn(*mut c_void, *mut tl_endpoint, *const tl_dial) -> i32,
    pub(crate) user_data: UserData,
}

/// The reason of this library, and not of the program, why there is no endpoint. It is no secret.
#[derive(Debug)]
pub(crate) struct NoEndpoint(String);

impl std::fmt::Display for NoEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for NoEndpoint {}

impl NoEndpoint {
    /// Returns the reason of an error, if it is one of these.
    pub(crate) fn of(error: &Error) -> Option<&NoEndpoint> {
        error.source().and_then(|cause| cause.downcast_ref())
    }
}

/// Asks the program for the endpoint of a dial.
pub(crate) fn ask(
    callback: &EndpointCallback,
    context: &DialContext,
) -> Result<Endpoint, Box<dyn StdError + Send + Sync>> {
    let dial = tl_dial {
        size: size_of::<tl_dial>(),
        remaining_ns: nanos_of(context.remaining()),
        attempt: context.attempt(),
    };
    let asked = Asked { answer: Mutex::default(), context: context.clone() };
    let endpoint = handle::create::<tl_endpoint>(asked);
    // SAFETY: the program gave both, for calls on this thread; the others outlive the call.
    let result = unsafe { (callback.call)(callback.user_data.as_ptr(), endpoint, &dial) };
    // SAFETY: it was created above, and the callback, which alone may use it, has returned.
    let answered = unsafe {
        let answered = handle::borrow(endpoint).map(|asked| std::mem::take(&mut *asked.lock()));
        handle::free(endpoint);
        answered
    };
    let answered = answered.unwrap_or_default();
    if let Some(failure) = answered.failure {
        return Err(failure.into());
    }
    if result != 0 {
        return Err(NoEndpoint(format!("the endpoint callback returned {result}")).into());
    }
    let no_url = || NoEndpoint("the endpoint callback has set no URL".to_owned());
    let url = answered.url.ok_or_else(no_url)?;
    let mut endpoint = Endpoint::new(url);
    for (name, value) in answered.headers {
        endpoint = endpoint.header(name, value);
    }
    for name in answered.subprotocols {
        endpoint = endpoint.subprotocol(name);
    }
    for (key, value) in answered.carried {
        endpoint = endpoint.carry(key, value);
    }
    Ok(endpoint)
}

/// Sets the URL to dial, `ws://` or `wss://`. Its text is checked before the dial.
///
/// Threads: inside the endpoint callback alone. Blocks: never. Ownership: the URL is copied.
/// Errors: `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_endpoint_set_url(
    endpoint: *mut tl_endpoint,
    url: *const c_char,
    error: *mut *mut tl_error,
) -> tl_status {
    let set = || {
        // SAFETY: the program passes a handle and a text.
        let (endpoint, url) = unsafe { (handle::borrow(endpoint)?, text("the URL", url)?) };
        endpoint.lock().url = Some(url.to_owned());
        Ok(tl_status::TL_OK)
    };
    // SAFETY: the program passes NULL or a place for a pointer.
    status(unsafe { enter(error, set) })
}

/// Adds a header to the opening handshake of this dial. It is checked before the dial. No log shows
/// its value.
///
/// Threads: inside the endpoint callback alone. Blocks: never. Ownership: name and value are
/// copied. Errors: `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_endpoint_add_header(
    endpoint: *mut tl_endpoint,
    name: *const c_char,
    value: *const c_char,
    error: *mut *mut tl_error,
) -> tl_status {
    let add = || {
        // SAFETY: the program passes a handle and texts.
        let (endpoint, name, value) = unsafe {
            (handle::borrow(endpoint)?, text("the name", name)?, text("the value", value)?)
        };
        endpoint.lock().headers.push((name.to_owned(), value.to_owned()));
        Ok(tl_status::TL_OK)
    };
    // SAFETY: the program passes NULL or a place for a pointer.
    status(unsafe { enter(error, add) })
}

/// Offers a subprotocol in this dial.
///
/// Threads: inside the endpoint callback alone. Blocks: never. Ownership: the name is copied.
/// Errors: `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_endpoint_add_subprotocol(
    endpoint: *mut tl_endpoint,
    name: *const c_char,
    error: *mut *mut tl_error,
) -> tl_status {
    let add = || {
        // SAFETY: the program passes a handle and a text.
        let (endpoint, name) = unsafe { (handle::borrow(endpoint)?, text("the name", name)?) };
        endpoint.lock().subprotocols.push(name.to_owned());
        Ok(tl_status::TL_OK)
    };
    // SAFETY: the program passes NULL or a place for a pointer.
    status(unsafe { enter(error, add) })
}

/// Carries a value to the connection that this dial opens, where `tl_opened_carried` returns it: a
/// token, for example, that came with the URL. It is not sent to the server, and no log shows it.
///
/// Threads: inside the endpoint callback alone. Blocks: never. Ownership: key and value are copied.
/// Errors: `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_endpoint_carry(
    endpoint: *mut tl_endpoint,
    key: *const c_char,
    value: *const c_char,
    error: *mut *mut tl_error,
) -> tl_status {
    let carry = || {
        // SAFETY: the program passes a handle and texts.
        let (endpoint, key, value) = unsafe {
            (handle::borrow(endpoint)?, text("the key", key)?, text("the value", value)?)
        };
        endpoint.lock().carried.push((key.to_owned(), value.to_owned()));
        Ok(tl_status::TL_OK)
    };
    // SAFETY: the program passes NULL or a place for a pointer.
    status(unsafe { enter(error, carry) })
}

/// Says why there is no endpoint now, for `endpoint_text` of the error that follows. The dial has
/// failed then, whatever the callback returns, and is tried again.
///
/// Threads: inside the endpoint callback alone. Blocks: never. Ownership: the reason is copied.
/// Errors: `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_endpoint_fail(
    endpoint: *mut tl_endpoint,
    reason: *const c_char,
    error: *mut *mut tl_error,
) -> tl_status {
    let fail = || {
        // SAFETY: the program passes a handle and a text.
        let (endpoint, reason) =
            unsafe { (handle::borrow(endpoint)?, text("the reason", reason)?) };
        endpoint.lock().failure = Some(reason.to_owned());
        Ok(tl_status::TL_OK)
    };
    // SAFETY: the program passes NULL or a place for a pointer.
    status(unsafe { enter(error, fail) })
}

/// Returns true if the client has been told to stop. A callback that makes calls of its own should
/// ask between them, because nothing can interrupt it.
///
/// Threads: inside the endpoint callback alone. Blocks: never. Errors: true for an endpoint that is
/// none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_endpoint_is_stopping(endpoint: *const tl_endpoint) -> bool {
    infallible(true, || {
        // SAFETY: the program passes a handle.
        unsafe { handle::borrow(endpoint) }.map_or(true, |asked| asked.context.is_stopping())
    })
}

//! The connection that a callback is given.

use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;

use client::{CloseReason, Connection};

use crate::border::{Failure, enter, enter_send, put, status, text, utf8};
use crate::callbacks::wake_time;
use crate::client::{payloads, receipt_of};
use crate::handle::{self, opaque};
use crate::types::{tl_error, tl_payload, tl_receipt, tl_status};

/// The open connection, for the length of a callback that is given it. It sends on that very
/// connection. All callbacks of a client are given the same pointer: inside another callback it
/// stands for the connection of that one. Used outside of the callback, or on another thread, it
/// fails with `TL_ERROR_INVALID_ARGUMENT`.
pub struct tl_connection {
    _opaque: (),
}

opaque!(tl_connection, Place, b"tl-conn.");

/// The place of the connection that the program may use now.
pub(crate) struct Place {
    /// The reader thread, which alone looks at `connection`.
    thread: OnceLock<ThreadId>,
    connection: Cell<Option<NonNull<Connection<'static>>>>,
}

// SAFETY: it is used on `thread` alone, which `with` makes sure of.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

/// Lends the connection to the program, call by call, always behind the same pointer.
pub(crate) struct Lent {
    handle: *mut tl_connection,
    place: Arc<Place>,
}

// SAFETY: the handle is its own.
unsafe impl Send for Lent {}

impl Default for Lent {
    fn default() -> Self {
        let place = Place { thread: OnceLock::new(), connection: Cell::new(None) };
        let handle = handle::create::<tl_connection>(place);
        // SAFETY: it was created just now.
        let place = unsafe { handle::borrow(handle) };
        let place = place.unwrap_or_else(|_| unreachable!("it was created just now"));
        Lent { handle, place }
    }
}

impl Lent {
    /// Notes that this thread is the reader.
    pub(crate) fn note_thread(&self) {
        self.place.thread.get_or_init(|| std::thread::current().id());
    }

    /// Calls the program with the connection, on the reader thread.
    #[inline]
    pub(crate) fn lend<T>(
        &self,
        connection: &mut Connection<'_>,
        call: impl FnOnce(*mut tl_connection) -> T,
    ) -> T {
        let place = &*self.place;
        // The lifetime is forgotten until the end of this call. The place is emptied before that.
        place.connection.set(Some(NonNull::from(connection).cast()));
        // Only functions of C are called here, and those do not unwind.
        let result = call(self.handle);
        place.connection.set(None);
        result
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: it is freed here alone, and no callback runs any more.
        unsafe { handle::free(self.handle) };
    }
}

/// Calls `act` with the connection that the program has been given, if that is so.
///
/// # Safety
/// `handle` is null, or points to a handle, perhaps one that was freed.
unsafe fn with<T>(
    handle: *mut tl_connection,
    act: impl FnOnce(&mut Connection<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    // SAFETY: as for this function.
    let place = unsafe { handle::borrow(handle) }?;
    if place.thread.get() != Some(&std::thread::current().id()) {
        let text = "a tl_connection is used on another thread than that of its callback";
        return Err(Failure::argument(text));
    }
    // Taken out, so that nobody has it twice.
    let Some(mut connection) = place.connection.take() else {
        return Err(Failure::argument("a tl_connection is used outside of its callback"));
    };
    // SAFETY: `lend` has put it there, and is under way further up on this thread, since it takes
    // it out before it returns. What it was made of is not touched meanwhile.
    let result = act(unsafe { connection.as_mut() });
    place.connection.set(Some(connection));
    result
}

/// Sends a text message on this connection. See `tl_client_send_text`.
///
/// Threads: inside the callback alone. Blocks: for room in the kernel's buffer, `send_timeout` at
/// most; nothing is read meanwhile. Ownership: `text` is the program's; `receipt` may be NULL.
/// Errors: as `tl_client_send_text`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_connection_send_text(
    connection: *mut tl_connection,
    text: *const c_char,
    length: usize,
    receipt: *mut tl_receipt,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle, its bytes, and NULL or places for the results.
    status(unsafe {
        enter_send(error, || {
            let text = utf8(text.cast(), length)?;
            let sent = with(connection, |connection| Ok(connection.send_text(text)?))?;
            put(receipt, receipt_of(sent));
            Ok(tl_status::TL_OK)
        })
    })
}

/// Sends a binary message on this connection. See `tl_client_send_binary`.
///
/// Threads: inside the callback alone. Blocks: as `tl_connection_send_text`. Ownership: `data` is
/// the program's; `receipt` may be NULL. Errors: as `tl_client_send_text`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_connection_send_binary(
    connection: *mut tl_connection,
    data: *const c_void,
    length: usize,
    receipt: *mut tl_receipt,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle, its bytes, and NULL or places for the results.
    status(unsafe {
        enter_send(error, || {
            let bytes = crate::border::bytes(data.cast(), length)?;
            let sent = with(connection, |connection| Ok(connection.send_binary(bytes)?))?;
            put(receipt, receipt_of(sent));
            Ok(tl_status::TL_OK)
        })
    })
}

/// Sends several messages on this connection. See `tl_client_send_batch`.
///
/// Threads: inside the callback alone. Blocks: as `tl_connection_send_text`. Ownership: the
/// payloads are the program's; `sent` and `receipt` may be NULL. Errors: as `tl_client_send_batch`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_connection_send_batch(
    connection: *mut tl_connection,
    messages: *const tl_payload,
    count: usize,
    sent: *mut usize,
    receipt: *mut tl_receipt,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle, its payloads, and NULL or places for the results.
    status(unsafe {
        enter_send(error, || {
            put(sent, 0);
            let messages = payloads(messages, count)?;
            let result = with(connection, |connection| Ok(connection.send_batch(&messages)))?;
            let last = result.map_err(|error| {
                put(sent, error.sent);
                error.next
            })?;
            put(sent, count);
            put(receipt, receipt_of(last));
            Ok(tl_status::TL_OK)
        })
    })
}

/// Sets the time at which `woken` is called, as `tl_now` tells it. The client has one such time:
/// this one replaces what was set before, and a negative one takes it back. A time that has passed
/// is due at once. It stays when the connection ends.
///
/// Threads: inside the callback alone. Blocks: never. Errors: `TL_FAILED`, with
/// `TL_ERROR_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_connection_wake_at(
    connection: *mut tl_connection,
    at_ns: i64,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle, and NULL or a place for the error.
    status(unsafe {
        enter(error, || {
            with(connection, |connection| {
                connection.wake_at(wake_time(at_ns));
                Ok(tl_status::TL_OK)
            })
        })
    })
}

/// Counts this connection as stable from now on: the backoff after its end starts anew. For a
/// program that knows more than the clock does, because its login was accepted, for example.
///
/// Threads: inside the callback alone. Blocks: never. Errors: `TL_FAILED`, with
/// `TL_ERROR_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_connection_mark_stable(
    connection: *mut tl_connection,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle, and NULL or a place for the error.
    status(unsafe {
        enter(error, || {
            with(connection, |connection| {
                connection.mark_stable();
                Ok(tl_status::TL_OK)
            })
        })
    })
}

/// Closes this connection and dials again. See `tl_client_reconnect`.
///
/// Threads: inside the callback alone. Blocks: never. Ownership: `reason` is copied, and may be
/// NULL. Errors: `TL_FAILED`, with `TL_ERROR_CONFIG` if the code or the reason may not be sent.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_connection_reconnect(
    connection: *mut tl_connection,
    code: u16,
    reason: *const c_char,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle and a text, and NULL or a place for the error.
    status(unsafe {
        enter(error, || {
            let close = close_reason(code, reason)?;
            with(connection, |connection| {
                match close {
                    None => connection.reconnect(),
                    Some(close) => connection
                        .reconnect_with(&close)
                        .map_err(|error| Failure::from(error.reason().clone()))?,
                }
                Ok(tl_status::TL_OK)
            })
        })
    })
}

/// Tells the client to stop, and returns at once. No further message is delivered after this
/// callback. Waiting is left to `tl_client_stop` or `tl_client_free`.
///
/// Threads: inside the callback alone. Blocks: never. Errors: `TL_FAILED`, with
/// `TL_ERROR_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_connection_stop(
    connection: *mut tl_connection,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle, and NULL or a place for the error.
    status(unsafe {
        enter(error, || {
            with(connection, |connection| {
                connection.stop();
                Ok(tl_status::TL_OK)
            })
        })
    })
}

/// Returns the close reason of the program's; `None` for the code 0, which is the usual one.
///
/// # Safety
/// `reason` is null or a text.
pub(crate) unsafe fn close_reason(
    code: u16,
    reason: *const c_char,
) -> Result<Option<CloseReason>, Failure> {
    if code == 0 {
        return match reason.is_null() {
            true => Ok(None),
            false => Err(Failure::argument("a close reason needs a close code")),
        };
    }
    // SAFETY: as for this function.
    let reason = if reason.is_null() { "" } else { unsafe { text("the reason", reason) }? };
    Ok(Some(CloseReason::new(code, reason)))
}

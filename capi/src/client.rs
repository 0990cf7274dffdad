//! Clients.

use std::ffi::{c_char, c_void};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client::{
    Client, Payload, Pull, Push, Receipt, Sender, State, Stats, ThreadOutcome, ThreadReport,
    stop_all,
};

use crate::border::{
    Failure, Reason, check_unknown, enter, enter_send, infallible, put, read_sized, status, utf8,
    write_sized,
};
use crate::callbacks::{Program, tl_callbacks, wake_time};
use crate::clock::{nanos_of, nanos_or_never, timeout};
use crate::connection::close_reason;
use crate::error::{self, KINDS, kind_of};
use crate::events::{Batches, tl_events};
use crate::handle::{self, opaque};
use crate::options::{Options, tl_options};
use crate::report::told;
use crate::types::{
    tl_error, tl_payload, tl_receipt, tl_state, tl_stats, tl_status, tl_stop_report,
};

/// A client: it keeps one connection to a server up, with two threads of its own, until it is
/// stopped or freed.
pub struct tl_client {
    _opaque: (),
}

opaque!(tl_client, Running, b"tlclient");

pub(crate) struct Running {
    kind: Kind,
    sender: Sender,
    drop_timeout: Duration,
}

enum Kind {
    Pull(Client<Pull>),
    Push(Client<Push>),
}

/// Calls a method that both kinds of client have.
macro_rules! either {
    ($running:expr, $client:ident => $call:expr) => {
        match &$running.kind {
            Kind::Pull($client) => $call,
            Kind::Push($client) => $call,
        }
    };
}

fn pulled(client: Client<Pull>, options: &Options) -> *mut tl_client {
    let (sender, drop_timeout) = (client.sender(), options.drop_timeout());
    handle::create::<tl_client>(Running { kind: Kind::Pull(client), sender, drop_timeout })
}

fn pushed(client: Client<Push>, options: &Options) -> *mut tl_client {
    let (sender, drop_timeout) = (client.sender(), options.drop_timeout());
    handle::create::<tl_client>(Running { kind: Kind::Push(client), sender, drop_timeout })
}

/// Starts a client whose events are pulled, and returns at once. It dials in the background, and
/// again after failures.
///
/// Threads: any. Blocks: never, unless the system's roots of TLS have to be read. Ownership:
/// `tl_client_free` frees the result; the options stay the program's. Errors: NULL, with
/// `TL_ERROR_CONFIG` for settings that cannot work, or `TL_ERROR_IO` when the system has no threads
/// to give.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_start(
    options: *const tl_options,
    error: *mut *mut tl_error,
) -> *mut tl_client {
    // SAFETY: the program passes a handle, and NULL or a place for the error.
    unsafe {
        enter(error, || {
            let options = handle::borrow(options)?;
            Ok(pulled(options.builder()?.start()?, &options))
        })
        .unwrap_or(null_mut())
    }
}

/// Makes one dial, and returns a client whose events are pulled once the connection is open. After
/// later failures the client dials again by itself.
///
/// Threads: any. Blocks: for `connect_timeout` at most, once the `connect_limit` lets the dial
/// begin. Ownership: as `tl_client_start`. Errors: NULL, with the reason why the dial failed, or as
/// `tl_client_start`. Nothing is left running then, except a lookup or an endpoint callback that
/// hangs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_connect(
    options: *const tl_options,
    error: *mut *mut tl_error,
) -> *mut tl_client {
    // SAFETY: the program passes a handle, and NULL or a place for the error.
    unsafe {
        enter(error, || {
            let options = handle::borrow(options)?;
            Ok(pulled(options.builder()?.connect()?, &options))
        })
        .unwrap_or(null_mut())
    }
}

/// Starts a client that passes its events to callbacks, and returns at once. It dials in the
/// background, and again after failures.
///
/// Threads: any; the callbacks run on the client's thread `taut-reader`, perhaps before this has
/// returned. Blocks: as `tl_client_start`. Ownership: as `tl_client_start`; the struct `callbacks`
/// is copied, and its `destroy` is called once, whether this fails or not, unless the struct itself
/// is NULL or has no size. Errors: as `tl_client_start`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_start_with(
    options: *const tl_options,
    callbacks: *const tl_callbacks,
    error: *mut *mut tl_error,
) -> *mut tl_client {
    // SAFETY: the program passes a handle and its struct, and NULL or a place for the error.
    unsafe {
        enter(error, || {
            let program = program(callbacks)?;
            let options = handle::borrow(options)?;
            Ok(pushed(options.builder()?.start_with(program)?, &options))
        })
        .unwrap_or(null_mut())
    }
}

/// Makes one dial, and returns a client that passes its events to callbacks once the connection is
/// open. After later failures the client dials again by itself.
///
/// Threads: as `tl_client_start_with`; it may not be called inside a callback of another client if
/// that is to go on reading. Blocks: as `tl_client_connect`. Ownership: as `tl_client_start_with`.
/// Errors: as `tl_client_connect`; the callbacks have been told of the failure then too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_connect_with(
    options: *const tl_options,
    callbacks: *const tl_callbacks,
    error: *mut *mut tl_error,
) -> *mut tl_client {
    // SAFETY: the program passes a handle and its struct, and NULL or a place for the error.
    unsafe {
        enter(error, || {
            let program = program(callbacks)?;
            let options = handle::borrow(options)?;
            Ok(pushed(options.builder()?.connect_with(program)?, &options))
        })
        .unwrap_or(null_mut())
    }
}

/// Reads the callbacks. From here on `destroy` is called, whatever happens.
///
/// # Safety
/// `callbacks` is null, or points to the program's struct.
unsafe fn program(callbacks: *const tl_callbacks) -> Result<Program, Failure> {
    // Before anything that can be left out, a program has to say what its `user_data` is.
    const SMALLEST: usize = std::mem::offset_of!(tl_callbacks, opened);
    // SAFETY: as for this function. Every field is a pointer that may be NULL.
    let known = unsafe { read_sized("tl_callbacks", callbacks, SMALLEST, tl_callbacks::NONE) }?;
    // Before the fields that are unknown here can be refused, because this calls `destroy`.
    let program = Program::new(known);
    // SAFETY: as for this function, and its size was checked.
    unsafe { check_unknown("tl_callbacks", callbacks) }?;
    Ok(program)
}

/// Stops a client, waits for its threads, and frees it. NULL does nothing. To learn what became of
/// the threads, call `tl_client_stop` before.
///
/// Threads: any; inside one of its callbacks it does not wait. Other calls with this client may be
/// under way, inside callbacks or on other threads: they end as those of a client that is stopped.
/// One that begins later fails with `TL_ERROR_INVALID_ARGUMENT`. Blocks: for `drop_timeout` at
/// most, 5 s by default, and for as long once more if a thread is late and another call was under
/// way; a client that was stopped before is freed at once. Ownership: `client` is gone afterwards,
/// its events are not; a second time is logged and does nothing. Errors: none. A thread that is
/// late is logged, and ends when the call that holds it up returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_free(client: *mut tl_client) {
    infallible((), || {
        // SAFETY: the program passes a handle.
        let Some(running) = (unsafe { handle::take(client) }) else { return };
        // The drop of the client stops it too, but on the thread of whichever call has it last. No
        // call can get it any more, so if this is the only one that has it, it stays so.
        if Arc::strong_count(&running) > 1 {
            let report = either!(running, client => client.stop(running.drop_timeout));
            let is_late = |thread: &ThreadReport| thread.outcome == ThreadOutcome::TimedOut;
            if report.threads().iter().any(is_late) {
                log::error!(
                    "a client was freed and not all of its threads ended in time: {report}"
                );
            }
        }
        drop(running);
    });
}

/// Stops a client and waits until every thread has ended, for `timeout_ns` at most. An open
/// connection is closed with a close frame, within `close_timeout`, and then aborted. May be
/// repeated, and called by several threads at once.
///
/// Threads: any; inside a callback of this client it returns at once, and the thread is
/// `TL_THREAD_CURRENT` in the report. Blocks: for `timeout_ns` at most: a few milliseconds, or a
/// round trip if a connection is open. Ownership: `report` may be NULL; otherwise it is set to a
/// report that `tl_stop_report_free` frees. Errors: `TL_OK` if every thread has ended, `TL_LATE` if
/// not; `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`, and no report.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_stop(
    client: *const tl_client,
    timeout_ns: i64,
    report: *mut *mut tl_stop_report,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle, and NULL or places for the results.
    status(unsafe {
        enter(error, || {
            put(report, null_mut());
            let running = handle::borrow(client)?;
            let stopped = either!(running, client => client.stop(timeout(timeout_ns)));
            Ok(told(&stopped, report))
        })
    })
}

/// Stops a client like `tl_client_stop`, with a close code and a reason of the program's own in the
/// close frame (RFC 6455 section 7.4). `reason` may be NULL.
///
/// Threads: as `tl_client_stop`. Blocks: as `tl_client_stop`. Ownership: as `tl_client_stop`; the
/// reason is copied. Errors: as `tl_client_stop`; `TL_FAILED`, with `TL_ERROR_CONFIG`, if the code
/// may not be sent or the reason is longer than 123 bytes: nothing is stopped then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_stop_with(
    client: *const tl_client,
    code: u16,
    reason: *const c_char,
    timeout_ns: i64,
    report: *mut *mut tl_stop_report,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle and a text, and NULL or places for the results.
    status(unsafe {
        enter(error, || {
            put(report, null_mut());
            let running = handle::borrow(client)?;
            let time = timeout(timeout_ns);
            let stopped = match close_reason(code, reason)? {
                None => either!(running, client => client.stop(time)),
                Some(close) => either!(running, client => client.stop_with(&close, time))?,
            };
            Ok(told(&stopped, report))
        })
    })
}

/// Stops several clients side by side, and waits until all of their threads have ended, for
/// `timeout_ns` at most in all.
///
/// Threads: as `tl_client_stop`. Blocks: for `timeout_ns` at most. Ownership: `clients` is an array
/// of `count` clients, and stays the program's; `reports` may be NULL, otherwise it is an array
/// with room for as many, and each is freed by `tl_stop_report_free`. Errors: `TL_OK` if every
/// thread has ended, `TL_LATE` if not; `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`: nothing is
/// stopped then, and all reports are NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_stop_all(
    clients: *const *mut tl_client,
    count: usize,
    timeout_ns: i64,
    reports: *mut *mut tl_stop_report,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes arrays as described, and NULL or a place for the error.
    status(unsafe {
        enter(error, || {
            // All of them first, so that a program can free them after any failure.
            if !reports.is_null() {
                for index in 0..count {
                    reports.add(index).write(null_mut());
                }
            }
            if clients.is_null() && count > 0 {
                return Err(Failure::argument("clients is NULL"));
            }
            let mut stoppers = Vec::new();
            for index in 0..count {
                let running = handle::borrow::<tl_client>(clients.add(index).read())?;
                stoppers.push(running.sender.stopper());
            }
            let mut result = tl_status::TL_OK;
            for (index, report) in stop_all(&stoppers, timeout(timeout_ns)).iter().enumerate() {
                let place = if reports.is_null() { reports } else { reports.add(index) };
                if told(report, place) == tl_status::TL_LATE {
                    result = tl_status::TL_LATE;
                }
            }
            Ok(result)
        })
    })
}

/// Tells a client to stop. Waiting is left to `tl_client_stop` or `tl_client_free`.
///
/// Threads: any, a callback included; not a signal handler. Blocks: never. Errors: `TL_FAILED`,
/// with `TL_ERROR_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_request_stop(
    client: *const tl_client,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle, and NULL or a place for the error.
    status(unsafe {
        enter(error, || {
            handle::borrow(client)?.sender.stopper().request_stop();
            Ok(tl_status::TL_OK)
        })
    })
}

/// Waits until a connection is open, and sets `epoch` to its number.
///
/// Threads: any. Inside a callback it does not wait: it returns `TL_OK` while the connection is
/// open, in `opened` and `message` for example, and fails with `TL_ERROR_CONFIG` otherwise. Blocks:
/// for `timeout_ns` at most. Ownership: `epoch` may be NULL. Errors: `TL_FAILED`, with
/// `TL_ERROR_TIMEOUT` when none was open in time, otherwise with the reason why the client has
/// ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_wait_open(
    client: *const tl_client,
    timeout_ns: i64,
    epoch: *mut u64,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle, and NULL or places for the results.
    status(unsafe {
        enter(error, || {
            let opened = handle::borrow(client)?.sender.wait_open(timeout(timeout_ns))?;
            put(epoch, opened);
            Ok(tl_status::TL_OK)
        })
    })
}

/// Waits until the client has ended by itself or has been stopped, and sets `reason` to the reason:
/// an error of kind `TL_ERROR_STOPPED` if it was told to stop.
///
/// Threads: any; on a thread of the client's own it does not wait. Blocks: for `timeout_ns` at
/// most. Ownership: `reason` may be NULL; otherwise it is set to an error that `tl_error_free`
/// frees, or to NULL. Errors: `TL_OK` if it has ended, `TL_EMPTY` if it has not; `TL_FAILED`, with
/// `TL_ERROR_INVALID_ARGUMENT` as the reason.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_wait_closed(
    client: *const tl_client,
    timeout_ns: i64,
    reason: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle, and NULL or a place for the reason.
    status(unsafe {
        enter(reason, || {
            let running = handle::borrow(client)?;
            match either!(running, client => client.wait_closed(timeout(timeout_ns))) {
                None => Ok(tl_status::TL_EMPTY),
                Some(ended) => {
                    // Made only for a program that will free it.
                    if !reason.is_null() {
                        reason.write(error::hand_out(Reason::Client(ended)));
                    }
                    Ok(tl_status::TL_OK)
                }
            }
        })
    })
}

/// Returns the state of a client.
///
/// Threads: any. Blocks: never. Errors: `TL_STATE_OTHER` for a client that is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_state(client: *const tl_client) -> tl_state {
    infallible(tl_state::TL_STATE_OTHER, || {
        // SAFETY: the program passes a handle.
        let Ok(running) = (unsafe { handle::borrow(client) }) else {
            return tl_state::TL_STATE_OTHER;
        };
        match running.sender.state() {
            State::Connecting { .. } => tl_state::TL_STATE_CONNECTING,
            State::Open { .. } => tl_state::TL_STATE_OPEN,
            State::Closing => tl_state::TL_STATE_CLOSING,
            State::Backoff { .. } => tl_state::TL_STATE_BACKOFF,
            State::Closed => tl_state::TL_STATE_CLOSED,
            _ => tl_state::TL_STATE_OTHER,
        }
    })
}

/// Writes the counters of a client to `stats`, whose `size` the program sets to `sizeof(tl_stats)`
/// before.
///
/// Threads: any. Blocks: never. Ownership: `stats` is the program's. Errors: `TL_FAILED`, with
/// `TL_ERROR_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_stats(
    client: *const tl_client,
    stats: *mut tl_stats,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle and its struct, and NULL or a place for the error.
    status(unsafe {
        enter(error, || {
            let running = handle::borrow(client)?;
            let counted = either!(running, client => client.stats());
            let live_threads = either!(running, client => client.live_threads());
            write_sized("tl_stats", stats, stats_of(&counted, live_threads as u64))?;
            Ok(tl_status::TL_OK)
        })
    })
}

/// Sends a text message of `length` bytes of UTF-8, on the connection of `epoch`, or on whatever
/// connection is open if `epoch` is 0. The epoch of the data that a message answers keeps an order
/// that was decided on one connection's data from leaving by another. `TL_OK` means that the kernel
/// took all of it, which proves nothing about the server.
///
/// Threads: any, at the same time too. Blocks: for the rate limits, for other senders and for room
/// in the kernel's buffer, `send_timeout` at most. Nothing is queued: while no connection is open
/// it fails at once. Ownership: `text` is the program's, and is not kept; `receipt` may be NULL.
/// Errors: `TL_NOT_SENT`, when sending again is safe, or `TL_UNKNOWN`, when the server has to be
/// asked. Their kinds: `TL_ERROR_TIMEOUT`, `TL_ERROR_CONNECT` (no connection is open),
/// `TL_ERROR_CLOSED` (the connection is ending, or another epoch is open), `TL_ERROR_STOPPED`,
/// `TL_ERROR_LIMITED`, `TL_ERROR_TOO_BIG`, `TL_ERROR_IO`, `TL_ERROR_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_send_text(
    client: *const tl_client,
    text: *const c_char,
    length: usize,
    epoch: u64,
    receipt: *mut tl_receipt,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle, its bytes, and NULL or places for the results.
    status(unsafe {
        enter_send(error, || {
            let client = handle::borrow(client)?;
            let sender = &client.sender;
            let text = utf8(text.cast(), length)?;
            let sent = match epoch {
                0 => sender.send_text(text)?,
                epoch => sender.pinned_to(epoch).send_text(text)?,
            };
            put(receipt, receipt_of(sent));
            Ok(tl_status::TL_OK)
        })
    })
}

/// Sends a binary message of `length` bytes. See `tl_client_send_text`.
///
/// Threads: any, at the same time too. Blocks: as `tl_client_send_text`. Ownership: `data` is the
/// program's, and is not kept; `receipt` may be NULL. Errors: as `tl_client_send_text`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_send_binary(
    client: *const tl_client,
    data: *const c_void,
    length: usize,
    epoch: u64,
    receipt: *mut tl_receipt,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle, its bytes, and NULL or places for the results.
    status(unsafe {
        enter_send(error, || {
            let client = handle::borrow(client)?;
            let sender = &client.sender;
            let bytes = crate::border::bytes(data.cast(), length)?;
            let sent = match epoch {
                0 => sender.send_binary(bytes)?,
                epoch => sender.pinned_to(epoch).send_binary(bytes)?,
            };
            put(receipt, receipt_of(sent));
            Ok(tl_status::TL_OK)
        })
    })
}

/// Sends several messages in order, by one system call for every 64 KiB of them, within
/// `send_timeout` for all. Sets `sent` to the number of those that went whole, and `receipt` to
/// that of the last if all did.
///
/// Threads: any, at the same time too. Blocks: as `tl_client_send_text`. Ownership: the payloads
/// are the program's, and are not kept; `sent` and `receipt` may be NULL. Errors: as
/// `tl_client_send_text`, for the message after those that went; `TL_NOT_SENT` with
/// `TL_ERROR_CONFIG` if there are none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_send_batch(
    client: *const tl_client,
    messages: *const tl_payload,
    count: usize,
    epoch: u64,
    sent: *mut usize,
    receipt: *mut tl_receipt,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle, its payloads, and NULL or places for the results.
    status(unsafe {
        enter_send(error, || {
            put(sent, 0);
            let client = handle::borrow(client)?;
            let sender = &client.sender;
            let messages = payloads(messages, count)?;
            let result = match epoch {
                0 => sender.send_batch(&messages),
                epoch => sender.pinned_to(epoch).send_batch(&messages),
            };
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

/// Requests a ping, which the thread `taut-heartbeat` writes at once. Its pong counts for the
/// round-trip time, and confirms what was sent before it.
///
/// Threads: any. Blocks: never. Errors: `TL_NOT_SENT`, when no connection is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_ping(
    client: *const tl_client,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle, and NULL or a place for the error.
    status(unsafe {
        enter_send(error, || {
            handle::borrow(client)?.sender.ping()?;
            Ok(tl_status::TL_OK)
        })
    })
}

/// Closes the connection that is open now, and dials again. Its close frame has `code` and
/// `reason`; a code of 0, with NULL as the reason, stands for 1000. No further message of that
/// connection is delivered. The next dial counts as no attempt.
///
/// Threads: any. Blocks: never. Ownership: the reason is copied. Errors: `TL_NOT_SENT`, when no
/// connection is open, or with `TL_ERROR_CONFIG` if the code or the reason may not be sent.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_reconnect(
    client: *const tl_client,
    code: u16,
    reason: *const c_char,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle and a text, and NULL or a place for the error.
    status(unsafe {
        enter_send(error, || {
            let client = handle::borrow(client)?;
            let sender = &client.sender;
            match close_reason(code, reason)? {
                None => sender.reconnect()?,
                Some(close) => sender.reconnect_with(&close)?,
            }
            Ok(tl_status::TL_OK)
        })
    })
}

/// Has the callback `woken` called on the reader thread, whether a connection is open or not. Until
/// it begins, further calls add nothing: what a thread has for the callback goes by a queue of the
/// program's. Needs the setting `wakeups`.
///
/// Threads: any. Blocks: never. Errors: `TL_FAILED`, with `TL_ERROR_CONFIG` without `wakeups` or
/// without callbacks, and with `TL_ERROR_STOPPED` once the client was told to stop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_wake(
    client: *const tl_client,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle, and NULL or a place for the error.
    status(unsafe {
        enter(error, || {
            handle::borrow(client)?.sender.wake()?;
            Ok(tl_status::TL_OK)
        })
    })
}

/// Sets the time at which `woken` is called, from any thread. See `tl_connection_wake_at`. Needs
/// the setting `wakeups`.
///
/// Threads: any. Blocks: never. Errors: as `tl_client_wake`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_wake_at(
    client: *const tl_client,
    at_ns: i64,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle, and NULL or a place for the error.
    status(unsafe {
        enter(error, || {
            handle::borrow(client)?.sender.wake_at(wake_time(at_ns))?;
            Ok(tl_status::TL_OK)
        })
    })
}

/// Creates a reader of the client's events.
///
/// Threads: any. Blocks: never. Ownership: `tl_events_free` frees the result, before or after the
/// client. Errors: NULL, with `TL_ERROR_INVALID_ARGUMENT` for a client with callbacks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_client_events(
    client: *const tl_client,
    error: *mut *mut tl_error,
) -> *mut tl_events {
    // SAFETY: the program passes a handle, and NULL or a place for the error.
    unsafe {
        enter(error, || match &handle::borrow(client)?.kind {
            Kind::Pull(client) => {
                Ok(handle::create::<tl_events>(Mutex::new(Batches::new(client.events()))))
            }
            Kind::Push(_) => {
                Err(Failure::argument("a client with callbacks has no events to be pulled"))
            }
        })
        .unwrap_or(null_mut())
    }
}

pub(crate) fn receipt_of(receipt: Receipt) -> tl_receipt {
    tl_receipt { epoch: receipt.epoch, sequence: receipt.sequence }
}

/// Returns the messages of a batch to send.
///
/// # Safety
/// `messages` is null, or points to `count` payloads, whose bytes stay as they are for `'a`.
pub(crate) unsafe fn payloads<'a>(
    messages: *const tl_payload,
    count: usize,
) -> Result<Vec<Payload<'a>>, Failure> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if messages.is_null() || !messages.is_aligned() {
        return Err(Failure::argument("there is no array of messages"));
    }
    if count > isize::MAX as usize / size_of::<tl_payload>() {
        return Err(Failure::argument("the number of messages is not one"));
    }
    // SAFETY: as for this function.
    let messages = unsafe { std::slice::from_raw_parts(messages, count) };
    messages
        .iter()
        .map(|message| {
            // SAFETY: as for this function.
            unsafe {
                Ok(match message.is_text {
                    0 => {
                        Payload::Binary(crate::border::bytes(message.data.cast(), message.length)?)
                    }
                    _ => Payload::Text(utf8(message.data.cast(), message.length)?),
                })
            }
        })
        .collect()
}

fn stats_of(stats: &Stats, live_threads: u64) -> tl_stats {
    let mut drops = [0; 64];
    for kind in KINDS {
        drops[kind_of(kind) as usize] = stats.drops.get(kind.as_str()).copied().unwrap_or(0);
    }
    tl_stats {
        size: size_of::<tl_stats>(),
        messages_received: stats.messages_received,
        bytes_received: stats.bytes_received,
        messages_sent: stats.messages_sent,
        bytes_sent: stats.bytes_sent,
        epochs: stats.epochs,
        failed_dials: stats.failed_dials,
        drops,
        last_byte_age_ns: nanos_or_never(stats.last_byte_age),
        round_trips: stats.round_trip.count,
        round_trip_last_ns: nanos_of(stats.round_trip.last),
        round_trip_min_ns: nanos_of(stats.round_trip.min),
        round_trip_mean_ns: nanos_of(stats.round_trip.mean),
        round_trip_max_ns: nanos_of(stats.round_trip.max),
        queue_depth: stats.queue_depth as u64,
        messages_lost: stats.messages_lost,
        live_threads,
    }
}

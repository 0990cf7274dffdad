//! Callbacks: a handler that calls the program's functions on the reader thread.

use std::ffi::c_void;
use std::time::Instant;

use client::{
    Connection, DialFailure, Disconnect, Handler, MessageRef, Opened, Stopped, WokenContext,
};

use crate::clock::{instant_at, nanos_at};
use crate::connection::{Lent, tl_connection};
use crate::options::tl_destroy_fn;
use crate::types::{tl_dial_failure, tl_disconnect, tl_message, tl_opened, tl_stopped};
use crate::views::{Arrivals, DialFailureView, DisconnectView, OpenedView, StoppedView};

/// The functions that a client calls on its thread `taut-reader`, one at a time. Each may be NULL.
/// Set `size` to `sizeof(tl_callbacks)`, and zero what is not used.
///
/// Nothing is read while a function runs. None may unwind, by an exception of C++ or by `longjmp`,
/// out of the call: catch everything inside. They may run before the call that starts the client
/// has returned.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tl_callbacks {
    /// `sizeof(tl_callbacks)` of the program.
    pub size: usize,
    /// Passed to every function.
    pub user_data: *mut c_void,
    /// Called once with `user_data`, after the last of the others: on the reader thread, before
    /// that counts as ended, or on the calling thread if the client could not be started.
    pub destroy: tl_destroy_fn,
    /// A connection is open, and no message of it has come yet: the place to subscribe.
    pub opened: Option<
        unsafe extern "C" fn(
            user_data: *mut c_void,
            connection: *mut tl_connection,
            opened: *const tl_opened,
        ),
    >,
    /// A data message has come. Its payload lies in the read buffer, for as long as the call runs.
    pub message: Option<
        unsafe extern "C" fn(
            user_data: *mut c_void,
            connection: *mut tl_connection,
            message: *const tl_message,
        ),
    >,
    /// The last message of a batch has been delivered: once for all messages that one read of the
    /// socket brought.
    pub batch_end:
        Option<unsafe extern "C" fn(user_data: *mut c_void, connection: *mut tl_connection)>,
    /// The time that was set by `tl_connection_wake_at` has come (`due_ns` is that time), or a
    /// thread has called `tl_client_wake` (`due_ns` is -1). `connection` is NULL while no
    /// connection is open. Returns the time of the next call, as `tl_now` tells it: `due_ns +
    /// interval` keeps a rhythm. 0 sets none.
    pub woken: Option<
        unsafe extern "C" fn(
            user_data: *mut c_void,
            connection: *mut tl_connection,
            due_ns: i64,
        ) -> i64,
    >,
    /// A connection has ended: exactly one call for each of `opened`.
    pub disconnected:
        Option<unsafe extern "C" fn(user_data: *mut c_void, disconnect: *const tl_disconnect)>,
    /// A dial has failed.
    pub dial_failed:
        Option<unsafe extern "C" fn(user_data: *mut c_void, failure: *const tl_dial_failure)>,
    /// The client has ended. No other function but `destroy` is called after it.
    pub stopped: Option<unsafe extern "C" fn(user_data: *mut c_void, stopped: *const tl_stopped)>,
}

impl tl_callbacks {
    pub(crate) const NONE: tl_callbacks = tl_callbacks {
        size: size_of::<tl_callbacks>(),
        user_data: std::ptr::null_mut(),
        destroy: None,
        opened: None,
        message: None,
        batch_end: None,
        woken: None,
        disconnected: None,
        dial_failed: None,
        stopped: None,
    };
}

/// A pointer of the program's, which is destroyed with it.
pub(crate) struct UserData {
    pointer: *mut c_void,
    destroy: tl_destroy_fn,
}

// SAFETY: the program has given it for calls on any thread: the library never looks into it.
unsafe impl Send for UserData {}
// SAFETY: as above. Functions that may be called at the same time are documented as such.
unsafe impl Sync for UserData {}

impl UserData {
    pub(crate) fn new(pointer: *mut c_void, destroy: tl_destroy_fn) -> Self {
        UserData { pointer, destroy }
    }

    pub(crate) fn as_ptr(&self) -> *mut c_void {
        self.pointer
    }
}

impl Drop for UserData {
    fn drop(&mut self) {
        if let Some(destroy) = self.destroy {
            // SAFETY: the program gave both for one such call, and this is the only one.
            unsafe { destroy(self.pointer) };
        }
    }
}

/// The handler of a client with callbacks.
pub(crate) struct Program {
    callbacks: tl_callbacks,
    connection: Lent,
    arrivals: Arrivals,
    /// Last, so that nothing of this is left when the program is told.
    user_data: UserData,
}

// SAFETY: its pointers are the program's, which has given them for calls on the reader thread.
unsafe impl Send for Program {}

impl Program {
    pub(crate) fn new(callbacks: tl_callbacks) -> Self {
        let user_data = UserData::new(callbacks.user_data, callbacks.destroy);
        Program { callbacks, connection: Lent::default(), arrivals: Arrivals::default(), user_data }
    }
}

impl Handler for Program {
    fn opened(&mut self, connection: &mut Connection<'_>) {
        // No connection is lent before the first call of this.
        self.connection.note_thread();
        let Some(call) = self.callbacks.opened else { return };
        let opened: *const Opened = connection.opening();
        // SAFETY: it belongs to the connection, which outlives this call.
        let view = OpenedView::new(unsafe { &*opened });
        let user_data = self.user_data.as_ptr();
        self.connection.lend(connection, |connection| {
            // SAFETY: the program gave the function for such calls.
            unsafe { call(user_data, connection, view.as_ptr()) };
        });
    }

    #[inline]
    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
        let Some(call) = self.callbacks.message else { return };
        let view: *const tl_message = self.arrivals.view(message);
        let user_data = self.user_data.as_ptr();
        self.connection.lend(connection, |connection| {
            // SAFETY: as in `opened`.
            unsafe { call(user_data, connection, view) };
        });
    }

    #[inline]
    fn batch_end(&mut self, connection: &mut Connection<'_>) {
        let Some(call) = self.callbacks.batch_end else { return };
        let user_data = self.user_data.as_ptr();
        self.connection.lend(connection, |connection| {
            // SAFETY: as in `opened`.
            unsafe { call(user_data, connection) };
        });
    }

    fn woken(&mut self, context: &mut WokenContext<'_>) {
        let Some(call) = self.callbacks.woken else { return };
        let due = context.due().map_or(-1, nanos_at);
        let user_data = self.user_data.as_ptr();
        let next = match context.connection() {
            Some(connection) => self.connection.lend(connection, |connection| {
                // SAFETY: as in `opened`.
                unsafe { call(user_data, connection, due) }
            }),
            // SAFETY: as in `opened`; the program is told that there may be no connection.
            None => unsafe { call(user_data, std::ptr::null_mut(), due) },
        };
        if next > 0 {
            context.wake_at(instant_at(next));
        }
    }

    fn disconnected(&mut self, disconnect: &Disconnect) {
        let Some(call) = self.callbacks.disconnected else { return };
        let view = DisconnectView::new(disconnect);
        // SAFETY: as in `opened`.
        unsafe { call(self.user_data.as_ptr(), view.as_ptr()) };
    }

    fn dial_failed(&mut self, failure: &DialFailure) {
        let Some(call) = self.callbacks.dial_failed else { return };
        let view = DialFailureView::new(failure);
        // SAFETY: as in `opened`.
        unsafe { call(self.user_data.as_ptr(), view.as_ptr()) };
    }

    fn stopped(&mut self, stopped: &Stopped) {
        let Some(call) = self.callbacks.stopped else { return };
        let view = StoppedView::new(stopped);
        // SAFETY: as in `opened`.
        unsafe { call(self.user_data.as_ptr(), view.as_ptr()) };
    }
}

/// Returns the moment of a time that the program gives, where a negative one takes it back.
pub(crate) fn wake_time(at_ns: i64) -> Option<Instant> {
    (at_ns >= 0).then(|| instant_at(at_ns))
}

//! Events as structs of the header, with the texts that those point to.

use std::ffi::{CStr, CString, c_char};
use std::ptr::null;
use std::time::{Instant, UNIX_EPOCH};

use client::{DialFailure, Disconnect, Lagged, MessageRef, Opened, Stopped};

use crate::border::{Failure, c_string, infallible, put, text};
use crate::clock::{nanos_at, nanos_of, nanos_or_never};
use crate::endpoint::NoEndpoint;
use crate::error::FullError;
use crate::types::{tl_dial_failure, tl_disconnect, tl_lagged, tl_message, tl_opened, tl_stopped};

/// Makes messages of the header. Those of one `recv` share their times, which are converted once.
pub(crate) struct Arrivals {
    /// The arrival of `view`.
    last: Option<Instant>,
    view: tl_message,
}

// SAFETY: the pointer of `view` is not followed here.
unsafe impl Send for Arrivals {}

impl Default for Arrivals {
    fn default() -> Self {
        let view = tl_message {
            size: size_of::<tl_message>(),
            data: null(),
            length: 0,
            epoch: 0,
            received_ns: 0,
            kernel_received_ns: 0,
            is_text: false,
        };
        Arrivals { last: None, view }
    }
}

impl Arrivals {
    /// Returns the message for the program. It points to the payload of `message`.
    #[inline]
    pub(crate) fn view(&mut self, message: MessageRef<'_>) -> &tl_message {
        if self.last != Some(message.received_at()) || self.view.epoch != message.epoch() {
            self.convert(message);
        }
        let bytes = message.bytes();
        self.view.data = bytes.as_ptr().cast();
        self.view.length = bytes.len();
        self.view.is_text = message.text().is_some();
        &self.view
    }

    /// Writes the message to a place of the program's, field by field: to copy `view`, which has
    /// been written to just now in smaller pieces, would take longer.
    ///
    /// # Safety
    /// `place` is a place for a message.
    #[inline]
    pub(crate) unsafe fn write(&mut self, message: MessageRef<'_>, place: *mut tl_message) {
        if self.last != Some(message.received_at()) || self.view.epoch != message.epoch() {
            self.convert(message);
        }
        let bytes = message.bytes();
        // SAFETY: as for this function.
        unsafe {
            (&raw mut (*place).size).write(size_of::<tl_message>());
            (&raw mut (*place).data).write(bytes.as_ptr().cast());
            (&raw mut (*place).length).write(bytes.len());
            (&raw mut (*place).epoch).write(self.view.epoch);
            (&raw mut (*place).received_ns).write(self.view.received_ns);
            (&raw mut (*place).kernel_received_ns).write(self.view.kernel_received_ns);
            (&raw mut (*place).is_text).write(message.text().is_some());
        }
    }

    #[cold]
    fn convert(&mut self, message: MessageRef<'_>) {
        let kernel = message.kernel_received().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        self.last = Some(message.received_at());
        self.view.epoch = message.epoch();
        self.view.received_ns = nanos_at(message.received_at());
        self.view.kernel_received_ns = kernel.map_or(0, nanos_of);
    }
}

/// An event as the program sees it, beside what it points to. The pointers are set when everything
/// is in its place.
pub(crate) struct OpenedView {
    view: tl_opened,
    peer: CString,
    subprotocol: Option<CString>,
}

impl OpenedView {
    /// The program may use the view for as long as `opened` lives.
    pub(crate) fn new(opened: &Opened) -> Box<Self> {
        let view = tl_opened {
            size: size_of::<tl_opened>(),
            epoch: opened.epoch,
            took_ns: nanos_of(opened.took),
            peer: null(),
            subprotocol: null(),
            internal: std::ptr::from_ref(opened).cast(),
            is_compressed: opened.is_compressed,
        };
        let mut full = Box::new(OpenedView {
            view,
            peer: c_string(opened.peer.to_string()),
            subprotocol: opened.subprotocol.as_deref().map(c_string),
        });
        full.view.peer = full.peer.as_ptr();
        full.view.subprotocol = full.subprotocol.as_ref().map_or(null(), |text| text.as_ptr());
        full
    }

    pub(crate) fn as_ptr(&self) -> *const tl_opened {
        &self.view
    }
}

pub(crate) struct DisconnectView {
    view: tl_disconnect,
    error: Box<FullError>,
    text: CString,
    reason: CString,
}

impl DisconnectView {
    pub(crate) fn new(disconnect: &Disconnect) -> Box<Self> {
        let view = tl_disconnect {
            size: size_of::<tl_disconnect>(),
            epoch: disconnect.epoch,
            error: null(),
            text: null(),
            close_reason: null(),
            lasted_ns: nanos_of(disconnect.lasted),
            sent: disconnect.sent,
            confirmed: disconnect.confirmed,
            retry_in_ns: nanos_or_never(disconnect.retry_in),
            close_code: disconnect.close.code,
            is_clean: disconnect.is_clean(),
        };
        let mut full = Box::new(DisconnectView {
            view,
            error: FullError::lent(&disconnect.error),
            text: c_string(disconnect.to_string()),
            reason: c_string(disconnect.close.reason.as_str()),
        });
        full.view.error = full.error.as_ptr();
        full.view.text = full.text.as_ptr();
        full.view.close_reason = full.reason.as_ptr();
        full
    }

    pub(crate) fn as_ptr(&self) -> *const tl_disconnect {
        &self.view
    }
}

pub(crate) struct DialFailureView {
    view: tl_dial_failure,
    error: Box<FullError>,
    text: CString,
}

impl DialFailureView {
    pub(crate) fn new(failure: &DialFailure) -> Box<Self> {
        let view = tl_dial_failure {
            size: size_of::<tl_dial_failure>(),
            error: null(),
            text: null(),
            retry_in_ns: nanos_or_never(failure.retry_in),
            attempt: failure.attempt,
        };
        let mut full = Box::new(DialFailureView {
            view,
            error: FullError::lent(&failure.error),
            text: c_string(match NoEndpoint::of(&failure.error) {
                Some(reason) => format!("{failure} ({reason})"),
                None => failure.to_string(),
            }),
        });
        full.view.error = full.error.as_ptr();
        full.view.text = full.text.as_ptr();
        full
    }

    pub(crate) fn as_ptr(&self) -> *const tl_dial_failure {
        &self.view
    }
}

pub(crate) struct StoppedView {
    view: tl_stopped,
    error: Box<FullError>,
    text: CString,
}

impl StoppedView {
    pub(crate) fn new(stopped: &Stopped) -> Box<Self> {
        let view = tl_stopped { size: size_of::<tl_stopped>(), error: null(), text: null() };
        let mut full = Box::new(StoppedView {
            view,
            error: FullError::lent(&stopped.reason),
            text: c_string(stopped.to_string()),
        });
        full.view.error = full.error.as_ptr();
        full.view.text = full.text.as_ptr();
        full
    }

    pub(crate) fn as_ptr(&self) -> *const tl_stopped {
        &self.view
    }
}

pub(crate) fn lagged_view(lagged: Lagged) -> Box<tl_lagged> {
    Box::new(tl_lagged {
        size: size_of::<tl_lagged>(),
        lost: lagged.lost,
        lost_notices: lagged.lost_notices,
    })
}

/// Returns the value of a header of the server's response to the opening handshake, or NULL if it
/// has none. The first one counts, and no zero byte ends it: `length` is set to the number of its
/// bytes, and to 0 if there is none.
///
/// Threads: that of the callback, or the one that pulled the event. Blocks: never. Ownership: the
/// value lives as long as `opened`; `length` may be NULL. Errors: NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_opened_header(
    opened: *const tl_opened,
    name: *const c_char,
    length: *mut usize,
) -> *const c_char {
    infallible(null(), || {
        // SAFETY: the program passes an event that is alive, a text, and NULL or a place.
        unsafe {
            found(opened, name, length, |opened, name| {
                opened.headers.get(name).map(|value| value.as_bytes())
            })
        }
    })
}

/// Returns the value that the endpoint callback carried under `key` by `tl_endpoint_carry`, or NULL
/// if there is none. No zero byte ends it: `length` is set to the number of its bytes, and to 0 if
/// there is none.
///
/// Threads: that of the callback, or the one that pulled the event. Blocks: never. Ownership: the
/// value lives as long as `opened`; `length` may be NULL. Errors: NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_opened_carried(
    opened: *const tl_opened,
    key: *const c_char,
    length: *mut usize,
) -> *const c_char {
    infallible(null(), || {
        // SAFETY: the program passes an event that is alive, a text, and NULL or a place.
        unsafe { found(opened, key, length, |opened, key| opened.carried(key).map(str::as_bytes)) }
    })
}

unsafe fn found(
    opened: *const tl_opened,
    name: *const c_char,
    length: *mut usize,
    get: impl for<'a> FnOnce(&'a Opened, &str) -> Option<&'a [u8]>,
) -> *const c_char {
    // SAFETY: it is NULL, or a place.
    unsafe { put(length, 0) };
    // SAFETY: it is NULL, or an event that is alive, and the pointer inside is that of its
    // `Opened`.
    let opened =
        unsafe { opened.as_ref().and_then(|view| view.internal.cast::<Opened>().as_ref()) };
    // SAFETY: it is NULL, or a text.
    let name: Result<&str, Failure> = unsafe { text("the name", name) };
    let (Some(opened), Ok(name)) = (opened, name) else { return null() };
    let Some(value) = get(opened, name) else { return null() };
    // SAFETY: as above.
    unsafe { put(length, value.len()) };
    // Empty values have to be told from none.
    let empty: &CStr = c"";
    if value.is_empty() { empty.as_ptr() } else { value.as_ptr().cast() }
}

//! Events, pulled in batches.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Mutex, TryLockError};
use std::time::Duration;

use client::{Batch, BatchEvents, EventRef, Events, TryNextError};

use crate::border::{Failure, enter, infallible, place, status};
use crate::clock::timeout;
use crate::handle::{self, opaque};
use crate::types::{tl_error, tl_event, tl_event_detail, tl_event_kind, tl_lagged, tl_status};
use crate::views::{
    Arrivals, DialFailureView, DisconnectView, OpenedView, StoppedView, lagged_view,
};

/// The events of a client that are pulled. Several may exist of one client, and each event goes to
/// one of them. It keeps neither the client nor its threads alive, and what has arrived can still
/// be read when both have gone.
pub struct tl_events {
    _opaque: (),
}

opaque!(tl_events, Mutex<Batches>, b"tlevents");

/// The events of a client, and the batch of them that the program has taken a part of.
pub(crate) struct Batches {
    /// A box of its own, whose address stays. `rest` borrows from it.
    events: NonNull<Events>,
    /// The events of the current batch that the program has not got yet.
    ///
    /// Its lifetime is a claim: it borrows from `events`. That holds, because `events` is used
    /// mutably only in `next`, after this was emptied, and freed only in `drop`, after this was.
    rest: Option<BatchEvents<'static>>,
    /// The targets of pointers in the events that the program has got, besides the batch.
    notices: Vec<Notice>,
    arrivals: Arrivals,
}

// SAFETY: `Events` is `Send`, and `rest` borrows from nothing but what is moved with it.
unsafe impl Send for Batches {}

/// An event that is no message. It is kept for the program, which points into it.
enum Notice {
    Opened(Box<OpenedView>),
    Disconnect(Box<DisconnectView>),
    DialFailure(Box<DialFailureView>),
    Lagged(Box<tl_lagged>),
    Stopped(Box<StoppedView>),
    Other,
}

impl Notice {
    fn new(event: EventRef<'_>) -> Self {
        match event {
            EventRef::Opened(opened) => Notice::Opened(OpenedView::new(opened)),
            EventRef::Disconnected(end) => Notice::Disconnect(DisconnectView::new(end)),
            EventRef::DialFailed(failure) => Notice::DialFailure(DialFailureView::new(failure)),
            EventRef::Lagged(lagged) => Notice::Lagged(lagged_view(lagged)),
            EventRef::Stopped(stopped) => Notice::Stopped(StoppedView::new(stopped)),
            _ => Notice::Other,
        }
    }

    fn kind(&self) -> tl_event_kind {
        match self {
            Notice::Opened(_) => tl_event_kind::TL_EVENT_OPENED,
            Notice::Disconnect(_) => tl_event_kind::TL_EVENT_DISCONNECTED,
            Notice::DialFailure(_) => tl_event_kind::TL_EVENT_DIAL_FAILED,
            Notice::Lagged(_) => tl_event_kind::TL_EVENT_LAGGED,
            Notice::Stopped(_) => tl_event_kind::TL_EVENT_STOPPED,
            Notice::Other => tl_event_kind::TL_EVENT_OTHER,
        }
    }

    fn detail(&self) -> tl_event_detail {
        match self {
            Notice::Opened(view) => tl_event_detail { opened: view.as_ptr() },
            Notice::Disconnect(view) => tl_event_detail { disconnect: view.as_ptr() },
            Notice::DialFailure(view) => tl_event_detail { dial_failure: view.as_ptr() },
            Notice::Lagged(view) => tl_event_detail { lagged: &**view },
            Notice::Stopped(view) => tl_event_detail { stopped: view.as_ptr() },
            Notice::Other => tl_event_detail { any: std::ptr::null() },
        }
    }
}

impl Batches {
    pub(crate) fn new(events: Events) -> Self {
        let events = NonNull::from(Box::leak(Box::new(events)));
        Batches { events, rest: None, notices: Vec::new(), arrivals: Arrivals::default() }
    }

    /// Returns the events that come next: those that are left of the current batch, or another one.
    /// Earlier ones are invalid afterwards.
    fn next(&mut self, timeout: Duration) -> Result<(), TryNextError> {
        self.notices.clear();
        let has_more = self.rest.as_ref().is_some_and(|rest| rest.clone().next().is_some());
        if !has_more {
            self.rest = None;
            // SAFETY: it is alive until `drop`, and nothing borrows from it now.
            let events = unsafe { self.events.as_mut() };
            let batch: Batch<'_> = match timeout {
                Duration::MAX => events.next_batch().ok_or(TryNextError::Disconnected)?,
                timeout => events.next_batch_timeout(timeout)?,
            };
            // SAFETY: only the lifetime changes; see `rest`.
            self.rest = Some(unsafe {
                std::mem::transmute::<BatchEvents<'_>, BatchEvents<'static>>(batch.iter())
            });
        }
        Ok(())
    }

    /// Fills the program's array, and returns how many events it has got.
    ///
    /// # Safety
    /// `array` points to `capacity` places for events, each `stride` bytes after the one before,
    /// which is at least the size of an event.
    unsafe fn fill(
        &mut self,
        timeout: Duration,
        array: *mut tl_event,
        stride: usize,
        capacity: usize,
    ) -> Result<usize, TryNextError> {
        self.next(timeout)?;
        let Batches { rest, notices, arrivals, .. } = self;
        let rest = rest.as_mut().expect("there are events");
        let mut count = 0;
        while count < capacity {
            let Some(event) = rest.next() else { break };
            // SAFETY: it is one of the `capacity` places.
            let place = unsafe { array.byte_add(count * stride) };
            if let EventRef::Message(message) = event {
                // SAFETY: as above. The fields are written one by one, as there is no whole event
                // to be copied.
                unsafe {
                    (&raw mut (*place).size).write(size_of::<tl_event>());
                    (&raw mut (*place).kind).write(tl_event_kind::TL_EVENT_MESSAGE);
                    (&raw mut (*place).detail.any).write(std::ptr::null());
                    arrivals.write(message, &raw mut (*place).message);
                }
            } else {
                notices.push(Notice::new(event));
                let notice = notices.last().expect("it was pushed just now");
                // SAFETY: as above.
                unsafe {
                    (&raw mut (*place).size).write(size_of::<tl_event>());
                    (&raw mut (*place).kind).write(notice.kind());
                    (&raw mut (*place).detail).write(notice.detail());
                }
            }
            count += 1;
        }
        Ok(count)
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.rest = None;
        // SAFETY: `new` made the box, and nothing borrows from it any more.
        drop(unsafe { Box::from_raw(self.events.as_ptr()) });
    }
}

/// The sizes of an event in programs of this and of later versions. From twice the size on it is
/// that of a whole array.
const EVENT_SIZES: Range<usize> = size_of::<tl_event>()..2 * size_of::<tl_event>();

/// Frees events. Those of the last batch that had no room in the array are lost; others go to other
/// readers of the same client. NULL does nothing.
///
/// Threads: any, while no other call has these events. Blocks: never. Ownership: `events` is gone
/// afterwards, with what the last batch points to and with the descriptor if these were the last of
/// a client that is gone; a second time is logged and does nothing. Errors: none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_events_free(events: *mut tl_events) {
    // SAFETY: as the contract above says.
    infallible((), || unsafe { handle::free(events) });
}

/// Takes the next events into the program's array, waiting for the first of them for `timeout_ns`
/// at most: 0 or less does not wait, and `TL_FOREVER` waits without a limit. Sets `count` to the
/// number of events, at least 1 if the result is `TL_OK`.
///
/// `array` has room for `capacity` events of `event_size` bytes, which is `sizeof(tl_event)`; they
/// need no initial value. A capacity of 64 to 256 is fast. The payloads of messages stay where the
/// reader has put them: no memory is allocated for a message. One call may return fewer events
/// than are at hand, even if the array has room for more. Only a result other than `TL_OK` says
/// that none are left.
///
/// Threads: any, one at a time; a second one at the same time fails. Blocks: for `timeout_ns`. It
/// waits for events of the client, so with a client of callbacks there are none. Ownership: the
/// array is the program's; what the events point to is the library's and lives until the next call
/// with the same `events`. Errors: `TL_OK`; `TL_EMPTY` if no event came in time; `TL_ENDED` if none
/// will come any more; `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_events_next_batch(
    events: *mut tl_events,
    timeout_ns: i64,
    array: *mut tl_event,
    event_size: usize,
    capacity: usize,
    count: *mut usize,
    error: *mut *mut tl_error,
) -> tl_status {
    // SAFETY: the program passes a handle, an array as described, and a place for the count.
    status(unsafe {
        enter(error, || {
            let count = place("count", count)?;
            *count = 0;
            let pulled = handle::borrow(events)?;
            if !EVENT_SIZES.contains(&event_size) || event_size % align_of::<tl_event>() != 0 {
                return Err(Failure::argument("event_size is not sizeof(tl_event)"));
            }
            if capacity > isize::MAX as usize / event_size {
                return Err(Failure::argument("capacity is not the number of places in an array"));
            }
            if array.is_null() || !array.is_aligned() || capacity == 0 {
                return Err(Failure::argument("there is no array, or it has no room"));
            }
            let mut pulled = lock(&pulled)?;
            match pulled.fill(timeout(timeout_ns), array, event_size, capacity) {
                Ok(filled) => {
                    *count = filled;
                    Ok(tl_status::TL_OK)
                }
                Err(TryNextError::Disconnected) => Ok(tl_status::TL_ENDED),
                Err(_) => Ok(tl_status::TL_EMPTY),
            }
        })
    })
}

/// Returns a descriptor that is readable while events wait, and for good once the client has ended:
/// for `poll`, `epoll`, `kqueue` and asyncio. Poll it for reading, and call `tl_events_next_batch`
/// with a timeout of 0 until it returns something else than `TL_OK`, whatever the count is. With
/// edge-triggered notification (`EPOLLET`, `EV_CLEAR`) no further event is told of otherwise. Do
/// not read from it, and do not close it.
///
/// Threads: any, one at a time. Blocks: never. Ownership: the descriptor is the library's. It is
/// the same for all events of a client, and closes when the client and the last of them are gone.
/// Errors: -1, with `TL_ERROR_IO` if the system has no descriptors to give.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_events_fd(events: *mut tl_events, error: *mut *mut tl_error) -> i32 {
    #[cfg(unix)]
    let get = || {
        use std::os::fd::AsRawFd;
        // SAFETY: the program passes a handle.
        let pulled = unsafe { handle::borrow(events) }?;
        let pulled = lock(&pulled)?;
        // SAFETY: it is alive until `drop`. `rest` may borrow from it too, and both only read.
        let events = unsafe { pulled.events.as_ref() };
        Ok(events.as_fd()?.as_raw_fd())
    };
    #[cfg(not(unix))]
    let get = || Err(Failure::argument("this system has no such descriptors"));
    // SAFETY: the program passes NULL or a place for a pointer.
    unsafe { enter(error, get) }.unwrap_or(-1)
}

fn lock(pulled: &Mutex<Batches>) -> Result<std::sync::MutexGuard<'_, Batches>, Failure> {
    match pulled.try_lock() {
        Ok(pulled) => Ok(pulled),
        Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => {
            let text = "two threads use one tl_events at the same time: give each its own";
            Err(Failure::argument(text))
        }
    }
}

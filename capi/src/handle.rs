//! Opaque handles: those of another kind, and those that were freed, are told.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::border::Failure;

/// The memory behind a pointer to an opaque type of the header. It is only ever shared, so that a
/// call may look at it while another one frees what it holds.
#[repr(C)]
struct Handle<T> {
    /// The number of its type, or `FREED`.
    magic: AtomicU64,
    /// `None` once it was freed. Locked to clone it or to take it out, and for nothing else.
    value: Mutex<Option<Arc<T>>>,
}

impl<T> Handle<T> {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<T>>> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An opaque type of the header: a pointer to it is one to a [`Handle`] of its value.
pub(crate) trait Opaque {
    type Value: Send + Sync + 'static;
    /// The name in the header.
    const NAME: &'static str;
    /// Eight letters, which no other type has.
    const MAGIC: u64;
    /// The freed handles of this type that are kept.
    fn retired() -> &'static Retired;
}

/// Implements [`Opaque`]. The types themselves stand in the source as they are, because cbindgen
/// looks into no macro.
macro_rules! opaque {
    ($name:ident, $value:ty, $magic:literal) => {
        impl $crate::handle::Opaque for $name {
            type Value = $value;
            const NAME: &'static str = stringify!($name);
            const MAGIC: u64 = u64::from_be_bytes(*$magic);
            fn retired() -> &'static $crate::handle::Retired {
                static RETIRED: $crate::handle::Retired = $crate::handle::Retired::new();
                &RETIRED
            }
        }
    };
}
pub(crate) use opaque;

/// The mark of what has been freed.
pub(crate) const FREED: u64 = u64::from_be_bytes(*b"tl-freed");

/// Creates a handle. [`free`] or [`take`] ends it.
pub(crate) fn create<H: Opaque>(value: H::Value) -> *mut H {
    let value = Mutex::new(Some(Arc::new(value)));
    Box::into_raw(Box::new(Handle { magic: AtomicU64::new(H::MAGIC), value })).cast()
}

/// Returns the value of a handle of the program's. It lives on while the result does, even if the
/// handle is freed meanwhile.
///
/// # Safety
/// `handle` is null, or points to a handle, perhaps of another kind or one that was freed and is
/// still kept.
pub(crate) unsafe fn borrow<H: Opaque>(handle: *const H) -> Result<Arc<H::Value>, Failure> {
    let freed = || Failure::argument(format!("this {} has been freed", H::NAME));
    if handle.is_null() {
        return Err(Failure::argument(format!("{} is NULL", H::NAME)));
    }
    let handle = handle.cast::<Handle<H::Value>>();
    if !handle.is_aligned() {
        return Err(Failure::argument(format!("this is no {}", H::NAME)));
    }
    // SAFETY: all handles begin with this number. Freed ones stay allocated for a while.
    let magic = unsafe { &*handle.cast::<AtomicU64>() }.load(Ordering::Acquire);
    if magic == FREED {
        return Err(freed());
    }
    if magic != H::MAGIC {
        return Err(Failure::argument(format!("this is no {}", H::NAME)));
    }
    // SAFETY: it is of this kind, and stays allocated for a while if it is freed just now.
    let value = unsafe { &*handle }.lock().clone();
    value.ok_or_else(freed)
}

/// Ends a handle of the program's, and returns its value, which calls that are under way may have
/// too. NULL, and what has been freed, is left alone.
///
/// # Safety
/// As [`borrow`].
pub(crate) unsafe fn take<H: Opaque>(handle: *mut H) -> Option<Arc<H::Value>> {
    if handle.is_null() {
        return None;
    }
    let handle = handle.cast::<Handle<H::Value>>();
    let change = |magic: &AtomicU64| {
        magic.compare_exchange(H::MAGIC, FREED, Ordering::AcqRel, Ordering::Acquire)
    };
    // SAFETY: as in `borrow`.
    if !handle.is_aligned() || change(unsafe { &*handle.cast::<AtomicU64>() }).is_err() {
        log::error!("a {} was freed twice, or is none", H::NAME);
        return None;
    }
    // SAFETY: it is of this kind, and this is the one call that retires it.
    let value = unsafe { &*handle }.lock().take();
    H::retired().keep(Box::new(Emptied(handle)));
    value
}

/// Frees a handle of the program's. NULL, and what has been freed, is left alone.
///
/// # Safety
/// As [`borrow`].
pub(crate) unsafe fn free<H: Opaque>(handle: *mut H) {
    // SAFETY: as for this function.
    drop(unsafe { take(handle) });
}

/// A handle without its value. It is a pointer, and no box, while other calls may look at it.
struct Emptied<T>(*mut Handle<T>);

// SAFETY: the handle is shared between threads, and what it held has been taken out.
unsafe impl<T> Send for Emptied<T> {}

impl<T> Drop for Emptied<T> {
    fn drop(&mut self) {
        // SAFETY: `create` made the box, and `take` has made this the one that frees it.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// The number of freed things of a kind that are kept, so that their use is told.
const RETIRED_MAX: usize = 1024;

/// The memory of freed things of one kind, kept for a while. Each kind has its own, so that many
/// short-lived errors do not push out a client.
pub(crate) struct Retired(Mutex<VecDeque<Box<dyn Send>>>);

impl Retired {
    pub(crate) const fn new() -> Self {
        Retired(Mutex::new(VecDeque::new()))
    }

    pub(crate) fn keep(&self, freed: Box<dyn Send>) {
        let oldest = {
            let mut retired = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            retired.push_back(freed);
            if retired.len() > RETIRED_MAX { retired.pop_front() } else { None }
        };
        drop(oldest);
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::{null, null_mut};

    use super::*;
    use crate::border::Reason;

    struct One;
    opaque!(One, Arc<()>, b"test-one");
    struct Two;
    opaque!(Two, Arc<()>, b"test-two");

    fn refusal<T>(result: Result<T, Failure>) -> String {
        match result.err().expect("it is refused").reason {
            Reason::Own(_, text) => text,
            Reason::Client(error) => error.chain(),
        }
    }

    #[test]
    fn handles_of_another_kind_and_freed_ones_are_told() {
        let value = Arc::new(());
        let one = create::<One>(Arc::clone(&value));
        // SAFETY: these are handles, or null.
        unsafe {
            assert!(borrow::<One>(one).is_ok());
            assert_eq!(refusal(borrow::<Two>(one.cast())), "this is no Two");
            assert_eq!(refusal(borrow::<One>(null())), "One is NULL");
            assert_eq!(refusal(borrow::<One>(one.byte_add(1))), "this is no One");
            free::<Two>(one.cast());
            assert!(borrow::<One>(one).is_ok(), "it was not freed as something else");
            free::<One>(one);
            assert_eq!(Arc::strong_count(&value), 1, "its value is dropped");
            assert_eq!(refusal(borrow::<One>(one)), "this One has been freed");
            free::<One>(one);
            free::<One>(null_mut());
        }
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn a_call_that_is_under_way_keeps_the_value() {
        let value = Arc::new(());
        let one = create::<One>(Arc::clone(&value));
        // SAFETY: this is a handle.
        let used = unsafe { borrow::<One>(one) }.unwrap_or_else(|_| panic!("it is alive"));
        // SAFETY: as above.
        unsafe { free::<One>(one) };
        assert_eq!(Arc::strong_count(&value), 2, "the call has it");
        drop(used);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn freed_things_of_one_kind_do_not_push_out_those_of_another() {
        let one = create::<One>(Arc::new(()));
        // SAFETY: these are handles, and more of the second kind than are kept.
        unsafe {
            free::<One>(one);
            for _ in 0..=RETIRED_MAX {
                free::<Two>(create::<Two>(Arc::new(())));
            }
            assert_eq!(refusal(borrow::<One>(one)), "this One has been freed");
        }
        let kept = Two::retired().0.lock().unwrap_or_else(PoisonError::into_inner).len();
        assert_eq!(kept, RETIRED_MAX);
    }
}

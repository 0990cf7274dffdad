//! Opaque handles: those of another kind, and those that were freed, are told.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::border::Failure;

/// The memory behind a pointer to an opaque type of the header.
#[repr(C)]
struct Handle<T> {
    /// The number of its type, or `FREED`.
    magic: AtomicU64,
    /// Alive while `magic` is the number of its type.
    value: UnsafeCell<ManuallyDrop<T>>,
}

// SAFETY: it gives out shared references to its value, and drops it on any thread.
unsafe impl<T: Send + Sync> Send for Handle<T> {}
// SAFETY: as above. Nobody borrows the value while it is dropped, by the contract of `free`.
unsafe impl<T: Send + Sync> Sync for Handle<T> {}

/// An opaque type of the header: a pointer to it is one to a [`Handle`] of its value.
pub(crate) trait Opaque {
    type Value: Send + Sync + 'static;
    /// The name in the header.
    const NAME: &'static str;
    /// Eight letters, which no other type has.
    const MAGIC: u64;
}

/// Implements [`Opaque`]. The types themselves stand in the source as they are, because cbindgen
/// looks into no macro.
macro_rules! opaque {
    ($name:ident, $value:ty, $magic:literal) => {
        impl $crate::handle::Opaque for $name {
            type Value = $value;
            const NAME: &'static str = stringify!($name);
            const MAGIC: u64 = u64::from_be_bytes(*$magic);
        }
    };
}
pub(crate) use opaque;

/// The mark of what has been freed.
pub(crate) const FREED: u64 = u64::from_be_bytes(*b"tl-freed");

/// Creates a handle. [`free`] ends it.
pub(crate) fn create<H: Opaque>(value: H::Value) -> *mut H {
    let value = UnsafeCell::new(ManuallyDrop::new(value));
    Box::into_raw(Box::new(Handle { magic: AtomicU64::new(H::MAGIC), value })).cast()
}

/// Returns the value of a handle of the program's.
///
/// # Safety
/// `handle` is null, or points to a handle, perhaps of another kind or a freed one. Nobody frees it
/// for `'a`.
pub(crate) unsafe fn borrow<'a, H: Opaque>(handle: *const H) -> Result<&'a H::Value, Failure> {
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
        return Err(Failure::argument(format!("this {} has been freed", H::NAME)));
    }
    if magic != H::MAGIC {
        return Err(Failure::argument(format!("this is no {}", H::NAME)));
    }
    // SAFETY: it is of this kind, and nobody frees it meanwhile, so its value is alive.
    Ok(unsafe { &*(*handle).value.get() })
}

/// Frees a handle of the program's. NULL, and what has been freed, is left alone.
///
/// # Safety
/// As [`borrow`], and nobody uses what it returned.
pub(crate) unsafe fn free<H: Opaque>(handle: *mut H) {
    if handle.is_null() {
        return;
    }
    let handle = handle.cast::<Handle<H::Value>>();
    let change = |magic: &AtomicU64| {
        magic.compare_exchange(H::MAGIC, FREED, Ordering::AcqRel, Ordering::Acquire)
    };
    // SAFETY: as in `borrow`.
    if !handle.is_aligned() || change(unsafe { &*handle.cast::<AtomicU64>() }).is_err() {
        log::error!("a {} was freed twice, or is none", H::NAME);
        return;
    }
    // SAFETY: `create` made the box, and `magic` has made this the one call that takes it.
    let handle = unsafe { Box::from_raw(handle) };
    // SAFETY: the value was alive until now, and nobody looks at it any more.
    unsafe { ManuallyDrop::drop(&mut *handle.value.get()) };
    retire(handle);
}

/// The number of freed handles that are kept, so that their use is told.
const RETIRED_MAX: usize = 1024;

/// Keeps the memory of something that was freed for a while.
pub(crate) fn retire(freed: Box<dyn Send>) {
    static RETIRED: Mutex<VecDeque<Box<dyn Send>>> = Mutex::new(VecDeque::new());
    let oldest = {
        let mut retired = RETIRED.lock().unwrap_or_else(PoisonError::into_inner);
        retired.push_back(freed);
        if retired.len() > RETIRED_MAX { retired.pop_front() } else { None }
    };
    drop(oldest);
}

#[cfg(test)]
mod tests {
    use std::ptr::{null, null_mut};
    use std::sync::Arc;

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
}

//! Catching panics of the program's code, whose payloads may panic again when they are dropped.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The payload of a caught panic. Dropping it never panics.
pub(crate) struct Panic {
    /// `None` once it has been taken out.
    payload: Option<Box<dyn Any + Send>>,
}

/// Calls the program's code.
///
/// # Errors
/// The panic, if it panicked. Values that the closure has captured are dropped inside the call.
pub(crate) fn catch<T>(call: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(call)).map_err(Panic::new)
}

/// The number of payloads that are dropped one after the other, each of which panics again.
const CHAIN_MAX: usize = 16;

/// Drops a value of the program's, surviving a panic of its `Drop`.
pub(crate) fn drop_caught<T>(value: T) {
    let mut dropped = catch_unwind(AssertUnwindSafe(|| drop(value)));
    for _ in 0..CHAIN_MAX {
        let Err(payload) = dropped else { return };
        dropped = catch_unwind(AssertUnwindSafe(|| drop(payload)));
    }
    // A payload may panic with another one for ever. A leak ends the chain.
    std::mem::forget(dropped);
}

impl Panic {
    pub(crate) fn new(payload: Box<dyn Any + Send>) -> Self {
        Panic { payload: Some(payload) }
    }

    /// Takes the payload out, for a program that asks for it.
    pub(crate) fn into_payload(mut self) -> Box<dyn Any + Send> {
        self.payload.take().unwrap_or_else(|| Box::new(()))
    }
}

impl Drop for Panic {
    fn drop(&mut self) {
        if let Some(payload) = self.payload.take() {
            drop_caught(payload);
        }
    }
}

impl fmt::Debug for Panic {
    /// Leaves the payload out: it may hold anything.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Panic").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::panic::{panic_any, resume_unwind};

    use super::*;

    /// Panics again, as many times as it says, whenever it is dropped.
    struct PanicsOnDrop(u32);

    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            if self.0 > 0 {
                resume_unwind(Box::new(PanicsOnDrop(self.0 - 1)));
            }
        }
    }

    #[test]
    fn a_call_that_does_not_panic_returns_its_value() {
        assert_eq!(catch(|| 7).expect("it does not panic"), 7);
    }

    #[test]
    fn a_payload_that_panics_on_drop_is_dropped_without_a_panic() {
        for depth in [0, 1, 2, CHAIN_MAX as u32] {
            drop(catch::<()>(|| resume_unwind(Box::new(PanicsOnDrop(depth)))));
        }
    }

    #[test]
    fn a_payload_that_panics_with_another_for_ever_is_given_up() {
        /// Takes no memory, so that giving it up leaks none.
        struct Endless;

        impl Drop for Endless {
            fn drop(&mut self) {
                resume_unwind(Box::new(Endless));
            }
        }

        drop(catch::<()>(|| resume_unwind(Box::new(Endless))));
    }

    #[test]
    fn the_payload_can_be_had() {
        let caught = catch::<()>(|| panic_any(7_u32)).expect_err("it panics");
        assert_eq!(caught.into_payload().downcast_ref::<u32>(), Some(&7));
    }
}

//! Versions, and the clock.

use std::ffi::c_char;

use crate::border::infallible;
use crate::clock;
use crate::types::TL_ABI_VERSION;

/// Returns the ABI version of the library: programs that were compiled with another
/// `TL_ABI_VERSION` cannot use it. `tl_options_new` makes that comparison.
///
/// Threads: any. Blocks: never. Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn tl_abi_version() -> u32 {
    TL_ABI_VERSION
}

/// Returns the version of the library, such as `"0.1.0"`, for logs.
///
/// Threads: any. Blocks: never. Ownership: the text is the library's and lives as long as the
/// process. Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn tl_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// Returns the time of the clock that all times of this library but one are told by: nanoseconds of
/// `CLOCK_MONOTONIC`. The exception is `kernel_received_ns` of a message.
///
/// Threads: any. Blocks: never. Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn tl_now() -> i64 {
    infallible(0, clock::now)
}

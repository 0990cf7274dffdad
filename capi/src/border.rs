//! The border to C: what comes in is checked, and no panic gets out.

use std::any::Any;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use client::{Error, SendError};

use crate::error;
use crate::types::{tl_error, tl_error_kind, tl_status};

/// The reason why a call of the program fails, and what the call returns.
pub(crate) struct Failure {
    /// `None`: what this kind of call returns if it was refused.
    status: Option<tl_status>,
    pub(crate) reason: Reason,
}

/// The subject of an error that the program is given.
pub(crate) enum Reason {
    /// An error of the client.
    Client(Error),
    /// An error of this interface.
    Own(tl_error_kind, String),
}

impl Failure {
    /// The program has passed something that cannot be.
    pub(crate) fn argument(text: impl Into<String>) -> Self {
        Self::own(tl_error_kind::TL_ERROR_INVALID_ARGUMENT, text)
    }

    pub(crate) fn own(kind: tl_error_kind, text: impl Into<String>) -> Self {
        Failure { status: None, reason: Reason::Own(kind, text.into()) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure { status: None, reason: Reason::Client(error) }
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        let status = match error.is_not_sent() {
            true => tl_status::TL_NOT_SENT,
            false => tl_status::TL_UNKNOWN,
        };
        Failure { status: Some(status), reason: Reason::Client(error.reason().clone()) }
    }
}

/// Runs a call of the program. On failure hands out the error, if the program wants it, and returns
/// `TL_FAILED` or a status of the failure's own.
///
/// # Safety
/// `out` is null, or points to a place for a pointer.
pub(crate) unsafe fn enter<T>(
    out: *mut *mut tl_error,
    call: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, tl_status> {
    // SAFETY: as for this function.
    unsafe { enter_with(out, tl_status::TL_FAILED, tl_status::TL_FAILED, call) }
}

/// Runs a send of the program: one that is refused is `TL_NOT_SENT`, and after a panic nobody
/// knows.
///
/// # Safety
/// As [`enter`].
pub(crate) unsafe fn enter_send<T>(
    out: *mut *mut tl_error,
    call: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, tl_status> {
    // SAFETY: as for this function.
    unsafe { enter_with(out, tl_status::TL_NOT_SENT, tl_status::TL_UNKNOWN, call) }
}

unsafe fn enter_with<T>(
    out: *mut *mut tl_error,
    refused: tl_status,
    panicked: tl_status,
    call: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, tl_status> {
    if !out.is_null() {
        // SAFETY: it points to a place for a pointer.
        unsafe { out.write(std::ptr::null_mut()) };
    }
    let (status, reason) = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(Failure { status, reason })) => (status.unwrap_or(refused), reason),
        Err(payload) => {
            forget_panic(payload);
            let text = "a bug of this library: a panic, whose text is on the standard error";
            (panicked, Reason::Own(tl_error_kind::TL_ERROR_INTERNAL, text.into()))
        }
    };
    if !out.is_null() {
        // SAFETY: it points to a place for a pointer.
        unsafe { out.write(error::hand_out(reason)) };
    }
    Err(status)
}

/// Returns the status of a call that returns one.
pub(crate) fn status(result: Result<tl_status, tl_status>) -> tl_status {
    result.unwrap_or_else(|status| status)
}

/// Runs a call that has no error to give, and returns `otherwise` after a panic.
pub(crate) fn infallible<T>(otherwise: T, call: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| {
        forget_panic(payload);
        otherwise
    })
}

/// Drops the payload of a panic, whose own drop may panic.
fn forget_panic(payload: Box<dyn Any + Send>) {
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(another);
    }
}

/// Returns a text of the program's, which ends with a zero byte.
///
/// # Safety
/// `text` is null, or points to bytes of which one is zero, and which stay as they are for `'a`.
pub(crate) unsafe fn text<'a>(what: &str, text: *const c_char) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(Failure::argument(format!("{what} is NULL")));
    }
    // SAFETY: as for this function.
    let text = unsafe { CStr::from_ptr(text) };
    // The text itself may be a secret.
    text.to_str().map_err(|_| Failure::argument(format!("{what} is not UTF-8")))
}

/// Returns bytes of the program's. NULL is no bytes, if there are to be none.
///
/// # Safety
/// `data` is null, or points to `length` bytes that stay as they are for `'a`.
pub(crate) unsafe fn bytes<'a>(data: *const u8, length: usize) -> Result<&'a [u8], Failure> {
    if length == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(Failure::argument("the message is NULL, and its length is not 0"));
    }
    if length > isize::MAX as usize {
        return Err(Failure::argument("the length of the message is not one"));
    }
    // SAFETY: as for this function; the length was checked.
    Ok(unsafe { std::slice::from_raw_parts(data, length) })
}

/// Returns bytes of the program's that are to be text.
///
/// # Safety
/// As [`bytes`].
pub(crate) unsafe fn utf8<'a>(data: *const u8, length: usize) -> Result<&'a str, Failure> {
    // SAFETY: as for this function.
    let bytes = unsafe { bytes(data, length) }?;
    std::str::from_utf8(bytes)
        .map_err(|_| Failure::argument("the text of the message is not UTF-8"))
}

/// Returns what a pointer of the program's points to, or an error if it is null.
///
/// # Safety
/// `pointer` is null, or points to a `T` that nobody else uses for `'a`.
pub(crate) unsafe fn place<'a, T>(what: &str, pointer: *mut T) -> Result<&'a mut T, Failure> {
    // SAFETY: as for this function.
    unsafe { pointer.as_mut() }.ok_or_else(|| Failure::argument(format!("{what} is NULL")))
}

/// Writes to a place of the program's, if it has one.
///
/// # Safety
/// `pointer` is null, or points to a place for a `T`.
pub(crate) unsafe fn put<T>(pointer: *mut T, value: T) {
    if !pointer.is_null() {
        // SAFETY: as for this function.
        unsafe { pointer.write(value) };
    }
}

/// Reads a struct that begins with its size, from a program that may know fewer or more of its
/// fields. Fields that it does not know stay as in `default`; those that are unknown here are left
/// to [`check_unknown`].
///
/// # Safety
/// `pointer` is null, or points to a `size_t` and to as many bytes as that says, itself included.
/// `T` is `repr(C)`, and begins with a `usize`; what a C program can write into it is valid.
pub(crate) unsafe fn read_sized<T: Copy>(
    what: &str,
    pointer: *const T,
    smallest: usize,
    default: T,
) -> Result<T, Failure> {
    if pointer.is_null() {
        return Err(Failure::argument(format!("{what} is NULL")));
    }
    // SAFETY: it begins with a `size_t`.
    let size = unsafe { pointer.cast::<usize>().read() };
    // Far more than any version will have: a size that was never set is told, and not followed.
    if size < smallest || size > 64 * 1024 {
        return Err(Failure::argument(format!(
            "{what} begins with the size {size}: set it to sizeof({what}), and zero the rest"
        )));
    }
    let known = size.min(size_of::<T>());
    let mut value = default;
    // SAFETY: both have as many bytes, and any of them are a value, as for this function.
    unsafe {
        let to = (&raw mut value).cast::<u8>();
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), to, known);
    }
    Ok(value)
}

/// Checks that the fields of a struct of the program's that are unknown here are zero.
///
/// # Safety
/// As [`read_sized`], which has accepted the struct.
pub(crate) unsafe fn check_unknown<T>(what: &str, pointer: *const T) -> Result<(), Failure> {
    // SAFETY: it begins with a `size_t`.
    let size = unsafe { pointer.cast::<usize>().read() };
    for at in size_of::<T>()..size {
        // SAFETY: within the size that it says.
        if unsafe { pointer.cast::<u8>().add(at).read() } != 0 {
            return Err(Failure::argument(format!(
                "{what} uses a field that this version of the library does not know"
            )));
        }
    }
    Ok(())
}

/// Writes a struct that begins with its size, as far as the program knows it, and sets that size to
/// what was written.
///
/// # Safety
/// `pointer` is null, or points to a `size_t` and to as many bytes as that says, itself included.
/// `T` is `repr(C)`, and begins with a `usize`.
pub(crate) unsafe fn write_sized<T: Copy>(
    what: &str,
    pointer: *mut T,
    value: T,
) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(Failure::argument(format!("{what} is NULL")));
    }
    // SAFETY: it begins with a `size_t`.
    let size = unsafe { pointer.cast::<usize>().read() };
    if size < size_of::<usize>() || size > 64 * 1024 {
        return Err(Failure::argument(format!(
            "{what} begins with the size {size}: set it to sizeof({what})"
        )));
    }
    let known = size.min(size_of::<T>());
    // SAFETY: both have as many bytes.
    unsafe {
        std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), pointer.cast::<u8>(), known);
        pointer.cast::<usize>().write(known);
    }
    Ok(())
}

/// Returns a text for C: it ends at the first zero byte, so those inside are replaced.
pub(crate) fn c_string(text: impl Into<String>) -> CString {
    CString::new(text.into()).unwrap_or_else(|error| {
        let bytes = error.into_vec();
        let replaced = String::from_utf8_lossy(&bytes).replace('\0', "\u{fffd}");
        CString::new(replaced).expect("no zero byte is left")
    })
}

#[cfg(test)]
mod tests {
    use std::ptr::null_mut;

    use super::*;

    #[test]
    fn a_panic_becomes_an_error() {
        struct PanicsAgain;
        impl Drop for PanicsAgain {
            fn drop(&mut self) {
                panic!("again");
            }
        }
        let mut error = null_mut();
        // SAFETY: it is a place for a pointer.
        let result: Result<(), _> = unsafe { enter(&mut error, || panic!("a bug")) };
        assert!(matches!(result, Err(tl_status::TL_FAILED)));
        // SAFETY: it was handed out above.
        assert_eq!(unsafe { (*error).kind }, tl_error_kind::TL_ERROR_INTERNAL);
        // SAFETY: as above.
        unsafe { error::tl_error_free(error) };
        // SAFETY: nobody wants the error.
        let result: Result<(), _> =
            unsafe { enter_send(null_mut(), || std::panic::panic_any(PanicsAgain)) };
        assert!(matches!(result, Err(tl_status::TL_UNKNOWN)), "nobody knows what was sent");
        assert_eq!(infallible(7, || panic!("a bug")), 7);
    }

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Sized {
        size: usize,
        one: u64,
        two: u64,
    }

    fn read(size: usize, words: [usize; 4]) -> Result<Sized, Failure> {
        let mut given = words;
        given[0] = size;
        let default = Sized { size: 0, one: 0, two: 0 };
        // SAFETY: there are four words, and no size in these tests that passes is larger.
        let value = unsafe { read_sized("it", given.as_ptr().cast(), 16, default) }?;
        // SAFETY: as above.
        unsafe { check_unknown::<Sized>("it", given.as_ptr().cast()) }?;
        Ok(value)
    }

    #[test]
    fn structs_of_older_and_newer_programs_are_read() {
        assert!(read(8, [0; 4]).is_err(), "too small");
        assert!(read(usize::MAX, [0; 4]).is_err(), "never set");
        let older = read(16, [0, 1, 2, 3]).unwrap_or_else(|_| panic!("it is long enough"));
        assert_eq!(older, Sized { size: 16, one: 1, two: 0 });
        let same = read(24, [0, 1, 2, 3]).unwrap_or_else(|_| panic!("it is the same"));
        assert_eq!(same, Sized { size: 24, one: 1, two: 2 });
        assert!(read(32, [0, 1, 2, 0]).is_ok(), "a newer program that uses nothing new");
        assert!(read(32, [0, 1, 2, 3]).is_err(), "a newer program that uses something new");
    }

    #[test]
    fn structs_are_written_as_far_as_the_program_knows_them() {
        let value = Sized { size: 24, one: 1, two: 2 };
        for (size, expected) in [(16, [16, 1, 9, 9]), (24, [24, 1, 2, 9]), (32, [24, 1, 2, 9])] {
            let mut given = [size, 9usize, 9, 9];
            // SAFETY: there are four words.
            let written = unsafe { write_sized("it", given.as_mut_ptr().cast(), value) };
            assert!(written.is_ok());
            assert_eq!(given, expected);
        }
        let mut unset = [0usize; 4];
        // SAFETY: as above.
        assert!(unsafe { write_sized("it", unset.as_mut_ptr().cast(), value) }.is_err());
    }

    #[test]
    fn zero_bytes_do_not_cut_a_text_short() {
        assert_eq!(c_string("a\0b").to_str(), Ok("a\u{fffd}b"));
        assert_eq!(c_string("ab").to_str(), Ok("ab"));
    }
}

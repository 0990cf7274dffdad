//! Log records, for a callback.

use std::ffi::{CString, c_char, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use log::{LevelFilter, Log, Metadata, Record};

use crate::border::{Failure, c_string, enter, status};
use crate::callbacks::UserData;
use crate::options::tl_destroy_fn;
use crate::types::{tl_error, tl_log_level, tl_status};

/// Takes a log record. It may run on any thread, on several at the same time, and inside other
/// calls of the library; it must not call the library.
#[allow(non_camel_case_types)]
pub type tl_log_fn = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        level: tl_log_level,
        target: *const c_char,
        text: *const c_char,
    ),
>;

struct Receiver {
    call: unsafe extern "C" fn(*mut c_void, tl_log_level, *const c_char, *const c_char),
    user_data: UserData,
}

/// The one logger of the library. It passes records to whoever receives them now.
struct Logger(Mutex<Option<Arc<Receiver>>>);

static LOGGER: Logger = Logger(Mutex::new(None));

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // Cloned out of the lock, because the program is called.
        let receiver = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(receiver) = receiver else { return };
        let level = match record.level() {
            log::Level::Error => tl_log_level::TL_LOG_ERROR,
            log::Level::Warn => tl_log_level::TL_LOG_WARN,
            log::Level::Info => tl_log_level::TL_LOG_INFO,
            log::Level::Debug => tl_log_level::TL_LOG_DEBUG,
            log::Level::Trace => tl_log_level::TL_LOG_TRACE,
        };
        let (target, text): (CString, CString) =
            (c_string(record.target()), c_string(record.args().to_string()));
        // SAFETY: the program gave both, for calls on any thread.
        unsafe {
            (receiver.call)(receiver.user_data.as_ptr(), level, target.as_ptr(), text.as_ptr());
        }
    }

    fn flush(&self) {}
}

/// Has `call` take the log records of all clients of the process, from `level` on: a number of
/// `tl_log_level`. NULL ends that. Without it nothing is logged. Records show hosts and ports at
/// most: no path, query, header value or payload.
///
/// Threads: any; `call` runs on any thread, perhaps once more after it was replaced. Blocks: never.
/// Ownership: `user_data` is the library's until `destroy` is called with it, once: when `call` was
/// replaced and runs no more, or at once if this fails. Errors: `TL_FAILED`, with
/// `TL_ERROR_INVALID_ARGUMENT` for a level that is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_set_log_callback(
    level: i32,
    call: tl_log_fn,
    user_data: *mut c_void,
    destroy: tl_destroy_fn,
    error: *mut *mut tl_error,
) -> tl_status {
    let user_data = UserData::new(user_data, destroy);
    let set = || {
        const FILTERS: [LevelFilter; 6] = [
            LevelFilter::Off,
            LevelFilter::Error,
            LevelFilter::Warn,
            LevelFilter::Info,
            LevelFilter::Debug,
            LevelFilter::Trace,
        ];
        let filter = usize::try_from(level).ok().and_then(|level| FILTERS.get(level));
        let filter = filter.ok_or_else(|| Failure::argument("the level is from 0 to 5"))?;
        let receiver = call.map(|call| Arc::new(Receiver { call, user_data }));
        let filter = if receiver.is_some() { *filter } else { LevelFilter::Off };
        let replaced = {
            let mut current = LOGGER.0.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, receiver)
        };
        // It is an error after the first time, and the logger is there.
        let _ = log::set_logger(&LOGGER);
        log::set_max_level(filter);
        drop(replaced);
        Ok(tl_status::TL_OK)
    };
    // SAFETY: the program passes NULL or a place for a pointer.
    status(unsafe { enter(error, set) })
}

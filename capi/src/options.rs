//! Options: the settings of clients, before they are started.

use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use client::{Builder, Client};

use crate::border::{Failure, c_string, enter, infallible, status, text};
use crate::callbacks::UserData;
use crate::endpoint::{EndpointCallback, ask};
use crate::handle::{self, opaque};
use crate::settings::{Settings, add_endpoints, names};
use crate::types::{TL_ABI_VERSION, tl_dial, tl_error, tl_error_kind, tl_status};

/// The settings of clients. Several clients may be started with the same options.
pub struct tl_options {
    _opaque: (),
}

opaque!(tl_options, Options, b"tloption");

pub(crate) struct Options(Mutex<Chosen>);

#[derive(Default)]
struct Chosen {
    settings: Settings,
    endpoint: Option<Arc<EndpointCallback>>,
    thread_start: Option<Arc<ThreadStart>>,
}

/// Names the endpoint of the next dial, by `tl_endpoint_set_url`. It runs on the thread
/// `taut-reader` of the client, within `connect_timeout`, and nothing can interrupt it: the calls
/// that it makes need a timeout of their own. Returns 0, or another number if there is no endpoint
/// now; the client then tries again.
#[allow(non_camel_case_types)]
pub type tl_endpoint_fn = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        endpoint: *mut crate::endpoint::tl_endpoint,
        dial: *const tl_dial,
    ) -> i32,
>;

/// Is called on each thread of a client, with its name, before that does anything else: to pin it
/// to a core, for example.
#[allow(non_camel_case_types)]
pub type tl_thread_start_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, name: *const c_char)>;

/// Frees what a callback was given as `user_data`, on any thread, after the last call of the
/// callback. It may be NULL.
#[allow(non_camel_case_types)]
pub type tl_destroy_fn = Option<unsafe extern "C" fn(user_data: *mut c_void)>;

struct ThreadStart {
    call: unsafe extern "C" fn(*mut c_void, *const c_char),
    user_data: UserData,
}

impl Options {
    fn lock(&self) -> MutexGuard<'_, Chosen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn drop_timeout(&self) -> Duration {
        self.lock().settings.drop_timeout()
    }

    /// Returns the builder of a client with these options.
    pub(crate) fn builder(&self) -> Result<Builder, Failure> {
        let chosen = self.lock();
        let config = |text: &str| Failure::own(tl_error_kind::TL_ERROR_CONFIG, text);
        let builder = match (&chosen.endpoint, chosen.settings.urls.as_slice()) {
            (Some(endpoint), []) => {
                let endpoint = Arc::clone(endpoint);
                Client::builder_from_fn(move |context| ask(&endpoint, context))
            }
            (Some(_), [..]) => {
                return Err(config("there is a url and an endpoint callback: choose one"));
            }
            (None, [first, rest @ ..]) => add_endpoints(Client::builder(first.as_str()), rest),
            (None, []) => return Err(config("there is no url and no endpoint callback: set one")),
        };
        let builder = chosen.settings.apply(builder).map_err(|text| config(&text))?;
        Ok(match &chosen.thread_start {
            None => builder,
            Some(start) => {
                let start = Arc::clone(start);
                builder.on_thread_start(move |name| {
                    let name = c_string(name);
                    // SAFETY: the program gave both, for calls on any thread.
                    unsafe { (start.call)(start.user_data.as_ptr(), name.as_ptr()) };
                })
            }
        })
    }
}

/// Creates options with the defaults of every setting. Pass `TL_ABI_VERSION`: a program that was
/// compiled with the header of another ABI is refused here, before anything can go wrong.
///
/// Threads: any. Blocks: never. Ownership: `tl_options_free` frees the result. Errors: NULL, with
/// `TL_ERROR_ABI`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_options_new(
    abi_version: u32,
    error: *mut *mut tl_error,
) -> *mut tl_options {
    let create = || {
        if abi_version != TL_ABI_VERSION {
            return Err(Failure::own(
                tl_error_kind::TL_ERROR_ABI,
                format!(
                    "the program was compiled with version {abi_version} of the ABI, and the \
                     library has version {TL_ABI_VERSION}: compile it again"
                ),
            ));
        }
        Ok(handle::create::<tl_options>(Options(Mutex::default())))
    };
    // SAFETY: the program passes NULL or a place for a pointer.
    unsafe { enter(error, create) }.unwrap_or(std::ptr::null_mut())
}

/// Frees options. Clients that were started with them keep what they need. NULL does nothing.
///
/// Threads: any, while no other call has these options. Blocks: never, unless a `destroy` does.
/// Ownership: `options` is gone afterwards; a second time is logged and does nothing. Errors: none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_options_free(options: *mut tl_options) {
    // SAFETY: as the contract above says.
    infallible((), || unsafe { handle::free(options) });
}

/// Sets `key` to `value`, both texts that end with a zero byte. The README lists the keys and their
/// values, `tl_options_keys` the keys alone. The keys `url`, `header`, `subprotocol`, `app_ping`,
/// `app_ping_when_quiet`, `send_limit`, `tls_root`, `tls_root_file` and `tls_pin` add to what was
/// set, all others replace it.
///
/// Values that a key cannot take are refused here; what can only be seen together, when a client is
/// started.
///
/// Threads: any. Blocks: only to read a file, for keys that end in `_file`. Ownership: key and
/// value are copied. Errors: `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`. The text of an error
/// never holds the value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_options_set(
    options: *mut tl_options,
    key: *const c_char,
    value: *const c_char,
    error: *mut *mut tl_error,
) -> tl_status {
    let set = || {
        // SAFETY: the program passes a handle and texts, as the contract above says.
        let (options, key, value) =
            unsafe { (handle::borrow(options)?, text("the key", key)?, text("the value", value)?) };
        options.lock().settings.set(key, value).map_err(Failure::argument)?;
        Ok(tl_status::TL_OK)
    };
    // SAFETY: the program passes NULL or a place for a pointer.
    status(unsafe { enter(error, set) })
}

/// Returns the keys that `tl_options_set` knows, one below the other.
///
/// Threads: any. Blocks: never. Ownership: the text is the library's and lives as long as the
/// process. Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn tl_options_keys() -> *const c_char {
    static KEYS: OnceLock<std::ffi::CString> = OnceLock::new();
    infallible(std::ptr::null(), || KEYS.get_or_init(|| c_string(names())).as_ptr())
}

/// Has `call` name the endpoint of each dial anew, in the place of the key `url`: for servers whose
/// URL or headers come from a token call.
///
/// Threads: any; `call` runs on the reader threads of the clients with these options, at the same
/// time if there are several. Blocks: never. Ownership: `user_data` is the library's until
/// `destroy` is called with it, once: after the options and all of these clients are gone, when it
/// is replaced, or at once if this fails. Errors: `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_options_set_endpoint_callback(
    options: *mut tl_options,
    call: tl_endpoint_fn,
    user_data: *mut c_void,
    destroy: tl_destroy_fn,
    error: *mut *mut tl_error,
) -> tl_status {
    let user_data = UserData::new(user_data, destroy);
    let set = || {
        // SAFETY: the program passes a handle.
        let options = unsafe { handle::borrow(options) }?;
        let call = call.ok_or_else(|| Failure::argument("the endpoint callback is NULL"))?;
        let replaced = {
            let mut chosen = options.lock();
            chosen.endpoint.replace(Arc::new(EndpointCallback { call, user_data }))
        };
        drop(replaced);
        Ok(tl_status::TL_OK)
    };
    // SAFETY: the program passes NULL or a place for a pointer.
    status(unsafe { enter(error, set) })
}

/// Has `call` run on each thread of a client before that does anything else, with the name of the
/// thread: `taut-reader`, `taut-heartbeat`, `taut-resolver` or `taut-roots`.
///
/// Threads: any; `call` runs on the threads that it is told of, at the same time if there are
/// several. Blocks: never. Ownership: as for `tl_options_set_endpoint_callback`. Errors:
/// `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_options_set_thread_start_callback(
    options: *mut tl_options,
    call: tl_thread_start_fn,
    user_data: *mut c_void,
    destroy: tl_destroy_fn,
    error: *mut *mut tl_error,
) -> tl_status {
    let user_data = UserData::new(user_data, destroy);
    let set = || {
        // SAFETY: the program passes a handle.
        let options = unsafe { handle::borrow(options) }?;
        let call = call.ok_or_else(|| Failure::argument("the thread callback is NULL"))?;
        let replaced = {
            let mut chosen = options.lock();
            chosen.thread_start.replace(Arc::new(ThreadStart { call, user_data }))
        };
        drop(replaced);
        Ok(tl_status::TL_OK)
    };
    // SAFETY: the program passes NULL or a place for a pointer.
    status(unsafe { enter(error, set) })
}

//! The constants, enums and structs of the header.

use std::ffi::{c_char, c_void};

/// The version of the binary interface that a program is compiled with, for `tl_options_new`. It
/// goes up, with the SONAME, when programs have to be compiled again. New functions, keys, error
/// kinds and fields at the end of structs that begin with their size leave it as it is.
pub const TL_ABI_VERSION: u32 = 1;

/// The result of a call.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum tl_status {
    /// The call failed; its `tl_error` says why.
    TL_FAILED = -1,
    /// Success. After a send: the kernel took the whole message, which proves nothing about the
    /// server.
    TL_OK = 0,
    /// After a send: no byte of the message was taken. Sending it again is safe.
    TL_NOT_SENT = 1,
    /// After a send: a part of the message was taken, and the connection was aborted. The server
    /// may or may not have it: ask it before you send an order again.
    TL_UNKNOWN = 2,
    /// The time is up, and there is nothing: no event, or no end of the client.
    TL_EMPTY = 3,
    /// The client has ended, and all of its events have been read.
    TL_ENDED = 4,
    /// After a stop: the client was stopped, and a thread has not ended in time. It ends when the
    /// call that holds it up returns.
    TL_LATE = 5,
}

/// The kind of an error. The numbers stay; further ones may come.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum tl_error_kind {
    /// A kind that this interface has no number for.
    TL_ERROR_OTHER = 0,
    /// A setting or URL cannot work, or a close code or reason may not be sent.
    TL_ERROR_CONFIG = 1,
    /// The endpoint callback failed.
    TL_ERROR_ENDPOINT = 2,
    /// The host name could not be resolved.
    TL_ERROR_RESOLVE = 3,
    /// No address accepted a TCP connection, or no connection is open to send on.
    TL_ERROR_CONNECT = 4,
    /// The TLS handshake failed; see `is_verification_failure`.
    TL_ERROR_TLS = 5,
    /// The proxy refused; see `status`.
    TL_ERROR_PROXY = 6,
    /// The server answered the opening handshake with another status than 101; see `status`.
    TL_ERROR_HTTP = 7,
    /// The server's answer to the opening handshake violates RFC 6455.
    TL_ERROR_UPGRADE = 8,
    /// A timeout expired; see `timeout`.
    TL_ERROR_TIMEOUT = 9,
    /// The server violated RFC 6455 or RFC 7692 on an open connection.
    TL_ERROR_PROTOCOL = 10,
    /// The server closed the connection, it ended without a close frame, or the program asked for a
    /// new one; see `close_code`.
    TL_ERROR_CLOSED = 11,
    /// A ping went unanswered for `pong_timeout`, during which not a single byte arrived.
    TL_ERROR_PONG_TIMEOUT = 12,
    /// No data message arrived for `idle_timeout`.
    TL_ERROR_IDLE = 13,
    /// The event queue was full, and `when_full` is `disconnect`.
    TL_ERROR_LAGGED = 14,
    /// A message is longer than `max_message_size` or `max_outgoing_message_size`.
    TL_ERROR_TOO_BIG = 15,
    /// A rate limit leaves no room for a message in time; see `retry_in_ns`.
    TL_ERROR_LIMITED = 16,
    /// A binary message does not `decode`.
    TL_ERROR_UNDECODABLE = 17,
    /// For sessions, which this interface does not have yet.
    TL_ERROR_OPENING = 18,
    /// For sessions, which this interface does not have yet.
    TL_ERROR_NOT_READY = 19,
    /// A read or write failed, or the system had no descriptors, threads or memory to give.
    TL_ERROR_IO = 20,
    /// A panic ended the client: a bug of this library.
    TL_ERROR_HANDLER_PANICKED = 21,
    /// The client was told to stop.
    TL_ERROR_STOPPED = 22,
    /// The call was made with something that cannot be: NULL, a handle of another kind or one that
    /// was freed, a struct without its size, text that is not UTF-8, an unknown key.
    TL_ERROR_INVALID_ARGUMENT = 40,
    /// The program was compiled with another `TL_ABI_VERSION`.
    TL_ERROR_ABI = 41,
    /// A bug of this library.
    TL_ERROR_INTERNAL = 42,
}

/// The reason why a call failed, a dial failed, a connection ended or a client ended. It shows
/// hosts and ports at most: no path, query, header value or payload.
///
/// An error that a call handed out is freed with `tl_error_free`. One inside an event is not: it
/// lives as long as the event.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tl_error {
    /// `sizeof(tl_error)` of the library.
    pub size: usize,
    /// The kind.
    pub kind: tl_error_kind,
    /// The HTTP status of a refused opening handshake or tunnel, otherwise 0.
    pub status: u16,
    /// The close code (RFC 6455 section 7.1.5) if the kind is `TL_ERROR_CLOSED`, otherwise 0.
    pub close_code: u16,
    /// Dialing again may help. The client decides by this before it dials again.
    pub is_retryable: bool,
    /// The server's certificate was examined and refused, or its key is not pinned.
    pub is_verification_failure: bool,
    /// The error and its causes on one line, for a log. Never NULL.
    pub text: *const c_char,
    /// The kind in snake case, as a label for metrics: `"pong_timeout"`, for example. Never NULL.
    pub kind_name: *const c_char,
    /// The setting or call whose time ran out, `"connect_timeout"` for example, otherwise NULL.
    pub timeout: *const c_char,
    /// The close reason that belongs to `close_code`, otherwise NULL. The server chose it, so it
    /// may say anything.
    pub close_reason: *const c_char,
    /// The reason why there is no endpoint if the kind is `TL_ERROR_ENDPOINT`, otherwise NULL: the
    /// text that `tl_endpoint_fail` gave, which `text` and logs leave out, or one of the library's
    /// for a callback that gave none.
    pub endpoint_text: *const c_char,
    /// The delay that a server asked for in `Retry-After`, in nanoseconds, otherwise -1.
    pub retry_after_ns: i64,
    /// The time after which a rate limit has room, in nanoseconds, otherwise -1.
    pub retry_in_ns: i64,
    /// The first 4 KiB of the body of a refused opening handshake, otherwise NULL. It may say
    /// anything.
    pub body: *const c_char,
    /// The number of bytes in `body`.
    pub body_length: usize,
}

/// The receipt of a message that the kernel took whole. It stays as it is in this ABI version, so
/// it has no size.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct tl_receipt {
    /// The epoch of the connection that the message was sent on.
    pub epoch: u64,
    /// The number of the message among those of its epoch, from 1; for a batch, that of its last
    /// message. `sent` and `confirmed` of `tl_disconnect` count in these numbers.
    pub sequence: u64,
}

/// A message of a batch to send. It stands in arrays and stays as it is in this ABI version, so it
/// has no size.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tl_payload {
    /// The payload.
    pub data: *const c_void,
    /// The number of its bytes.
    pub length: usize,
    /// Not 0 for a text message, 0 for a binary one.
    pub is_text: i32,
}

/// A data message. It lives as long as the callback, or until the next call of
/// `tl_events_next_batch`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tl_message {
    /// `sizeof(tl_message)` of the library.
    pub size: usize,
    /// The payload, which no zero byte ends. Never NULL.
    pub data: *const c_char,
    /// The number of its bytes.
    pub length: usize,
    /// The epoch of the connection on which it arrived.
    pub epoch: u64,
    /// The time at which the `recv` that brought its last bytes returned: see `tl_now`.
    pub received_ns: i64,
    /// The wall-clock time at which the kernel received its last bytes, in nanoseconds since 1970,
    /// with the setting `kernel_timestamps`; otherwise 0.
    pub kernel_received_ns: i64,
    /// It is text, and valid UTF-8; otherwise it is binary.
    pub is_text: bool,
}

/// The opening of a connection. Subscribe again, whatever was sent before. It lives as long as the
/// callback, or until the next call of `tl_events_next_batch`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tl_opened {
    /// `sizeof(tl_opened)` of the library.
    pub size: usize,
    /// The number of this opening among those of the client, from 1.
    pub epoch: u64,
    /// The nanoseconds from the start of the dial to the response that opened the connection.
    pub took_ns: i64,
    /// The address of the server, or of whatever stands before it: `"127.0.0.1:9000"`.
    pub peer: *const c_char,
    /// The subprotocol that the server chose, or NULL.
    pub subprotocol: *const c_char,
    /// The library's own, for `tl_opened_header` and `tl_opened_carried`.
    pub internal: *const c_void,
    /// permessage-deflate was negotiated (RFC 7692).
    pub is_compressed: bool,
}

/// The end of a connection: one for each opening. It lives as long as the callback, or until the
/// next call of `tl_events_next_batch`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tl_disconnect {
    /// `sizeof(tl_disconnect)` of the library.
    pub size: usize,
    /// The epoch of the connection.
    pub epoch: u64,
    /// The reason.
    pub error: *const tl_error,
    /// The end on one line, for a log.
    pub text: *const c_char,
    /// The close reason that belongs to `close_code`. The server may have chosen it, so it may say
    /// anything.
    pub close_reason: *const c_char,
    /// The nanoseconds for which the connection was open.
    pub lasted_ns: i64,
    /// The highest sequence number of a send on this connection; 0 if nothing was sent.
    pub sent: u64,
    /// The highest sequence number that a later pong covers: the server had read up to it. Messages
    /// after it may or may not have arrived.
    pub confirmed: u64,
    /// The nanoseconds to the next dial, or -1 if the client ends instead.
    pub retry_in_ns: i64,
    /// The close code (RFC 6455 section 7.1.5): 1005 if the close frame had none, 1006 if there was
    /// no close frame.
    pub close_code: u16,
    /// A close frame of the server ended the connection.
    pub is_clean: bool,
}

/// A dial that failed. It lives as long as the callback, or until the next call of
/// `tl_events_next_batch`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tl_dial_failure {
    /// `sizeof(tl_dial_failure)` of the library.
    pub size: usize,
    /// The reason.
    pub error: *const tl_error,
    /// The failure on one line, for a log.
    pub text: *const c_char,
    /// The nanoseconds to the next dial, or -1 if the client ends instead.
    pub retry_in_ns: i64,
    /// The number of attempts in a row without a stable connection, from 1.
    pub attempt: u32,
}

/// A gap in the events that are pulled: the queue was full. It lives until the next call of
/// `tl_events_next_batch`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tl_lagged {
    /// `sizeof(tl_lagged)` of the library.
    pub size: usize,
    /// The number of messages lost at this place in the order of events.
    pub lost: u64,
    /// The number of openings, ends and failed dials lost because nobody read the queue.
    pub lost_notices: u64,
}

/// The end of a client: its last event. It lives as long as the callback, or until the next call of
/// `tl_events_next_batch`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tl_stopped {
    /// `sizeof(tl_stopped)` of the library.
    pub size: usize,
    /// The reason: `TL_ERROR_STOPPED` if the client was told to stop, otherwise the error that
    /// ended it.
    pub error: *const tl_error,
    /// The end on one line, for a log.
    pub text: *const c_char,
}

/// The kind of an event that is pulled.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum tl_event_kind {
    /// A kind that this interface has no number for. There is nothing to be read.
    TL_EVENT_OTHER = 0,
    /// A connection is open: `detail.opened`.
    TL_EVENT_OPENED = 1,
    /// A data message arrived: `message`. This kind has no detail.
    TL_EVENT_MESSAGE = 2,
    /// A connection ended: `detail.disconnect`.
    TL_EVENT_DISCONNECTED = 3,
    /// A dial failed: `detail.dial_failure`.
    TL_EVENT_DIAL_FAILED = 4,
    /// The event queue was full and lost messages: `detail.lagged`.
    TL_EVENT_LAGGED = 5,
    /// The client ended: `detail.stopped`.
    TL_EVENT_STOPPED = 6,
}

/// The content of an event, by its kind.
#[repr(C)]
#[derive(Clone, Copy)]
pub union tl_event_detail {
    /// NULL if the event is a message.
    pub any: *const c_void,
    /// If the kind is `TL_EVENT_OPENED`.
    pub opened: *const tl_opened,
    /// If the kind is `TL_EVENT_DISCONNECTED`.
    pub disconnect: *const tl_disconnect,
    /// If the kind is `TL_EVENT_DIAL_FAILED`.
    pub dial_failure: *const tl_dial_failure,
    /// If the kind is `TL_EVENT_LAGGED`.
    pub lagged: *const tl_lagged,
    /// If the kind is `TL_EVENT_STOPPED`.
    pub stopped: *const tl_stopped,
}

/// An event that is pulled. Its targets live until the next call of `tl_events_next_batch`
/// with the same `tl_events`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tl_event {
    /// The number of bytes of this event that the library has filled in.
    pub size: usize,
    /// The kind.
    pub kind: tl_event_kind,
    /// Its content, unless it is a message.
    pub detail: tl_event_detail,
    /// The message, if the kind is `TL_EVENT_MESSAGE`; otherwise not set.
    pub message: tl_message,
}

/// The state of a client.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum tl_state {
    /// There is no such client, or its state has no number here.
    TL_STATE_OTHER = 0,
    /// A dial is under way.
    TL_STATE_CONNECTING = 1,
    /// A connection is open.
    TL_STATE_OPEN = 2,
    /// The closing handshake is under way, or a stop was requested.
    TL_STATE_CLOSING = 3,
    /// No connection is open, and the next dial waits for its time.
    TL_STATE_BACKOFF = 4,
    /// The client has ended.
    TL_STATE_CLOSED = 5,
}

/// Says whether a thread ended after a stop.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum tl_thread_outcome {
    /// An outcome that this interface has no number for.
    TL_THREAD_OTHER = 0,
    /// The thread has ended and was joined.
    TL_THREAD_JOINED = 1,
    /// The thread had not ended by the deadline. It ends as soon as the call that holds it up
    /// returns.
    TL_THREAD_TIMED_OUT = 2,
    /// The thread requested the stop itself, from inside a callback. It ends once that returns.
    TL_THREAD_CURRENT = 3,
    /// The thread has been told to end and was not waited for, because the stop was requested on
    /// one of the client's own threads.
    TL_THREAD_DETACHED = 4,
}

/// The outcome of a stop for one thread. It stands in an array and stays as it is in this ABI
/// version, so it has no size.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tl_thread_report {
    /// The name of the thread: `taut-reader`, `taut-heartbeat`, `taut-resolver` or `taut-roots`.
    pub name: *const c_char,
    /// The nanoseconds from the start of the wait until the outcome was known.
    pub took_ns: i64,
    /// Says whether the thread ended.
    pub outcome: tl_thread_outcome,
}

/// The outcome of a stop. `tl_stop_report_free` frees it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tl_stop_report {
    /// `sizeof(tl_stop_report)` of the library.
    pub size: usize,
    /// The report on one line, for a log. It begins with the name of the client.
    pub text: *const c_char,
    /// The nanoseconds that the stop took.
    pub took_ns: i64,
    /// A row for every thread of the client.
    pub threads: *const tl_thread_report,
    /// The number of rows.
    pub thread_count: usize,
    /// Every thread was joined in time. This says nothing about the closing handshake.
    pub is_clean: bool,
}

/// The counters of a client since it was created. They are read one after the other.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tl_stats {
    /// Set this to `sizeof(tl_stats)`. The call sets it to the number of bytes that it has written.
    pub size: usize,
    /// The number of data messages received.
    pub messages_received: u64,
    /// Their payload bytes, after decompression.
    pub bytes_received: u64,
    /// The number of data messages that the kernel took whole.
    pub messages_sent: u64,
    /// The bytes of their frames, headers included.
    pub bytes_sent: u64,
    /// The number of connections opened.
    pub epochs: u64,
    /// The number of failed dials.
    pub failed_dials: u64,
    /// The number of connections ended, by the number of the error kind.
    pub drops: [u64; 64],
    /// The nanoseconds since the last byte arrived, or -1 while no connection is open.
    pub last_byte_age_ns: i64,
    /// The number of round trips of ping frames. While it is 0, so are the times.
    pub round_trips: u64,
    /// The latest round-trip time, in nanoseconds.
    pub round_trip_last_ns: i64,
    /// The shortest one.
    pub round_trip_min_ns: i64,
    /// The mean of all of them.
    pub round_trip_mean_ns: i64,
    /// The longest one.
    pub round_trip_max_ns: i64,
    /// The number of events in the queue. 0 for a client with callbacks.
    pub queue_depth: u64,
    /// The number of messages lost to a full queue.
    pub messages_lost: u64,
    /// The number of threads that the client has now: 2 while it runs, one more for each lookup, 0
    /// after a clean stop.
    pub live_threads: u64,
}

/// The dial that comes next.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tl_dial {
    /// `sizeof(tl_dial)` of the library.
    pub size: usize,
    /// The nanoseconds that are left of `connect_timeout`, for the calls that the callback makes.
    pub remaining_ns: i64,
    /// The number of attempts in a row without a stable connection, from 1.
    pub attempt: u32,
}

/// The level of a log record.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum tl_log_level {
    /// No records.
    #[allow(dead_code, reason = "programs alone use it")]
    TL_LOG_OFF = 0,
    /// A thread did not stop, or a bug of this library.
    TL_LOG_ERROR = 1,
    /// The client gave up, or a callback takes longer than `pong_timeout`.
    TL_LOG_WARN = 2,
    /// A connection opened or ended, a dial failed, and what follows.
    TL_LOG_INFO = 3,
    /// The steps of a dial, changes of state.
    TL_LOG_DEBUG = 4,
    /// The kinds and sizes of frames.
    TL_LOG_TRACE = 5,
}

/*
 * tautline: a WebSocket client that keeps a connection up and stops at once.
 *
 * This file is made from the source of the library. The README of the C interface has a first
 * program, the settings, and the rules of threads, errors and versions.
 *
 * - Each function says which threads may call it, what it blocks for, who owns what is passed, and
 *   how it fails.
 * - The argument `error` is NULL, or a place for an error: it is set to NULL, or to an error that
 *   tl_error_free frees. It says more about a result that is no success.
 * - Texts are UTF-8, and end with a zero byte unless their length stands beside them.
 * - Timeouts and times are in nanoseconds: 5 * TL_SECOND. A time that the library does not know, or
 *   that will not come, is -1.
 * - Structs begin with their size, by which a library and a program of different versions get along.
 *   A program zeroes what it passes, and sets the size.
 */


#ifndef TAUTLINE_H
#define TAUTLINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** The nanoseconds in a microsecond, a millisecond and a second, for timeouts: `5 * TL_SECOND`. */
#define TL_MICROSECOND INT64_C(1000)
#define TL_MILLISECOND INT64_C(1000000)
#define TL_SECOND INT64_C(1000000000)

/**
 * A timeout that never expires. A negative timeout has expired, as one of 0 has: a computed one that
 * is just past does not wait.
 */
#define TL_FOREVER INT64_MAX

/**
 * The version of the binary interface that a program is compiled with, for `tl_options_new`. It
 * goes up, with the SONAME, when programs have to be compiled again. New functions, keys, error
 * kinds and fields at the end of structs that begin with their size leave it as it is.
 */
#define TL_ABI_VERSION 1

/**
 * The kind of an error. The numbers stay; further ones may come.
 */
enum tl_error_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * A kind that this interface has no number for.
     */
    TL_ERROR_OTHER = 0,
    /**
     * A setting or URL cannot work, or a close code or reason may not be sent.
     */
    TL_ERROR_CONFIG = 1,
    /**
     * The endpoint callback failed.
     */
    TL_ERROR_ENDPOINT = 2,
    /**
     * The host name could not be resolved.
     */
    TL_ERROR_RESOLVE = 3,
    /**
     * No address accepted a TCP connection, or no connection is open to send on.
     */
    TL_ERROR_CONNECT = 4,
    /**
     * The TLS handshake failed; see `is_verification_failure`.
     */
    TL_ERROR_TLS = 5,
    /**
     * The proxy refused; see `status`.
     */
    TL_ERROR_PROXY = 6,
    /**
     * The server answered the opening handshake with another status than 101; see `status`.
     */
    TL_ERROR_HTTP = 7,
    /**
     * The server's answer to the opening handshake violates RFC 6455.
     */
    TL_ERROR_UPGRADE = 8,
    /**
     * A timeout expired; see `timeout`.
     */
    TL_ERROR_TIMEOUT = 9,
    /**
     * The server violated RFC 6455 or RFC 7692 on an open connection.
     */
    TL_ERROR_PROTOCOL = 10,
    /**
     * The server closed the connection, it ended without a close frame, or the program asked for a
     * new one; see `close_code`.
     */
    TL_ERROR_CLOSED = 11,
    /**
     * A ping went unanswered for `pong_timeout`, during which not a single byte arrived.
     */
    TL_ERROR_PONG_TIMEOUT = 12,
    /**
     * No data message arrived for `idle_timeout`.
     */
    TL_ERROR_IDLE = 13,
    /**
     * The event queue was full, and `when_full` is `disconnect`.
     */
    TL_ERROR_LAGGED = 14,
    /**
     * A message is longer than `max_message_size` or `max_outgoing_message_size`.
     */
    TL_ERROR_TOO_BIG = 15,
    /**
     * A rate limit leaves no room for a message in time; see `retry_in_ns`.
     */
    TL_ERROR_LIMITED = 16,
    /**
     * A binary message does not `decode`.
     */
    TL_ERROR_UNDECODABLE = 17,
    /**
     * For sessions, which this interface does not have yet.
     */
    TL_ERROR_OPENING = 18,
    /**
     * For sessions, which this interface does not have yet.
     */
    TL_ERROR_NOT_READY = 19,
    /**
     * A read or write failed, or the system had no descriptors, threads or memory to give.
     */
    TL_ERROR_IO = 20,
    /**
     * A panic ended the client: a bug of this library.
     */
    TL_ERROR_HANDLER_PANICKED = 21,
    /**
     * The client was told to stop.
     */
    TL_ERROR_STOPPED = 22,
    /**
     * The call was made with something that cannot be: NULL, a handle of another kind or one that
     * was freed, a struct without its size, text that is not UTF-8, an unknown key.
     */
    TL_ERROR_INVALID_ARGUMENT = 40,
    /**
     * The program was compiled with another `TL_ABI_VERSION`.
     */
    TL_ERROR_ABI = 41,
    /**
     * A bug of this library.
     */
    TL_ERROR_INTERNAL = 42,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum tl_error_kind tl_error_kind;
#else
typedef int32_t tl_error_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * The result of a call.
 */
enum tl_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The call failed; its `tl_error` says why.
     */
    TL_FAILED = -1,
    /**
     * Success. After a send: the kernel took the whole message, which proves nothing about the
     * server.
     */
    TL_OK = 0,
    /**
     * After a send: no byte of the message was taken. Sending it again is safe.
     */
    TL_NOT_SENT = 1,
    /**
     * After a send: a part of the message was taken, and the connection was aborted. The server
     * may or may not have it: ask it before you send an order again.
     */
    TL_UNKNOWN = 2,
    /**
     * The time is up, and there is nothing: no event, or no end of the client.
     */
    TL_EMPTY = 3,
    /**
     * The client has ended, and all of its events have been read.
     */
    TL_ENDED = 4,
    /**
     * After a stop: the client was stopped, and a thread has not ended in time. It ends when the
     * call that holds it up returns.
     */
    TL_LATE = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum tl_status tl_status;
#else
typedef int32_t tl_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Says whether a thread ended after a stop.
 */
enum tl_thread_outcome
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * An outcome that this interface has no number for.
     */
    TL_THREAD_OTHER = 0,
    /**
     * The thread has ended and was joined.
     */
    TL_THREAD_JOINED = 1,
    /**
     * The thread had not ended by the deadline. It ends as soon as the call that holds it up
     * returns.
     */
    TL_THREAD_TIMED_OUT = 2,
    /**
     * The thread requested the stop itself, from inside a callback. It ends once that returns.
     */
    TL_THREAD_CURRENT = 3,
    /**
     * The thread has been told to end and was not waited for, because the stop was requested on
     * one of the client's own threads.
     */
    TL_THREAD_DETACHED = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum tl_thread_outcome tl_thread_outcome;
#else
typedef int32_t tl_thread_outcome;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * The state of a client.
 */
enum tl_state
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * There is no such client, or its state has no number here.
     */
    TL_STATE_OTHER = 0,
    /**
     * A dial is under way.
     */
    TL_STATE_CONNECTING = 1,
    /**
     * A connection is open.
     */
    TL_STATE_OPEN = 2,
    /**
     * The closing handshake is under way, or a stop was requested.
     */
    TL_STATE_CLOSING = 3,
    /**
     * No connection is open, and the next dial waits for its time.
     */
    TL_STATE_BACKOFF = 4,
    /**
     * The client has ended.
     */
    TL_STATE_CLOSED = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum tl_state tl_state;
#else
typedef int32_t tl_state;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * The kind of an event that is pulled.
 */
enum tl_event_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * A kind that this interface has no number for. There is nothing to be read.
     */
    TL_EVENT_OTHER = 0,
    /**
     * A connection is open: `detail.opened`.
     */
    TL_EVENT_OPENED = 1,
    /**
     * A data message arrived: `message`. This kind has no detail.
     */
    TL_EVENT_MESSAGE = 2,
    /**
     * A connection ended: `detail.disconnect`.
     */
    TL_EVENT_DISCONNECTED = 3,
    /**
     * A dial failed: `detail.dial_failure`.
     */
    TL_EVENT_DIAL_FAILED = 4,
    /**
     * The event queue was full and lost messages: `detail.lagged`.
     */
    TL_EVENT_LAGGED = 5,
    /**
     * The client ended: `detail.stopped`.
     */
    TL_EVENT_STOPPED = 6,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum tl_event_kind tl_event_kind;
#else
typedef int32_t tl_event_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * The level of a log record.
 */
enum tl_log_level
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * No records.
     */
    TL_LOG_OFF = 0,
    /**
     * A thread did not stop, or a bug of this library.
     */
    TL_LOG_ERROR = 1,
    /**
     * The client gave up, or a callback takes longer than `pong_timeout`.
     */
    TL_LOG_WARN = 2,
    /**
     * A connection opened or ended, a dial failed, and what follows.
     */
    TL_LOG_INFO = 3,
    /**
     * The steps of a dial, changes of state.
     */
    TL_LOG_DEBUG = 4,
    /**
     * The kinds and sizes of frames.
     */
    TL_LOG_TRACE = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum tl_log_level tl_log_level;
#else
typedef int32_t tl_log_level;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A client: it keeps one connection to a server up, with two threads of its own, until it is
 * stopped or freed.
 */
typedef struct tl_client tl_client;

/**
 * The open connection, for the length of a callback that is given it. It sends on that very
 * connection. All callbacks of a client are given the same pointer: inside another callback it
 * stands for the connection of that one. Used outside of the callback, or on another thread, it
 * fails with `TL_ERROR_INVALID_ARGUMENT`.
 */
typedef struct tl_connection tl_connection;

/**
 * The endpoint that an endpoint callback names. It may be used inside that callback alone.
 */
typedef struct tl_endpoint tl_endpoint;

/**
 * The events of a client that are pulled. Several may exist of one client, and each event goes to
 * one of them. It keeps neither the client nor its threads alive, and what has arrived can still
 * be read when both have gone.
 */
typedef struct tl_events tl_events;

/**
 * The settings of clients. Several clients may be started with the same options.
 */
typedef struct tl_options tl_options;

/**
 * The reason why a call failed, a dial failed, a connection ended or a client ended. It shows
 * hosts and ports at most: no path, query, header value or payload.
 *
 * An error that a call handed out is freed with `tl_error_free`. One inside an event is not: it
 * lives as long as the event.
 */
typedef struct tl_error {
    /**
     * `sizeof(tl_error)` of the library.
     */
    size_t size;
    /**
     * The kind.
     */
    tl_error_kind kind;
    /**
     * The HTTP status of a refused opening handshake or tunnel, otherwise 0.
     */
    uint16_t status;
    /**
     * The close code (RFC 6455 section 7.1.5) if the kind is `TL_ERROR_CLOSED`, otherwise 0.
     */
    uint16_t close_code;
    /**
     * Dialing again may help. The client decides by this before it dials again.
     */
    bool is_retryable;
    /**
     * The server's certificate was examined and refused, or its key is not pinned.
     */
    bool is_verification_failure;
    /**
     * The error and its causes on one line, for a log. Never NULL.
     */
    const char *text;
    /**
     * The kind in snake case, as a label for metrics: `"pong_timeout"`, for example. Never NULL.
     */
    const char *kind_name;
    /**
     * The setting or call whose time ran out, `"connect_timeout"` for example, otherwise NULL.
     */
    const char *timeout;
    /**
     * The close reason that belongs to `close_code`, otherwise NULL. The server chose it, so it
     * may say anything.
     */
    const char *close_reason;
    /**
     * The reason why there is no endpoint if the kind is `TL_ERROR_ENDPOINT`, otherwise NULL: the
     * text that `tl_endpoint_fail` gave, which `text` and logs leave out, or one of the library's
     * for a callback that gave none.
     */
    const char *endpoint_text;
    /**
     * The delay that a server asked for in `Retry-After`, in nanoseconds, otherwise -1.
     */
    int64_t retry_after_ns;
    /**
     * The time after which a rate limit has room, in nanoseconds, otherwise -1.
     */
    int64_t retry_in_ns;
    /**
     * The first 4 KiB of the body of a refused opening handshake, otherwise NULL. It may say
     * anything.
     */
    const char *body;
    /**
     * The number of bytes in `body`.
     */
    size_t body_length;
} tl_error;

/**
 * Frees what a callback was given as `user_data`, on any thread, after the last call of the
 * callback. It may be NULL.
 */
typedef void (*tl_destroy_fn)(void *user_data);

/**
 * The opening of a connection. Subscribe again, whatever was sent before. It lives as long as the
 * callback, or until the next call of `tl_events_next_batch`.
 */
typedef struct tl_opened {
    /**
     * `sizeof(tl_opened)` of the library.
     */
    size_t size;
    /**
     * The number of this opening among those of the client, from 1.
     */
    uint64_t epoch;
    /**
     * The nanoseconds from the start of the dial to the response that opened the connection.
     */
    int64_t took_ns;
    /**
     * The address of the server, or of whatever stands before it: `"127.0.0.1:9000"`.
     */
    const char *peer;
    /**
     * The subprotocol that the server chose, or NULL.
     */
    const char *subprotocol;
    /**
     * The library's own, for `tl_opened_header` and `tl_opened_carried`.
     */
    const void *internal;
    /**
     * permessage-deflate was negotiated (RFC 7692).
     */
    bool is_compressed;
} tl_opened;

/**
 * A data message. It lives as long as the callback, or until the next call of
 * `tl_events_next_batch`.
 */
typedef struct tl_message {
    /**
     * `sizeof(tl_message)` of the library.
     */
    size_t size;
    /**
     * The payload, which no zero byte ends. Never NULL.
     */
    const char *data;
    /**
     * The number of its bytes.
     */
    size_t length;
    /**
     * The epoch of the connection on which it arrived.
     */
    uint64_t epoch;
    /**
     * The time at which the `recv` that brought its last bytes returned: see `tl_now`.
     */
    int64_t received_ns;
    /**
     * The wall-clock time at which the kernel received its last bytes, in nanoseconds since 1970,
     * with the setting `kernel_timestamps`; otherwise 0.
     */
    int64_t kernel_received_ns;
    /**
     * It is text, and valid UTF-8; otherwise it is binary.
     */
    bool is_text;
} tl_message;

/**
 * The end of a connection: one for each opening. It lives as long as the callback, or until the
 * next call of `tl_events_next_batch`.
 */
typedef struct tl_disconnect {
    /**
     * `sizeof(tl_disconnect)` of the library.
     */
    size_t size;
    /**
     * The epoch of the connection.
     */
    uint64_t epoch;
    /**
     * The reason.
     */
    const struct tl_error *error;
    /**
     * The end on one line, for a log.
     */
    const char *text;
    /**
     * The close reason that belongs to `close_code`. The server may have chosen it, so it may say
     * anything.
     */
    const char *close_reason;
    /**
     * The nanoseconds for which the connection was open.
     */
    int64_t lasted_ns;
    /**
     * The highest sequence number of a send on this connection; 0 if nothing was sent.
     */
    uint64_t sent;
    /**
     * The highest sequence number that a later pong covers: the server had read up to it. Messages
     * after it may or may not have arrived.
     */
    uint64_t confirmed;
    /**
     * The nanoseconds to the next dial, or -1 if the client ends instead.
     */
    int64_t retry_in_ns;
    /**
     * The close code (RFC 6455 section 7.1.5): 1005 if the close frame had none, 1006 if there was
     * no close frame.
     */
    uint16_t close_code;
    /**
     * A close frame of the server ended the connection.
     */
    bool is_clean;
} tl_disconnect;

/**
 * A dial that failed. It lives as long as the callback, or until the next call of
 * `tl_events_next_batch`.
 */
typedef struct tl_dial_failure {
    /**
     * `sizeof(tl_dial_failure)` of the library.
     */
    size_t size;
    /**
     * The reason.
     */
    const struct tl_error *error;
    /**
     * The failure on one line, for a log.
     */
    const char *text;
    /**
     * The nanoseconds to the next dial, or -1 if the client ends instead.
     */
    int64_t retry_in_ns;
    /**
     * The number of attempts in a row without a stable connection, from 1.
     */
    uint32_t attempt;
} tl_dial_failure;

/**
 * The end of a client: its last event. It lives as long as the callback, or until the next call of
 * `tl_events_next_batch`.
 */
typedef struct tl_stopped {
    /**
     * `sizeof(tl_stopped)` of the library.
     */
    size_t size;
    /**
     * The reason: `TL_ERROR_STOPPED` if the client was told to stop, otherwise the error that
     * ended it.
     */
    const struct tl_error *error;
    /**
     * The end on one line, for a log.
     */
    const char *text;
} tl_stopped;

/**
 * The functions that a client calls on its thread `taut-reader`, one at a time. Each may be NULL.
 * Set `size` to `sizeof(tl_callbacks)`, and zero what is not used.
 *
 * Nothing is read while a function runs. None may unwind, by an exception of C++ or by `longjmp`,
 * out of the call: catch everything inside. They may run before the call that starts the client
 * has returned.
 */
typedef struct tl_callbacks {
    /**
     * `sizeof(tl_callbacks)` of the program.
     */
    size_t size;
    /**
     * Passed to every function.
     */
    void *user_data;
    /**
     * Called once with `user_data`, after the last of the others: on the reader thread, before
     * that counts as ended, or on the calling thread if the client could not be started.
     */
    tl_destroy_fn destroy;
    /**
     * A connection is open, and no message of it has come yet: the place to subscribe.
     */
    void (*opened)(void *user_data, struct tl_connection *connection, const struct tl_opened *opened);
    /**
     * A data message has come. Its payload lies in the read buffer, for as long as the call runs.
     */
    void (*message)(void *user_data,
                    struct tl_connection *connection,
                    const struct tl_message *message);
    /**
     * The last message of a batch has been delivered: once for all messages that one read of the
     * socket brought.
     */
    void (*batch_end)(void *user_data, struct tl_connection *connection);
    /**
     * The time that was set by `tl_connection_wake_at` has come (`due_ns` is that time), or a
     * thread has called `tl_client_wake` (`due_ns` is -1). `connection` is NULL while no
     * connection is open. Returns the time of the next call, as `tl_now` tells it: `due_ns +
     * interval` keeps a rhythm. 0 sets none.
     */
    int64_t (*woken)(void *user_data, struct tl_connection *connection, int64_t due_ns);
    /**
     * A connection has ended: exactly one call for each of `opened`.
     */
    void (*disconnected)(void *user_data, const struct tl_disconnect *disconnect);
    /**
     * A dial has failed.
     */
    void (*dial_failed)(void *user_data, const struct tl_dial_failure *failure);
    /**
     * The client has ended. No other function but `destroy` is called after it.
     */
    void (*stopped)(void *user_data, const struct tl_stopped *stopped);
} tl_callbacks;

/**
 * The outcome of a stop for one thread. It stands in an array and stays as it is in this ABI
 * version, so it has no size.
 */
typedef struct tl_thread_report {
    /**
     * The name of the thread: `taut-reader`, `taut-heartbeat`, `taut-resolver` or `taut-roots`.
     */
    const char *name;
    /**
     * The nanoseconds from the start of the wait until the outcome was known.
     */
    int64_t took_ns;
    /**
     * Says whether the thread ended.
     */
    tl_thread_outcome outcome;
} tl_thread_report;

/**
 * The outcome of a stop. `tl_stop_report_free` frees it.
 */
typedef struct tl_stop_report {
    /**
     * `sizeof(tl_stop_report)` of the library.
     */
    size_t size;
    /**
     * The report on one line, for a log. It begins with the name of the client.
     */
    const char *text;
    /**
     * The nanoseconds that the stop took.
     */
    int64_t took_ns;
    /**
     * A row for every thread of the client.
     */
    const struct tl_thread_report *threads;
    /**
     * The number of rows.
     */
    size_t thread_count;
    /**
     * Every thread was joined in time. This says nothing about the closing handshake.
     */
    bool is_clean;
} tl_stop_report;

/**
 * The counters of a client since it was created. They are read one after the other.
 */
typedef struct tl_stats {
    /**
     * Set this to `sizeof(tl_stats)`. The call sets it to the number of bytes that it has written.
     */
    size_t size;
    /**
     * The number of data messages received.
     */
    uint64_t messages_received;
    /**
     * Their payload bytes, after decompression.
     */
    uint64_t bytes_received;
    /**
     * The number of data messages that the kernel took whole.
     */
    uint64_t messages_sent;
    /**
     * The bytes of their frames, headers included.
     */
    uint64_t bytes_sent;
    /**
     * The number of connections opened.
     */
    uint64_t epochs;
    /**
     * The number of failed dials.
     */
    uint64_t failed_dials;
    /**
     * The number of connections ended, by the number of the error kind.
     */
    uint64_t drops[64];
    /**
     * The nanoseconds since the last byte arrived, or -1 while no connection is open.
     */
    int64_t last_byte_age_ns;
    /**
     * The number of round trips of ping frames. While it is 0, so are the times.
     */
    uint64_t round_trips;
    /**
     * The latest round-trip time, in nanoseconds.
     */
    int64_t round_trip_last_ns;
    /**
     * The shortest one.
     */
    int64_t round_trip_min_ns;
    /**
     * The mean of all of them.
     */
    int64_t round_trip_mean_ns;
    /**
     * The longest one.
     */
    int64_t round_trip_max_ns;
    /**
     * The number of events in the queue. 0 for a client with callbacks.
     */
    uint64_t queue_depth;
    /**
     * The number of messages lost to a full queue.
     */
    uint64_t messages_lost;
    /**
     * The number of threads that the client has now: 2 while it runs, one more for each lookup, 0
     * after a clean stop.
     */
    uint64_t live_threads;
} tl_stats;

/**
 * The receipt of a message that the kernel took whole. It stays as it is in this ABI version, so
 * it has no size.
 */
typedef struct tl_receipt {
    /**
     * The epoch of the connection that the message was sent on.
     */
    uint64_t epoch;
    /**
     * The number of the message among those of its epoch, from 1; for a batch, that of its last
     * message. `sent` and `confirmed` of `tl_disconnect` count in these numbers.
     */
    uint64_t sequence;
} tl_receipt;

/**
 * A message of a batch to send. It stands in arrays and stays as it is in this ABI version, so it
 * has no size.
 */
typedef struct tl_payload {
    /**
     * The payload.
     */
    const void *data;
    /**
     * The number of its bytes.
     */
    size_t length;
    /**
     * Not 0 for a text message, 0 for a binary one.
     */
    int32_t is_text;
} tl_payload;

/**
 * A gap in the events that are pulled: the queue was full. It lives until the next call of
 * `tl_events_next_batch`.
 */
typedef struct tl_lagged {
    /**
     * `sizeof(tl_lagged)` of the library.
     */
    size_t size;
    /**
     * The number of messages lost at this place in the order of events.
     */
    uint64_t lost;
    /**
     * The number of openings, ends and failed dials lost because nobody read the queue.
     */
    uint64_t lost_notices;
} tl_lagged;

/**
 * The content of an event, by its kind.
 */
typedef union tl_event_detail {
    /**
     * NULL if the event is a message.
     */
    const void *any;
    /**
     * If the kind is `TL_EVENT_OPENED`.
     */
    const struct tl_opened *opened;
    /**
     * If the kind is `TL_EVENT_DISCONNECTED`.
     */
    const struct tl_disconnect *disconnect;
    /**
     * If the kind is `TL_EVENT_DIAL_FAILED`.
     */
    const struct tl_dial_failure *dial_failure;
    /**
     * If the kind is `TL_EVENT_LAGGED`.
     */
    const struct tl_lagged *lagged;
    /**
     * If the kind is `TL_EVENT_STOPPED`.
     */
    const struct tl_stopped *stopped;
} tl_event_detail;

/**
 * An event that is pulled. Its targets live until the next call of `tl_events_next_batch`
 * with the same `tl_events`.
 */
typedef struct tl_event {
    /**
     * The number of bytes of this event that the library has filled in.
     */
    size_t size;
    /**
     * The kind.
     */
    tl_event_kind kind;
    /**
     * Its content, unless it is a message.
     */
    union tl_event_detail detail;
    /**
     * The message, if the kind is `TL_EVENT_MESSAGE`; otherwise not set.
     */
    struct tl_message message;
} tl_event;

/**
 * Takes a log record. It may run on any thread, on several at the same time, and inside other
 * calls of the library; it must not call the library.
 */
typedef void (*tl_log_fn)(void *user_data, tl_log_level level, const char *target, const char *text);

/**
 * The dial that comes next.
 */
typedef struct tl_dial {
    /**
     * `sizeof(tl_dial)` of the library.
     */
    size_t size;
    /**
     * The nanoseconds that are left of `connect_timeout`, for the calls that the callback makes.
     */
    int64_t remaining_ns;
    /**
     * The number of attempts in a row without a stable connection, from 1.
     */
    uint32_t attempt;
} tl_dial;

/**
 * Names the endpoint of the next dial, by `tl_endpoint_set_url`. It runs on the thread
 * `taut-reader` of the client, within `connect_timeout`, and nothing can interrupt it: the calls
 * that it makes need a timeout of their own. Returns 0, or another number if there is no endpoint
 * now; the client then tries again.
 */
typedef int32_t (*tl_endpoint_fn)(void *user_data,
                                  struct tl_endpoint *endpoint,
                                  const struct tl_dial *dial);

/**
 * Is called on each thread of a client, with its name, before that does anything else: to pin it
 * to a core, for example.
 */
typedef void (*tl_thread_start_fn)(void *user_data, const char *name);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Starts a client whose events are pulled, and returns at once. It dials in the background, and
 * again after failures.
 *
 * Threads: any. Blocks: never, unless the system's roots of TLS have to be read. Ownership:
 * `tl_client_free` frees the result; the options stay the program's. Errors: NULL, with
 * `TL_ERROR_CONFIG` for settings that cannot work, or `TL_ERROR_IO` when the system has no threads
 * to give.
 */
struct tl_client *tl_client_start(const struct tl_options *options, struct tl_error **error);

/**
 * Makes one dial, and returns a client whose events are pulled once the connection is open. After
 * later failures the client dials again by itself.
 *
 * Threads: any. Blocks: for `connect_timeout` at most, once the `connect_limit` lets the dial
 * begin. Ownership: as `tl_client_start`. Errors: NULL, with the reason why the dial failed, or as
 * `tl_client_start`. Nothing is left running then, except a lookup or an endpoint callback that
 * hangs.
 */
struct tl_client *tl_client_connect(const struct tl_options *options, struct tl_error **error);

/**
 * Starts a client that passes its events to callbacks, and returns at once. It dials in the
 * background, and again after failures.
 *
 * Threads: any; the callbacks run on the client's thread `taut-reader`, perhaps before this has
 * returned. Blocks: as `tl_client_start`. Ownership: as `tl_client_start`; the struct `callbacks`
 * is copied, and its `destroy` is called once, whether this fails or not, unless the struct itself
 * is NULL or has no size. Errors: as `tl_client_start`.
 */
struct tl_client *tl_client_start_with(const struct tl_options *options,
                                       const struct tl_callbacks *callbacks,
                                       struct tl_error **error);

/**
 * Makes one dial, and returns a client that passes its events to callbacks once the connection is
 * open. After later failures the client dials again by itself.
 *
 * Threads: as `tl_client_start_with`; it may not be called inside a callback of another client if
 * that is to go on reading. Blocks: as `tl_client_connect`. Ownership: as `tl_client_start_with`.
 * Errors: as `tl_client_connect`; the callbacks have been told of the failure then too.
 */
struct tl_client *tl_client_connect_with(const struct tl_options *options,
                                         const struct tl_callbacks *callbacks,
                                         struct tl_error **error);

/**
 * Stops a client, waits for its threads, and frees it. NULL does nothing. To learn what became of
 * the threads, call `tl_client_stop` before.
 *
 * Threads: any; inside one of its callbacks it does not wait. Other calls with this client may be
 * under way, inside callbacks or on other threads: they end as those of a client that is stopped.
 * One that begins later fails with `TL_ERROR_INVALID_ARGUMENT`. Blocks: for `drop_timeout` at
 * most, 5 s by default, and for as long once more if a thread is late and another call was under
 * way; a client that was stopped before is freed at once. Ownership: `client` is gone afterwards,
 * its events are not; a second time is logged and does nothing. Errors: none. A thread that is
 * late is logged, and ends when the call that holds it up returns.
 */
void tl_client_free(struct tl_client *client);

/**
 * Stops a client and waits until every thread has ended, for `timeout_ns` at most. An open
 * connection is closed with a close frame, within `close_timeout`, and then aborted. May be
 * repeated, and called by several threads at once.
 *
 * Threads: any; inside a callback of this client it returns at once, and the thread is
 * `TL_THREAD_CURRENT` in the report. Blocks: for `timeout_ns` at most: a few milliseconds, or a
 * round trip if a connection is open. Ownership: `report` may be NULL; otherwise it is set to a
 * report that `tl_stop_report_free` frees. Errors: `TL_OK` if every thread has ended, `TL_LATE` if
 * not; `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`, and no report.
 */
tl_status tl_client_stop(const struct tl_client *client,
                         int64_t timeout_ns,
                         struct tl_stop_report **report,
                         struct tl_error **error);

/**
 * Stops a client like `tl_client_stop`, with a close code and a reason of the program's own in the
 * close frame (RFC 6455 section 7.4). `reason` may be NULL.
 *
 * Threads: as `tl_client_stop`. Blocks: as `tl_client_stop`. Ownership: as `tl_client_stop`; the
 * reason is copied. Errors: as `tl_client_stop`; `TL_FAILED`, with `TL_ERROR_CONFIG`, if the code
 * may not be sent or the reason is longer than 123 bytes: nothing is stopped then.
 */
tl_status tl_client_stop_with(const struct tl_client *client,
                              uint16_t code,
                              const char *reason,
                              int64_t timeout_ns,
                              struct tl_stop_report **report,
                              struct tl_error **error);

/**
 * Stops several clients side by side, and waits until all of their threads have ended, for
 * `timeout_ns` at most in all.
 *
 * Threads: as `tl_client_stop`. Blocks: for `timeout_ns` at most. Ownership: `clients` is an array
 * of `count` clients, and stays the program's; `reports` may be NULL, otherwise it is an array
 * with room for as many, and each is freed by `tl_stop_report_free`. Errors: `TL_OK` if every
 * thread has ended, `TL_LATE` if not; `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`: nothing is
 * stopped then, and all reports are NULL.
 */
tl_status tl_client_stop_all(struct tl_client *const *clients,
                             size_t count,
                             int64_t timeout_ns,
                             struct tl_stop_report **reports,
                             struct tl_error **error);

/**
 * Tells a client to stop. Waiting is left to `tl_client_stop` or `tl_client_free`.
 *
 * Threads: any, a callback included; not a signal handler. Blocks: never. Errors: `TL_FAILED`,
 * with `TL_ERROR_INVALID_ARGUMENT`.
 */
tl_status tl_client_request_stop(const struct tl_client *client, struct tl_error **error);

/**
 * Waits until a connection is open, and sets `epoch` to its number.
 *
 * Threads: any. Inside a callback it does not wait: it returns `TL_OK` while the connection is
 * open, in `opened` and `message` for example, and fails with `TL_ERROR_CONFIG` otherwise. Blocks:
 * for `timeout_ns` at most. Ownership: `epoch` may be NULL. Errors: `TL_FAILED`, with
 * `TL_ERROR_TIMEOUT` when none was open in time, otherwise with the reason why the client has
 * ended.
 */
tl_status tl_client_wait_open(const struct tl_client *client,
                              int64_t timeout_ns,
                              uint64_t *epoch,
                              struct tl_error **error);

/**
 * Waits until the client has ended by itself or has been stopped, and sets `reason` to the reason:
 * an error of kind `TL_ERROR_STOPPED` if it was told to stop.
 *
 * Threads: any; on a thread of the client's own it does not wait. Blocks: for `timeout_ns` at
 * most. Ownership: `reason` may be NULL; otherwise it is set to an error that `tl_error_free`
 * frees, or to NULL. Errors: `TL_OK` if it has ended, `TL_EMPTY` if it has not; `TL_FAILED`, with
 * `TL_ERROR_INVALID_ARGUMENT` as the reason.
 */
tl_status tl_client_wait_closed(const struct tl_client *client,
                                int64_t timeout_ns,
                                struct tl_error **reason);

/**
 * Returns the state of a client.
 *
 * Threads: any. Blocks: never. Errors: `TL_STATE_OTHER` for a client that is none.
 */
tl_state tl_client_state(const struct tl_client *client);

/**
 * Writes the counters of a client to `stats`, whose `size` the program sets to `sizeof(tl_stats)`
 * before.
 *
 * Threads: any. Blocks: never. Ownership: `stats` is the program's. Errors: `TL_FAILED`, with
 * `TL_ERROR_INVALID_ARGUMENT`.
 */
tl_status tl_client_stats(const struct tl_client *client,
                          struct tl_stats *stats,
                          struct tl_error **error);

/**
 * Sends a text message of `length` bytes of UTF-8, on the connection of `epoch`, or on whatever
 * connection is open if `epoch` is 0. The epoch of the data that a message answers keeps an order
 * that was decided on one connection's data from leaving by another. `TL_OK` means that the kernel
 * took all of it, which proves nothing about the server.
 *
 * Threads: any, at the same time too. Blocks: for the rate limits, for other senders and for room
 * in the kernel's buffer, `send_timeout` at most. Nothing is queued: while no connection is open
 * it fails at once. Ownership: `text` is the program's, and is not kept; `receipt` may be NULL.
 * Errors: `TL_NOT_SENT`, when sending again is safe, or `TL_UNKNOWN`, when the server has to be
 * asked. Their kinds: `TL_ERROR_TIMEOUT`, `TL_ERROR_CONNECT` (no connection is open),
 * `TL_ERROR_CLOSED` (the connection is ending, or another epoch is open), `TL_ERROR_STOPPED`,
 * `TL_ERROR_LIMITED`, `TL_ERROR_TOO_BIG`, `TL_ERROR_IO`, `TL_ERROR_INVALID_ARGUMENT`.
 */
tl_status tl_client_send_text(const struct tl_client *client,
                              const char *text,
                              size_t length,
                              uint64_t epoch,
                              struct tl_receipt *receipt,
                              struct tl_error **error);

/**
 * Sends a binary message of `length` bytes. See `tl_client_send_text`.
 *
 * Threads: any, at the same time too. Blocks: as `tl_client_send_text`. Ownership: `data` is the
 * program's, and is not kept; `receipt` may be NULL. Errors: as `tl_client_send_text`.
 */
tl_status tl_client_send_binary(const struct tl_client *client,
                                const void *data,
                                size_t length,
                                uint64_t epoch,
                                struct tl_receipt *receipt,
                                struct tl_error **error);

/**
 * Sends several messages in order, by one system call for every 64 KiB of them, within
 * `send_timeout` for all. Sets `sent` to the number of those that went whole, and `receipt` to
 * that of the last if all did.
 *
 * Threads: any, at the same time too. Blocks: as `tl_client_send_text`. Ownership: the payloads
 * are the program's, and are not kept; `sent` and `receipt` may be NULL. Errors: as
 * `tl_client_send_text`, for the message after those that went; `TL_NOT_SENT` with
 * `TL_ERROR_CONFIG` if there are none.
 */
tl_status tl_client_send_batch(const struct tl_client *client,
                               const struct tl_payload *messages,
                               size_t count,
                               uint64_t epoch,
                               size_t *sent,
                               struct tl_receipt *receipt,
                               struct tl_error **error);

/**
 * Requests a ping, which the thread `taut-heartbeat` writes at once. Its pong counts for the
 * round-trip time, and confirms what was sent before it.
 *
 * Threads: any. Blocks: never. Errors: `TL_NOT_SENT`, when no connection is open.
 */
tl_status tl_client_ping(const struct tl_client *client, struct tl_error **error);

/**
 * Closes the connection that is open now, and dials again. Its close frame has `code` and
 * `reason`; a code of 0, with NULL as the reason, stands for 1000. No further message of that
 * connection is delivered. The next dial counts as no attempt.
 *
 * Threads: any. Blocks: never. Ownership: the reason is copied. Errors: `TL_NOT_SENT`, when no
 * connection is open, or with `TL_ERROR_CONFIG` if the code or the reason may not be sent.
 */
tl_status tl_client_reconnect(const struct tl_client *client,
                              uint16_t code,
                              const char *reason,
                              struct tl_error **error);

/**
 * Has the callback `woken` called on the reader thread, whether a connection is open or not. Until
 * it begins, further calls add nothing: what a thread has for the callback goes by a queue of the
 * program's. Needs the setting `wakeups`.
 *
 * Threads: any. Blocks: never. Errors: `TL_FAILED`, with `TL_ERROR_CONFIG` without `wakeups` or
 * without callbacks, and with `TL_ERROR_STOPPED` once the client was told to stop.
 */
tl_status tl_client_wake(const struct tl_client *client, struct tl_error **error);

/**
 * Sets the time at which `woken` is called, from any thread. See `tl_connection_wake_at`. Needs
 * the setting `wakeups`.
 *
 * Threads: any. Blocks: never. Errors: as `tl_client_wake`.
 */
tl_status tl_client_wake_at(const struct tl_client *client, int64_t at_ns, struct tl_error **error);

/**
 * Creates a reader of the client's events.
 *
 * Threads: any. Blocks: never. Ownership: `tl_events_free` frees the result, before or after the
 * client. Errors: NULL, with `TL_ERROR_INVALID_ARGUMENT` for a client with callbacks.
 */
struct tl_events *tl_client_events(const struct tl_client *client, struct tl_error **error);

/**
 * Sends a text message on this connection. See `tl_client_send_text`.
 *
 * Threads: inside the callback alone. Blocks: for room in the kernel's buffer, `send_timeout` at
 * most; nothing is read meanwhile. Ownership: `text` is the program's; `receipt` may be NULL.
 * Errors: as `tl_client_send_text`.
 */
tl_status tl_connection_send_text(struct tl_connection *connection,
                                  const char *text,
                                  size_t length,
                                  struct tl_receipt *receipt,
                                  struct tl_error **error);

/**
 * Sends a binary message on this connection. See `tl_client_send_binary`.
 *
 * Threads: inside the callback alone. Blocks: as `tl_connection_send_text`. Ownership: `data` is
 * the program's; `receipt` may be NULL. Errors: as `tl_client_send_text`.
 */
tl_status tl_connection_send_binary(struct tl_connection *connection,
                                    const void *data,
                                    size_t length,
                                    struct tl_receipt *receipt,
                                    struct tl_error **error);

/**
 * Sends several messages on this connection. See `tl_client_send_batch`.
 *
 * Threads: inside the callback alone. Blocks: as `tl_connection_send_text`. Ownership: the
 * payloads are the program's; `sent` and `receipt` may be NULL. Errors: as `tl_client_send_batch`.
 */
tl_status tl_connection_send_batch(struct tl_connection *connection,
                                   const struct tl_payload *messages,
                                   size_t count,
                                   size_t *sent,
                                   struct tl_receipt *receipt,
                                   struct tl_error **error);

/**
 * Sets the time at which `woken` is called, as `tl_now` tells it. The client has one such time:
 * this one replaces what was set before, and a negative one takes it back. A time that has passed
 * is due at once. It stays when the connection ends.
 *
 * Threads: inside the callback alone. Blocks: never. Errors: `TL_FAILED`, with
 * `TL_ERROR_INVALID_ARGUMENT`.
 */
tl_status tl_connection_wake_at(struct tl_connection *connection,
                                int64_t at_ns,
                                struct tl_error **error);

/**
 * Counts this connection as stable from now on: the backoff after its end starts anew. For a
 * program that knows more than the clock does, because its login was accepted, for example.
 *
 * Threads: inside the callback alone. Blocks: never. Errors: `TL_FAILED`, with
 * `TL_ERROR_INVALID_ARGUMENT`.
 */
tl_status tl_connection_mark_stable(struct tl_connection *connection, struct tl_error **error);

/**
 * Closes this connection and dials again. See `tl_client_reconnect`.
 *
 * Threads: inside the callback alone. Blocks: never. Ownership: `reason` is copied, and may be
 * NULL. Errors: `TL_FAILED`, with `TL_ERROR_CONFIG` if the code or the reason may not be sent.
 */
tl_status tl_connection_reconnect(struct tl_connection *connection,
                                  uint16_t code,
                                  const char *reason,
                                  struct tl_error **error);

/**
 * Tells the client to stop, and returns at once. No further message is delivered after this
 * callback. Waiting is left to `tl_client_stop` or `tl_client_free`.
 *
 * Threads: inside the callback alone. Blocks: never. Errors: `TL_FAILED`, with
 * `TL_ERROR_INVALID_ARGUMENT`.
 */
tl_status tl_connection_stop(struct tl_connection *connection, struct tl_error **error);

/**
 * Sets the URL to dial, `ws://` or `wss://`. Its text is checked before the dial.
 *
 * Threads: inside the endpoint callback alone. Blocks: never. Ownership: the URL is copied.
 * Errors: `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`.
 */
tl_status tl_endpoint_set_url(struct tl_endpoint *endpoint,
                              const char *url,
                              struct tl_error **error);

/**
 * Adds a header to the opening handshake of this dial. It is checked before the dial. No log shows
 * its value.
 *
 * Threads: inside the endpoint callback alone. Blocks: never. Ownership: name and value are
 * copied. Errors: `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`.
 */
tl_status tl_endpoint_add_header(struct tl_endpoint *endpoint,
                                 const char *name,
                                 const char *value,
                                 struct tl_error **error);

/**
 * Offers a subprotocol in this dial.
 *
 * Threads: inside the endpoint callback alone. Blocks: never. Ownership: the name is copied.
 * Errors: `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`.
 */
tl_status tl_endpoint_add_subprotocol(struct tl_endpoint *endpoint,
                                      const char *name,
                                      struct tl_error **error);

/**
 * Carries a value to the connection that this dial opens, where `tl_opened_carried` returns it: a
 * token, for example, that came with the URL. It is not sent to the server, and no log shows it.
 *
 * Threads: inside the endpoint callback alone. Blocks: never. Ownership: key and value are copied.
 * Errors: `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`.
 */
tl_status tl_endpoint_carry(struct tl_endpoint *endpoint,
                            const char *key,
                            const char *value,
                            struct tl_error **error);

/**
 * Says why there is no endpoint now, for `endpoint_text` of the error that follows. The dial has
 * failed then, whatever the callback returns, and is tried again.
 *
 * Threads: inside the endpoint callback alone. Blocks: never. Ownership: the reason is copied.
 * Errors: `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`.
 */
tl_status tl_endpoint_fail(struct tl_endpoint *endpoint,
                           const char *reason,
                           struct tl_error **error);

/**
 * Returns true if the client has been told to stop. A callback that makes calls of its own should
 * ask between them, because nothing can interrupt it.
 *
 * Threads: inside the endpoint callback alone. Blocks: never. Errors: true for an endpoint that is
 * none.
 */
bool tl_endpoint_is_stopping(const struct tl_endpoint *endpoint);

/**
 * Frees an error that a call handed out. NULL does nothing. An error inside an event or a report
 * is left alone, and so is one that was freed before, if it is among the last 1,024 of those; both
 * are logged. Pass the very pointer that the call has handed out: a copy of the struct must not be
 * freed.
 *
 * Threads: any, one at a time. Blocks: never. Ownership: `error` and its texts are gone
 * afterwards. Errors: none.
 */
void tl_error_free(struct tl_error *error);

/**
 * Frees events. Those of the last batch that had no room in the array are lost; others go to other
 * readers of the same client. NULL does nothing.
 *
 * Threads: any, while no other call has these events. Blocks: never. Ownership: `events` is gone
 * afterwards, with what the last batch points to and with the descriptor if these were the last of
 * a client that is gone; a second time is logged and does nothing. Errors: none.
 */
void tl_events_free(struct tl_events *events);

/**
 * Takes the next events into the program's array, waiting for the first of them for `timeout_ns`
 * at most: 0 or less does not wait, and `TL_FOREVER` waits without a limit. Sets `count` to the
 * number of events, at least 1 if the result is `TL_OK`.
 *
 * `array` has room for `capacity` events of `event_size` bytes, which is `sizeof(tl_event)`; they
 * need no initial value. A capacity of 64 to 256 is fast. The payloads of messages stay where the
 * reader has put them: no memory is allocated for a message. One call may return fewer events
 * than are at hand, even if the array has room for more. Only a result other than `TL_OK` says
 * that none are left.
 *
 * Threads: any, one at a time; a second one at the same time fails. Blocks: for `timeout_ns`. It
 * waits for events of the client, so with a client of callbacks there are none. Ownership: the
 * array is the program's; what the events point to is the library's and lives until the next call
 * with the same `events`. Errors: `TL_OK`; `TL_EMPTY` if no event came in time; `TL_ENDED` if none
 * will come any more; `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`.
 */
tl_status tl_events_next_batch(struct tl_events *events,
                               int64_t timeout_ns,
                               struct tl_event *array,
                               size_t event_size,
                               size_t capacity,
                               size_t *count,
                               struct tl_error **error);

/**
 * Returns a descriptor that is readable while events wait, and for good once the client has ended:
 * for `poll`, `epoll`, `kqueue` and asyncio. Poll it for reading, and call `tl_events_next_batch`
 * with a timeout of 0 until it returns something else than `TL_OK`, whatever the count is. With
 * edge-triggered notification (`EPOLLET`, `EV_CLEAR`) no further event is told of otherwise. Do
 * not read from it, and do not close it.
 *
 * Threads: any, one at a time. Blocks: never. Ownership: the descriptor is the library's. It is
 * the same for all events of a client, and closes when the client and the last of them are gone.
 * Errors: -1, with `TL_ERROR_IO` if the system has no descriptors to give.
 */
int32_t tl_events_fd(struct tl_events *events, struct tl_error **error);

/**
 * Has `call` take the log records of all clients of the process, from `level` on: a number of
 * `tl_log_level`. NULL ends that. Without it nothing is logged. Records show hosts and ports at
 * most: no path, query, header value or payload.
 *
 * Threads: any; `call` runs on any thread, perhaps once more after it was replaced. Blocks: never.
 * Ownership: `user_data` is the library's until `destroy` is called with it, once: when `call` was
 * replaced and runs no more, or at once if this fails. Errors: `TL_FAILED`, with
 * `TL_ERROR_INVALID_ARGUMENT` for a level that is none.
 */
tl_status tl_set_log_callback(int32_t level,
                              tl_log_fn call,
                              void *user_data,
                              tl_destroy_fn destroy,
                              struct tl_error **error);

/**
 * Creates options with the defaults of every setting. Pass `TL_ABI_VERSION`: a program that was
 * compiled with the header of another ABI is refused here, before anything can go wrong.
 *
 * Threads: any. Blocks: never. Ownership: `tl_options_free` frees the result. Errors: NULL, with
 * `TL_ERROR_ABI`.
 */
struct tl_options *tl_options_new(uint32_t abi_version, struct tl_error **error);

/**
 * Frees options. Clients that were started with them keep what they need. NULL does nothing.
 *
 * Threads: any, while no other call has these options. Blocks: never, unless a `destroy` does.
 * Ownership: `options` is gone afterwards; a second time is logged and does nothing. Errors: none.
 */
void tl_options_free(struct tl_options *options);

/**
 * Sets `key` to `value`, both texts that end with a zero byte. The README lists the keys and their
 * values, `tl_options_keys` the keys alone. The keys `url`, `header`, `subprotocol`, `app_ping`,
 * `app_ping_when_quiet`, `send_limit`, `tls_root`, `tls_root_file` and `tls_pin` add to what was
 * set, all others replace it.
 *
 * Values that a key cannot take are refused here; what can only be seen together, when a client is
 * started.
 *
 * Threads: any. Blocks: only to read a file, for keys that end in `_file`. Ownership: key and
 * value are copied. Errors: `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`. The text of an error
 * never holds the value.
 */
tl_status tl_options_set(struct tl_options *options,
                         const char *key,
                         const char *value,
                         struct tl_error **error);

/**
 * Returns the keys that `tl_options_set` knows, one below the other.
 *
 * Threads: any. Blocks: never. Ownership: the text is the library's and lives as long as the
 * process. Errors: none.
 */
const char *tl_options_keys(void);

/**
 * Has `call` name the endpoint of each dial anew, in the place of the key `url`: for servers whose
 * URL or headers come from a token call.
 *
 * Threads: any; `call` runs on the reader threads of the clients with these options, at the same
 * time if there are several. Blocks: never. Ownership: `user_data` is the library's until
 * `destroy` is called with it, once: after the options and all of these clients are gone, when it
 * is replaced, or at once if this fails. Errors: `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`.
 */
tl_status tl_options_set_endpoint_callback(struct tl_options *options,
                                           tl_endpoint_fn call,
                                           void *user_data,
                                           tl_destroy_fn destroy,
                                           struct tl_error **error);

/**
 * Has `call` run on each thread of a client before that does anything else, with the name of the
 * thread: `taut-reader`, `taut-heartbeat`, `taut-resolver` or `taut-roots`.
 *
 * Threads: any; `call` runs on the threads that it is told of, at the same time if there are
 * several. Blocks: never. Ownership: as for `tl_options_set_endpoint_callback`. Errors:
 * `TL_FAILED`, with `TL_ERROR_INVALID_ARGUMENT`.
 */
tl_status tl_options_set_thread_start_callback(struct tl_options *options,
                                               tl_thread_start_fn call,
                                               void *user_data,
                                               tl_destroy_fn destroy,
                                               struct tl_error **error);

/**
 * Frees a stop report. NULL does nothing.
 *
 * Threads: any, one at a time. Blocks: never. Ownership: `report`, its text and its rows are gone
 * afterwards; a second time is logged and does nothing. Errors: none.
 */
void tl_stop_report_free(struct tl_stop_report *report);

/**
 * Returns the ABI version of the library: programs that were compiled with another
 * `TL_ABI_VERSION` cannot use it. `tl_options_new` makes that comparison.
 *
 * Threads: any. Blocks: never. Errors: none.
 */
uint32_t tl_abi_version(void);

/**
 * Returns the version of the library, such as `"0.1.0"`, for logs.
 *
 * Threads: any. Blocks: never. Ownership: the text is the library's and lives as long as the
 * process. Errors: none.
 */
const char *tl_version(void);

/**
 * Returns the time of the clock that all times of this library but one are told by: nanoseconds of
 * `CLOCK_MONOTONIC`. The exception is `kernel_received_ns` of a message.
 *
 * Threads: any. Blocks: never. Errors: none.
 */
int64_t tl_now(void);

/**
 * Returns the value of a header of the server's response to the opening handshake, or NULL if it
 * has none. The first one counts, and no zero byte ends it: `length` is set to the number of its
 * bytes, and to 0 if there is none.
 *
 * Threads: that of the callback, or the one that pulled the event. Blocks: never. Ownership: the
 * value lives as long as `opened`; `length` may be NULL. Errors: NULL.
 */
const char *tl_opened_header(const struct tl_opened *opened, const char *name, size_t *length);

/**
 * Returns the value that the endpoint callback carried under `key` by `tl_endpoint_carry`, or NULL
 * if there is none. No zero byte ends it: `length` is set to the number of its bytes, and to 0 if
 * there is none.
 *
 * Threads: that of the callback, or the one that pulled the event. Blocks: never. Ownership: the
 * value lives as long as `opened`; `length` may be NULL. Errors: NULL.
 */
const char *tl_opened_carried(const struct tl_opened *opened, const char *key, size_t *length);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TAUTLINE_H */

/// tautline for C++17: classes that own the handles of tautline.h, and free them. Header-only.
///
/// A call that fails throws tautline::Error. Sends do not: they return what became of the message,
/// because a program has to decide on that. What each call means, blocks for and may be called from
/// is said at the function of tautline.h with the same name.
///
///     tautline::Options options;
///     options.set("url", "wss://stream.example.com/ws").set("ping_interval", "15s");
///     auto client = tautline::Client::start(options, std::make_shared<Bot>());
#ifndef TAUTLINE_HPP
#define TAUTLINE_HPP

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tautline.h"

namespace tautline {

/// A timeout that never expires. A negative one does not wait.
inline constexpr std::chrono::nanoseconds forever{TL_FOREVER};

/// The reason why a call failed, a dial failed, or a connection or client ended. what() is one line
/// for a log, and shows hosts and ports at most.
class Error : public std::runtime_error {
public:
    /// Copies an error of the library.
    explicit Error(const tl_error &error)
        : std::runtime_error(error.text), kind_(error.kind), status_(error.status),
          close_code_(error.close_code), is_retryable_(error.is_retryable),
          is_verification_failure_(error.is_verification_failure), kind_name_(error.kind_name),
          timeout_(error.timeout ? error.timeout : ""),
          close_reason_(error.close_reason ? error.close_reason : ""),
          endpoint_text_(error.endpoint_text ? error.endpoint_text : ""),
          body_(error.body ? std::string(error.body, error.body_length) : std::string()),
          retry_after_(error.retry_after_ns), retry_in_(error.retry_in_ns) {}

    tl_error_kind kind() const noexcept { return kind_; }
    /// The kind as a label for metrics: "pong_timeout", for example.
    const char *kind_name() const noexcept { return kind_name_; }
    /// The HTTP status of a refusal, otherwise 0.
    std::uint16_t status() const noexcept { return status_; }
    /// The close code if the kind is TL_ERROR_CLOSED, otherwise 0.
    std::uint16_t close_code() const noexcept { return close_code_; }
    bool is_retryable() const noexcept { return is_retryable_; }
    bool is_verification_failure() const noexcept { return is_verification_failure_; }
    /// The setting or call whose time ran out, otherwise empty.
    const std::string &timeout() const noexcept { return timeout_; }
    /// The close reason that belongs to close_code(). The server chose it.
    const std::string &close_reason() const noexcept { return close_reason_; }
    /// The reason of an endpoint callback. It may be a secret.
    const std::string &endpoint_text() const noexcept { return endpoint_text_; }
    /// The first 4 KiB of the body of a refusal. The server chose it.
    const std::string &body() const noexcept { return body_; }
    /// The delay of a Retry-After, or negative if there was none.
    std::chrono::nanoseconds retry_after() const noexcept { return retry_after_; }
    /// The time after which a rate limit has room, or negative if that is not the reason.
    std::chrono::nanoseconds retry_in() const noexcept { return retry_in_; }

private:
    tl_error_kind kind_;
    std::uint16_t status_;
    std::uint16_t close_code_;
    bool is_retryable_;
    bool is_verification_failure_;
    const char *kind_name_;
    std::string timeout_;
    std::string close_reason_;
    std::string endpoint_text_;
    std::string body_;
    std::chrono::nanoseconds retry_after_;
    std::chrono::nanoseconds retry_in_;
};

namespace detail {

/// The place for the error of one call.
class Out {
public:
    Out() = default;
    Out(const Out &) = delete;
    Out &operator=(const Out &) = delete;
    ~Out() { tl_error_free(error_); }

    tl_error **operator&() noexcept { return &error_; }
    /// Throws the error, if there is one.
    void check() const {
        if (error_) {
            throw Error(*error_);
        }
    }
    std::optional<Error> copy() const {
        return error_ ? std::optional<Error>(Error(*error_)) : std::nullopt;
    }

private:
    tl_error *error_ = nullptr;
};

template <auto Free> struct Freed {
    template <typename T> void operator()(T *handle) const noexcept { Free(handle); }
};
template <typename T, auto Free> using Handle = std::unique_ptr<T, Freed<Free>>;

inline void check_given(bool is_given, const char *text) {
    if (!is_given) {
        throw std::invalid_argument(text);
    }
}

/// Frees what a callback was given.
template <typename T> void destroy(void *user_data) noexcept {
    delete static_cast<T *>(user_data);
}

} // namespace detail

/// What became of a message: true if the kernel took all of it.
struct Sent {
    tl_status status = TL_UNKNOWN;
    /// If it was sent.
    tl_receipt receipt{};
    /// If it was not.
    std::optional<Error> error;

    explicit operator bool() const noexcept { return status == TL_OK; }
    /// No byte of it was taken: sending it again is safe.
    bool is_not_sent() const noexcept { return status == TL_NOT_SENT; }
    /// A part of it was taken: ask the server.
    bool is_unknown() const noexcept { return status == TL_UNKNOWN; }
};

/// A data message, for as long as the callback runs or until the next batch.
class Message {
public:
    explicit Message(const tl_message &message) noexcept : message_(&message) {}

    bool is_text() const noexcept { return message_->is_text; }
    /// The payload of a text or binary message.
    std::string_view payload() const noexcept {
        return {message_->data, message_->length};
    }
    std::uint64_t epoch() const noexcept { return message_->epoch; }
    std::int64_t received_ns() const noexcept { return message_->received_ns; }
    const tl_message &raw() const noexcept { return *message_; }

private:
    const tl_message *message_;
};

/// Returns the value of a header of the server's response, for as long as the event lives.
inline std::optional<std::string_view> header(const tl_opened &opened, const char *name) {
    std::size_t length = 0;
    const char *value = tl_opened_header(&opened, name, &length);
    return value ? std::optional<std::string_view>({value, length}) : std::nullopt;
}

/// Returns the value that the endpoint carried under a key, for as long as the event lives.
inline std::optional<std::string_view> carried(const tl_opened &opened, const char *key) {
    std::size_t length = 0;
    const char *value = tl_opened_carried(&opened, key, &length);
    return value ? std::optional<std::string_view>({value, length}) : std::nullopt;
}

/// The open connection, for as long as a callback runs.
class Connection {
public:
    explicit Connection(tl_connection *connection) noexcept : connection_(connection) {}

    Sent send_text(std::string_view text) {
        Sent sent;
        detail::Out error;
        sent.status = tl_connection_send_text(connection_, text.data(), text.size(), &sent.receipt,
                                              &error);
        sent.error = error.copy();
        return sent;
    }
    Sent send_binary(const void *data, std::size_t length) {
        Sent sent;
        detail::Out error;
        sent.status =
            tl_connection_send_binary(connection_, data, length,
                                      &sent.receipt, &error);
        sent.error = error.copy();
        return sent;
    }
    /// Sets the time of the next `woken`, as tl_now() tells it; a negative one takes it back.
    void wake_at(std::int64_t at_ns) {
        detail::Out error;
        tl_connection_wake_at(connection_, at_ns, &error);
        error.check();
    }
    void mark_stable() {
        detail::Out error;
        tl_connection_mark_stable(connection_, &error);
        error.check();
    }
    void reconnect(std::uint16_t code = 0, const char *reason = nullptr) {
        detail::Out error;
        tl_connection_reconnect(connection_, code, reason, &error);
        error.check();
    }
    /// Tells the client to stop, and returns at once.
    void stop() {
        detail::Out error;
        tl_connection_stop(connection_, &error);
        error.check();
    }
    tl_connection *raw() noexcept { return connection_; }

private:
    tl_connection *connection_;
};

/// The receiver of a client's events. Its functions run on the client's reader thread, one at a
/// time. An exception that leaves one of them ends the program, as one that leaves a thread does.
class Handler {
public:
    virtual ~Handler() = default;
    virtual void opened(Connection, const tl_opened &) {}
    virtual void message(Connection, Message) = 0;
    virtual void batch_end(Connection) {}
    /// The connection is empty while none is open. Returns the time of the next call, or 0.
    virtual std::int64_t woken(std::optional<Connection>, std::int64_t /*due_ns*/) { return 0; }
    virtual void disconnected(const tl_disconnect &) {}
    virtual void dial_failed(const tl_dial_failure &) {}
    virtual void stopped(const tl_stopped &) {}
};

/// The endpoint of the next dial, for as long as its callback runs.
class Endpoint {
public:
    explicit Endpoint(tl_endpoint *endpoint) noexcept : endpoint_(endpoint) {}

    Endpoint &url(const std::string &url) {
        detail::Out error;
        tl_endpoint_set_url(endpoint_, url.c_str(), &error);
        error.check();
        return *this;
    }
    Endpoint &header(const std::string &name, const std::string &value) {
        detail::Out error;
        tl_endpoint_add_header(endpoint_, name.c_str(), value.c_str(), &error);
        error.check();
        return *this;
    }
    Endpoint &subprotocol(const std::string &name) {
        detail::Out error;
        tl_endpoint_add_subprotocol(endpoint_, name.c_str(), &error);
        error.check();
        return *this;
    }
    Endpoint &carry(const std::string &key, const std::string &value) {
        detail::Out error;
        tl_endpoint_carry(endpoint_, key.c_str(), value.c_str(), &error);
        error.check();
        return *this;
    }
    bool is_stopping() const noexcept { return tl_endpoint_is_stopping(endpoint_); }

private:
    tl_endpoint *endpoint_;
};

/// The settings of clients.
class Options {
public:
    Options() {
        detail::Out error;
        options_.reset(tl_options_new(TL_ABI_VERSION, &error));
        error.check();
    }

    Options &set(const char *key, const std::string &value) {
        detail::Out error;
        tl_options_set(options_.get(), key, value.c_str(), &error);
        error.check();
        return *this;
    }

    /// Has `name` name the endpoint of each dial. What it throws fails the dial, which is tried
    /// again. An empty function is an std::invalid_argument.
    Options &endpoint(std::function<void(Endpoint &, const tl_dial &)> name) {
        using Name = std::function<void(Endpoint &, const tl_dial &)>;
        detail::check_given(static_cast<bool>(name), "the endpoint callback is empty");
        auto call = [](void *user_data, tl_endpoint *asked,
                       const tl_dial *dial) noexcept -> std::int32_t {
            try {
                Endpoint endpoint(asked);
                (*static_cast<Name *>(user_data))(endpoint, *dial);
                return 0;
            } catch (const std::exception &exception) {
                tl_endpoint_fail(asked, exception.what(), nullptr);
            } catch (...) {
                tl_endpoint_fail(asked, "an exception that is no std::exception", nullptr);
            }
            return 1;
        };
        detail::Out error;
        tl_options_set_endpoint_callback(options_.get(), call, new Name(std::move(name)),
                                         detail::destroy<Name>, &error);
        error.check();
        return *this;
    }

    /// Has `call` run on each thread of a client, with its name. An empty function is an
    /// std::invalid_argument.
    Options &thread_start(std::function<void(const char *)> call) {
        using Call = std::function<void(const char *)>;
        detail::check_given(static_cast<bool>(call), "the thread callback is empty");
        auto start = [](void *user_data, const char *name) noexcept {
            (*static_cast<Call *>(user_data))(name);
        };
        detail::Out error;
        tl_options_set_thread_start_callback(options_.get(), start, new Call(std::move(call)),
                                             detail::destroy<Call>, &error);
        error.check();
        return *this;
    }

    const tl_options *raw() const noexcept { return options_.get(); }

private:
    detail::Handle<tl_options, tl_options_free> options_;
};

/// The outcome of a stop.
class StopReport {
public:
    explicit StopReport(tl_stop_report *report) noexcept : report_(report) {}

    bool is_clean() const noexcept { return report_->is_clean; }
    std::chrono::nanoseconds took() const noexcept {
        return std::chrono::nanoseconds(report_->took_ns);
    }
    /// One line for a log.
    const char *text() const noexcept { return report_->text; }
    const tl_stop_report &raw() const noexcept { return *report_; }

private:
    detail::Handle<tl_stop_report, tl_stop_report_free> report_;
};

/// The events of a client that are pulled, in batches. One thread may use it at a time.
class Events {
public:
    explicit Events(tl_events *events, std::size_t capacity = 256)
        : events_(events), array_(capacity) {}
    /// `other` has no batch afterwards, and no events.
    Events(Events &&other) noexcept
        : events_(std::move(other.events_)), array_(std::move(other.array_)),
          count_(std::exchange(other.count_, 0)), has_ended_(other.has_ended_) {
        other.array_.clear();
    }
    Events &operator=(Events &&other) noexcept {
        if (this != &other) {
            events_ = std::move(other.events_);
            array_ = std::move(other.array_);
            count_ = std::exchange(other.count_, 0);
            has_ended_ = other.has_ended_;
            other.array_.clear();
        }
        return *this;
    }

    /// Takes the next events, waiting for the first of them. False if none came in time, and after
    /// the last; has_ended() tells these apart. Take batches until it returns false before waiting
    /// for fd().
    bool next_batch(std::chrono::nanoseconds timeout = forever) {
        detail::Out error;
        const tl_status status =
            tl_events_next_batch(events_.get(), timeout.count(), array_.data(), sizeof(tl_event),
                                 array_.size(), &count_, &error);
        error.check();
        has_ended_ = status == TL_ENDED;
        return status == TL_OK;
    }
    /// Nothing will come any more.
    bool has_ended() const noexcept { return has_ended_; }
    /// The events of the batch, until the next one is taken.
    const tl_event *begin() const noexcept { return array_.data(); }
    const tl_event *end() const noexcept { return array_.data() + count_; }

    /// A descriptor that is readable while events wait.
    int fd() const {
        detail::Out error;
        const int fd = tl_events_fd(events_.get(), &error);
        error.check();
        return fd;
    }

private:
    detail::Handle<tl_events, tl_events_free> events_;
    std::vector<tl_event> array_;
    std::size_t count_ = 0;
    bool has_ended_ = false;
};

/// A client. Its destructor stops it, and waits for its threads. Calls inside callbacks may be under
/// way meanwhile.
class Client {
public:
    /// Returns a client to pull from at once. It dials in the background.
    static Client start(const Options &options) {
        detail::Out error;
        return Client(tl_client_start(options.raw(), &error), error);
    }
    /// Makes one dial, and returns a client to pull from once the connection is open.
    static Client connect(const Options &options) {
        detail::Out error;
        return Client(tl_client_connect(options.raw(), &error), error);
    }
    /// Returns a client that passes its events to `handler` at once. It dials in the background. A
    /// null handler is an std::invalid_argument.
    static Client start(const Options &options, std::shared_ptr<Handler> handler) {
        const tl_callbacks callbacks = callbacks_of(std::move(handler));
        detail::Out error;
        return Client(tl_client_start_with(options.raw(), &callbacks, &error), error);
    }
    /// Makes one dial, and returns a client that passes its events to `handler` once the connection
    /// is open. A null handler is an std::invalid_argument.
    static Client connect(const Options &options, std::shared_ptr<Handler> handler) {
        const tl_callbacks callbacks = callbacks_of(std::move(handler));
        detail::Out error;
        return Client(tl_client_connect_with(options.raw(), &callbacks, &error), error);
    }

    Sent send_text(std::string_view text, std::uint64_t epoch = 0) const {
        Sent sent;
        detail::Out error;
        sent.status = tl_client_send_text(client_.get(), text.data(), text.size(), epoch,
                                          &sent.receipt, &error);
        sent.error = error.copy();
        return sent;
    }
    Sent send_binary(const void *data, std::size_t length, std::uint64_t epoch = 0) const {
        Sent sent;
        detail::Out error;
        sent.status = tl_client_send_binary(client_.get(), data,
                                            length, epoch, &sent.receipt, &error);
        sent.error = error.copy();
        return sent;
    }
    /// Sends several messages; `count`, if there is one, is set to the number that went whole.
    Sent send_batch(const std::vector<tl_payload> &messages, std::uint64_t epoch = 0,
                    std::size_t *count = nullptr) const {
        Sent sent;
        detail::Out error;
        sent.status = tl_client_send_batch(client_.get(), messages.data(), messages.size(), epoch,
                                           count, &sent.receipt, &error);
        sent.error = error.copy();
        return sent;
    }
    Sent ping() const {
        Sent sent;
        detail::Out error;
        sent.status = tl_client_ping(client_.get(), &error);
        sent.error = error.copy();
        return sent;
    }
    Sent reconnect(std::uint16_t code = 0, const char *reason = nullptr) const {
        Sent sent;
        detail::Out error;
        sent.status = tl_client_reconnect(client_.get(), code, reason, &error);
        sent.error = error.copy();
        return sent;
    }
    /// Has the handler's `woken` called. Needs the setting `wakeups`.
    void wake() const {
        detail::Out error;
        tl_client_wake(client_.get(), &error);
        error.check();
    }
    void wake_at(std::int64_t at_ns) const {
        detail::Out error;
        tl_client_wake_at(client_.get(), at_ns, &error);
        error.check();
    }

    Events events(std::size_t capacity = 256) const {
        detail::Out error;
        tl_events *events = tl_client_events(client_.get(), &error);
        error.check();
        return Events(events, capacity);
    }
    tl_state state() const noexcept { return tl_client_state(client_.get()); }
    tl_stats stats() const {
        tl_stats stats{};
        stats.size = sizeof stats;
        detail::Out error;
        tl_client_stats(client_.get(), &stats, &error);
        error.check();
        return stats;
    }
    /// Waits until a connection is open, and returns its epoch.
    std::uint64_t wait_open(std::chrono::nanoseconds timeout) const {
        std::uint64_t epoch = 0;
        detail::Out error;
        tl_client_wait_open(client_.get(), timeout.count(), &epoch, &error);
        error.check();
        return epoch;
    }
    /// Waits until the client has ended, and returns why; empty if it has not by then.
    std::optional<Error> wait_closed(std::chrono::nanoseconds timeout) const {
        detail::Out reason;
        const tl_status status = tl_client_wait_closed(client_.get(), timeout.count(), &reason);
        if (status == TL_FAILED) {
            reason.check();
        }
        return reason.copy();
    }

    StopReport stop(std::chrono::nanoseconds timeout) const {
        tl_stop_report *report = nullptr;
        detail::Out error;
        tl_client_stop(client_.get(), timeout.count(), &report, &error);
        error.check();
        return StopReport(report);
    }
    StopReport stop(std::chrono::nanoseconds timeout, std::uint16_t code,
                    const char *reason = nullptr) const {
        tl_stop_report *report = nullptr;
        detail::Out error;
        tl_client_stop_with(client_.get(), code, reason, timeout.count(), &report, &error);
        error.check();
        return StopReport(report);
    }
    /// Tells the client to stop, and returns at once.
    void request_stop() const {
        detail::Out error;
        tl_client_request_stop(client_.get(), &error);
        error.check();
    }
    const tl_client *raw() const noexcept { return client_.get(); }

private:
    Client(tl_client *client, const detail::Out &error) : client_(client) { error.check(); }

    static tl_callbacks callbacks_of(std::shared_ptr<Handler> handler) {
        using Kept = std::shared_ptr<Handler>;
        detail::check_given(static_cast<bool>(handler), "the handler is null");
        static constexpr auto of = [](void *user_data) noexcept -> Handler & {
            return **static_cast<Kept *>(user_data);
        };
        tl_callbacks callbacks{};
        callbacks.size = sizeof callbacks;
        callbacks.user_data = new Kept(std::move(handler));
        callbacks.destroy = detail::destroy<Kept>;
        callbacks.opened = [](void *user_data, tl_connection *connection,
                              const tl_opened *opened) noexcept {
            of(user_data).opened(Connection(connection), *opened);
        };
        callbacks.message = [](void *user_data, tl_connection *connection,
                               const tl_message *message) noexcept {
            of(user_data).message(Connection(connection), Message(*message));
        };
        callbacks.batch_end = [](void *user_data, tl_connection *connection) noexcept {
            of(user_data).batch_end(Connection(connection));
        };
        callbacks.woken = [](void *user_data, tl_connection *connection,
                             std::int64_t due_ns) noexcept -> std::int64_t {
            const auto open = connection ? std::optional<Connection>(Connection(connection))
                                         : std::nullopt;
            return of(user_data).woken(open, due_ns);
        };
        callbacks.disconnected = [](void *user_data, const tl_disconnect *disconnect) noexcept {
            of(user_data).disconnected(*disconnect);
        };
        callbacks.dial_failed = [](void *user_data, const tl_dial_failure *failure) noexcept {
            of(user_data).dial_failed(*failure);
        };
        callbacks.stopped = [](void *user_data, const tl_stopped *stopped) noexcept {
            of(user_data).stopped(*stopped);
        };
        return callbacks;
    }

    detail::Handle<tl_client, tl_client_free> client_;
};

} // namespace tautline

#endif

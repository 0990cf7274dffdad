// The C++17 wrapper against the testing server: what it throws, what it returns, and that it frees
// what it owns.
#include "common.h"

#include <chrono>
#include <future>
#include <string>
#include <tautline.hpp>
#include <type_traits>
#include <utility>

using namespace std::chrono_literals;

namespace {

static_assert(!std::is_copy_constructible_v<tautline::Client>);
static_assert(std::is_nothrow_move_constructible_v<tautline::Client>);

template <typename Call> tautline::Error thrown(Call call) {
    try {
        call();
    } catch (const tautline::Error &error) {
        return error;
    }
    std::fprintf(stderr, "nothing was thrown\n");
    std::exit(1);
}

template <typename Call> void is_invalid(Call call) {
    try {
        call();
    } catch (const std::invalid_argument &) {
        return;
    }
    std::fprintf(stderr, "no std::invalid_argument was thrown\n");
    std::exit(1);
}

void nothing_in_the_place_of_something_is_refused() {
    tautline::Options options;
    options.set("url", url_of("echo"));
    const std::shared_ptr<tautline::Handler> none;
    is_invalid([&] { tautline::Client::start(options, none); });
    is_invalid([&] { tautline::Client::connect(options, none); });
    is_invalid([&] { options.thread_start(nullptr); });
    is_invalid([&] { options.endpoint(nullptr); });
}

void errors_are_thrown() {
    tautline::Options options;
    CHECK(thrown([&] { options.set("nmae", "x"); }).kind() == TL_ERROR_INVALID_ARGUMENT);
    CHECK(thrown([&] { tautline::Client::start(options); }).kind() == TL_ERROR_CONFIG);
    options.set("url", url_of("busy"));
    const auto refused = thrown([&] { tautline::Client::connect(options); });
    CHECK(refused.kind() == TL_ERROR_HTTP && refused.status() == 503 && refused.is_retryable());
    CHECK(refused.retry_after() == 7s && refused.timeout().empty());
    CHECK(std::string(refused.kind_name()) == "http" && refused.body().empty());
    tautline::Options others;
    others.set("url", url_of("forbidden"));
    CHECK(thrown([&] { tautline::Client::connect(others); }).body() == "banned");
}

void errors_keep_what_they_say() {
    tautline::Options options;
    options.set("url", url_of("echo"));
    const auto client = tautline::Client::connect(options);
    auto events = client.events(1);
    CHECK(client.reconnect(4001, "a gap"));
    do {
        CHECK(events.next_batch(10s));
    } while (events.begin()->kind != TL_EVENT_DISCONNECTED);
    const tautline::Error ended(*events.begin()->detail.disconnect->error);
    CHECK(events.next_batch(10s));
    CHECK(ended.close_code() == 4001 && ended.close_reason() == "a gap");
}

void events_are_pulled() {
    tautline::Options options;
    options.set("url", url_of("burst?n=1000"));
    const auto client = tautline::Client::connect(options);
    auto events = client.events(64);
    CHECK(events.fd() >= 0 && client.state() == TL_STATE_OPEN && client.wait_open(10s) == 1);
    std::size_t messages = 0;
    while (messages < 1000) {
        CHECK(events.next_batch(10s));
        for (const tl_event &event : events) {
            messages += event.kind == TL_EVENT_MESSAGE;
        }
    }
    // What was moved from has no batch.
    auto moved = std::move(events);
    CHECK(events.begin() == events.end() && moved.begin() != moved.end());
    CHECK(thrown([&] { events.next_batch(0s); }).kind() == TL_ERROR_INVALID_ARGUMENT);
    events = std::move(moved);
    CHECK(moved.begin() == moved.end() && events.begin() != events.end());
    const auto sent = client.send_text("x", 1);
    CHECK(sent && sent.receipt.sequence == 1 && !sent.error);
    const auto refused = client.send_text("x", 9);
    CHECK(!refused && refused.is_not_sent() && refused.error->kind() == TL_ERROR_CLOSED);
    CHECK(client.send_binary("x", 1) && client.ping());
    CHECK(client.send_batch({tl_payload{nullptr, 0, 1}}).receipt.sequence == 3);
    CHECK(client.stats().messages_sent == 3);
    CHECK(!client.wait_closed(0s));
    const auto report = client.stop(10s, 1001, "over");
    CHECK(report.is_clean() && report.raw().thread_count == 2);
    CHECK(client.wait_closed(10s)->kind() == TL_ERROR_STOPPED);
    while (events.next_batch()) {
    }
    CHECK(events.has_ended());
}

class Bot : public tautline::Handler {
public:
    explicit Bot(bool *is_gone) : is_gone_(is_gone) {}
    ~Bot() override { *is_gone_ = true; }

    void opened(tautline::Connection connection, const tl_opened &opened) override {
        CHECK(tautline::header(opened, "X-Server") == "test");
        CHECK(!tautline::header(opened, "X-None"));
        CHECK(tautline::carried(opened, "token") == "secret");
        connection.mark_stable();
        connection.wake_at(tl_now());
    }
    void message(tautline::Connection connection, tautline::Message message) override {
        CHECK(message.is_text() && message.epoch() == 1 && message.received_ns() > 0);
        if (message.payload() == "from woken") {
            CHECK(thrown([&] { connection.reconnect(1005); }).kind() == TL_ERROR_CONFIG);
            done.set_value();
        }
    }
    std::int64_t woken(std::optional<tautline::Connection> connection, std::int64_t) override {
        if (connection && !std::exchange(has_sent_, true)) {
            CHECK(connection->send_text("from woken"));
        }
        return 0;
    }

    void dial_failed(const tl_dial_failure &failure) override {
        CHECK(tautline::Error(*failure.error).endpoint_text() == "no token");
    }

    std::promise<void> done;

private:
    bool *is_gone_;
    bool has_sent_ = false;
};

void a_handler_is_called() {
    bool is_gone = false;
    int attempts = 0;
    tautline::Options options;
    options.set("wakeups", "on").set("retry_delay_min", "1ms");
    options.endpoint([&](tautline::Endpoint &endpoint, const tl_dial &dial) {
        CHECK(dial.attempt >= 1 && !endpoint.is_stopping());
        if (++attempts == 1) {
            throw std::runtime_error("no token");
        }
        endpoint.url(url_of("inspect")).header("X-Token", "t").carry("token", "secret");
    });
    {
        auto bot = std::make_shared<Bot>(&is_gone);
        auto done = bot->done.get_future();
        auto client = tautline::Client::start(options, std::move(bot));
        CHECK(done.wait_for(10s) == std::future_status::ready);
        CHECK(thrown([&] { client.events(); }).kind() == TL_ERROR_INVALID_ARGUMENT);
        client.wake();
        client.wake_at(-1);
        const auto moved = std::move(client);
        CHECK(moved.state() == TL_STATE_OPEN && !is_gone);
    }
    CHECK(is_gone && attempts == 2);
}

} // namespace

int main() {
    const std::size_t threads = threads_now(), descriptors = descriptors_now();
    nothing_in_the_place_of_something_is_refused();
    errors_are_thrown();
    errors_keep_what_they_say();
    events_are_pulled();
    a_handler_is_called();
    check_nothing_left(threads, descriptors);
}

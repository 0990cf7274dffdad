// A market feed in C++17, by a handler: subscribes after every opening, follows the best prices, and
// stops when the server says that the day is over.
//
//   c++ -std=c++17 market_feed.cpp $(pkg-config --cflags --libs tautline) -pthread
//   ./a.out ws://127.0.0.1:9000/feed
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <tautline.hpp>

using namespace std::chrono_literals;

namespace {

// Its functions run on one thread, so it needs no lock.
class Feed : public tautline::Handler {
public:
    void opened(tautline::Connection connection, const tl_opened &opened) override {
        openings++;
        std::cout << "open: epoch " << opened.epoch << " at " << opened.peer << '\n';
        // Each connection needs its own subscription.
        if (const auto sent = connection.send_text("subscribe BTCUSDT"); !sent) {
            std::cerr << "not subscribed: " << sent.error->what() << '\n';
        }
    }

    void message(tautline::Connection connection, tautline::Message message) override {
        if (message.payload() == "end") {
            connection.stop();
            return;
        }
        quotes++;
        latest = message.payload();
    }

    void batch_end(tautline::Connection) override { batches++; }

    void disconnected(const tl_disconnect &disconnect) override {
        ends++;
        std::cout << disconnect.text << '\n';
    }

    void dial_failed(const tl_dial_failure &failure) override { std::cout << failure.text << '\n'; }

    unsigned long quotes = 0;
    unsigned long batches = 0;
    unsigned openings = 0;
    unsigned ends = 0;
    std::string latest;
};

} // namespace

int main(int argc, char **argv) try {
    tautline::Options options;
    options.set("url", argc > 1 ? argv[1] : "")
        .set("name", "feed")
        .set("ping_interval", "15s")
        .set("retry_delay_min", "10ms");
    const auto feed = std::make_shared<Feed>();
    const auto client = tautline::Client::start(options, feed);
    const auto reason = client.wait_closed(60s);
    // Also if it has ended already: then all of its threads are gone, and `feed` is ours again.
    const auto report = client.stop(5s);
    std::cout << "stopped " << report.text() << '\n'
              << feed->quotes << " quotes in " << feed->batches << " batches, " << feed->openings
              << " openings, " << feed->ends << " ends; the last: " << feed->latest << '\n';
    const bool is_good = reason && reason->kind() == TL_ERROR_STOPPED && report.is_clean() &&
                         feed->quotes > 0 && feed->openings == feed->ends &&
                         feed.use_count() == 1;
    return is_good ? EXIT_SUCCESS : EXIT_FAILURE;
} catch (const tautline::Error &error) {
    std::cerr << error.kind_name() << ": " << error.what() << '\n';
    return EXIT_FAILURE;
}

// Boost.Beast as a client of `compressed serve`: `beast URL` prints one line of JSON, as the
// driver's `firehose` does. Synchronous, with permessage-deflate as Beast offers it by default.
//
// g++ -std=c++17 -O3 -DNDEBUG -pthread beast.cpp -o beast
#include <boost/asio/connect.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/websocket.hpp>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <time.h>

namespace net = boost::asio;
namespace beast = boost::beast;
namespace websocket = beast::websocket;

static double seconds(clockid_t clock) {
    timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

int main(int count, char** arguments) {
    std::string url = count == 2 ? arguments[1] : "";
    if (url.rfind("ws://", 0) != 0) {
        fprintf(stderr, "usage: beast ws://HOST:PORT/\n");
        return 2;
    }
    std::string address = url.substr(5, url.find('/', 5) - 5);
    size_t colon = address.find(':');
    net::io_context context;
    net::ip::tcp::resolver resolver(context);
    websocket::stream<net::ip::tcp::socket> stream(context);
    net::connect(stream.next_layer(),
                 resolver.resolve(address.substr(0, colon), address.substr(colon + 1)));
    stream.next_layer().set_option(net::ip::tcp::no_delay(true));
    websocket::permessage_deflate deflate;
    deflate.client_enable = true;
    stream.set_option(deflate);
    stream.handshake(address, "/");

    uint64_t messages = 0, bytes = 0;
    double began = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    beast::flat_buffer buffer;
    for (;;) {
        buffer.clear();
        stream.read(buffer);
        auto message = buffer.data();
        if (message.size() == 4 && memcmp(message.data(), "done", 4) == 0) break;
        messages++;
        bytes += message.size();
    }
    double took = seconds(CLOCK_MONOTONIC) - began;
    cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    printf("{\"peer\":\"beast\",\"mode\":\"firehose\",\"msgs\":%lu,\"bytes\":%lu,\"secs\":%.6f,"
           "\"msgs_per_s\":%.0f,\"cpu_s\":%.4f}\n",
           messages, bytes, took, messages / took, cpu);
    beast::error_code error;
    stream.close(websocket::close_code::normal, error);
}

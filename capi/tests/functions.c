/* The functions of the interface against the testing server: both deliveries, sends, receipts,
 * wake-ups, reconnects, endpoint callbacks, refusals, records, TLS. */
#include "common.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#ifdef __linux__
#include <sys/epoll.h>
#include <unistd.h>
#endif

/* ---- Pulling ---- */

static tl_event *next(tl_events *events) {
    static tl_event event;
    tl_error *error = NULL;
    size_t count = 0;
    CHECK(tl_events_next_batch(events, SOON, &event, sizeof event, 1, &count, &error) == TL_OK);
    CHECK(count == 1 && event.size == sizeof event);
    return &event;
}

static tl_event *next_of(tl_events *events, tl_event_kind kind) {
    tl_event *event;
    do {
        event = next(events);
    } while (event->kind != kind);
    return event;
}

static int is_text(const tl_event *event, const char *text) {
    return event->kind == TL_EVENT_MESSAGE && event->message.is_text &&
           event->message.length == strlen(text) &&
           memcmp(event->message.data, text, event->message.length) == 0;
}

/* All messages come once and in order, whatever the capacity of the array is. */
static void batches_of_any_capacity(void) {
    static const size_t capacities[] = {1, 2, 7, 64, 5000};
    size_t index;
    for (index = 0; index < sizeof capacities / sizeof *capacities; index++) {
        tl_options *options = options_of("burst?n=3000");
        tl_error *error = NULL;
        tl_client *client = tl_client_connect(options, &error);
        tl_events *events = tl_client_events(client, &error);
        size_t capacity = capacities[index], messages = 0, number;
        tl_event *array = calloc(capacity, sizeof *array);
        OK(error);
        while (messages < 3000) {
            size_t count;
            CHECK(tl_events_next_batch(events, SOON, array, sizeof *array, capacity, &count,
                                       &error) == TL_OK);
            CHECK(count >= 1 && count <= capacity);
            for (number = 0; number < count; number++) {
                char text[16];
                if (array[number].kind != TL_EVENT_MESSAGE) {
                    CHECK(array[number].kind == TL_EVENT_OPENED && messages == 0);
                    continue;
                }
                snprintf(text, sizeof text, "%08zu", messages);
                CHECK(is_text(&array[number], text));
                CHECK(array[number].message.epoch == 1);
                CHECK(array[number].message.received_ns <= tl_now());
                CHECK(tl_now() - array[number].message.received_ns < SOON);
                messages++;
            }
        }
        free(array);
        CHECK(tl_client_stop(client, SOON, NULL, NULL) == TL_OK);
        tl_client_free(client);
        /* What has arrived can be read when the client has gone. */
        CHECK(next_of(events, TL_EVENT_STOPPED)->detail.stopped->error->kind ==
              TL_ERROR_STOPPED);
        tl_events_free(events);
        tl_options_free(options);
    }
}

static void wait_readable(int fd) {
    struct pollfd poll_fd;
    poll_fd.fd = fd;
    poll_fd.events = POLLIN;
    CHECK(poll(&poll_fd, 1, 10000) == 1);
}

/* A loop that sleeps in poll(2) alone, with an array that is too small for what waits. */
static void events_by_a_descriptor(void) {
    tl_options *options = options_of("burst?n=100");
    tl_error *error = NULL;
    tl_client *client = tl_client_start(options, &error);
    tl_events *events = tl_client_events(client, &error);
    tl_event array[8];
    size_t messages = 0;
    int is_open = 1;
    int fd = tl_events_fd(events, &error);
    OK(error);
    CHECK(fd >= 0 && fd == tl_events_fd(events, NULL));
    while (is_open) {
        tl_status status;
        wait_readable(fd);
        do {
            size_t count, number;
            status = tl_events_next_batch(events, 0, array, sizeof *array, 8, &count, &error);
            CHECK(status != TL_FAILED);
            is_open = status != TL_ENDED;
            for (number = 0; number < count; number++) {
                messages += array[number].kind == TL_EVENT_MESSAGE;
            }
            if (messages == 100) {
                tl_client_request_stop(client, NULL);
            }
        } while (status == TL_OK);
    }
    CHECK(messages == 100);
    tl_events_free(events);
    tl_client_free(client);
    tl_options_free(options);
}

#ifdef __linux__
/* An edge-triggered loop under a flood: the array has room for more than one internal batch, and a
 * queue that is full stops the reader until the loop goes on. */
static void events_by_an_edge(void) {
    tl_options *options = options_of("flood");
    tl_error *error = NULL;
    tl_client *client;
    tl_events *events;
    static tl_event array[256];
    struct epoll_event edge;
    int wakes, epoll = epoll_create1(0);
    CHECK(epoll >= 0);
    set(options, "when_full", "block");
    set(options, "queue_messages", "2000");
    client = tl_client_start(options, &error);
    OK(error);
    events = tl_client_events(client, &error);
    memset(&edge, 0, sizeof edge);
    edge.events = EPOLLIN | EPOLLET;
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, tl_events_fd(events, &error), &edge) == 0);
    OK(error);
    for (wakes = 0; wakes < 50; wakes++) {
        tl_status status;
        size_t count;
        CHECK(epoll_wait(epoll, &edge, 1, 10000) == 1);
        do {
            status = tl_events_next_batch(events, 0, array, sizeof *array, 256, &count, &error);
            OK(error);
        } while (status == TL_OK);
        CHECK(status == TL_EMPTY);
    }
    close(epoll);
    tl_client_free(client);
    tl_events_free(events);
    tl_options_free(options);
}
#endif

/* A timeout that was computed and is just past, and the longest ones. */
static void timeouts_at_the_ends(void) {
    tl_options *options = options_of("echo");
    tl_error *error = NULL;
    tl_client *client = tl_client_connect(options, &error);
    tl_events *events = tl_client_events(client, &error);
    tl_event event;
    size_t count = 0;
    OK(error);
    CHECK(next(events)->kind == TL_EVENT_OPENED);
    CHECK(tl_events_next_batch(events, -1, &event, sizeof event, 1, &count, &error) == TL_EMPTY);
    CHECK(tl_events_next_batch(events, INT64_MIN, &event, sizeof event, 1, &count, &error) ==
          TL_EMPTY);
    CHECK(tl_client_wait_closed(client, -1, NULL) == TL_EMPTY);
    CHECK(tl_client_wait_open(client, -1, NULL, &error) == TL_OK);
    CHECK(tl_client_send_text(client, "x", 1, 0, NULL, &error) == TL_OK);
    CHECK(tl_events_next_batch(events, TL_FOREVER - 1, &event, sizeof event, 1, &count, &error) ==
          TL_OK);
    CHECK(tl_client_send_text(client, "x", 1, 0, NULL, &error) == TL_OK);
    CHECK(tl_events_next_batch(events, TL_FOREVER, &event, sizeof event, 1, &count, &error) ==
          TL_OK);
    CHECK(tl_client_stop(client, TL_FOREVER, NULL, &error) == TL_OK);
    CHECK(tl_client_wait_closed(client, TL_FOREVER, NULL) == TL_OK);
    tl_client_free(client);
    tl_events_free(events);
    tl_options_free(options);
}

static void kinds_of_messages(void) {
    tl_options *options = options_of("binary");
    tl_error *error = NULL;
    tl_client *client = tl_client_connect(options, &error);
    tl_events *events = tl_client_events(client, &error);
    tl_payload payloads[3];
    tl_receipt receipt;
    tl_event *event;
    size_t sent = 0, length = 0;
    uint64_t epoch = 0;
    OK(error);

    event = next(events);
    CHECK(event->kind == TL_EVENT_OPENED && event->detail.opened->epoch == 1);
    CHECK(strncmp(event->detail.opened->peer, "127.0.0.1:", 10) == 0);
    CHECK(event->detail.opened->subprotocol == NULL && event->detail.opened->took_ns > 0);
    CHECK(memcmp(tl_opened_header(event->detail.opened, "x-server", &length), "test", 4) == 0);
    CHECK(length == 4);
    CHECK(tl_opened_header(event->detail.opened, "x-none", &length) == NULL && length == 0);
    CHECK(tl_opened_header(event->detail.opened, "X-Empty", &length) != NULL && length == 0);

    event = next(events);
    CHECK(event->kind == TL_EVENT_MESSAGE && !event->message.is_text);
    CHECK(event->message.length == 3 && memcmp(event->message.data, "\0\xff\0", 3) == 0);
    CHECK(is_text(next(events), "") && event->message.data != NULL);

    CHECK(tl_client_wait_open(client, 0, &epoch, &error) == TL_OK && epoch == 1);
    memset(payloads, 0, sizeof payloads);
    payloads[0].data = "one";
    payloads[0].length = 3;
    payloads[0].is_text = 1;
    payloads[1].data = "two";
    payloads[1].length = 3;
    CHECK(tl_client_send_batch(client, payloads, 3, epoch, &sent, &receipt, &error) == TL_OK);
    CHECK(sent == 3 && receipt.epoch == 1 && receipt.sequence == 3);
    CHECK(is_text(next(events), "one"));
    event = next(events);
    CHECK(!event->message.is_text && event->message.length == 3);
    event = next(events);
    CHECK(!event->message.is_text && event->message.length == 0);

    /* Two readers share the events. Those that one has taken and not handed out are its own. */
    tl_events_free(events);
    events = tl_client_events(client, &error);
    CHECK(tl_client_send_text(client, "x", 1, 0, NULL, NULL) == TL_OK);
    CHECK(is_text(next(events), "x"));
    tl_client_free(client);
    tl_events_free(events);
    tl_options_free(options);
}

static void ends_and_reconnects(void) {
    tl_options *options = options_of("echo");
    tl_error *error = NULL;
    tl_client *client = tl_client_connect(options, &error);
    tl_events *events = tl_client_events(client, &error);
    const tl_disconnect *end;
    tl_event *event;
    int64_t received_ns;
    tl_stats stats;
    OK(error);
    CHECK(tl_client_send_text(client, "x", 1, 0, NULL, NULL) == TL_OK);
    event = next_of(events, TL_EVENT_MESSAGE);
    CHECK(is_text(event, "x") && event->message.epoch == 1);
    received_ns = event->message.received_ns;
    CHECK(tl_client_reconnect(client, 4001, "a gap", &error) == TL_OK);
    end = next_of(events, TL_EVENT_DISCONNECTED)->detail.disconnect;
    CHECK(end->epoch == 1 && end->sent == 1 && end->retry_in_ns >= 0 && end->lasted_ns > 0);
    CHECK(end->error->kind == TL_ERROR_CLOSED && end->error->close_code == 4001);
    CHECK(strcmp(end->error->close_reason, "a gap") == 0);
    CHECK(strstr(end->text, "epoch 1") != NULL);
    CHECK(next_of(events, TL_EVENT_OPENED)->detail.opened->epoch == 2);
    stats.size = sizeof stats;
    CHECK(tl_client_stats(client, &stats, NULL) == TL_OK);
    CHECK(stats.epochs == 2 && stats.drops[TL_ERROR_CLOSED] == 1 && stats.messages_received == 1);
    CHECK(stats.last_byte_age_ns >= 0 && stats.drops[TL_ERROR_IO] == 0);

    /* A pong confirms what was sent before its ping, and counts as a round trip. */
    CHECK(tl_client_send_text(client, "y", 1, 2, NULL, NULL) == TL_OK);
    event = next_of(events, TL_EVENT_MESSAGE);
    CHECK(is_text(event, "y") && event->message.epoch == 2);
    CHECK(event->message.received_ns > received_ns && event->message.received_ns <= tl_now());
    CHECK(event->message.kernel_received_ns == 0);
    CHECK(tl_client_ping(client, NULL) == TL_OK);
    do {
        CHECK(tl_client_stats(client, &stats, NULL) == TL_OK);
    } while (stats.round_trips == 0);
    CHECK(stats.round_trip_min_ns > 0 && stats.round_trip_min_ns <= stats.round_trip_max_ns);
    CHECK(tl_client_stop_with(client, 1001, "the day is over", SOON, NULL, &error) == TL_OK);
    end = next_of(events, TL_EVENT_DISCONNECTED)->detail.disconnect;
    CHECK(end->close_code == 1001 && end->confirmed >= 1 && end->retry_in_ns == -1);
    CHECK(tl_client_send_text(client, "z", 1, 0, NULL, &error) == TL_NOT_SENT);
    CHECK(error->kind == TL_ERROR_STOPPED);
    tl_error_free(error);
    CHECK(tl_client_wait_open(client, SOON, NULL, &error) == TL_FAILED);
    CHECK(error->kind == TL_ERROR_STOPPED);
    tl_error_free(error);
    tl_client_free(client);
    tl_events_free(events);
    tl_options_free(options);
}

static void a_queue_that_is_full(void) {
    tl_options *options = options_of("burst?n=1000");
    tl_error *error = NULL;
    tl_client *client;
    tl_events *events;
    tl_stats stats;
    uint64_t lost;
    set(options, "queue_messages", "10");
    set(options, "when_full", "drop_oldest");
    client = tl_client_connect(options, &error);
    OK(error);
    events = tl_client_events(client, &error);
    stats.size = sizeof stats;
    do {
        CHECK(tl_client_stats(client, &stats, NULL) == TL_OK);
    } while (stats.messages_received < 1000);
    lost = next_of(events, TL_EVENT_LAGGED)->detail.lagged->lost;
    CHECK(lost > 0 && lost < 1000 && stats.queue_depth > 0);
    tl_client_free(client);
    tl_events_free(events);
    tl_options_free(options);
}

/* The three outcomes of a send, with their reasons. */
static void outcomes_of_sends(void) {
    tl_options *options = options_of("stall");
    tl_error *error = NULL;
    tl_client *client;
    tl_receipt receipt;
    static char large[(64 << 20) + 1];
    set(options, "send_timeout", "50ms");
    set(options, "send_limit", "2/1h");
    set(options, "max_outgoing_message_size", "64MiB");
    client = tl_client_connect(options, &error);
    OK(error);
    CHECK(tl_client_send_text(client, "x", 1, 0, &receipt, &error) == TL_OK);
    CHECK(receipt.epoch == 1 && receipt.sequence == 1 && error == NULL);
    CHECK(tl_client_send_binary(client, large, sizeof large, 0, &receipt, &error) ==
          TL_NOT_SENT);
    CHECK(error->kind == TL_ERROR_TOO_BIG && error->retry_in_ns == -1);
    tl_error_free(error);
    /* The server does not read, so the kernel takes a part of it. */
    CHECK(tl_client_send_binary(client, large, 64 << 20, 0, &receipt, &error) == TL_UNKNOWN);
    CHECK(error->kind == TL_ERROR_TIMEOUT && strcmp(error->timeout, "send_timeout") == 0);
    tl_error_free(error);
    CHECK(receipt.sequence == 1);
    tl_client_free(client);

    tl_options_free(options);
    options = options_of("echo");
    set(options, "send_timeout", "50ms");
    set(options, "send_limit", "1/1h");
    client = tl_client_connect(options, &error);
    OK(error);
    CHECK(tl_client_send_text(client, "x", 1, 0, NULL, &error) == TL_OK);
    CHECK(tl_client_send_text(client, "x", 1, 0, NULL, &error) == TL_NOT_SENT);
    CHECK(error->kind == TL_ERROR_LIMITED && error->retry_in_ns > SOON && error->is_retryable);
    tl_error_free(error);
    tl_client_free(client);
    tl_options_free(options);
}

/* ---- Dials ---- */

static void refusals_say_why(void) {
    static const struct {
        const char *path;
        uint16_t status;
        bool is_retryable;
        int64_t retry_after_ns;
        const char *body;
    } refusals[] = {
        {"forbidden", 403, false, -1, "banned"},
        {"busy", 503, true, 7 * TL_SECOND, NULL},
    };
    size_t index;
    tl_options *options;
    tl_error *error = NULL;
    for (index = 0; index < 2; index++) {
        options = options_of(refusals[index].path);
        CHECK(tl_client_connect(options, &error) == NULL);
        CHECK(error->kind == TL_ERROR_HTTP && error->status == refusals[index].status);
        CHECK(error->is_retryable == refusals[index].is_retryable);
        CHECK(error->retry_after_ns == refusals[index].retry_after_ns);
        if (refusals[index].body != NULL) {
            CHECK(error->body_length == strlen(refusals[index].body));
            CHECK(memcmp(error->body, refusals[index].body, error->body_length) == 0);
        } else {
            CHECK(error->body == NULL && error->body_length == 0);
        }
        CHECK(strcmp(error->kind_name, "http") == 0 && error->timeout == NULL);
        tl_error_free(error);
        tl_options_free(options);
    }
    options = options_of("silent");
    set(options, "connect_timeout", "30ms");
    CHECK(tl_client_connect(options, &error) == NULL);
    CHECK(error->kind == TL_ERROR_TIMEOUT && strcmp(error->timeout, "connect_timeout") == 0);
    tl_error_free(error);
    tl_options_free(options);
}

typedef struct {
    int calls;
    atomic_int destroyed;
} token;

static int32_t ask(void *user_data, tl_endpoint *endpoint, const tl_dial *dial) {
    token *token = user_data;
    CHECK(dial->size == sizeof(tl_dial) && dial->attempt >= 1);
    CHECK(dial->remaining_ns > 0 && !tl_endpoint_is_stopping(endpoint));
    switch (++token->calls) {
    case 1:
        CHECK(tl_endpoint_fail(endpoint, "the token call failed", NULL) == TL_OK);
        return 0;
    case 2:
        return 5;
    case 3:
        return 0;
    default:
        CHECK(tl_endpoint_set_url(endpoint, url_of("inspect?key=secret"), NULL) == TL_OK);
        CHECK(tl_endpoint_add_header(endpoint, "X-Token", "secret", NULL) == TL_OK);
        CHECK(tl_endpoint_add_subprotocol(endpoint, "v1", NULL) == TL_OK);
        CHECK(tl_endpoint_carry(endpoint, "token", "secret", NULL) == TL_OK);
        CHECK(tl_endpoint_carry(endpoint, NULL, "x", NULL) == TL_FAILED);
        return 0;
    }
}

static void destroy_token(void *user_data) {
    token *token = user_data;
    atomic_fetch_add(&token->destroyed, 1);
}

static void endpoints_by_a_callback(void) {
    static const char *const failures[] = {
        "the token call failed", "the endpoint callback returned 5", "has set no URL"};
    tl_options *options = tl_options_new(TL_ABI_VERSION, NULL);
    tl_error *error = NULL;
    token token;
    tl_client *client;
    tl_events *events;
    tl_event *event;
    size_t index, length;
    const char *carried;
    token.calls = 0;
    atomic_init(&token.destroyed, 0);
    set(options, "retry_delay_min", "1ms");
    set(options, "header", "X-Common: yes");
    CHECK(tl_options_set_endpoint_callback(options, ask, &token, destroy_token, &error) == TL_OK);
    client = tl_client_start(options, &error);
    OK(error);
    tl_options_free(options);
    CHECK(atomic_load(&token.destroyed) == 0);
    events = tl_client_events(client, &error);
    for (index = 0; index < 3; index++) {
        const tl_dial_failure *failure = next(events)->detail.dial_failure;
        CHECK(failure->error->kind == TL_ERROR_ENDPOINT && failure->attempt == index + 1);
        CHECK(strstr(failure->error->endpoint_text, failures[index]) != NULL);
        /* What the program has said may be a secret, so no log shows it. */
        CHECK((strstr(failure->text, failures[index]) != NULL) == (index > 0));
        CHECK((strstr(failure->error->text, failures[index]) != NULL) == (index > 0));
        CHECK(failure->retry_in_ns >= 0);
    }
    event = next(events);
    CHECK(event->kind == TL_EVENT_OPENED);
    carried = tl_opened_carried(event->detail.opened, "token", &length);
    CHECK(length == 6 && memcmp(carried, "secret", 6) == 0);
    CHECK(tl_opened_carried(event->detail.opened, "other", &length) == NULL && length == 0);
    event = next(events);
    CHECK(event->kind == TL_EVENT_MESSAGE);
    {
        char text[2048];
        snprintf(text, sizeof text, "%.*s", (int)event->message.length, event->message.data);
        CHECK(strstr(text, "path: /inspect?key=secret\n") != NULL);
        CHECK(strstr(text, "X-Token: secret") != NULL && strstr(text, "X-Common: yes") != NULL);
        CHECK(strstr(text, "Sec-WebSocket-Protocol: v1") != NULL);
    }
    tl_client_free(client);
    CHECK(atomic_load(&token.destroyed) == 1);
    tl_events_free(events);

    options = options_of("echo");
    CHECK(tl_options_set_endpoint_callback(options, ask, &token, NULL, NULL) == TL_OK);
    CHECK(tl_client_start(options, &error) == NULL && error->kind == TL_ERROR_CONFIG);
    tl_error_free(error);
    tl_options_free(options);
}

/* ---- Callbacks ---- */

typedef struct {
    int messages;
    int batches;
    int wakes;
    int clock_wakes;
    int connectionless_wakes;
    int64_t due;
    int is_stopped;
    atomic_int destroyed;
    pthread_mutex_t lock;
    pthread_cond_t changed;
} bot;

#define WAIT_FOR(bot, condition)                                                                 \
    do {                                                                                         \
        pthread_mutex_lock(&(bot)->lock);                                                        \
        while (!(condition)) {                                                                   \
            pthread_cond_wait(&(bot)->changed, &(bot)->lock);                                    \
        }                                                                                        \
        pthread_mutex_unlock(&(bot)->lock);                                                      \
    } while (0)

static void bot_opened(void *user_data, tl_connection *connection, const tl_opened *opened) {
    tl_payload payloads[2];
    tl_receipt receipt;
    size_t sent;
    (void)user_data;
    memset(payloads, 0, sizeof payloads);
    payloads[0].data = "a";
    payloads[0].length = 1;
    payloads[0].is_text = 1;
    payloads[1] = payloads[0];
    CHECK(tl_connection_send_batch(connection, payloads, 2, &sent, &receipt, NULL) == TL_OK);
    CHECK(sent == 2 && receipt.sequence == 2 && receipt.epoch == opened->epoch);
    CHECK(tl_connection_send_binary(connection, NULL, 0, &receipt, NULL) == TL_OK);
    CHECK(receipt.sequence == 3);
    CHECK(tl_connection_mark_stable(connection, NULL) == TL_OK);
    /* A time that is set replaces the one before, and the rhythm of the first goes on. */
    if (opened->epoch == 1) {
        CHECK(tl_connection_wake_at(connection, tl_now() + TL_MILLISECOND, NULL) == TL_OK);
    }
}

static void bot_message(void *user_data, tl_connection *connection, const tl_message *message) {
    bot *bot = user_data;
    CHECK(message->size == sizeof *message);
    pthread_mutex_lock(&bot->lock);
    bot->messages++;
    pthread_cond_broadcast(&bot->changed);
    pthread_mutex_unlock(&bot->lock);
    if (bot->messages == 3) {
        CHECK(message->epoch == 1);
        CHECK(tl_connection_reconnect(connection, 0, NULL, NULL) == TL_OK);
    }
}

static void bot_batch_end(void *user_data, tl_connection *connection) {
    bot *bot = user_data;
    CHECK(connection != NULL);
    pthread_mutex_lock(&bot->lock);
    bot->batches++;
    pthread_cond_broadcast(&bot->changed);
    pthread_mutex_unlock(&bot->lock);
}

static int64_t bot_woken(void *user_data, tl_connection *connection, int64_t due_ns) {
    bot *bot = user_data;
    int64_t next = 0;
    pthread_mutex_lock(&bot->lock);
    bot->connectionless_wakes += connection == NULL;
    if (due_ns < 0) {
        bot->wakes++;
    } else {
        CHECK(due_ns <= tl_now());
        /* The rhythm is kept, to the nanosecond. */
        CHECK(bot->clock_wakes == 0 || bot->due == 0 || due_ns == bot->due);
        next = ++bot->clock_wakes < 5 ? due_ns + TL_MILLISECOND : 0;
        bot->due = next;
    }
    pthread_cond_broadcast(&bot->changed);
    pthread_mutex_unlock(&bot->lock);
    return next;
}

static void bot_stopped(void *user_data, const tl_stopped *stopped) {
    bot *bot = user_data;
    CHECK(stopped->size == sizeof *stopped && atomic_load(&bot->destroyed) == 0);
    bot->is_stopped = 1;
}

static void bot_destroy(void *user_data) {
    bot *bot = user_data;
    atomic_fetch_add(&bot->destroyed, 1);
}

static void callbacks_and_wakeups(void) {
    tl_options *options = options_of("echo");
    tl_callbacks callbacks = {0};
    tl_error *error = NULL;
    tl_client *client;
    uint64_t epoch = 0;
    bot bot;
    memset(&bot, 0, sizeof bot);
    atomic_init(&bot.destroyed, 0);
    pthread_mutex_init(&bot.lock, NULL);
    pthread_cond_init(&bot.changed, NULL);
    set(options, "wakeups", "on");
    set(options, "stable_after", "1h");
    callbacks.size = sizeof callbacks;
    callbacks.user_data = &bot;
    callbacks.destroy = bot_destroy;
    callbacks.opened = bot_opened;
    callbacks.message = bot_message;
    callbacks.batch_end = bot_batch_end;
    callbacks.woken = bot_woken;
    callbacks.stopped = bot_stopped;
    client = tl_client_connect_with(options, &callbacks, &error);
    OK(error);
    WAIT_FOR(&bot, bot.clock_wakes >= 5);
    CHECK(tl_client_wake(client, &error) == TL_OK);
    WAIT_FOR(&bot, bot.wakes >= 1);
    CHECK(tl_client_wake_at(client, 0, &error) == TL_OK);
    WAIT_FOR(&bot, bot.clock_wakes >= 6);
    CHECK(tl_client_wake_at(client, tl_now() + SOON, NULL) == TL_OK);
    CHECK(tl_client_wake_at(client, -1, NULL) == TL_OK);
    /* The second connection has echoed too. */
    WAIT_FOR(&bot, bot.messages >= 6 && bot.batches >= 1);
    CHECK(tl_client_wait_open(client, SOON, &epoch, &error) == TL_OK && epoch == 2);
    CHECK(atomic_load(&bot.destroyed) == 0);
    CHECK(tl_client_stop(client, SOON, NULL, NULL) == TL_OK);
    CHECK(atomic_load(&bot.destroyed) == 1 && bot.is_stopped);
    CHECK(tl_client_wake(client, &error) == TL_FAILED && error->kind == TL_ERROR_STOPPED);
    tl_error_free(error);
    tl_client_free(client);
    tl_options_free(options);
    pthread_cond_destroy(&bot.changed);
    pthread_mutex_destroy(&bot.lock);
}

/* ---- Clients that are freed while calls are under way ---- */

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    tl_client *client;
    const char *large;
    int has_begun;
    tl_status status;
    tl_error_kind kind;
    atomic_int destroyed;
} blocked;

/* Sends by the client, and not by the connection, what the server never reads. */
static void blocked_opened(void *user_data, tl_connection *connection, const tl_opened *opened) {
    blocked *blocked = user_data;
    tl_error *error = NULL;
    (void)connection;
    (void)opened;
    pthread_mutex_lock(&blocked->lock);
    while (blocked->client == NULL) {
        pthread_cond_wait(&blocked->changed, &blocked->lock);
    }
    /* On the reader it does not wait, and has no need to. */
    CHECK(tl_client_wait_open(blocked->client, SOON, NULL, NULL) == TL_OK);
    blocked->has_begun = 1;
    pthread_cond_broadcast(&blocked->changed);
    pthread_mutex_unlock(&blocked->lock);
    blocked->status =
        tl_client_send_binary(blocked->client, blocked->large, 64 << 20, 0, NULL, &error);
    blocked->kind = error->kind;
    tl_error_free(error);
    CHECK(tl_client_state(blocked->client) == TL_STATE_OTHER);
}

static void blocked_destroy(void *user_data) {
    blocked *blocked = user_data;
    atomic_fetch_add(&blocked->destroyed, 1);
}

/* Returns whether the send had begun when the client was freed. */
static int a_send_is_under_way(const char *large) {
    tl_options *options = options_of("stall");
    tl_callbacks callbacks = {0};
    tl_error *error = NULL;
    tl_client *client;
    int64_t begun;
    blocked blocked;
    memset(&blocked, 0, sizeof blocked);
    pthread_mutex_init(&blocked.lock, NULL);
    pthread_cond_init(&blocked.changed, NULL);
    atomic_init(&blocked.destroyed, 0);
    blocked.large = large;
    set(options, "send_timeout", "1h");
    set(options, "drop_timeout", "1h");
    set(options, "close_timeout", "10ms");
    callbacks.size = sizeof callbacks;
    callbacks.user_data = &blocked;
    callbacks.opened = blocked_opened;
    callbacks.destroy = blocked_destroy;
    client = tl_client_start_with(options, &callbacks, &error);
    OK(error);
    pthread_mutex_lock(&blocked.lock);
    blocked.client = client;
    pthread_cond_broadcast(&blocked.changed);
    while (!blocked.has_begun) {
        pthread_cond_wait(&blocked.changed, &blocked.lock);
    }
    pthread_mutex_unlock(&blocked.lock);
    begun = tl_now();
    tl_client_free(client);
    CHECK(tl_now() - begun < SOON);
    /* The freeing thread has waited for the reader. */
    CHECK(atomic_load(&blocked.destroyed) == 1);
    if (blocked.status == TL_NOT_SENT) {
        CHECK(blocked.kind == TL_ERROR_INVALID_ARGUMENT || blocked.kind == TL_ERROR_STOPPED);
    } else {
        CHECK(blocked.status == TL_UNKNOWN);
        CHECK(blocked.kind == TL_ERROR_STOPPED || blocked.kind == TL_ERROR_IO);
    }
    tl_options_free(options);
    pthread_cond_destroy(&blocked.changed);
    pthread_mutex_destroy(&blocked.lock);
    return blocked.status == TL_UNKNOWN;
}

static void *use_until_freed(void *user_data) {
    tl_client *client = user_data;
    tl_error *error = NULL;
    tl_stats stats;
    memset(&stats, 0, sizeof stats);
    stats.size = sizeof stats;
    while (tl_client_stats(client, &stats, &error) == TL_OK) {
        tl_client_send_text(client, "x", 1, 0, NULL, NULL);
        tl_client_wait_closed(client, 0, NULL);
    }
    CHECK(error->kind == TL_ERROR_INVALID_ARGUMENT);
    tl_error_free(error);
    return NULL;
}

static void clients_are_freed_in_use(void) {
    char *large = calloc(1, 64 << 20);
    int attempts = 0, round;
    CHECK(large != NULL);
    while (!a_send_is_under_way(large)) {
        CHECK(++attempts < 100);
    }
    free(large);
    for (round = 0; round < 20; round++) {
        tl_options *options = options_of("drain");
        tl_error *error = NULL;
        tl_client *client = tl_client_connect(options, &error);
        pthread_t threads[3];
        size_t index;
        tl_stats stats;
        OK(error);
        tl_options_free(options);
        for (index = 0; index < 3; index++) {
            CHECK(pthread_create(&threads[index], NULL, use_until_freed, client) == 0);
        }
        stats.size = sizeof stats;
        do {
            CHECK(tl_client_stats(client, &stats, NULL) == TL_OK);
        } while (stats.messages_sent < 10);
        tl_client_free(client);
        for (index = 0; index < 3; index++) {
            pthread_join(threads[index], NULL);
        }
    }
}

/* ---- Threads, records, TLS ---- */

typedef struct {
    atomic_int readers;
    atomic_int others;
    atomic_int destroyed;
} names;

static void named(void *user_data, const char *name) {
    names *names = user_data;
    atomic_fetch_add(strcmp(name, "taut-reader") == 0 ? &names->readers : &names->others, 1);
}

static void destroy_names(void *user_data) {
    names *names = user_data;
    atomic_fetch_add(&names->destroyed, 1);
}

typedef struct {
    atomic_int records;
    atomic_int secrets;
    atomic_int destroyed;
} records;

static void record(void *user_data, tl_log_level level, const char *target, const char *text) {
    records *records = user_data;
    CHECK(level >= TL_LOG_ERROR && level <= TL_LOG_TRACE && strstr(target, "tautline") == target);
    atomic_fetch_add(&records->records, 1);
    atomic_fetch_add(&records->secrets, strstr(text, "secret") != NULL);
}

static void destroy_records(void *user_data) {
    records *records = user_data;
    atomic_fetch_add(&records->destroyed, 1);
}

static void threads_and_records(void) {
    tl_options *options = options_of("echo?key=secret");
    tl_error *error = NULL;
    tl_client *clients[3];
    tl_stop_report *reports[3];
    size_t index;
    names names;
    records records;
    atomic_init(&names.readers, 0);
    atomic_init(&names.others, 0);
    atomic_init(&names.destroyed, 0);
    atomic_init(&records.records, 0);
    atomic_init(&records.secrets, 0);
    atomic_init(&records.destroyed, 0);
    CHECK(tl_set_log_callback(TL_LOG_TRACE, record, &records, destroy_records, &error) == TL_OK);
    CHECK(tl_options_set_thread_start_callback(options, named, &names, destroy_names, &error) ==
          TL_OK);
    for (index = 0; index < 3; index++) {
        clients[index] = tl_client_connect(options, &error);
        OK(error);
    }
    CHECK(tl_client_stop_all(clients, 3, SOON, reports, &error) ==
          TL_OK);
    for (index = 0; index < 3; index++) {
        CHECK(reports[index]->is_clean && reports[index]->thread_count == 2);
        CHECK(strstr(reports[index]->text, "clean") != NULL && reports[index]->took_ns >= 0);
        CHECK(reports[index]->threads[0].outcome == TL_THREAD_JOINED);
        CHECK(strncmp(reports[index]->threads[0].name, "taut-", 5) == 0);
        tl_stop_report_free(reports[index]);
        tl_client_free(clients[index]);
    }
    CHECK(atomic_load(&names.readers) == 3 && atomic_load(&names.others) == 3);
    CHECK(atomic_load(&names.destroyed) == 0);
    tl_options_free(options);
    CHECK(atomic_load(&names.destroyed) == 1);
    CHECK(atomic_load(&records.records) > 0 && atomic_load(&records.secrets) == 0);
    CHECK(tl_set_log_callback(TL_LOG_OFF, NULL, NULL, NULL, &error) == TL_OK);
    CHECK(atomic_load(&records.destroyed) == 1);
}

static void certificates(void) {
    const char *root = getenv("TAUTLINE_ROOT"), *url = getenv("TAUTLINE_TLS_URL");
    tl_options *options = tl_options_new(TL_ABI_VERSION, NULL);
    tl_error *error = NULL;
    tl_client *client;
    tl_events *events;
    CHECK(root != NULL && url != NULL);
    set(options, "url", url);
    CHECK(tl_client_connect(options, &error) == NULL);
    CHECK(error->kind == TL_ERROR_TLS && error->is_verification_failure);
    tl_error_free(error);
    set(options, "tls_root_file", root);
    set(options, "tls_only_given_roots", "on");
    client = tl_client_connect(options, &error);
    OK(error);
    events = tl_client_events(client, &error);
    CHECK(tl_client_send_text(client, "over TLS", 8, 0, NULL, &error) == TL_OK);
    CHECK(is_text(next_of(events, TL_EVENT_MESSAGE), "over TLS"));
    tl_client_free(client);
    tl_events_free(events);
    set(options, "tls_pin", "sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    CHECK(tl_client_connect(options, &error) == NULL);
    CHECK(error->kind == TL_ERROR_TLS && error->is_verification_failure && !error->is_retryable);
    tl_error_free(error);
    tl_options_free(options);
}

/* Several threads send at the same time. */
#define SENDERS 4
#define SENDS 250

static void *send_some(void *user_data) {
    tl_client *client = user_data;
    uint64_t last = 0;
    int number;
    for (number = 0; number < SENDS; number++) {
        tl_receipt receipt;
        tl_error *error = NULL;
        CHECK(tl_client_send_text(client, "tick", 4, 1, &receipt, &error) == TL_OK);
        CHECK(receipt.sequence > last);
        last = receipt.sequence;
    }
    return NULL;
}

static void senders(void) {
    tl_options *options = options_of("echo");
    tl_error *error = NULL;
    tl_client *client = tl_client_connect(options, &error);
    tl_events *events = tl_client_events(client, &error);
    pthread_t threads[SENDERS];
    int number;
    OK(error);
    for (number = 0; number < SENDERS; number++) {
        CHECK(pthread_create(&threads[number], NULL, send_some, client) == 0);
    }
    for (number = 0; number < SENDERS * SENDS; number++) {
        CHECK(is_text(next_of(events, TL_EVENT_MESSAGE), "tick"));
    }
    for (number = 0; number < SENDERS; number++) {
        pthread_join(threads[number], NULL);
    }
    tl_client_free(client);
    tl_events_free(events);
    tl_options_free(options);
}

int main(void) {
    size_t threads, descriptors;
    /* What a process keeps from its first client of TLS on is no leak. */
    certificates();
    threads = threads_now();
    descriptors = descriptors_now();
    batches_of_any_capacity();
    events_by_a_descriptor();
#ifdef __linux__
    events_by_an_edge();
#endif
    timeouts_at_the_ends();
    kinds_of_messages();
    ends_and_reconnects();
    a_queue_that_is_full();
    outcomes_of_sends();
    refusals_say_why();
    endpoints_by_a_callback();
    callbacks_and_wakeups();
    clients_are_freed_in_use();
    threads_and_records();
    certificates();
    senders();
    check_nothing_left(threads, descriptors);
    return 0;
}

/* Stops a client in each of its states, prints how long that took, and counts threads and
 * descriptors afterwards. */
#include "common.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#define BRIEF (100 * TL_MILLISECOND)

/* ---- A lookup that hangs: this program has its own getaddrinfo ---- */

static sem_t lookup_begun, lookup_released;

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **result) {
    (void)service;
    (void)hints;
    (void)result;
    if (node != NULL && strcmp(node, "hangs.example") == 0) {
        sem_post(&lookup_begun);
        while (sem_wait(&lookup_released) != 0) {
        }
    }
    return EAI_NONAME;
}

/* ---- Callbacks ---- */

typedef struct {
    sem_t begun;
    sem_t released;
    atomic_int destroyed;
    int blocks;
} handler;

static void on_message(void *user_data, tl_connection *connection, const tl_message *message) {
    handler *handler = user_data;
    int waiting = 0;
    (void)connection;
    (void)message;
    sem_getvalue(&handler->begun, &waiting);
    if (waiting == 0) {
        sem_post(&handler->begun);
    }
    if (handler->blocks) {
        while (sem_wait(&handler->released) != 0) {
        }
    }
}

static void on_destroy(void *user_data) {
    handler *handler = user_data;
    atomic_fetch_add(&handler->destroyed, 1);
}

static tl_client *start(tl_options *options, handler *handler, int blocks) {
    tl_callbacks callbacks = {0};
    tl_error *error = NULL;
    tl_client *client;
    sem_init(&handler->begun, 0, 0);
    sem_init(&handler->released, 0, 0);
    atomic_init(&handler->destroyed, 0);
    handler->blocks = blocks;
    callbacks.size = sizeof callbacks;
    callbacks.user_data = handler;
    callbacks.destroy = on_destroy;
    callbacks.message = on_message;
    client = tl_client_start_with(options, &callbacks, &error);
    OK(error);
    tl_options_free(options);
    return client;
}

static void wait_for(sem_t *semaphore) {
    while (sem_wait(semaphore) != 0) {
    }
}

/* Stops a client, shows the report and checks it. */
static void stop_only(const char *state, tl_client *client, int64_t timeout, bool is_clean) {
    tl_stop_report *report = NULL;
    tl_error *error = NULL;
    int64_t began = tl_now();
    tl_status status = tl_client_stop(client, timeout, &report, &error);
    OK(error);
    printf("%-36s %s\n", state, report->text);
    CHECK(report->is_clean == is_clean && status == (is_clean ? TL_OK : TL_LATE));
    /* Valgrind takes its time; otherwise nothing comes near to this. */
    CHECK(tl_now() - began < timeout + 5 * TL_SECOND);
    tl_stop_report_free(report);
    if (is_clean) {
        CHECK(tl_client_state(client) == TL_STATE_CLOSED);
    }
}

static void stop(const char *state, tl_client *client, int64_t timeout, bool is_clean) {
    stop_only(state, client, timeout, is_clean);
    tl_client_free(client);
}

/* ---- States of a dial ---- */

static void resolving(void) {
    tl_options *options = tl_options_new(TL_ABI_VERSION, NULL);
    handler handler;
    tl_client *client;
    sem_init(&lookup_begun, 0, 0);
    sem_init(&lookup_released, 0, 0);
    set(options, "url", "ws://hangs.example/");
    set(options, "drop_timeout", "0");
    client = start(options, &handler, 0);
    wait_for(&lookup_begun);
    /* The lookup is late, and nothing else is. */
    stop("resolving, the lookup hangs", client, SOON, false);
    sem_post(&lookup_released);
}

static int listener(struct sockaddr_in *address, int backlog) {
    socklen_t length = sizeof *address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    memset(address, 0, sizeof *address);
    address->sin_family = AF_INET;
    address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)address, sizeof *address) == 0);
    CHECK(listen(fd, backlog) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)address, &length) == 0);
    return fd;
}

static tl_options *options_for(const char *scheme_and_host, const struct sockaddr_in *address) {
    tl_options *options = tl_options_new(TL_ABI_VERSION, NULL);
    char url[64];
    snprintf(url, sizeof url, "%s:%d/", scheme_and_host, ntohs(address->sin_port));
    set(options, "url", url);
    return options;
}

static void connecting(void) {
    struct sockaddr_in address;
    handler handler;
    int fd = listener(&address, 0), filler = socket(AF_INET, SOCK_STREAM, 0);
    tl_client *client;
    /* The queue of the listener has room for this connection and no other. */
    CHECK(connect(filler, (struct sockaddr *)&address, sizeof address) == 0);
    client = start(options_for("ws://127.0.0.1", &address), &handler, 0);
    CHECK(tl_client_state(client) == TL_STATE_CONNECTING);
    stop("connecting, no answer", client, SOON, true);
    CHECK(atomic_load(&handler.destroyed) == 1);
    close(filler);
    close(fd);
}

static void stalled(const char *state, const char *scheme_and_host) {
    struct sockaddr_in address;
    handler handler;
    char first;
    int fd = listener(&address, 16), accepted;
    tl_client *client = start(options_for(scheme_and_host, &address), &handler, 0);
    accepted = accept(fd, NULL, NULL);
    CHECK(accepted >= 0);
    /* The handshake has begun: the roots of TLS, whose load nothing can interrupt, are there. */
    CHECK(recv(accepted, &first, 1, 0) == 1);
    stop(state, client, SOON, true);
    CHECK(atomic_load(&handler.destroyed) == 1);
    close(accepted);
    close(fd);
}

static void backoff(void) {
    tl_options *options = options_of("hangup");
    tl_error *error = NULL;
    tl_client *client;
    tl_events *events;
    tl_event event;
    size_t count;
    set(options, "retry_delay_min", "1h");
    set(options, "retry_delay_max", "1h");
    client = tl_client_start(options, &error);
    OK(error);
    tl_options_free(options);
    events = tl_client_events(client, &error);
    CHECK(tl_events_next_batch(events, SOON, &event, sizeof event, 1, &count, &error) == TL_OK);
    CHECK(event.kind == TL_EVENT_DIAL_FAILED);
    while (tl_client_state(client) != TL_STATE_BACKOFF) {
    }
    stop("backoff before a retry", client, SOON, true);
    tl_events_free(events);
}

/* ---- States of an open connection ---- */

static tl_client *open_client(const char *path, handler *handler, int blocks) {
    tl_options *options = options_of(path);
    tl_error *error = NULL;
    tl_client *client;
    set(options, "close_timeout", "100ms");
    client = start(options, handler, blocks);
    CHECK(tl_client_wait_open(client, SOON, NULL, &error) == TL_OK);
    return client;
}

static void idle(void) {
    handler handler;
    stop("open, idle", open_client("echo", &handler, 0), SOON, true);
    CHECK(atomic_load(&handler.destroyed) == 1);
}

static void unanswered(void) {
    handler handler;
    stop("open, the peer never answers", open_client("drain", &handler, 0), SOON, true);
    CHECK(atomic_load(&handler.destroyed) == 1);
}

static void flooded(void) {
    handler handler;
    tl_client *client = open_client("flood", &handler, 0);
    wait_for(&handler.begun);
    stop("open, flooded with messages", client, SOON, true);
    CHECK(atomic_load(&handler.destroyed) == 1);
}

static void flooded_and_nobody_pulls(void) {
    tl_options *options = options_of("flood");
    tl_error *error = NULL;
    tl_client *client;
    tl_events *events;
    tl_event event;
    size_t count;
    set(options, "when_full", "block");
    set(options, "queue_messages", "10");
    client = tl_client_connect(options, &error);
    OK(error);
    tl_options_free(options);
    events = tl_client_events(client, &error);
    CHECK(tl_events_next_batch(events, SOON, &event, sizeof event, 1, &count, &error) == TL_OK);
    stop("open, the queue is full", client, SOON, true);
    tl_events_free(events);
}

static void busy(void) {
    handler handler;
    tl_options *options = options_of("work");
    tl_client *client;
    set(options, "close_timeout", "100ms");
    set(options, "drop_timeout", "0");
    client = start(options, &handler, 1);
    wait_for(&handler.begun);
    /* The reader is late, because the callback holds it up. It ends once that returns. */
    stop("open, a callback is busy", client, 500 * TL_MILLISECOND, false);
    CHECK(atomic_load(&handler.destroyed) == 0);
    sem_post(&handler.released);
    while (atomic_load(&handler.destroyed) == 0) {
    }
}

static void in_a_callback_of(void *user_data, tl_connection *connection,
                             const tl_message *message) {
    tl_stop_report *report = NULL;
    size_t row, current = 0;
    handler *handler = user_data;
    tl_client *client;
    (void)message;
    (void)connection;
    wait_for(&handler->released);
    client = *(tl_client **)(void *)(handler + 1);
    CHECK(tl_client_stop(client, SOON, &report, NULL) == TL_LATE);
    for (row = 0; row < report->thread_count; row++) {
        current += report->threads[row].outcome == TL_THREAD_CURRENT;
    }
    printf("%-36s %s\n", "inside a callback", report->text);
    CHECK(current == 1);
    tl_stop_report_free(report);
}

static void inside_a_callback(void) {
    struct {
        handler handler;
        tl_client *client;
    } bot;
    tl_options *options = options_of("work");
    tl_callbacks callbacks = {0};
    tl_error *error = NULL;
    tl_error *reason = NULL;
    sem_init(&bot.handler.released, 0, 0);
    callbacks.size = sizeof callbacks;
    callbacks.user_data = &bot;
    callbacks.message = in_a_callback_of;
    bot.client = tl_client_start_with(options, &callbacks, &error);
    OK(error);
    sem_post(&bot.handler.released);
    CHECK(tl_client_wait_closed(bot.client, SOON, &reason) == TL_OK);
    CHECK(reason->kind == TL_ERROR_STOPPED);
    tl_error_free(reason);
    stop("after a stop inside a callback", bot.client, SOON, true);
    tl_options_free(options);
}

static void freed_inside_a_callback_of(void *user_data, tl_connection *connection,
                                       const tl_message *message) {
    handler *handler = user_data;
    (void)message;
    (void)connection;
    wait_for(&handler->released);
    tl_client_free(*(tl_client **)(void *)(handler + 1));
}

static void freed_inside_a_callback(void) {
    struct {
        handler handler;
        tl_client *client;
    } bot;
    tl_options *options = options_of("work");
    tl_callbacks callbacks = {0};
    tl_error *error = NULL;
    sem_init(&bot.handler.released, 0, 0);
    atomic_init(&bot.handler.destroyed, 0);
    callbacks.size = sizeof callbacks;
    callbacks.user_data = &bot;
    callbacks.destroy = on_destroy;
    callbacks.message = freed_inside_a_callback_of;
    bot.client = tl_client_start_with(options, &callbacks, &error);
    OK(error);
    tl_options_free(options);
    sem_post(&bot.handler.released);
    while (atomic_load(&bot.handler.destroyed) == 0) {
    }
    printf("%-36s its threads end by themselves\n", "freed inside a callback");
}

typedef struct {
    tl_client *client;
    atomic_long sent;
} blocked_sender;

static void *send_until_it_fails(void *user_data) {
    blocked_sender *sender = user_data;
    static uint8_t large[1 << 20];
    tl_error *error = NULL;
    tl_status status;
    while ((status = tl_client_send_binary(sender->client, large, sizeof large, 0, NULL,
                                           &error)) == TL_OK) {
        atomic_fetch_add(&sender->sent, 1);
    }
    CHECK(status == TL_UNKNOWN || status == TL_NOT_SENT);
    CHECK(error != NULL);
    tl_error_free(error);
    return NULL;
}

static void blocked(void) {
    tl_options *options = options_of("stall");
    tl_error *error = NULL;
    blocked_sender sender;
    pthread_t thread;
    long before = -1;
    const struct timespec pause = {0, 200000000};
    set(options, "send_timeout", "1h");
    set(options, "close_timeout", "100ms");
    atomic_init(&sender.sent, 0);
    sender.client = tl_client_connect(options, &error);
    OK(error);
    tl_options_free(options);
    CHECK(pthread_create(&thread, NULL, send_until_it_fails, &sender) == 0);
    /* The send is blocked once none has returned for a while. */
    while (before != atomic_load(&sender.sent)) {
        before = atomic_load(&sender.sent);
        nanosleep(&pause, NULL);
    }
    stop_only("open, a send is blocked", sender.client, SOON, true);
    pthread_join(thread, NULL);
    tl_client_free(sender.client);
}

static void closing(void) {
    tl_options *options = options_of("closing");
    handler handler;
    tl_client *client;
    set(options, "close_timeout", "10s");
    client = start(options, &handler, 0);
    /* The close frames are exchanged, and the client waits for the server to close TCP. */
    while (tl_client_state(client) != TL_STATE_CLOSING) {
    }
    stop("closing, the peer keeps TCP open", client, BRIEF, true);
    CHECK(atomic_load(&handler.destroyed) == 1);
}

int main(void) {
    size_t threads, descriptors;
    /* What a process keeps from its first client of TLS on is no leak. */
    stalled("TLS handshake, the peer is silent", "wss://127.0.0.1");
    threads = threads_now();
    descriptors = descriptors_now();
    resolving();
    connecting();
    stalled("TLS handshake, the peer is silent", "wss://127.0.0.1");
    stalled("upgrade, the peer is silent", "ws://127.0.0.1");
    idle();
    flooded();
    flooded_and_nobody_pulls();
    busy();
    inside_a_callback();
    freed_inside_a_callback();
    blocked();
    unanswered();
    closing();
    backoff();
    check_nothing_left(threads, descriptors);
    printf("nothing is left\n");
    return 0;
}

/* What a program does wrong gives errors, and no crash: NULL, wrong sizes, handles of another kind,
 * freed ones, text that is not UTF-8, lengths of zero, a connection outside of its callback. */
#include "common.h"

#include <pthread.h>

static size_t destroyed;

static void destroy(void *user_data) {
    (void)user_data;
    destroyed++;
}

/* Ends the program unless the error says `kind` and has `word` in its text; frees it. */
static void refused(tl_error *error, tl_error_kind kind, const char *word) {
    CHECK(error != NULL);
    if (error->kind != kind || strstr(error->text, word) == NULL) {
        fprintf(stderr, "%s: %s; wanted %d with %s\n", error->kind_name, error->text, kind, word);
        exit(1);
    }
    CHECK(error->size == sizeof(tl_error) && !error->is_retryable);
    tl_error_free(error);
}
#define REFUSED(call, word)                                                                      \
    do {                                                                                         \
        tl_error *error = NULL;                                                                  \
        CHECK((call) == TL_FAILED);                                                              \
        refused(error, TL_ERROR_INVALID_ARGUMENT, word);                                         \
    } while (0)

static void options_are_checked(void) {
    tl_options *options = options_of("echo");
    tl_error *error = NULL;
    CHECK(tl_options_new(TL_ABI_VERSION + 1, &error) == NULL);
    refused(error, TL_ERROR_ABI, "compile it again");
    CHECK(tl_options_new(0, NULL) == NULL);

    REFUSED(tl_options_set(NULL, "name", "x", &error), "tl_options is NULL");
    REFUSED(tl_options_set(options, NULL, "x", &error), "key is NULL");
    REFUSED(tl_options_set(options, "name", NULL, &error), "value is NULL");
    REFUSED(tl_options_set(options, "name", "\xff", &error), "not UTF-8");
    REFUSED(tl_options_set(options, "\xff", "x", &error), "not UTF-8");
    REFUSED(tl_options_set(options, "", "", &error), "there is no such setting");
    REFUSED(tl_options_set(options, "nmae", "x", &error), "ping_interval");
    REFUSED(tl_options_set(options, "ping_interval", "", &error), "ping_interval wants");
    CHECK(tl_options_set(options, "ping_interval", "soon", NULL) == TL_FAILED);
    REFUSED(tl_options_set_endpoint_callback(options, NULL, NULL, destroy, &error), "NULL");
    REFUSED(tl_options_set_thread_start_callback(NULL, NULL, NULL, destroy, &error), "NULL");
    REFUSED(tl_set_log_callback(6, NULL, NULL, destroy, &error), "level");
    CHECK(destroyed == 3);
    CHECK(strstr(tl_options_keys(), "\nping_interval\n") != NULL);

    /* A value never stands in an error. */
    CHECK(tl_options_set(options, "proxy", "ftp://user:secret@host", &error) == TL_FAILED);
    CHECK(strstr(error->text, "secret") == NULL);
    tl_error_free(error);
    /* Not even if it stands in the place of the key. */
    CHECK(tl_options_set(options, "Authorization: secret", "header", &error) == TL_FAILED);
    CHECK(strstr(error->text, "secret") == NULL);
    tl_error_free(error);
    CHECK(tl_options_set(options, "header", "Authorization secret", &error) == TL_FAILED);
    CHECK(strstr(error->text, "secret") == NULL);
    tl_error_free(error);

    tl_options_free(options);
    REFUSED(tl_options_set(options, "name", "x", &error), "has been freed");
    CHECK(tl_client_start(options, &error) == NULL);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "has been freed");
    tl_options_free(options);
    tl_options_free(NULL);
    tl_error_free(NULL);
    tl_stop_report_free(NULL);
    tl_events_free(NULL);
    tl_client_free(NULL);

    options = tl_options_new(TL_ABI_VERSION, NULL);
    CHECK(tl_client_start(options, &error) == NULL);
    refused(error, TL_ERROR_CONFIG, "no url");
    set(options, "url", "http://localhost/secret");
    CHECK(tl_client_connect(options, &error) == NULL);
    CHECK(error->kind == TL_ERROR_CONFIG && strstr(error->text, "secret") == NULL);
    tl_error_free(error);
    tl_options_free(options);
}

static void callbacks_are_checked(void) {
    tl_options *options = options_of("echo");
    tl_callbacks callbacks = {0};
    struct {
        tl_callbacks known;
        void (*unknown)(void *);
    } newer;
    tl_error *error = NULL;
    size_t before = destroyed;
    tl_client *client;

    CHECK(tl_client_start_with(options, NULL, &error) == NULL);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "tl_callbacks is NULL");
    callbacks.destroy = destroy;
    CHECK(tl_client_start_with(options, &callbacks, &error) == NULL);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "sizeof(tl_callbacks)");
    CHECK(destroyed == before);
    callbacks.size = sizeof callbacks;
    CHECK(tl_client_start_with(NULL, &callbacks, &error) == NULL);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "tl_options is NULL");
    CHECK(destroyed == before + 1);
    CHECK(tl_client_connect_with(NULL, &callbacks, NULL) == NULL);
    CHECK(destroyed == before + 2);

    /* A program that was compiled with a newer header. */
    memset(&newer, 0, sizeof newer);
    newer.known = callbacks;
    newer.known.size = sizeof newer;
    newer.unknown = destroy;
    CHECK(tl_client_start_with(options, &newer.known, &error) == NULL);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "does not know");
    CHECK(destroyed == before + 3);
    newer.unknown = NULL;
    client = tl_client_connect_with(options, &newer.known, &error);
    OK(error);

    CHECK(tl_client_events(client, &error) == NULL);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "callbacks");
    /* Without the setting `wakeups`. */
    CHECK(tl_client_wake(client, &error) == TL_FAILED);
    refused(error, TL_ERROR_CONFIG, "wakeups");
    tl_client_free(client);
    CHECK(destroyed == before + 4);
    tl_options_free(options);
}

static void clients_and_sends_are_checked(void) {
    tl_options *options = options_of("echo");
    tl_error *error = NULL;
    tl_client *client = tl_client_connect(options, &error);
    tl_receipt receipt = {7, 7};
    tl_payload payloads[2];
    tl_stats stats;
    struct {
        tl_stats known;
        uint64_t unknown;
    } newer;
    tl_stop_report *report = NULL;
    tl_client *clients[3];
    tl_stop_report *reports[3];
    size_t sent = 7;
    OK(error);

    CHECK(tl_client_send_text(NULL, "x", 1, 0, NULL, &error) == TL_NOT_SENT);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "tl_client is NULL");
    CHECK(tl_client_send_text((tl_client *)options, "x", 1, 0, NULL, &error) == TL_NOT_SENT);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "this is no tl_client");
    CHECK(tl_client_send_text(client, NULL, 1, 0, NULL, &error) == TL_NOT_SENT);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "NULL");
    CHECK(tl_client_send_text(client, "\xc3", 1, 0, NULL, &error) == TL_NOT_SENT);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "UTF-8");
    CHECK(tl_client_send_binary(client, "x", SIZE_MAX, 0, NULL, &error) ==
          TL_NOT_SENT);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "length");
    CHECK(tl_client_send_batch(client, NULL, 2, 0, &sent, NULL, &error) == TL_NOT_SENT);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "array");
    CHECK(sent == 0);
    CHECK(tl_client_send_batch(client, payloads, SIZE_MAX, 0, NULL, NULL, &error) == TL_NOT_SENT);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "number");
    CHECK(tl_client_send_batch(client, NULL, 0, 0, NULL, NULL, &error) == TL_NOT_SENT);
    refused(error, TL_ERROR_CONFIG, "");
    memset(payloads, 0, sizeof payloads);
    payloads[1].data = "\xff";
    payloads[1].length = 1;
    payloads[1].is_text = 1;
    CHECK(tl_client_send_batch(client, payloads, 2, 0, NULL, NULL, &error) == TL_NOT_SENT);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "UTF-8");
    CHECK(receipt.epoch == 7);

    /* Lengths of zero are messages. */
    CHECK(tl_client_send_text(client, NULL, 0, 0, &receipt, &error) == TL_OK);
    CHECK(receipt.epoch == 1 && receipt.sequence == 1);
    CHECK(tl_client_send_binary(client, NULL, 0, 1, &receipt, NULL) == TL_OK);
    CHECK(receipt.sequence == 2 && error == NULL);

    /* Another epoch is not open. */
    CHECK(tl_client_send_text(client, "x", 1, 9, NULL, &error) == TL_NOT_SENT);
    CHECK(error->kind == TL_ERROR_CLOSED);
    tl_error_free(error);

    CHECK(tl_client_reconnect(client, 0, "why", &error) == TL_NOT_SENT);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "code");
    CHECK(tl_client_reconnect(client, 1005, NULL, &error) == TL_NOT_SENT);
    refused(error, TL_ERROR_CONFIG, "1005");
    CHECK(tl_client_stop_with(client, 1000, "\xff", SOON, &report, &error) == TL_FAILED);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "UTF-8");
    CHECK(report == NULL && tl_client_state(client) == TL_STATE_OPEN);

    REFUSED(tl_client_stats(client, NULL, &error), "NULL");
    stats.size = 0;
    REFUSED(tl_client_stats(client, &stats, &error), "sizeof(tl_stats)");
    memset(&newer, 7, sizeof newer);
    newer.known.size = sizeof newer;
    CHECK(tl_client_stats(client, &newer.known, NULL) == TL_OK);
    CHECK(newer.known.size == sizeof stats && newer.unknown == UINT64_C(0x0707070707070707));
    CHECK(newer.known.messages_sent == 2 && newer.known.live_threads == 2);
    /* A program that was compiled with an older header. */
    memset(&stats, 7, sizeof stats);
    stats.size = offsetof(tl_stats, bytes_received);
    CHECK(tl_client_stats(client, &stats, NULL) == TL_OK);
    CHECK(stats.size == offsetof(tl_stats, bytes_received));
    CHECK(stats.bytes_received == UINT64_C(0x0707070707070707));

    CHECK(tl_client_stop_all(NULL, 1, 0, NULL, NULL) == TL_FAILED);
    /* No place of the reports is left as it was. */
    clients[0] = clients[2] = client;
    clients[1] = NULL;
    memset(reports, 7, sizeof reports);
    REFUSED(tl_client_stop_all(clients, 3, SOON, reports, &error), "NULL");
    CHECK(reports[0] == NULL && reports[1] == NULL && reports[2] == NULL);
    memset(reports, 7, sizeof reports);
    REFUSED(tl_client_stop_all(NULL, 3, SOON, reports, &error), "NULL");
    CHECK(reports[0] == NULL && reports[1] == NULL && reports[2] == NULL);
    CHECK(tl_client_state(client) == TL_STATE_OPEN);
    CHECK(tl_client_stop(client, SOON, &report, &error) == TL_OK);
    CHECK(report->is_clean && report->thread_count == 2);
    tl_stop_report_free(report);
    tl_stop_report_free(report);
    CHECK(tl_client_stop(client, SOON, NULL, NULL) == TL_OK);
    CHECK(tl_client_wake(client, NULL) == TL_FAILED);
    tl_client_free(client);
    tl_client_free(client);
    CHECK(tl_client_send_text(client, "x", 1, 0, NULL, &error) == TL_NOT_SENT);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "has been freed");
    CHECK(tl_client_state(client) == TL_STATE_OTHER && tl_client_state(NULL) == TL_STATE_OTHER);
    CHECK(tl_client_wait_closed(client, 0, &error) == TL_FAILED);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "has been freed");
    tl_options_free(options);
}

static void events_are_checked(void) {
    tl_options *options = options_of("burst?n=3");
    tl_error *error = NULL;
    tl_client *client = tl_client_connect(options, &error);
    tl_events *events = tl_client_events(client, &error);
    tl_event array[4];
    size_t count = 7;
    OK(error);

    REFUSED(tl_events_next_batch(events, 0, array, sizeof array[0], 4, NULL, &error), "count");
    REFUSED(tl_events_next_batch(NULL, 0, array, sizeof array[0], 4, &count, &error), "NULL");
    CHECK(count == 0);
    REFUSED(tl_events_next_batch(events, 0, NULL, sizeof array[0], 4, &count, &error), "array");
    REFUSED(tl_events_next_batch(events, 0, array, sizeof array[0], 0, &count, &error), "room");
    REFUSED(tl_events_next_batch(events, 0, array, 8, 4, &count, &error), "event_size");
    REFUSED(tl_events_next_batch(events, 0, array, 1001, 4, &count, &error), "event_size");
    /* `sizeof array` in the place of `sizeof array[0]`, and a capacity that wraps around. */
    REFUSED(tl_events_next_batch(events, 0, array, sizeof array, 4, &count, &error), "event_size");
    REFUSED(tl_events_next_batch(events, 0, array, 2 * sizeof array[0], 2, &count, &error),
            "event_size");
    REFUSED(tl_events_next_batch(events, 0, array, sizeof array[0], SIZE_MAX / 16, &count, &error),
            "capacity");
    CHECK(count == 0);
    CHECK(tl_events_fd(NULL, &error) == -1);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "NULL");

    /* An error inside an event belongs to that. */
    CHECK(tl_client_stop(client, SOON, NULL, NULL) == TL_OK);
    for (;;) {
        tl_status status =
            tl_events_next_batch(events, SOON, array, sizeof array[0], 1, &count, &error);
        CHECK(status == TL_OK && count == 1);
        if (array[0].kind == TL_EVENT_STOPPED) {
            break;
        }
    }
    tl_error_free((tl_error *)array[0].detail.stopped->error);
    CHECK(array[0].detail.stopped->error->kind == TL_ERROR_STOPPED);
    CHECK(strstr(array[0].detail.stopped->error->text, "stop") != NULL);
    CHECK(tl_events_next_batch(events, TL_FOREVER, array, sizeof array[0], 1, &count, NULL) ==
          TL_ENDED);
    CHECK(count == 0);

    tl_client_free(client);
    tl_events_free(events);
    tl_events_free(events);
    REFUSED(tl_events_next_batch(events, 0, array, sizeof array[0], 4, &count, &error), "freed");
    tl_options_free(options);
}

/* What a callback has kept of its connection. */
typedef struct {
    tl_connection *connection;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int has_opened;
    int has_ended;
    int is_over;
} kept;

static void keep(void *user_data, tl_connection *connection, const tl_opened *opened) {
    kept *kept = user_data;
    size_t length = 7;
    CHECK(tl_opened_header(opened, NULL, &length) == NULL && length == 0);
    CHECK(tl_opened_header(NULL, "x", &length) == NULL);
    CHECK(tl_opened_header(opened, "not a \xff name", NULL) == NULL);
    CHECK(tl_opened_carried(opened, "x", NULL) == NULL);
    CHECK(tl_connection_send_text(connection, NULL, 1, NULL, NULL) == TL_NOT_SENT);
    pthread_mutex_lock(&kept->lock);
    kept->connection = connection;
    kept->has_opened = 1;
    pthread_cond_signal(&kept->changed);
    /* The connection is lent while another thread tries to use it. */
    while (!kept->is_over) {
        pthread_cond_wait(&kept->changed, &kept->lock);
    }
    pthread_mutex_unlock(&kept->lock);
}

/* On the thread of the callbacks, but in none that is given a connection. */
static void use_late(void *user_data, const tl_disconnect *disconnect) {
    kept *kept = user_data;
    tl_error *error = NULL;
    CHECK(disconnect->size == sizeof *disconnect);
    CHECK(tl_connection_send_text(kept->connection, "x", 1, NULL, &error) == TL_NOT_SENT);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "outside of its callback");
    kept->has_ended = 1;
}

static void connections_are_checked(void) {
    tl_options *options = options_of("echo");
    tl_callbacks callbacks = {0};
    kept kept;
    tl_error *error = NULL;
    tl_client *client;
    memset(&kept, 0, sizeof kept);
    pthread_mutex_init(&kept.lock, NULL);
    pthread_cond_init(&kept.changed, NULL);
    callbacks.size = sizeof callbacks;
    callbacks.user_data = &kept;
    callbacks.opened = keep;
    callbacks.disconnected = use_late;
    client = tl_client_start_with(options, &callbacks, &error);
    OK(error);
    pthread_mutex_lock(&kept.lock);
    while (!kept.has_opened) {
        pthread_cond_wait(&kept.changed, &kept.lock);
    }
    CHECK(tl_connection_send_text(kept.connection, "x", 1, NULL, &error) == TL_NOT_SENT);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "another thread");
    REFUSED(tl_connection_stop(kept.connection, &error), "another thread");
    REFUSED(tl_connection_wake_at(NULL, 0, &error), "NULL");
    kept.is_over = 1;
    pthread_cond_signal(&kept.changed);
    pthread_mutex_unlock(&kept.lock);
    tl_client_free(client);
    CHECK(kept.has_ended);
    CHECK(tl_connection_send_text(kept.connection, "x", 1, NULL, &error) == TL_NOT_SENT);
    refused(error, TL_ERROR_INVALID_ARGUMENT, "has been freed");
    tl_options_free(options);
    pthread_cond_destroy(&kept.changed);
    pthread_mutex_destroy(&kept.lock);
}

int main(void) {
    size_t threads = threads_now(), descriptors = descriptors_now();
    CHECK(tl_abi_version() == TL_ABI_VERSION);
    options_are_checked();
    callbacks_are_checked();
    clients_and_sends_are_checked();
    events_are_checked();
    connections_are_checked();
    check_nothing_left(threads, descriptors);
    return 0;
}

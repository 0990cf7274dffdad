/* A market feed by callbacks: subscribes after every opening, follows the best prices, and stops when
 * the server says that the day is over.
 *
 *   cc market_feed.c $(pkg-config --cflags --libs tautline) -pthread
 *   ./a.out ws://127.0.0.1:9000/feed
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tautline.h>

/* The state of the program. The callbacks run on one thread, so it needs no lock. */
typedef struct {
    unsigned long quotes;
    unsigned long batches;
    unsigned openings;
    unsigned ends;
    char latest[128];
} feed;

static void opened(void *user_data, tl_connection *connection, const tl_opened *opened) {
    static const char subscribe[] = "subscribe BTCUSDT";
    feed *feed = user_data;
    tl_receipt receipt;
    tl_error *error = NULL;
    feed->openings++;
    printf("open: epoch %llu at %s\n", (unsigned long long)opened->epoch, opened->peer);
    /* Each connection needs its own subscription. */
    if (tl_connection_send_text(connection, subscribe, strlen(subscribe), &receipt, &error) !=
        TL_OK) {
        fprintf(stderr, "not subscribed: %s\n", error->text);
        tl_error_free(error);
    }
}

static void message(void *user_data, tl_connection *connection, const tl_message *message) {
    feed *feed = user_data;
    if (message->length == 3 && memcmp(message->data, "end", 3) == 0) {
        tl_connection_stop(connection, NULL);
        return;
    }
    feed->quotes++;
    /* The payload lives as long as this call, and no zero byte ends it. */
    snprintf(feed->latest, sizeof feed->latest, "%.*s", (int)message->length, message->data);
}

/* Once for all messages that came together: the place to act on the latest of them. */
static void batch_end(void *user_data, tl_connection *connection) {
    feed *feed = user_data;
    (void)connection;
    feed->batches++;
}

static void disconnected(void *user_data, const tl_disconnect *disconnect) {
    feed *feed = user_data;
    feed->ends++;
    printf("%s\n", disconnect->text);
}

static void dial_failed(void *user_data, const tl_dial_failure *failure) {
    (void)user_data;
    printf("%s\n", failure->text);
}

static void stopped(void *user_data, const tl_stopped *stopped) {
    (void)user_data;
    printf("%s\n", stopped->text);
}

static int fail(tl_error *error) {
    fprintf(stderr, "%s: %s\n", error->kind_name, error->text);
    tl_error_free(error);
    return EXIT_FAILURE;
}

int main(int argc, char **argv) {
    feed feed = {0};
    tl_error *error = NULL;
    tl_error *reason = NULL;
    tl_stop_report *report = NULL;
    tl_callbacks callbacks = {0};
    tl_options *options = tl_options_new(TL_ABI_VERSION, &error);
    tl_client *client;
    tl_status status;
    int result;

    if (options == NULL) {
        return fail(error);
    }
    if (tl_options_set(options, "url", argc > 1 ? argv[1] : "", &error) != TL_OK ||
        tl_options_set(options, "name", "feed", &error) != TL_OK ||
        tl_options_set(options, "ping_interval", "15s", &error) != TL_OK ||
        tl_options_set(options, "retry_delay_min", "10ms", &error) != TL_OK) {
        tl_options_free(options);
        return fail(error);
    }
    callbacks.size = sizeof callbacks;
    callbacks.user_data = &feed;
    callbacks.opened = opened;
    callbacks.message = message;
    callbacks.batch_end = batch_end;
    callbacks.disconnected = disconnected;
    callbacks.dial_failed = dial_failed;
    callbacks.stopped = stopped;
    client = tl_client_start_with(options, &callbacks, &error);
    tl_options_free(options);
    if (client == NULL) {
        return fail(error);
    }

    status = tl_client_wait_closed(client, 60 * TL_SECOND, &reason);
    /* Also if it has ended already: then all of its threads are gone, and `feed` is ours again. */
    result = tl_client_stop(client, 5 * TL_SECOND, &report, &error);
    if (result == TL_FAILED) {
        return fail(error);
    }
    printf("stopped %s\n", report->text);
    printf("%lu quotes in %lu batches, %u openings, %u ends; the last: %s\n", feed.quotes,
           feed.batches, feed.openings, feed.ends, feed.latest);
    result = status == TL_OK && reason->kind == TL_ERROR_STOPPED && report->is_clean &&
                     feed.quotes > 0 && feed.openings == feed.ends
                 ? EXIT_SUCCESS
                 : EXIT_FAILURE;
    tl_stop_report_free(report);
    tl_error_free(reason);
    tl_client_free(client);
    return result;
}

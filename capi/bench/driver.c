/* The C interface as a driver for the load server of benches/peers.py: by callbacks, or with BATCH=1
 * by pulling in batches.
 *
 *   driver echo URL N SIZE | firehose URL | paced URL
 */
#include "driver.h"

#include <tautline.h>

#ifndef CAPACITY
#define CAPACITY 128
#endif

static void fail(const tl_error *error) {
    fprintf(stderr, "%s\n", error == NULL ? "it has ended" : error->text);
    exit(1);
}

static void act(job *job, enum next next, tl_connection *connection) {
    tl_error *error = NULL;
    if (next == SEND && tl_connection_send_text(connection, job->payload, job->payload_length,
                                                NULL, &error) != TL_OK) {
        fail(error);
    }
    if (next == STOP) {
        tl_connection_stop(connection, NULL);
    }
}

static void on_opened(void *user_data, tl_connection *connection, const tl_opened *event) {
    (void)event;
    act(user_data, opened(user_data), connection);
}

static void on_message(void *user_data, tl_connection *connection, const tl_message *message) {
    enum next next = came(user_data, message->data, message->length);
    if (next != NOTHING) {
        act(user_data, next, connection);
    }
}

static void push(job *job, tl_options *options) {
    tl_callbacks callbacks = {0};
    tl_error *error = NULL;
    tl_client *client;
    callbacks.size = sizeof callbacks;
    callbacks.user_data = job;
    callbacks.opened = on_opened;
    callbacks.message = on_message;
    client = tl_client_start_with(options, &callbacks, &error);
    if (client == NULL) {
        fail(error);
    }
    if (tl_client_wait_closed(client, 600 * TL_SECOND, &error) != TL_OK ||
        error->kind != TL_ERROR_STOPPED) {
        fail(error);
    }
    tl_error_free(error);
    tl_client_free(client);
}

static void pull(job *job, tl_options *options) {
    tl_error *error = NULL;
    tl_client *client;
    tl_events *events;
    tl_event batch[CAPACITY];
    size_t count, index;
    tl_options_set(options, "queue_messages", "1048576", NULL);
    tl_options_set(options, "when_full", "block", NULL);
    client = tl_client_connect(options, &error);
    if (client == NULL) {
        fail(error);
    }
    events = tl_client_events(client, &error);
    while (tl_events_next_batch(events, TL_FOREVER, batch, sizeof *batch, CAPACITY, &count,
                                &error) == TL_OK) {
        for (index = 0; index < count; index++) {
            const tl_event *event = &batch[index];
            enum next next = NOTHING;
            if (event->kind == TL_EVENT_MESSAGE) {
                next = came(job, event->message.data, event->message.length);
            } else if (event->kind == TL_EVENT_OPENED) {
                next = opened(job);
            } else if (event->kind == TL_EVENT_DISCONNECTED) {
                fail(event->detail.disconnect->error);
            }
            if (next == SEND && tl_client_send_text(client, job->payload, job->payload_length, 0,
                                                    NULL, &error) != TL_OK) {
                fail(error);
            }
            if (next == STOP) {
                tl_events_free(events);
                tl_client_free(client);
                return;
            }
        }
    }
    fail(error);
}

int main(int argc, char **argv) {
    tl_error *error = NULL;
    tl_options *options = tl_options_new(TL_ABI_VERSION, &error);
    int in_batches = getenv("BATCH") != NULL;
    job *job = parse(in_batches ? "tautline-c-batches" : "tautline-c", argc, argv);
    const char *root = getenv("CA");
    if (options == NULL || tl_options_set(options, "url", job->url, &error) != TL_OK ||
        tl_options_set(options, "max_attempts", "1", &error) != TL_OK) {
        fail(error);
    }
    if (strncmp(job->url, "wss", 3) == 0 &&
        (tl_options_set(options, "tls_root_file", root ? root : "certs/ca.pem", &error) != TL_OK ||
         tl_options_set(options, "tls_only_given_roots", "on", &error) != TL_OK)) {
        fail(error);
    }
    if (in_batches) {
        pull(job, options);
    } else {
        push(job, options);
    }
    tl_options_free(options);
    return 0;
}

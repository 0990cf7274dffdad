/* An order desk that pulls its events in batches, and sleeps in poll(2). It never sends an order
 * twice, and never forgets one: what became of a message is one of three things, and an order whose
 * connection has ended before its reply is asked for.
 *
 *   cc orders.c $(pkg-config --cflags --libs tautline) -pthread
 *   ./a.out ws://127.0.0.1:9000/orders
 */
#define _POSIX_C_SOURCE 200809L

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tautline.h>

#define ORDERS 8
#define CAPACITY 64
#define RETRY_DELAY (100 * TL_MILLISECOND)
/* A server that says nothing for so long has failed. */
#define SILENCE (10 * TL_SECOND)

typedef struct {
    tl_client *client;
    tl_events *events;
    /* The epoch of the open connection, or 0. */
    uint64_t epoch;
    /* The order that is being traded, and those that the server has confirmed. */
    unsigned order;
    unsigned filled;
    /* The time at which to act again, because a message was not sent while the connection stayed
     * open, or 0. */
    int64_t retry_at;
    /* The order may have been executed: the server has to be asked. */
    int is_in_doubt;
    int is_over;
    int has_failed;
} desk;

/* Sends the next order, or asks for the one in doubt, on this connection and no other. */
static void act(desk *desk) {
    char text[32];
    tl_error *error = NULL;
    tl_status status;
    desk->retry_at = 0;
    if (desk->epoch == 0) {
        return;
    }
    if (desk->order > ORDERS) {
        snprintf(text, sizeof text, "count");
    } else {
        snprintf(text, sizeof text, "%s %u", desk->is_in_doubt ? "status" : "order", desk->order);
    }
    status = tl_client_send_text(desk->client, text, strlen(text), desk->epoch, NULL, &error);
    switch (status) {
    case TL_OK:
        break;
    case TL_NOT_SENT:
        printf("%s: not sent (%s): it is safe to send again\n", text, error->text);
        /* A rate limit says when it has room. If the connection has ended, that is told next. */
        desk->retry_at = tl_now() + (error->retry_in_ns >= 0 ? error->retry_in_ns : RETRY_DELAY);
        break;
    default:
        printf("%s: nobody knows (%s): the server will be asked\n", text, error->text);
        desk->is_in_doubt = desk->order <= ORDERS;
        break;
    }
    tl_error_free(error);
}

static void replied(desk *desk, const tl_message *message) {
    char what[16];
    unsigned number = 0, duplicates = 0;
    char text[64];
    snprintf(text, sizeof text, "%.*s", (int)message->length, message->data);
    if (sscanf(text, "%15s %u %u", what, &number, &duplicates) < 2) {
        printf("an unknown message\n");
        return;
    }
    if (strcmp(what, "count") == 0) {
        printf("the server has executed %u orders, %u of them twice\n", number, duplicates);
        desk->has_failed = number != ORDERS || duplicates != 0;
        desk->is_over = 1;
        return;
    }
    printf("order %u: %s\n", number, what);
    if (number == desk->order) {
        /* One that the server does not know is sent again. */
        if (strcmp(what, "filled") == 0) {
            desk->order++;
            desk->filled++;
        }
        desk->is_in_doubt = 0;
        act(desk);
    }
}

static void take(desk *desk, const tl_event *event) {
    switch (event->kind) {
    case TL_EVENT_OPENED:
        desk->epoch = event->detail.opened->epoch;
        act(desk);
        break;
    case TL_EVENT_MESSAGE:
        replied(desk, &event->message);
        break;
    case TL_EVENT_DISCONNECTED:
        printf("%s\n", event->detail.disconnect->text);
        desk->epoch = 0;
        desk->retry_at = 0;
        /* The reply to the latest order did not come. */
        desk->is_in_doubt = desk->order <= ORDERS;
        break;
    case TL_EVENT_DIAL_FAILED:
        printf("%s\n", event->detail.dial_failure->text);
        break;
    case TL_EVENT_STOPPED:
        printf("%s\n", event->detail.stopped->text);
        desk->is_over = desk->has_failed = 1;
        break;
    default:
        break;
    }
}

/* Takes all that is there, without waiting. Returns 0 when the client has ended. */
static int pull(desk *desk) {
    tl_event batch[CAPACITY];
    size_t count, index;
    tl_error *error = NULL;
    tl_status status;
    do {
        status = tl_events_next_batch(desk->events, 0, batch, sizeof batch[0], CAPACITY, &count,
                                      &error);
        for (index = 0; index < count; index++) {
            take(desk, &batch[index]);
        }
        /* A batch that does not fill the array need not be the last. */
    } while (status == TL_OK);
    if (status == TL_FAILED) {
        fprintf(stderr, "%s\n", error->text);
        tl_error_free(error);
    }
    return status == TL_EMPTY;
}

/* Returns the milliseconds to wait for events. */
static int wait_of(const desk *desk) {
    int64_t wait = SILENCE;
    if (desk->retry_at != 0) {
        wait = desk->retry_at - tl_now();
    }
    /* Rounded up, so that the time has come afterwards. */
    return wait <= 0 ? 0 : (int)((wait + TL_MILLISECOND - 1) / TL_MILLISECOND);
}

static int fail(tl_error *error) {
    fprintf(stderr, "%s: %s\n", error->kind_name, error->text);
    tl_error_free(error);
    return EXIT_FAILURE;
}

int main(int argc, char **argv) {
    tl_error *error = NULL;
    tl_stop_report *report = NULL;
    tl_options *options = tl_options_new(TL_ABI_VERSION, &error);
    desk desk = {0};
    struct pollfd waiting;
    int is_clean;

    if (options == NULL) {
        return fail(error);
    }
    if (tl_options_set(options, "url", argc > 1 ? argv[1] : "", &error) != TL_OK ||
        tl_options_set(options, "send_timeout", "300ms", &error) != TL_OK ||
        tl_options_set(options, "retry_delay_min", "10ms", &error) != TL_OK ||
        /* Orders leave at a rate that the server allows. A send that would have to wait for longer
         * than `send_timeout` is refused at once. */
        tl_options_set(options, "send_limit", "4/500ms", &error) != TL_OK) {
        tl_options_free(options);
        return fail(error);
    }
    desk.order = 1;
    desk.client = tl_client_connect(options, &error);
    tl_options_free(options);
    if (desk.client == NULL) {
        return fail(error);
    }
    desk.events = tl_client_events(desk.client, &error);
    if (desk.events == NULL) {
        tl_client_free(desk.client);
        return fail(error);
    }
    waiting.fd = tl_events_fd(desk.events, &error);
    if (waiting.fd < 0) {
        tl_events_free(desk.events);
        tl_client_free(desk.client);
        return fail(error);
    }
    waiting.events = POLLIN;
    while (!desk.is_over) {
        int ready = poll(&waiting, 1, wait_of(&desk));
        if (ready < 0 || (ready == 0 && desk.retry_at == 0) || (ready > 0 && !pull(&desk))) {
            break;
        }
        if (desk.retry_at != 0 && tl_now() >= desk.retry_at) {
            act(&desk);
        }
    }

    tl_client_stop(desk.client, 5 * TL_SECOND, &report, &error);
    printf("stopped %s\n", report->text);
    is_clean = report->is_clean;
    tl_stop_report_free(report);
    tl_events_free(desk.events);
    tl_client_free(desk.client);
    return desk.is_over && !desk.has_failed && desk.filled == ORDERS && is_clean ? EXIT_SUCCESS
                                                                                 : EXIT_FAILURE;
}

/* libwebsockets as a driver for the load server of benches/peers.py: one connection on its event loop,
 * with a receive buffer of 128 KiB, and with the check of UTF-8, which is off by default.
 *
 *   libwebsockets echo URL N SIZE | firehose URL | paced URL
 */
#include "driver.h"

#include <libwebsockets.h>

#define BUFFER (128 * 1024)

typedef struct {
    job *job;
    int is_over;
    int has_failed;
    /* A message that came in parts. */
    char *partial;
    size_t partial_length;
    size_t partial_room;
    unsigned char *out;
} state;

static void act(state *state, struct lws *connection, enum next next) {
    if (next == SEND) {
        lws_callback_on_writable(connection);
    }
    if (next == STOP) {
        state->is_over = 1;
    }
}

static void append(state *state, const void *data, size_t length) {
    if (state->partial_length + length > state->partial_room) {
        state->partial_room = 2 * (state->partial_length + length);
        state->partial = realloc(state->partial, state->partial_room);
    }
    memcpy(state->partial + state->partial_length, data, length);
    state->partial_length += length;
}

static int on_event(struct lws *connection, enum lws_callback_reasons reason, void *user,
                    void *data, size_t length) {
    state *state = lws_context_user(lws_get_context(connection));
    (void)user;
    switch (reason) {
    case LWS_CALLBACK_CLIENT_ESTABLISHED:
        act(state, connection, opened(state->job));
        break;
    case LWS_CALLBACK_CLIENT_WRITEABLE:
        memcpy(state->out + LWS_PRE, state->job->payload, state->job->payload_length);
        if (lws_write(connection, state->out + LWS_PRE, state->job->payload_length,
                      LWS_WRITE_TEXT) < 0) {
            return -1;
        }
        break;
    case LWS_CALLBACK_CLIENT_RECEIVE: {
        int is_whole = lws_is_final_fragment(connection);
        if (is_whole && state->partial_length == 0) {
            act(state, connection, came(state->job, data, length));
            break;
        }
        append(state, data, length);
        if (is_whole) {
            enum next next = came(state->job, state->partial, state->partial_length);
            state->partial_length = 0;
            act(state, connection, next);
        }
        break;
    }
    case LWS_CALLBACK_CLIENT_CONNECTION_ERROR:
    case LWS_CALLBACK_CLIENT_CLOSED:
        if (!state->is_over) {
            state->is_over = state->has_failed = 1;
            fprintf(stderr, "the connection has ended: %s\n", data ? (const char *)data : "");
        }
        break;
    default:
        break;
    }
    return 0;
}

int main(int argc, char **argv) {
    state state = {0};
    struct lws_protocols protocols[2] = {{0}};
    struct lws_context_creation_info info;
    struct lws_client_connect_info target;
    struct lws_context *context;
    const char *scheme, *host, *path;
    char *url, full[512];
    const char *root = getenv("CA");
    int port;
    state.job = parse("libwebsockets", argc, argv);
    state.out = malloc(LWS_PRE + state.job->payload_length + 1);
    lws_set_log_level(LLL_ERR, NULL);
    protocols[0].name = "bench";
    protocols[0].callback = on_event;
    protocols[0].rx_buffer_size = BUFFER;
    memset(&info, 0, sizeof info);
    info.port = CONTEXT_PORT_NO_LISTEN;
    info.protocols = protocols;
    info.user = &state;
    info.pt_serv_buf_size = BUFFER;
    info.options = LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT | LWS_SERVER_OPTION_VALIDATE_UTF8;
    info.client_ssl_ca_filepath = root ? root : "certs/ca.pem";
    context = lws_create_context(&info);
    url = strdup(state.job->url);
    if (context == NULL || lws_parse_uri(url, &scheme, &host, &port, &path) != 0) {
        return 1;
    }
    snprintf(full, sizeof full, "/%s", path);
    memset(&target, 0, sizeof target);
    target.context = context;
    target.address = target.host = target.origin = host;
    target.port = port;
    target.path = full;
    target.ssl_connection = strcmp(scheme, "wss") == 0 ? LCCSCF_USE_SSL : 0;
    target.local_protocol_name = "bench";
    if (lws_client_connect_via_info(&target) == NULL) {
        return 1;
    }
    while (!state.is_over && lws_service(context, 0) >= 0) {
    }
    lws_context_destroy(context);
    free(url);
    free(state.out);
    free(state.partial);
    return state.has_failed;
}

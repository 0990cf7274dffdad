// A market feed in Go: one goroutine pulls events in batches, any other may send.
//
//	go build market_feed.go && ./market_feed ws://127.0.0.1:9000/feed
package main

/*
#cgo pkg-config: tautline
#include <stdlib.h>
#include <tautline.h>

// cgo has no access to the members of a union.
static const tl_opened *opened_of(const tl_event *event) { return event->detail.opened; }
static const char *text_of(const tl_event *event) {
    switch (event->kind) {
    case TL_EVENT_DISCONNECTED: return event->detail.disconnect->text;
    case TL_EVENT_DIAL_FAILED: return event->detail.dial_failure->text;
    case TL_EVENT_STOPPED: return event->detail.stopped->text;
    default: return "";
    }
}
*/
import "C"

import (
	"errors"
	"fmt"
	"os"
	"unsafe"
)

const capacity = 64

// failure copies an error of the library, and frees it. Errors come by a pointer, because a
// goroutine may be on another thread when it looks for them.
func failure(err *C.tl_error) error {
	if err == nil {
		return nil
	}
	defer C.tl_error_free(err)
	return errors.New(C.GoString(err.kind_name) + ": " + C.GoString(err.text))
}

// client owns a client and its events.
type client struct {
	client *C.tl_client
	events *C.tl_events
	// In C's memory, so that the library may keep pointers in it.
	batch *C.tl_event
}

func start(settings map[string]string) (*client, error) {
	var err *C.tl_error
	options := C.tl_options_new(C.TL_ABI_VERSION, &err)
	if options == nil {
		return nil, failure(err)
	}
	defer C.tl_options_free(options)
	for key, value := range settings {
		name, text := C.CString(key), C.CString(value)
		C.tl_options_set(options, name, text, &err)
		C.free(unsafe.Pointer(name))
		C.free(unsafe.Pointer(text))
		if err != nil {
			return nil, failure(err)
		}
	}
	started := C.tl_client_start(options, &err)
	if started == nil {
		return nil, failure(err)
	}
	events := C.tl_client_events(started, &err)
	if events == nil {
		C.tl_client_free(started)
		return nil, failure(err)
	}
	batch := (*C.tl_event)(C.calloc(capacity, C.sizeof_tl_event))
	return &client{started, events, batch}, nil
}

// next waits for events. They are good until the next call.
func (c *client) next() ([]C.tl_event, error) {
	var err *C.tl_error
	var count C.size_t
	status := C.tl_events_next_batch(
		c.events, C.TL_FOREVER, c.batch, C.sizeof_tl_event, capacity, &count, &err)
	if status == C.TL_FAILED {
		return nil, failure(err)
	}
	return unsafe.Slice(c.batch, int(count)), nil
}

// send sends a text on the connection of one epoch and no other.
func (c *client) send(text string, epoch C.uint64_t) error {
	var err *C.tl_error
	var receipt C.tl_receipt
	copied := C.CString(text)
	defer C.free(unsafe.Pointer(copied))
	C.tl_client_send_text(c.client, copied, C.size_t(len(text)), epoch, &receipt, &err)
	return failure(err)
}

// stop stops the client, frees it, and tells whether all of its threads have ended.
func (c *client) stop() (string, bool) {
	var err *C.tl_error
	var report *C.tl_stop_report
	C.tl_client_stop(c.client, 5*C.TL_SECOND, &report, &err)
	defer C.tl_stop_report_free(report)
	defer C.free(unsafe.Pointer(c.batch))
	defer C.tl_client_free(c.client)
	defer C.tl_events_free(c.events)
	return C.GoString(report.text), bool(report.is_clean)
}

func main() {
	feed, err := start(map[string]string{
		"url": os.Args[1], "name": "feed", "ping_interval": "15s", "retry_delay_min": "10ms",
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	quotes, openings, ends := 0, 0, 0
	latest := ""
	for {
		batch, err := feed.next()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		if len(batch) == 0 {
			break
		}
		for index := range batch {
			event := &batch[index]
			switch event.kind {
			case C.TL_EVENT_OPENED:
				opened := C.opened_of(event)
				openings++
				fmt.Printf("open: epoch %d at %s\n", opened.epoch, C.GoString(opened.peer))
				if err := feed.send("subscribe BTCUSDT", opened.epoch); err != nil {
					fmt.Fprintln(os.Stderr, "not subscribed:", err)
				}
			case C.TL_EVENT_MESSAGE:
				text := C.GoStringN(event.message.data, C.int(event.message.length))
				if text == "end" {
					C.tl_client_request_stop(feed.client, nil)
				} else {
					quotes++
					latest = text
				}
			default:
				if event.kind == C.TL_EVENT_DISCONNECTED {
					ends++
				}
				fmt.Println(C.GoString(C.text_of(event)))
			}
		}
	}
	text, isClean := feed.stop()
	fmt.Println("stopped", text)
	fmt.Printf("%d quotes, %d openings, %d ends; the last: %s\n", quotes, openings, ends, latest)
	if !isClean || quotes == 0 || openings != ends {
		os.Exit(1)
	}
}

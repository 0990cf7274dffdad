/* What the drivers in C share: clocks, and the three measurements of benches/driver.rs with the same
 * lines of JSON. Times are CLOCK_MONOTONIC, CPU is that of the whole process. */
#ifndef TAUTLINE_BENCH_DRIVER_H
#define TAUTLINE_BENCH_DRIVER_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static inline uint64_t nanos_of(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static inline uint64_t wall_now(void) {
    return nanos_of(CLOCK_MONOTONIC);
}

static inline uint64_t cpu_now(void) {
    return nanos_of(CLOCK_PROCESS_CPUTIME_ID);
}

static inline long resident_kib(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
}

enum mode { ECHO, FIREHOSE, PACED };

/* A measurement, and what to do next. */
enum next { NOTHING, SEND, STOP };

typedef struct {
    enum mode mode;
    const char *peer;
    const char *url;
    /* echo: the number of round trips, and what is sent. */
    size_t count;
    char *payload;
    size_t payload_length;
    size_t done;
    uint64_t sent_at;
    /* echo and paced: the times that were measured. */
    uint64_t *times;
    size_t measured;
    size_t room;
    uint64_t messages;
    uint64_t bytes;
    uint64_t wall;
    uint64_t cpu;
} job;

static inline job *parse(const char *peer, int argc, char **argv) {
    static const char text[] =
        "{\"op\":\"order\",\"sym\":\"BTCUSDT\",\"px\":60123.45,\"qty\":0.0123,\"id\":1234567890},";
    static job job;
    size_t index;
    job.peer = peer;
    if (argc < 3) {
        fprintf(stderr, "usage: %s echo URL N SIZE | firehose URL | paced URL\n", argv[0]);
        exit(2);
    }
    job.url = argv[2];
    job.mode = strcmp(argv[1], "echo") == 0       ? ECHO
               : strcmp(argv[1], "firehose") == 0 ? FIREHOSE
                                                  : PACED;
    if (job.mode == ECHO) {
        job.count = argc > 4 ? strtoull(argv[3], NULL, 10) : 1000;
        job.payload_length = argc > 4 ? strtoull(argv[4], NULL, 10) : 128;
        job.payload = malloc(job.payload_length + 1);
        for (index = 0; index < job.payload_length; index++) {
            job.payload[index] = text[index % (sizeof text - 1)];
        }
    }
    return &job;
}

static inline void measure(job *job, uint64_t time) {
    if (job->measured == job->room) {
        job->room = job->room == 0 ? 65536 : 2 * job->room;
        job->times = realloc(job->times, job->room * sizeof *job->times);
    }
    job->times[job->measured++] = time;
}

static inline void start_clocks(job *job) {
    job->wall = wall_now();
    job->cpu = cpu_now();
}

static inline int compare(const void *left, const void *right) {
    uint64_t one = *(const uint64_t *)left, two = *(const uint64_t *)right;
    return one < two ? -1 : one > two;
}

static inline unsigned long long percentile(const uint64_t *times, size_t count, double part) {
    size_t at = (size_t)((double)count * part);
    return count == 0 ? 0 : times[at < count ? at : count - 1];
}

static inline enum next opened(job *job) {
    start_clocks(job);
    if (job->mode == ECHO) {
        job->sent_at = wall_now();
        return SEND;
    }
    return NOTHING;
}

static enum next ended(job *job) {
    double wall = (double)(wall_now() - job->wall) * 1e-9;
    double cpu = (double)(cpu_now() - job->cpu) * 1e-9;
    /* The first tenth warms up; of round trips it was not kept. */
    size_t warm = job->mode == PACED ? job->measured / 10 : 0;
    uint64_t *times = job->times + warm;
    size_t count = job->measured - warm;
    if (job->mode == FIREHOSE) {
        printf("{\"peer\":\"%s\",\"mode\":\"firehose\",\"msgs\":%llu,\"bytes\":%llu,\"secs\":%.6f,"
               "\"msgs_per_s\":%.0f,\"cpu_s\":%.4f,\"rss_kb\":%ld}\n",
               job->peer, (unsigned long long)job->messages, (unsigned long long)job->bytes, wall,
               (double)job->messages / wall, cpu, resident_kib());
        return STOP;
    }
    qsort(times, count, sizeof *times, compare);
    printf("{\"peer\":\"%s\",\"mode\":\"%s\",\"n\":%zu,\"p50_ns\":%llu,\"p99_ns\":%llu,"
           "\"p999_ns\":%llu,\"max_ns\":%llu,\"secs\":%.6f,\"rtt_per_s\":%.0f,\"cpu_s\":%.4f,\"rss_kb\":%ld}\n",
           job->peer, job->mode == ECHO ? "echo" : "paced", job->measured,
           percentile(times, count, 0.5), percentile(times, count, 0.99),
           percentile(times, count, 0.999), percentile(times, count, 1), wall, (double)count / wall, cpu, resident_kib());
    return STOP;
}

static enum next came_back(job *job) {
    uint64_t took = wall_now() - job->sent_at;
    if (job->done >= job->count / 10) {
        measure(job, took);
    }
    job->done++;
    if (job->done == job->count / 10) {
        start_clocks(job);
    }
    if (job->done < job->count) {
        job->sent_at = wall_now();
        return SEND;
    }
    return ended(job);
}

static inline enum next came(job *job, const void *data, size_t length) {
    if (job->mode == ECHO) {
        return came_back(job);
    }
    if (length == 4 && memcmp(data, "done", 4) == 0) {
        return ended(job);
    }
    if (job->mode == PACED) {
        uint64_t now = wall_now();
        char digits[21] = {0};
        memcpy(digits, data, length < 20 ? length : 20);
        measure(job, now - strtoull(digits, NULL, 10));
        return NOTHING;
    }
    job->messages++;
    job->bytes += length;
    return NOTHING;
}

#endif

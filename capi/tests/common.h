/* What the programs here share: checks that say where they fail, and counts of threads and
 * descriptors. */
#ifndef TAUTLINE_TESTS_COMMON_H
#define TAUTLINE_TESTS_COMMON_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tautline.h>
#include <time.h>

#define SOON (10 * TL_SECOND)

#define CHECK(condition)                                                                         \
    do {                                                                                         \
        if (!(condition)) {                                                                      \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);              \
            exit(1);                                                                             \
        }                                                                                        \
    } while (0)

/* Ends the program if a call has given an error. */
static inline void check_error(const tl_error *error, const char *file, int number) {
    if (error != NULL) {
        fprintf(stderr, "%s:%d: %s: %s\n", file, number, error->kind_name, error->text);
        exit(1);
    }
}
#define OK(error) check_error(error, __FILE__, __LINE__)

static inline size_t entries_of(const char *folder) {
    DIR *directory = opendir(folder);
    size_t count = 0;
    if (directory == NULL) {
        return 0;
    }
    while (readdir(directory) != NULL) {
        count++;
    }
    closedir(directory);
    return count;
}

/* The number of threads and descriptors of this process. */
static inline size_t threads_now(void) {
    return entries_of("/proc/self/task");
}

static inline size_t descriptors_now(void) {
    return entries_of("/proc/self/fd");
}

/* Ends the program if there are more threads or descriptors than before. The kernel takes a moment
 * to remove a thread that was joined, so this looks until there are no more. */
static inline void check_nothing_left(size_t threads, size_t descriptors) {
    const int64_t deadline = tl_now() + SOON;
    const struct timespec pause = {0, 1000000};
    while (threads_now() > threads || descriptors_now() > descriptors) {
        if (tl_now() > deadline) {
            fprintf(stderr, "%zu threads were %zu, %zu descriptors were %zu\n", threads_now(),
                    threads, descriptors_now(), descriptors);
            exit(1);
        }
        nanosleep(&pause, NULL);
    }
}

/* The URL of the testing server with a path. The result is good until the next call. */
static inline const char *url_of(const char *path) {
    static char url[256];
    const char *base = getenv("TAUTLINE_URL");
    CHECK(base != NULL);
    snprintf(url, sizeof url, "%s%s", base, path);
    return url;
}

/* Options of the server with a path. */
static inline tl_options *options_of(const char *path) {
    tl_error *error = NULL;
    tl_options *options = tl_options_new(TL_ABI_VERSION, &error);
    OK(error);
    tl_options_set(options, "url", url_of(path), &error);
    OK(error);
    return options;
}

static inline void set(tl_options *options, const char *key, const char *value) {
    tl_error *error = NULL;
    tl_options_set(options, key, value, &error);
    OK(error);
}

#endif

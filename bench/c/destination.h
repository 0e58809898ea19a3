/* A destination, in one thread as the engine's: RAM under userfaultfd, and the loop that takes a stream of sections and
 * commands in and places pages, neighbours joined, straight from the receive buffer. Where it waits for bytes it serves
 * faults. */
#ifndef BENCH_DESTINATION_H
#define BENCH_DESTINATION_H

#include "common.h"
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#define BUFFER_BYTES (1u << 20)
#define RUN_PAGES_MAX 64u
#define EVENTS_MAX 64
/** No record of this reference is longer. */
#define RECORD_BYTES_MAX (8 + 256 + PAGE_BYTES)

struct destination {
    int fd;                    /* the connection */
    int userfaultfd;
    int wake;                  /* Nobody signals it; the engine polls one, too. */
    uint8_t *ram;
    uint32_t pages;
    uint32_t *received, *requested;
    /* When the last wait began, and how long all waits were; one guest thread waits at a time. */
    uint64_t begun_ns, blocked_ns;
    /* Receive buffer: [position, end) is unread. */
    uint8_t *buffer;
    size_t position, end;
    int drained;               /* The last receive took all there was. */
    /* Pages joined so far: their bytes lie side by side in the buffer. */
    uint32_t run_page, run_pages;
    uint8_t *run_at;
};

static inline void open_destination(struct destination *d, uint32_t pages)
{
    size_t bytes = (size_t)pages * PAGE_BYTES;
    memset(d, 0, sizeof *d);
    d->pages = pages;
    d->drained = 1;
    d->wake = eventfd(0, 0);
    d->ram = map_memory(bytes);
    if (madvise(d->ram, bytes, MADV_NOHUGEPAGE) && errno != EINVAL) die("MADV_NOHUGEPAGE");
    d->received = calloc(pages / 32 + 1, 4);
    d->requested = calloc(pages / 32 + 1, 4);
    d->buffer = map_memory(BUFFER_BYTES);
    d->userfaultfd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (d->userfaultfd < 0) die("userfaultfd");
    struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_THREAD_ID };
    struct uffdio_register range = { .range = { (uintptr_t)d->ram, bytes }, .mode = UFFDIO_REGISTER_MODE_MISSING };
    if (ioctl(d->userfaultfd, UFFDIO_API, &api)) die("UFFDIO_API");
    if (ioctl(d->userfaultfd, UFFDIO_REGISTER, &range)) die("UFFDIO_REGISTER");
}

static inline void flush_run(struct destination *d)
{
    if (d->run_pages == 0) return;
    size_t length = (size_t)d->run_pages * PAGE_BYTES;
    for (size_t done = 0; done < length;) {
        struct uffdio_copy copy = {
            .dst = (uintptr_t)d->ram + (size_t)d->run_page * PAGE_BYTES + done,
            .src = (uintptr_t)d->run_at + done,
            .len = length - done,
        };
        if (ioctl(d->userfaultfd, UFFDIO_COPY, &copy) && errno != EAGAIN) die("UFFDIO_COPY");
        if (copy.copy > 0) done += (size_t)copy.copy;
    }
    int asked = 0;
    for (uint32_t page = d->run_page; page < d->run_page + d->run_pages; page++) {
        set_bit(d->received, page);
        asked |= test_bit(d->requested, page);
    }
    if (asked) d->blocked_ns += now_ns() - d->begun_ns;
    d->run_pages = 0;
}

static inline void ask_for_page(struct destination *d, uint64_t address)
{
    uint8_t m[REQ_PAGES_BYTES];
    uint32_t page = (uint32_t)((address - (uintptr_t)d->ram) / PAGE_BYTES);
    if (test_bit(d->received, page)) {
        struct uffdio_range range = { (uintptr_t)d->ram + (size_t)page * PAGE_BYTES, PAGE_BYTES };
        if (ioctl(d->userfaultfd, UFFDIO_WAKE, &range)) die("UFFDIO_WAKE");
        return;
    }
    d->begun_ns = now_ns();
    if (test_bit(d->requested, page)) return;
    set_bit(d->requested, page);
    put16(m, RP_REQ_PAGES);
    put16(m + 2, REQ_PAGES_BYTES - 4);
    put64(m + 4, (uint64_t)page * PAGE_BYTES);
    put32(m + 12, PAGE_BYTES);
    send_all(d->fd, m, sizeof m);
}

static inline void serve_faults(struct destination *d)
{
    struct uffd_msg events[EVENTS_MAX];
    ssize_t n = read(d->userfaultfd, events, sizeof events);
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) die("read userfaultfd");
    for (size_t i = 0; i < (size_t)n / sizeof *events; i++) {
        if (events[i].event == UFFD_EVENT_PAGEFAULT) ask_for_page(d, events[i].arg.pagefault.address);
    }
}

static inline void wait_for_bytes(struct destination *d)
{
    struct pollfd fds[3] = { { d->fd, POLLIN, 0 }, { d->wake, POLLIN, 0 }, { d->userfaultfd, POLLIN, 0 } };
    do {
        if (poll(fds, 3, -1) < 0) die("poll");
        if (fds[2].revents) serve_faults(d);
    } while (!fds[0].revents);
}

/** Makes `count` unread bytes contiguous in the buffer. */
static inline uint8_t *need(struct destination *d, size_t count)
{
    if (d->end - d->position < count) {
        memmove(d->buffer, d->buffer + d->position, d->end - d->position);
        d->end -= d->position;
        d->position = 0;
    }
    while (d->end < d->position + count) {
        size_t room = BUFFER_BYTES - d->end;
        if (d->drained) wait_for_bytes(d);
        ssize_t n = recv(d->fd, d->buffer + d->end, room, MSG_DONTWAIT);
        d->drained = n < (ssize_t)room;
        if (n < 0 && errno == EAGAIN) continue;
        if (n < 0) die("recv");
        if (n == 0) { errno = EPIPE; die("recv: the stream ended"); }
        d->end += (size_t)n;
    }
    return d->buffer + d->position;
}

static inline uint8_t *take(struct destination *d, size_t count)
{
    uint8_t *p = need(d, count);
    d->position += count;
    return p;
}

static inline void join_page(struct destination *d, uint32_t page, uint8_t *data)
{
    if (page >= d->pages || test_bit(d->received, page)) { errno = EPROTO; die("page"); }
    if (d->run_pages > 0 && page == d->run_page + d->run_pages && d->run_pages < RUN_PAGES_MAX) {
        memmove(d->run_at + (size_t)d->run_pages * PAGE_BYTES, data, PAGE_BYTES);
        d->run_pages++;
    } else {
        flush_run(d);
        d->run_page = page;
        d->run_pages = 1;
        d->run_at = data;
    }
    if (test_bit(d->requested, page)) flush_run(d);
}

static inline void load_pages(struct destination *d)
{
    for (;;) {
        if (d->end - d->position < RECORD_BYTES_MAX) flush_run(d); /* the run points into the buffer */
        uint64_t word = get64(take(d, 8));
        uint32_t flags = word & FLAGS_MASK;
        if (flags == FLAG_EOS) break;
        if ((flags & ~FLAG_CONTINUE) != FLAG_PAGE) { errno = EPROTO; die("record"); }
        if (!(flags & FLAG_CONTINUE)) take(d, *take(d, 1));
        join_page(d, (uint32_t)(word / PAGE_BYTES), take(d, PAGE_BYTES));
    }
    flush_run(d);
}

static inline void obey(struct destination *d)
{
    uint8_t *head = take(d, 4);
    uint16_t command = get16(head), length = get16(head + 2);
    uint8_t *body = take(d, length);
    if (command == COMMAND_PING) send_word(d->fd, RP_PONG, get32(body));
}

/** Takes the stream in to its EOF record. */
static inline void receive_stream(struct destination *d)
{
    for (;;) {
        uint8_t type = *take(d, 1);
        if (type == RECORD_EOF) return;
        if (type == RECORD_COMMAND) {
            obey(d);
        } else if (type == RECORD_PART || type == RECORD_END) {
            take(d, 4);
            load_pages(d);
            take(d, 5);
        } else {
            errno = EPROTO;
            die("section");
        }
    }
}

#endif

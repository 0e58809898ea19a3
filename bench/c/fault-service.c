/* fault-service PAGES SEED: faults served over TCP in C. Threads and steps are the engine's: the toucher stalls; the fault
 * thread polls, reads the event and asks; the source thread polls, receives, looks the page up and sends it; the stream
 * thread receives, parses and places. Prints a JSON array: nanoseconds of each touch, in order. */

#include "destination.h"
#include "sender.h"
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#define EVENTS_MAX 64

void touch_pages(uint8_t *ram, uint32_t pages, uint32_t seed, uint32_t *ns);

struct faults {
    struct destination *destination;
    int quit;
};

static void ask_for_page(struct destination *d, uint64_t address)
{
    uint8_t m[REQ_PAGES_BYTES];
    uint32_t page = (uint32_t)((address - (uintptr_t)d->ram) / PAGE_BYTES);
    int asked = test_bit(d->requested, page);
    set_bit(d->requested, page);
    if (test_bit(d->received, page)) {
        struct uffdio_range range = { (uintptr_t)d->ram + (size_t)page * PAGE_BYTES, PAGE_BYTES };
        if (ioctl(d->userfaultfd, UFFDIO_WAKE, &range)) die("UFFDIO_WAKE");
        return;
    }
    if (asked) return;
    put16(m, RP_REQ_PAGES);
    put16(m + 2, REQ_PAGES_BYTES - 4);
    put64(m + 4, (uint64_t)page * PAGE_BYTES);
    put32(m + 12, PAGE_BYTES);
    send_all(d->fd, m, sizeof m);
}

static void *fault_thread(void *argument)
{
    struct faults *f = argument;
    struct destination *d = f->destination;
    struct pollfd fds[2] = { { d->userfaultfd, POLLIN, 0 }, { f->quit, POLLIN, 0 } };
    for (;;) {
        if (poll(fds, 2, -1) < 0) die("poll");
        if (fds[1].revents) return NULL;
        struct uffd_msg events[EVENTS_MAX];
        ssize_t n = read(d->userfaultfd, events, sizeof events);
        if (n < 0 && errno == EAGAIN) continue;
        if (n < 0) die("read userfaultfd");
        for (size_t i = 0; i < (size_t)n / sizeof *events; i++) {
            if (events[i].event != UFFD_EVENT_PAGEFAULT) continue;
            d->begun_ns = now_ns();
            ask_for_page(d, events[i].arg.pagefault.address);
        }
    }
}

static void *stream_thread(void *argument)
{
    receive_stream(argument);
    return NULL;
}

struct source {
    struct sender sender;
    uint32_t *dirty;
    int quit;
};

static void *source_thread(void *argument)
{
    struct source *s = argument;
    int fd = s->sender.fd;
    struct pollfd fds[2] = { { fd, POLLIN, 0 }, { s->quit, POLLIN, 0 } };
    uint8_t requests[4096];
    size_t held = 0;
    for (;;) {
        if (poll(fds, 2, -1) < 0) die("poll");
        if (fds[1].revents) return NULL;
        ssize_t n = recv(fd, requests + held, sizeof requests - held, MSG_DONTWAIT);
        if (n <= 0) die("recv");
        held += (size_t)n;
        size_t at = 0;
        for (; held - at >= REQ_PAGES_BYTES; at += REQ_PAGES_BYTES) {
            uint32_t page = (uint32_t)(get64(requests + at + 4) / PAGE_BYTES);
            if (!test_bit(s->dirty, page)) continue;
            clear_bit(s->dirty, page);
            send_page(&s->sender, page);
        }
        flush_section(&s->sender);
        memmove(requests, requests + at, held - at);
        held -= at;
    }
}

static void print_samples(const uint32_t *ns, uint32_t count)
{
    putchar('[');
    for (uint32_t i = 0; i < count; i++) printf(i == 0 ? "%u" : ",%u", ns[i]);
    puts("]");
}

int main(int argc, char **argv)
{
    if (argc != 3) return 2;
    uint32_t pages = (uint32_t)atoi(argv[1]), seed = (uint32_t)atoi(argv[2]);
    static struct destination destination;
    static struct source source;
    uint16_t port;
    int listener = listen_local(&port);
    open_destination(&destination, pages);
    source.sender.ram = map_filled(pages);
    source.sender.fd = connect_local(port);
    source.dirty = malloc(pages / 8 + 4);
    memset(source.dirty, 0xff, pages / 8 + 4);
    source.quit = eventfd(0, 0);
    destination.fd = accept_one(listener);
    struct faults faults = { &destination, source.quit };
    pthread_t threads[3];
    if (pthread_create(&threads[0], NULL, source_thread, &source)) die("pthread_create");
    if (pthread_create(&threads[1], NULL, stream_thread, &destination)) die("pthread_create");
    if (pthread_create(&threads[2], NULL, fault_thread, &faults)) die("pthread_create");
    uint32_t *ns = malloc((size_t)pages * sizeof *ns);
    touch_pages(destination.ram, pages, seed, ns);
    for (uint32_t i = 0; i < pages * (PAGE_BYTES / 4); i++) {
        if (((uint32_t *)destination.ram)[i] != i + 1) { errno = EIO; die("a page is wrong"); }
    }
    print_samples(ns, pages);
    return 0;
}

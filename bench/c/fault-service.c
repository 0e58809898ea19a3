/* fault-service PAGES SEED: faults served over TCP in C. Threads and steps are the engine's: the toucher stalls; the
 * destination thread polls, reads the event and asks; the source thread polls, receives, looks the page up and sends it;
 * the destination thread polls, receives, parses and places. Prints a JSON array: nanoseconds of each touch, in order. */

#include "destination.h"
#include "sender.h"
#include <pthread.h>
#include <sys/eventfd.h>

void touch_pages(uint8_t *ram, uint32_t pages, uint32_t seed, uint32_t *ns);

static void *destination_thread(void *argument)
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
    pthread_t threads[2];
    if (pthread_create(&threads[0], NULL, source_thread, &source)) die("pthread_create");
    if (pthread_create(&threads[1], NULL, destination_thread, &destination)) die("pthread_create");
    uint32_t *ns = malloc((size_t)pages * sizeof *ns);
    touch_pages(destination.ram, pages, seed, ns);
    for (uint32_t i = 0; i < pages * (PAGE_BYTES / 4); i++) {
        if (((uint32_t *)destination.ram)[i] != i + 1) { errno = EIO; die("a page is wrong"); }
    }
    print_samples(ns, pages);
    return 0;
}

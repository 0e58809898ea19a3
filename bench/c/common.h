/* The C reference: what a plain C program needs to take the same steps as the engine. For benchmarks only.
 * Wire constants: QEMU migration/ram.c, migration/savevm.c, as in src/wire. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES 4096u

enum { RECORD_EOF = 0, RECORD_PART = 2, RECORD_END = 3, RECORD_COMMAND = 8, RECORD_FOOTER = 0x7e };
enum { FLAG_ZERO = 0x02, FLAG_PAGE = 0x08, FLAG_EOS = 0x10, FLAG_CONTINUE = 0x20, FLAGS_MASK = 0xfff };
enum { COMMAND_PING = 2, RP_SHUT = 1, RP_PONG = 2, RP_REQ_PAGES = 4 };
/** u16 type, u16 length, and the body: a u32, or a start (u64) and a length (u32). */
enum { RP_WORD_BYTES = 8, REQ_PAGES_BYTES = 16 };
enum { RAM_SECTION_ID = 1 };
/** A section's type and id; a RAM body's EOS word, and the footer with its id. */
enum { SECTION_BYTES = 5, CLOSING_BYTES = 8 + 5 };

static inline void die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline uint16_t get16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return be16toh(v); }
static inline uint32_t get32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return be32toh(v); }
static inline uint64_t get64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return be64toh(v); }
static inline void put16(uint8_t *p, uint16_t v) { v = htobe16(v); memcpy(p, &v, 2); }
static inline void put32(uint8_t *p, uint32_t v) { v = htobe32(v); memcpy(p, &v, 4); }
static inline void put64(uint8_t *p, uint64_t v) { v = htobe64(v); memcpy(p, &v, 8); }

static inline int test_bit(const uint32_t *map, uint32_t i)
{
    return (__atomic_load_n(&map[i / 32], __ATOMIC_RELAXED) >> (i % 32)) & 1;
}
static inline void set_bit(uint32_t *map, uint32_t i) { __atomic_fetch_or(&map[i / 32], 1u << (i % 32), __ATOMIC_RELAXED); }
static inline void clear_bit(uint32_t *map, uint32_t i) { __atomic_fetch_and(&map[i / 32], ~(1u << (i % 32)), __ATOMIC_RELAXED); }

static inline void *map_memory(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) die("mmap");
    return p;
}

/** RAM of a source: no page is zero, and the first word of each says so at once, like the engine's bench guest. */
static inline uint8_t *map_filled(uint32_t pages)
{
    uint8_t *ram = map_memory((size_t)pages * PAGE_BYTES);
    for (size_t i = 0; i < (size_t)pages * PAGE_BYTES / 4; i++) ((uint32_t *)ram)[i] = (uint32_t)i + 1;
    return ram;
}

static inline int is_zero_page(const uint8_t *page)
{
    return *(const uint64_t *)page == 0 && memcmp(page, page + 8, PAGE_BYTES - 8) == 0;
}

/* --- sockets ---------------------------------------------------------------------------------------------------- */

static inline int no_delay(int fd)
{
    int one = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one)) die("TCP_NODELAY");
    return fd;
}

/** Listens on a free port of 127.0.0.1. */
static inline int listen_local(uint16_t *port)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 1)) die("listen");
    if (getsockname(fd, (struct sockaddr *)&a, &length)) die("getsockname");
    *port = ntohs(a.sin_port);
    return fd;
}

static inline int accept_one(int listener)
{
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) die("accept");
    close(listener);
    return no_delay(fd);
}

static inline int connect_local(uint16_t port)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a)) die("connect");
    return no_delay(fd);
}

static inline void send_all(int fd, const uint8_t *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = send(fd, bytes, length, MSG_NOSIGNAL);
        if (n < 0) die("send");
        bytes += n;
        length -= (size_t)n;
    }
}

static inline void receive_all(int fd, uint8_t *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = recv(fd, bytes, length, 0);
        if (n < 0) die("recv");
        if (n == 0) { errno = EPIPE; die("recv: the stream ended"); }
        bytes += n;
        length -= (size_t)n;
    }
}

/** PONG or SHUT. */
static inline void send_word(int fd, uint16_t type, uint32_t value)
{
    uint8_t m[RP_WORD_BYTES];
    put16(m, type);
    put16(m + 2, 4);
    put32(m + 4, value);
    send_all(fd, m, sizeof m);
}

#endif

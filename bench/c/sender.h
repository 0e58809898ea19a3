/* Page records out of RAM: an iovec that alternates headers with pages, one sendmsg for as many as go into it. */
#ifndef BENCH_SENDER_H
#define BENCH_SENDER_H

#include "common.h"
#include <sys/uio.h>

/** Pages in one section: their headers, the pages, and the closing make 1024 iovec entries at most. */
#define SECTION_PAGES_MAX 510u
#define BLOCK_NAME "ram"

struct sender {
    int fd;
    uint8_t *ram;
    int named;               /* The block has been named once. */
    unsigned pages;          /* in the open section */
    unsigned entries;
    unsigned staged;
    struct iovec iov[2 * SECTION_PAGES_MAX + 1];
    uint8_t stage[SECTION_BYTES + (SECTION_PAGES_MAX + 1) * 8 + 1 + sizeof BLOCK_NAME + CLOSING_BYTES];
};

static inline void flush_section(struct sender *s)
{
    if (s->pages == 0) return;
    uint8_t *closing = s->stage + s->staged;
    put64(closing, FLAG_EOS);
    closing[8] = RECORD_FOOTER;
    put32(closing + 9, RAM_SECTION_ID);
    s->iov[s->entries++] = (struct iovec){ closing, CLOSING_BYTES };
    struct msghdr m = { .msg_iov = s->iov, .msg_iovlen = s->entries };
    while (m.msg_iovlen > 0) {
        ssize_t n = sendmsg(s->fd, &m, MSG_NOSIGNAL);
        if (n < 0) die("sendmsg");
        for (; m.msg_iovlen > 0 && (size_t)n >= m.msg_iov->iov_len; m.msg_iov++, m.msg_iovlen--) n -= (ssize_t)m.msg_iov->iov_len;
        if (m.msg_iovlen > 0) {
            m.msg_iov->iov_base = (uint8_t *)m.msg_iov->iov_base + n;
            m.msg_iov->iov_len -= (size_t)n;
        }
    }
    s->pages = s->entries = s->staged = 0;
}

static inline void send_page(struct sender *s, uint32_t page)
{
    uint8_t *header = s->stage + s->staged, *p = header;
    uint8_t *bytes = s->ram + (size_t)page * PAGE_BYTES;
    if (is_zero_page(bytes)) { errno = EINVAL; die("zero page in the bench guest"); }
    if (s->pages == 0) {
        *p = RECORD_PART;
        put32(p + 1, RAM_SECTION_ID);
        p += SECTION_BYTES;
    }
    put64(p, (uint64_t)page * PAGE_BYTES | FLAG_PAGE | (s->named ? FLAG_CONTINUE : 0));
    p += 8;
    if (!s->named) {
        *p++ = sizeof BLOCK_NAME - 1;
        memcpy(p, BLOCK_NAME, sizeof BLOCK_NAME - 1);
        p += sizeof BLOCK_NAME - 1;
        s->named = 1;
    }
    s->iov[s->entries++] = (struct iovec){ header, (size_t)(p - header) };
    s->iov[s->entries++] = (struct iovec){ bytes, PAGE_BYTES };
    s->staged += (unsigned)(p - header);
    if (++s->pages == SECTION_PAGES_MAX) flush_section(s);
}

#endif

/* sink READY: takes in whatever comes and throws it away. When the sender falls silent, it is waiting for an answer: the
 * first time that is PONG READY (RAM is ready), the second time SHUT 0 (all received). So nothing needs to be parsed, and
 * the sink costs as little as it can. Prints its port; at the end, the time between the two silences and the bytes. */

#include "common.h"
#include <poll.h>

#define BUFFER_BYTES (1u << 20)
#define SILENCE_MS 100

/** Receives until nothing has come for a while; when the first and the last byte came, and how many. */
static uint64_t drain(int fd, uint64_t *first, uint64_t *last)
{
    static uint8_t buffer[BUFFER_BYTES];
    struct pollfd p = { fd, POLLIN, 0 };
    uint64_t bytes = 0;
    *first = 0;
    while (poll(&p, 1, bytes == 0 ? -1 : SILENCE_MS) > 0) {
        ssize_t n;
        while ((n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT)) > 0) {
            *last = now_ns();
            if (*first == 0) *first = *last;
            bytes += (uint64_t)n;
        }
        if (n == 0) return bytes;
    }
    return bytes;
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    uint16_t port;
    uint64_t first, last;
    int listener = listen_local(&port);
    printf("%u\n", port);
    fflush(stdout);
    int fd = accept_one(listener);
    drain(fd, &first, &last);
    send_word(fd, RP_PONG, (uint32_t)atoi(argv[1]));
    uint64_t bytes = drain(fd, &first, &last);
    send_word(fd, RP_SHUT, 0);
    printf("{\"ns\":%llu,\"bytes\":%llu}\n", (unsigned long long)(last - first), (unsigned long long)bytes);
    fflush(stdout);
    drain(fd, &first, &last);
    return 0;
}

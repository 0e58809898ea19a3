/* stream-sender PORT PAGES ANSWERS PREFIX SUFFIX: sends PREFIX (a file), waits for ANSWERS answers of 8 bytes, then sends
 * PAGES pages as fast as it can and a PING, and waits for one answer: the PONG comes when all pages are placed. Then
 * SUFFIX. Prints the time from the first page to that answer, and the bytes. */

#include "sender.h"

static void send_file(int fd, const char *path)
{
    uint8_t bytes[65536];
    FILE *file = fopen(path, "rb");
    if (file == NULL) die(path);
    for (size_t n; (n = fread(bytes, 1, sizeof bytes, file)) > 0;) send_all(fd, bytes, n);
    fclose(file);
}

static void await_answers(int fd, int count)
{
    uint8_t answer[RP_WORD_BYTES];
    while (count-- > 0) receive_all(fd, answer, sizeof answer);
}

int main(int argc, char **argv)
{
    if (argc != 6) return 2;
    static struct sender s;
    static const uint8_t ping[] = { RECORD_COMMAND, 0, COMMAND_PING, 0, 4, 0, 0, 0, 9 };
    uint32_t pages = (uint32_t)atoi(argv[2]);
    s.ram = map_filled(pages);
    s.fd = connect_local((uint16_t)atoi(argv[1]));
    send_file(s.fd, argv[4]);
    await_answers(s.fd, atoi(argv[3]));
    uint64_t start = now_ns();
    for (uint32_t page = 0; page < pages; page++) send_page(&s, page);
    flush_section(&s);
    send_all(s.fd, ping, sizeof ping);
    await_answers(s.fd, 1);
    printf("{\"ns\":%llu,\"bytes\":%llu}\n", (unsigned long long)(now_ns() - start), (unsigned long long)pages * PAGE_BYTES);
    fflush(stdout);
    send_file(s.fd, argv[5]);
    shutdown(s.fd, SHUT_WR);
    uint8_t rest[64];
    while (recv(s.fd, rest, sizeof rest, 0) > 0) {}
    return 0;
}

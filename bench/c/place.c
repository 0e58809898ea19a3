/* place PAGES: the receiver of the place benchmark in C. Prints its port, takes one stream in, and ends. */

#include "destination.h"

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    static struct destination d;
    uint16_t port;
    open_destination(&d, (uint32_t)atoi(argv[1]));
    int listener = listen_local(&port);
    printf("%u\n", port);
    fflush(stdout);
    d.fd = accept_one(listener);
    receive_stream(&d);
    return 0;
}

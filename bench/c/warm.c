/* warm MIB: touches so much memory, and gives it back. A host takes memory that has been free for a second away from a
 * virtual machine, and gives it again page by page when it is touched, at a third of the speed: what runs next is not to
 * pay for that. */

#include "common.h"

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    size_t bytes = (size_t)atoi(argv[1]) << 20;
    uint8_t *memory = map_memory(bytes);
    for (size_t at = 0; at < bytes; at += PAGE_BYTES) memory[at] = 1;
    return 0;
}

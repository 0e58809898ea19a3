/* The toucher: reads one word of every page in a random order, and measures how long each read took. It is the guest in
 * both variants of the fault benchmark: linked into the C reference, and called through the FFI on the guest thread of
 * the engine, so that the same machine code stalls in both. */

#include "common.h"

void touch_pages(uint8_t *ram, uint32_t pages, uint32_t seed, uint32_t *ns)
{
    uint32_t *order = malloc((size_t)pages * sizeof *order);
    for (uint32_t i = 0; i < pages; i++) order[i] = i;
    for (uint32_t i = pages - 1; i > 0; i--) {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        uint32_t other = seed % (i + 1), kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
    for (uint32_t i = 0; i < pages; i++) {
        volatile uint32_t *word = (volatile uint32_t *)(ram + (size_t)order[i] * PAGE_BYTES);
        uint64_t start = now_ns();
        (void)*word;
        ns[i] = (uint32_t)(now_ns() - start);
    }
    free(order);
}

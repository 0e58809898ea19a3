// The guests of the benchmarks, as the init of a Linux: fills RAM, then works until it is stopped. Built static, put into
// an initrd (../guests.ts). Its options are words `name=value` of the kernel's command line, which init gets as environment:
//
//   work=idle    sleeps
//   work=md5     busybox md5sum of a file of `mib` MiB in RAM, again and again
//   work=reader  reads one word in a random page of `mib` MiB
//   work=kv      a key-value store in memory: an open-addressing hash table of 256-byte records that fills `mib` MiB; of ten
//                operations nine read and one writes; four of five go to a fifth of the keys
//   fill=N       besides, N MiB that are written once
//
// Says `beat N OPERATIONS` each 20 ms, and `ready` before the first.

#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#define MIB (1024ul * 1024)
#define PAGE 4096ul
#define BEAT_NS (20 * 1000 * 1000l)
// Between two looks at the clock.
#define BATCH 64

static uint64_t seed = 88172645463325252ull;

static uint64_t next_random(void) {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  seed ^= seed << 17;
  return seed;
}

static uint64_t *filled(size_t mib) {
  size_t length = mib * MIB;
  if (length == 0) return NULL;
  uint64_t *words = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (words == MAP_FAILED) {
    puts("no memory");
    for (;;) pause();
  }
  for (size_t i = 0; i < length / sizeof *words; i++) words[i] = i + 1;
  return words;
}

static void idle(void) {
  struct timespec beat = {0, BEAT_NS};
  nanosleep(&beat, NULL);
}

static void make_file(size_t mib) {
  int fd = open("/data", O_CREAT | O_WRONLY, 0600);
  static uint64_t block[PAGE / sizeof(uint64_t)];
  for (size_t page = 0; page < mib * MIB / PAGE; page++) {
    for (size_t i = 0; i < PAGE / sizeof *block; i++) block[i] = next_random();
    if (write(fd, block, PAGE) != (ssize_t)PAGE) puts("no memory");
  }
  close(fd);
}

static void md5(void) {
  pid_t child = fork();
  if (child == 0) {
    if (freopen("/dev/null", "w", stdout) == NULL) _exit(1);
    execl("/bin/busybox", "busybox", "md5sum", "/data", NULL);
    _exit(1);
  }
  waitpid(child, NULL, 0);
}

static uint64_t *area;
static size_t area_pages;
static volatile uint64_t sink;

static void read_page(void) { sink += area[next_random() % area_pages * (PAGE / sizeof *area)]; }

struct record {
  uint64_t key; // 0: free
  uint8_t value[248];
};
static struct record *table;
static size_t slots;

static struct record *find(uint64_t key) {
  size_t at = (key * 0x9e3779b97f4a7c15ull >> 20) % slots;
  while (table[at].key != 0 && table[at].key != key) at = at + 1 == slots ? 0 : at + 1;
  return &table[at];
}

static void kv_fill(size_t mib) {
  slots = mib * MIB / sizeof *table;
  table = mmap(NULL, mib * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (uint64_t key = 1; key <= slots * 3 / 4; key++) {
    struct record *record = find(key);
    record->key = key;
    memset(record->value, (int)key | 1, sizeof record->value);
  }
}

static void kv(void) {
  uint64_t keys = slots * 3 / 4;
  uint64_t dice = next_random();
  uint64_t key = 1 + (dice % 5 != 0 ? next_random() % (keys / 5) : next_random() % keys);
  struct record *record = find(key);
  if (dice / 5 % 10 == 0)
    memset(record->value, (int)dice, sizeof record->value);
  else
    for (size_t i = 0; i < sizeof record->value; i += 8) sink += record->value[i];
}

static long option(const char *name) {
  const char *value = getenv(name);
  return value == NULL ? 0 : atol(value);
}

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000l + t.tv_nsec;
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  const char *work = getenv("work");
  if (work == NULL) work = "idle";
  size_t mib = option("mib");
  filled(option("fill"));
  void (*operation)(void) = idle;
  int batch = 1;
  if (strcmp(work, "md5") == 0) {
    make_file(mib);
    operation = md5;
  } else if (strcmp(work, "reader") == 0) {
    area = filled(mib);
    area_pages = mib * MIB / PAGE;
    operation = read_page;
    batch = BATCH;
  } else if (strcmp(work, "kv") == 0) {
    kv_fill(mib);
    operation = kv;
    batch = BATCH;
  }
  puts("ready");
  uint64_t operations = 0;
  for (uint64_t beat = 1;; beat++) {
    int64_t end = now_ns() + BEAT_NS;
    do {
      for (int i = 0; i < batch; i++) operation();
      operations += batch;
    } while (now_ns() < end);
    printf("beat %lu %lu\n", beat, operations);
  }
}

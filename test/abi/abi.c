/* Prints what the system's kernel headers say as flat JSON: {"NAME": number, "struct.field": offset, ...}.
 * abi.test.ts compares it with the tables in src/os. Newer names are guarded: older headers lack them. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/sockios.h>
#include <linux/userfaultfd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>

static const char *separator = "";
static void print(const char *name, unsigned long long value) {
  printf("%s\n  \"%s\": %llu", separator, name, value);
  separator = ",";
}
#define VALUE(name) print(#name, (unsigned long long)(name))
#define SIZE(type) print("sizeof " #type, sizeof(type))
#define FIELD(type, field) print(#type "." #field, offsetof(type, field))

static void uffd(void) {
  VALUE(UFFDIO_API); VALUE(UFFDIO_REGISTER); VALUE(UFFDIO_UNREGISTER); VALUE(UFFDIO_WAKE);
  VALUE(UFFDIO_COPY); VALUE(UFFDIO_ZEROPAGE); VALUE(UFFDIO_WRITEPROTECT); VALUE(UFFD_API);
  SIZE(struct uffdio_api);
  FIELD(struct uffdio_api, api); FIELD(struct uffdio_api, features); FIELD(struct uffdio_api, ioctls);
  SIZE(struct uffdio_range);
  FIELD(struct uffdio_range, start); FIELD(struct uffdio_range, len);
  SIZE(struct uffdio_register);
  FIELD(struct uffdio_register, mode); FIELD(struct uffdio_register, ioctls);
  SIZE(struct uffdio_copy);
  FIELD(struct uffdio_copy, dst); FIELD(struct uffdio_copy, src); FIELD(struct uffdio_copy, len);
  FIELD(struct uffdio_copy, mode); FIELD(struct uffdio_copy, copy);
  SIZE(struct uffdio_zeropage);
  FIELD(struct uffdio_zeropage, mode); FIELD(struct uffdio_zeropage, zeropage);
  SIZE(struct uffdio_writeprotect); FIELD(struct uffdio_writeprotect, mode);
  SIZE(struct uffd_msg);
  FIELD(struct uffd_msg, event); FIELD(struct uffd_msg, arg.pagefault.flags);
  FIELD(struct uffd_msg, arg.pagefault.address); FIELD(struct uffd_msg, arg.pagefault.feat.ptid);
  FIELD(struct uffd_msg, arg.remove.start); FIELD(struct uffd_msg, arg.remap.from);
  VALUE(UFFDIO_REGISTER_MODE_MISSING); VALUE(UFFDIO_REGISTER_MODE_WP); VALUE(UFFDIO_WRITEPROTECT_MODE_WP);
  VALUE(UFFD_USER_MODE_ONLY);
  VALUE(UFFD_EVENT_PAGEFAULT); VALUE(UFFD_EVENT_FORK); VALUE(UFFD_EVENT_REMAP); VALUE(UFFD_EVENT_REMOVE);
  VALUE(UFFD_EVENT_UNMAP);
  VALUE(UFFD_PAGEFAULT_FLAG_WRITE); VALUE(UFFD_PAGEFAULT_FLAG_WP); VALUE(UFFD_PAGEFAULT_FLAG_MINOR);
#ifdef USERFAULTFD_IOC_NEW
  VALUE(USERFAULTFD_IOC_NEW);
#endif
}

static void features(void) {
  VALUE(UFFD_FEATURE_PAGEFAULT_FLAG_WP); VALUE(UFFD_FEATURE_EVENT_FORK); VALUE(UFFD_FEATURE_EVENT_REMAP);
  VALUE(UFFD_FEATURE_EVENT_REMOVE); VALUE(UFFD_FEATURE_MISSING_HUGETLBFS); VALUE(UFFD_FEATURE_MISSING_SHMEM);
  VALUE(UFFD_FEATURE_EVENT_UNMAP); VALUE(UFFD_FEATURE_SIGBUS); VALUE(UFFD_FEATURE_THREAD_ID);
#ifdef UFFD_FEATURE_MINOR_HUGETLBFS
  VALUE(UFFD_FEATURE_MINOR_HUGETLBFS); VALUE(UFFD_FEATURE_MINOR_SHMEM);
#endif
#ifdef UFFD_FEATURE_EXACT_ADDRESS
  VALUE(UFFD_FEATURE_EXACT_ADDRESS);
#endif
#ifdef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
  VALUE(UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
#endif
#ifdef UFFD_FEATURE_WP_UNPOPULATED
  VALUE(UFFD_FEATURE_WP_UNPOPULATED);
#endif
#ifdef UFFD_FEATURE_POISON
  VALUE(UFFD_FEATURE_POISON);
#endif
#ifdef UFFD_FEATURE_WP_ASYNC
  VALUE(UFFD_FEATURE_WP_ASYNC);
#endif
#ifdef UFFD_FEATURE_MOVE
  VALUE(UFFD_FEATURE_MOVE); VALUE(_UFFDIO_MOVE);
#endif
  VALUE(_UFFDIO_REGISTER); VALUE(_UFFDIO_UNREGISTER); VALUE(_UFFDIO_WAKE); VALUE(_UFFDIO_COPY);
  VALUE(_UFFDIO_ZEROPAGE); VALUE(_UFFDIO_WRITEPROTECT); VALUE(_UFFDIO_API);
#ifdef _UFFDIO_CONTINUE
  VALUE(_UFFDIO_CONTINUE);
#endif
#ifdef _UFFDIO_POISON
  VALUE(_UFFDIO_POISON);
#endif
}

static void pagemap(void) {
#ifdef PAGEMAP_SCAN
  VALUE(PAGEMAP_SCAN); VALUE(PM_SCAN_WP_MATCHING); VALUE(PM_SCAN_CHECK_WPASYNC);
  VALUE(PAGE_IS_WPALLOWED); VALUE(PAGE_IS_WRITTEN); VALUE(PAGE_IS_FILE); VALUE(PAGE_IS_PRESENT);
  VALUE(PAGE_IS_SWAPPED); VALUE(PAGE_IS_PFNZERO); VALUE(PAGE_IS_HUGE);
  SIZE(struct pm_scan_arg); SIZE(struct page_region);
  FIELD(struct pm_scan_arg, walk_end); FIELD(struct pm_scan_arg, vec); FIELD(struct pm_scan_arg, return_mask);
  FIELD(struct page_region, end); FIELD(struct page_region, categories);
#endif
}

static void memory(void) {
  VALUE(PROT_READ); VALUE(PROT_WRITE); VALUE(MAP_SHARED); VALUE(MAP_PRIVATE); VALUE(MAP_ANONYMOUS);
  VALUE(MAP_NORESERVE); VALUE(MAP_HUGETLB); VALUE(MAP_HUGE_SHIFT); VALUE(MFD_CLOEXEC); VALUE(MFD_HUGETLB);
  VALUE(MADV_WILLNEED); VALUE(MADV_DONTNEED); VALUE(MADV_HUGEPAGE); VALUE(MADV_NOHUGEPAGE);
#ifdef MADV_POPULATE_READ
  VALUE(MADV_POPULATE_READ);
#endif
  VALUE(FALLOC_FL_KEEP_SIZE); VALUE(FALLOC_FL_PUNCH_HOLE); VALUE(MCL_CURRENT); VALUE(MCL_FUTURE);
  VALUE(SYS_userfaultfd); VALUE(SYS_io_setup); VALUE(SYS_io_destroy); VALUE(SYS_io_submit); VALUE(SYS_io_getevents);
  VALUE(IOCB_CMD_PWRITE);
  SIZE(struct iocb); FIELD(struct iocb, aio_data); FIELD(struct iocb, aio_lio_opcode); FIELD(struct iocb, aio_fildes);
  FIELD(struct iocb, aio_buf); FIELD(struct iocb, aio_nbytes); FIELD(struct iocb, aio_offset);
  SIZE(struct io_event); FIELD(struct io_event, data); FIELD(struct io_event, res);
}

static void sockets(void) {
  VALUE(AF_UNIX); VALUE(AF_INET); VALUE(AF_INET6); VALUE(SOCK_STREAM); VALUE(SOCK_NONBLOCK); VALUE(SOCK_CLOEXEC);
  VALUE(IPPROTO_TCP); VALUE(TCP_NODELAY); VALUE(TCP_INFO); FIELD(struct tcp_info, tcpi_rtt); FIELD(struct tcp_info, tcpi_unacked); FIELD(struct tcp_info, tcpi_last_ack_recv); VALUE(TCP_QUICKACK); VALUE(SO_KEEPALIVE);
  VALUE(TCP_KEEPIDLE); VALUE(TCP_KEEPINTVL); VALUE(TCP_KEEPCNT); VALUE(TCP_USER_TIMEOUT); VALUE(TCP_THIN_LINEAR_TIMEOUTS); VALUE(SOL_SOCKET); VALUE(SO_REUSEADDR); VALUE(SO_SNDBUF); VALUE(SO_DOMAIN); VALUE(SO_PEERCRED); VALUE(SCHED_FIFO); VALUE(SCHED_RESET_ON_FORK); VALUE(SO_ERROR);
  VALUE(SO_ACCEPTCONN); VALUE(F_GETFL); VALUE(F_SETFL); VALUE(F_DUPFD_CLOEXEC); VALUE(F_SETPIPE_SZ); VALUE(SPLICE_F_NONBLOCK); VALUE(AI_PASSIVE);
  VALUE(MSG_DONTWAIT); VALUE(MSG_NOSIGNAL); VALUE(SHUT_RDWR); VALUE(SIOCOUTQ);
  VALUE(POLLIN); VALUE(POLLOUT); VALUE(POLLERR); VALUE(POLLHUP); VALUE(POLLNVAL);
  VALUE(EFD_CLOEXEC); VALUE(EFD_NONBLOCK); VALUE(CLOCK_REALTIME); VALUE(CLOCK_MONOTONIC); VALUE(O_RDONLY); VALUE(O_RDWR); VALUE(O_NONBLOCK); VALUE(O_CLOEXEC);
  SIZE(struct timespec); FIELD(struct timespec, tv_nsec);
  SIZE(struct pollfd); FIELD(struct pollfd, events); FIELD(struct pollfd, revents);
  SIZE(struct msghdr); FIELD(struct msghdr, msg_iov); FIELD(struct msghdr, msg_iovlen);
  SIZE(struct addrinfo); FIELD(struct addrinfo, ai_family); FIELD(struct addrinfo, ai_socktype);
  FIELD(struct addrinfo, ai_addrlen); FIELD(struct addrinfo, ai_addr); FIELD(struct addrinfo, ai_next);
  SIZE(struct sockaddr_un); FIELD(struct sockaddr_un, sun_path); FIELD(struct sockaddr_in, sin_port);
  FIELD(struct sockaddr_in, sin_addr); FIELD(struct sockaddr_in6, sin6_addr);
  FIELD(struct sockaddr_in6, sin6_port); SIZE(struct sockaddr_storage);
}

int main(void) {
  printf("{");
  uffd();
  features();
  pagemap();
  memory();
  sockets();
  printf("\n}\n");
  return 0;
}

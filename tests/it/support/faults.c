/* Preloaded into the program under test by support/faults.rs, which see: what no test could bring
   about otherwise. The plan is a file that both processes have mapped or open. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static struct {
    _Atomic int64_t clock_ahead; /* seconds */
    _Atomic int64_t kill_at;     /* the step at which it dies; 0 for none */
    _Atomic int64_t error;       /* what writing fails with; 0 for nothing */
    _Atomic int64_t steps;       /* done so far, in all processes of this plan */
} *plan;

__attribute__((constructor)) static void load(void) {
    const char *path = getenv("FAULTS_PLAN");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, sizeof *plan, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) plan = mapped;
}

/* The state file or its log; not what lies in memory. */
static int is_state(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, "state.sqlite") && !strstr(path, "-shm");
}

/* Whether the step fails. `half` is done before the process dies at it, as a power failure may
   leave half of a write on the disk. */
static int step(int file, void (*half)(int, const void *, size_t, off_t), const void *bytes,
                size_t length, off_t at) {
    if (!plan || !is_state(file)) return 0;
    if (atomic_fetch_add(&plan->steps, 1) + 1 == plan->kill_at) {
        if (half) half(file, bytes, length / 2, at);
        kill(getpid(), SIGKILL);
    }
    errno = (int)plan->error;
    return errno != 0;
}

#define REAL(name, ...)                                                                    \
    static __typeof__(&name) real;                                                         \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                          \
    return real(__VA_ARGS__)

static ssize_t real_pwrite(int file, const void *bytes, size_t length, off_t at) {
    REAL(pwrite, file, bytes, length, at);
}

static ssize_t real_write(int file, const void *bytes, size_t length) {
    REAL(write, file, bytes, length);
}

static void half_there(int file, const void *bytes, size_t length, off_t at) {
    if (real_pwrite(file, bytes, length, at) < 0) return;
}

static void half_here(int file, const void *bytes, size_t length, off_t at) {
    (void)at;
    if (real_write(file, bytes, length) < 0) return;
}

ssize_t write(int file, const void *bytes, size_t length) {
    return step(file, half_here, bytes, length, 0) ? -1 : real_write(file, bytes, length);
}

ssize_t pwrite(int file, const void *bytes, size_t length, off_t at) {
    return step(file, half_there, bytes, length, at) ? -1 : real_pwrite(file, bytes, length, at);
}

ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t at) {
    return pwrite(file, bytes, length, (off_t)at);
}

int fsync(int file) {
    if (step(file, NULL, NULL, 0, 0)) return -1;
    REAL(fsync, file);
}

int fdatasync(int file) {
    if (step(file, NULL, NULL, 0, 0)) return -1;
    REAL(fdatasync, file);
}

static int real_clock(clockid_t clock, struct timespec *time) {
    REAL(clock_gettime, clock, time);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = real_clock(clock, time);
    if (!failed && plan && clock == CLOCK_REALTIME) time->tv_sec += plan->clock_ahead;
    return failed;
}

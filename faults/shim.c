/* Preloaded into a server or a worker: its disk is slow or full, its clock is wrong, as a control file says from moment to moment.
 *
 * FAULTS_CONTROL   a file of three int64: microseconds that an fsync takes longer, 1 if the disk is full, microseconds that the clock is off
 * FAULTS_DURABLE   a directory: how much of each append-only file is on the disk, one file for each, named by inode, holding an int64
 *
 * Only append-only files (*.aof) are touched. A power loss is then: SIGKILL, and each file cut back to what is on the disk.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t none[3];
static volatile int64_t *control = none;
static const char *durable;

static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static ssize_t (*real_write)(int, const void *, size_t);
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_write = dlsym(RTLD_NEXT, "write");
    real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    const char *folder = getenv("FAULTS_DURABLE"); /* servers overwrite their environment to change their title */
    durable = folder ? strdup(folder) : NULL;
    const char *path = getenv("FAULTS_CONTROL");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *page = mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (page != MAP_FAILED) control = page;
}

/* Allocators and others call these before `begin` has run. */
static ssize_t put(int fd, const void *data, size_t size) {
    return real_write ? real_write(fd, data, size) : syscall(SYS_write, fd, data, size);
}
static int clock_of(clockid_t which, struct timespec *now) {
    return real_clock_gettime ? real_clock_gettime(which, now) : (int)syscall(SYS_clock_gettime, which, now);
}

static int is_aof(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path);
    return size > 4 && memcmp(path + size - 4, ".aof", 4) == 0;
}

static int sync_aof(int fd, int (*sync)(int)) {
    if (!is_aof(fd)) return sync(fd);
    struct stat before;
    int known = fstat(fd, &before) == 0;
    if (control[0] > 0) usleep((useconds_t)control[0]);
    int result = sync(fd);
    if (result == 0 && known && durable) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%lu", durable, (unsigned long)before.st_ino);
        int64_t size = before.st_size;
        int note = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (note >= 0) {
            if (pwrite(note, &size, sizeof size, 0) < 0) abort();
            close(note);
        }
    }
    return result;
}

int fsync(int fd) { return real_fsync ? sync_aof(fd, real_fsync) : (int)syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return real_fdatasync ? sync_aof(fd, real_fdatasync) : (int)syscall(SYS_fdatasync, fd); }

ssize_t write(int fd, const void *data, size_t size) {
    if (!control[1] || !is_aof(fd)) return put(fd, data, size);
    static int half; /* the last bytes that fit, then nothing */
    half = !half;
    if (half && size > 1) return put(fd, data, size / 2);
    errno = ENOSPC;
    return -1;
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int result = clock_of(which, now);
    int64_t off = control[2];
    if (result == 0 && off && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) {
        int64_t us = (int64_t)now->tv_sec * 1000000 + now->tv_nsec / 1000 + off;
        now->tv_sec = us / 1000000;
        now->tv_nsec = us % 1000000 * 1000;
    }
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec exact;
    int result = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return result;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}

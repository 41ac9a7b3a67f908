/* Stands between a process and the file system: counts calls that touch a folder, writes them down with their data, and at
 * one of them kills the process or lets the call fail. Loaded with LD_PRELOAD; `shim.py` is the other end.
 *
 * Nothing happens before `faults_arm`, which a process calls on itself; a writer process that was started as a script is
 * armed by FAULTS_CONTROL. The control block is shared memory, so that a fault can be lifted while both processes run.
 *
 * Every call goes to the kernel by its number: nothing is looked up, so nothing can come back here. What a descriptor is
 * open on is asked of /proc each time: a table would have to survive fork, vfork and close_range.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum { CHANGES = 1, OPENS = 2, READS = 4, LOCKS = 8, MEMORY = 16 };            /* what counts as a call */
enum { NOTHING = 0, KILL = 1, FAIL = 2, FULL = 3, TEAR = 4 };                  /* what happens at call `at` */

struct role {
    int64_t count, at;       /* calls so far; the one that something happens at, from 1 */
    int32_t action, error;   /* see above; errno of FAIL and FULL */
    int32_t mask, hit;       /* kinds that count; how often something happened */
    char call[16], path[240];
};
struct control {
    struct role roles[2];    /* 0: the process that trains, 1: the writer process */
    char root[PATH_MAX], log[PATH_MAX];
};

static struct control *control;
static struct role *role;
static int log_fd = -1, role_number;
static size_t root_length;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static long real_open(const char *path, int flags, int mode) { return syscall(SYS_openat, AT_FDCWD, path, flags, mode); }

EXPORT int faults_arm(const char *path, int number) {
    int fd = real_open(path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) return -1;
    struct control *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (shared == MAP_FAILED) return -1;
    root_length = strlen(shared->root);
    role_number = number;
    if (shared->log[0]) log_fd = real_open(shared->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    role = &shared->roles[number];
    control = shared;
    return 0;
}

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("FAULTS_CONTROL");
    char line[4096] = {0};
    if (!path) return;
    int fd = real_open("/proc/self/cmdline", O_RDONLY, 0);
    long length = syscall(SYS_read, fd, line, sizeof line - 1);
    syscall(SYS_close, fd);
    if (length > 0 && memmem(line, length, "_worker.py", 10)) faults_arm(path, 1);
}

/* One entry of the log: a line of fields, then the data. Written by one call, so that entries of processes do not mix. */
static void note(const char *call, int64_t offset, long ret, int flags, const char *a, const char *b,
                 const void *data, size_t length) {
    char head[2 * PATH_MAX + 256];
    int n = snprintf(head, sizeof head, "%s\t%d\t%ld\t%ld\t%d\t%zu\t%s\t%s\n", call, role_number, (long)offset, ret, flags, length, a, b);
    struct iovec parts[2] = {{head, n}, {(void *)data, length}};
    if (log_fd >= 0) syscall(SYS_writev, log_fd, parts, length ? 2 : 1);
}

EXPORT void faults_mark(const char *text) {
    if (control) note("mark", 0, 0, 0, text, "", NULL, 0);
}

static int inside(const char *path) {
    return !strncmp(path, control->root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

/* Write the absolute path into `out`; return whether it is below the root. */
static int resolve(int dir, const char *path, char *out) {
    if (!control || !path) return 0;
    out[0] = 0;
    if (path[0] != '/') {
        char link[64];
        if (dir == AT_FDCWD) strcpy(link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        long n = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX - 1);
        if (n < 0) return 0;
        out[n] = 0;
        if (!path[0] || !strcmp(path, ".")) return inside(out);
        strncat(out, "/", PATH_MAX - 1 - strlen(out));
    }
    strncat(out, path, PATH_MAX - 1 - strlen(out));
    return inside(out);
}

enum { ELSEWHERE = 0, DISK = 1, IN_MEMORY = 2 };

static int place_of(int fd, char *out) {
    char link[64];
    if (!control) return ELSEWHERE;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long n = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX - 1);
    if (n < 0) return ELSEWHERE;
    out[n] = 0;
    if (!strncmp(out, "/memfd:purestate", 16)) return IN_MEMORY;
    return inside(out) ? DISK : ELSEWHERE;
}

static void die(void) {
    syscall(SYS_kill, syscall(SYS_getpid), 9);
    for (;;) syscall(SYS_pause);
}

/* Count a call. Return 0: go on. 1: fail with errno set. 2: write only half of `size`, and then die if the action is TEAR. */
static int count(int kind, const char *call, const char *path, size_t size, int takes_space) {
    if (!(role->mask & kind)) return 0;
    int64_t now = ++role->count;
    int action = role->action;
    if (action == NOTHING || now < role->at || (now > role->at && action != FULL)) return 0;
    if (action == FULL && !takes_space) return 0;
    if (!role->hit++) {
        snprintf(role->call, sizeof role->call, "%s", call);
        size_t length = strlen(path), skip = length < sizeof role->path ? 0 : length - sizeof role->path + 1;
        snprintf(role->path, sizeof role->path, "%s", path + skip);
    }
    if (action == KILL || (action == TEAR && size < 2)) die();
    if (action == TEAR || (action == FULL && now == role->at && size >= 2)) return 2;
    errno = role->error;
    return 1;
}

#define LOCK pthread_mutex_lock(&mutex)
#define UNLOCK pthread_mutex_unlock(&mutex)

/* ---- opening ---- */

static int do_open(int dir, const char *path, int flags, int mode) {
    char full[PATH_MAX];
    if (!resolve(dir, path, full)) return syscall(SYS_openat, dir, path, flags, mode);
    int changes = flags & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC);
    LOCK;
    struct stat status;
    int there = !syscall(SYS_newfstatat, dir, path, &status, 0);
    /* opening what is there changes nothing, unless it is emptied */
    int kind = (changes & O_TRUNC) || (!there && (flags & O_CREAT)) ? CHANGES : OPENS;
    long ret = -1;
    if (count(kind, "open", full, 0, kind == CHANGES) != 1) {
        ret = syscall(SYS_openat, dir, path, flags, mode);
        int saved = errno;
        if (kind == CHANGES) note("open", 0, ret, flags, full, "", NULL, 0);
        errno = saved;
    }
    UNLOCK;
    return ret;
}

#define MODE(flags, last) \
    int mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list more; va_start(more, last); mode = va_arg(more, int); va_end(more); }

EXPORT int open(const char *path, int flags, ...) { MODE(flags, flags) return do_open(AT_FDCWD, path, flags, mode); }
EXPORT int open64(const char *path, int flags, ...) { MODE(flags, flags) return do_open(AT_FDCWD, path, flags, mode); }
EXPORT int openat(int dir, const char *path, int flags, ...) { MODE(flags, flags) return do_open(dir, path, flags, mode); }
EXPORT int openat64(int dir, const char *path, int flags, ...) { MODE(flags, flags) return do_open(dir, path, flags, mode); }
EXPORT int __open_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
EXPORT int __open64_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
EXPORT int __openat_2(int dir, const char *path, int flags) { return do_open(dir, path, flags, 0); }
EXPORT int creat(const char *path, mode_t mode) { return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
EXPORT int creat64(const char *path, mode_t mode) { return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

/* ---- writing ---- */

static long write_parts(int fd, const struct iovec *parts, int n, int64_t offset) {
    return offset < 0 ? syscall(SYS_writev, fd, parts, n) : syscall(SYS_pwritev, fd, parts, n, offset, 0);
}

static ssize_t do_write(const char *call, int fd, const struct iovec *parts, int n, int64_t offset) {
    char full[PATH_MAX];
    int place = place_of(fd, full);
    if (place == ELSEWHERE) return write_parts(fd, parts, n, offset);
    size_t size = 0;
    for (int i = 0; i < n; i++) size += parts[i].iov_len;
    LOCK;
    long ret = -1;
    int verdict = count(place == DISK ? CHANGES : MEMORY, call, full, size, 1);
    if (verdict != 1) {
        char *data = malloc(size + 1);
        size_t at = 0;
        for (int i = 0; i < n; i++) { memcpy(data + at, parts[i].iov_base, parts[i].iov_len); at += parts[i].iov_len; }
        struct iovec all = {data, verdict == 2 ? size / 2 : size};
        ret = write_parts(fd, &all, 1, offset);
        int saved = errno;
        int64_t start = offset >= 0 ? offset : syscall(SYS_lseek, fd, 0, SEEK_CUR) - ret;
        if (place == DISK) note("write", start, ret, 0, full, "", data, ret < 0 ? 0 : ret);
        free(data);
        if (verdict == 2 && role->action == TEAR) die();
        errno = saved;
    }
    UNLOCK;
    return ret;
}

EXPORT ssize_t write(int fd, const void *data, size_t size) {
    struct iovec part = {(void *)data, size};
    return control ? do_write("write", fd, &part, 1, -1) : syscall(SYS_write, fd, data, size);
}
EXPORT ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    struct iovec part = {(void *)data, size};
    return do_write("pwrite", fd, &part, 1, at);
}
EXPORT ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    struct iovec part = {(void *)data, size};
    return do_write("pwrite", fd, &part, 1, at);
}
EXPORT ssize_t writev(int fd, const struct iovec *parts, int n) { return do_write("writev", fd, parts, n, -1); }
EXPORT ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t at) { return do_write("pwritev", fd, parts, n, at); }
EXPORT ssize_t pwritev64(int fd, const struct iovec *parts, int n, off64_t at) { return do_write("pwritev", fd, parts, n, at); }

/* Copies inside the kernel: refused, so that whoever asks reads and writes instead, as on a file system without them. */
static ssize_t no_copy(int out) {
    char full[PATH_MAX];
    if (place_of(out, full) != DISK) return 0;
    errno = ENOTSOCK; /* what shutil takes as: not possible here */
    return -1;
}
EXPORT ssize_t sendfile(int out, int in, off_t *at, size_t size) {
    return no_copy(out) ? -1 : syscall(SYS_sendfile, out, in, at, size);
}
EXPORT ssize_t sendfile64(int out, int in, off64_t *at, size_t size) {
    return no_copy(out) ? -1 : syscall(SYS_sendfile, out, in, at, size);
}
EXPORT ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    if (no_copy(out)) { errno = EXDEV; return -1; }
    return syscall(SYS_copy_file_range, in, from, out, to, size, flags);
}

/* ---- calls with one descriptor ---- */

#define ON_FD(kind, name, space, length, perform) \
    char full[PATH_MAX]; \
    int place = place_of(fd, full); \
    if (place == ELSEWHERE) return perform; \
    LOCK; \
    long ret = -1; \
    if (count(place == DISK ? (kind) : MEMORY, name, full, 0, space) != 1) { \
        ret = perform; \
        int saved = errno; \
        if (place == DISK && (kind) == CHANGES) note(name, length, ret, 0, full, "", NULL, 0); \
        errno = saved; \
    } \
    UNLOCK; \
    return ret;

EXPORT int fsync(int fd) { ON_FD(CHANGES, "fsync", 1, 0, syscall(SYS_fsync, fd)) }
EXPORT int fdatasync(int fd) { ON_FD(CHANGES, "fdatasync", 1, 0, syscall(SYS_fdatasync, fd)) }
EXPORT int syncfs(int fd) { ON_FD(CHANGES, "syncfs", 1, 0, syscall(SYS_syncfs, fd)) }
EXPORT int ftruncate(int fd, off_t size) { ON_FD(CHANGES, "ftruncate", 0, size, syscall(SYS_ftruncate, fd, size)) }
EXPORT int ftruncate64(int fd, off64_t size) { ON_FD(CHANGES, "ftruncate", 0, size, syscall(SYS_ftruncate, fd, size)) }
EXPORT int fallocate(int fd, int mode, off_t at, off_t size) {
    ON_FD(CHANGES, "fallocate", 1, at + size, syscall(SYS_fallocate, fd, mode, at, size))
}
EXPORT int fallocate64(int fd, int mode, off64_t at, off64_t size) {
    ON_FD(CHANGES, "fallocate", 1, at + size, syscall(SYS_fallocate, fd, mode, at, size))
}
EXPORT int flock(int fd, int how) {
    if (how & LOCK_UN) return syscall(SYS_flock, fd, how); /* which cannot fail on a descriptor that is open */
    ON_FD(LOCKS, "flock", 0, 0, syscall(SYS_flock, fd, how))
}
EXPORT ssize_t read(int fd, void *data, size_t size) {
    if (!control) return syscall(SYS_read, fd, data, size);
    ON_FD(READS, "read", 0, 0, syscall(SYS_read, fd, data, size))
}
EXPORT ssize_t pread(int fd, void *data, size_t size, off_t at) {
    ON_FD(READS, "pread", 0, 0, syscall(SYS_pread64, fd, data, size, at))
}
EXPORT ssize_t pread64(int fd, void *data, size_t size, off64_t at) {
    ON_FD(READS, "pread", 0, 0, syscall(SYS_pread64, fd, data, size, at))
}
EXPORT int memfd_create(const char *name, unsigned flags) {
    if (control && !strncmp(name, "purestate", 9)) {
        LOCK;
        int verdict = count(MEMORY, "memfd_create", name, 0, 1);
        UNLOCK;
        if (verdict == 1) return -1;
    }
    return syscall(SYS_memfd_create, name, flags);
}

/* ---- calls with one path ---- */

#define ON_PATH(name, dir, path, space, length, perform) \
    char full[PATH_MAX]; \
    if (!resolve(dir, path, full)) return perform; \
    LOCK; \
    long ret = -1; \
    if (count(CHANGES, name, full, 0, space) != 1) { \
        ret = perform; \
        int saved = errno; \
        note(name, length, ret, 0, full, "", NULL, 0); \
        errno = saved; \
    } \
    UNLOCK; \
    return ret;

EXPORT int mkdir(const char *path, mode_t mode) {
    ON_PATH("mkdir", AT_FDCWD, path, 1, 0, syscall(SYS_mkdirat, AT_FDCWD, path, mode))
}
EXPORT int mkdirat(int dir, const char *path, mode_t mode) {
    ON_PATH("mkdir", dir, path, 1, 0, syscall(SYS_mkdirat, dir, path, mode))
}
EXPORT int unlink(const char *path) { ON_PATH("unlink", AT_FDCWD, path, 0, 0, syscall(SYS_unlinkat, AT_FDCWD, path, 0)) }
EXPORT int rmdir(const char *path) { ON_PATH("rmdir", AT_FDCWD, path, 0, 0, syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR)) }
EXPORT int unlinkat(int dir, const char *path, int flags) {
    ON_PATH(flags & AT_REMOVEDIR ? "rmdir" : "unlink", dir, path, 0, 0, syscall(SYS_unlinkat, dir, path, flags))
}
EXPORT int truncate(const char *path, off_t size) {
    ON_PATH("truncate", AT_FDCWD, path, 0, size, syscall(SYS_truncate, path, size))
}
EXPORT int truncate64(const char *path, off64_t size) {
    ON_PATH("truncate", AT_FDCWD, path, 0, size, syscall(SYS_truncate, path, size))
}

/* ---- calls with two paths ---- */

static int do_two(const char *call, int da, const char *a, int db, const char *b, int link, int flags) {
    char from[PATH_MAX], to[PATH_MAX];
    int first = resolve(da, a, from), second = resolve(db, b, to);
#define PERFORM (link ? syscall(SYS_linkat, da, a, db, b, flags) : syscall(SYS_renameat2, da, a, db, b, flags))
    if (!first && !second) return PERFORM;
    LOCK;
    long ret = -1;
    if (count(CHANGES, call, to, 0, 0) != 1) {
        ret = PERFORM;
        int saved = errno;
        note(call, 0, ret, flags, from, to, NULL, 0);
        errno = saved;
    }
    UNLOCK;
    return ret;
}

EXPORT int rename(const char *a, const char *b) { return do_two("rename", AT_FDCWD, a, AT_FDCWD, b, 0, 0); }
EXPORT int renameat(int da, const char *a, int db, const char *b) { return do_two("rename", da, a, db, b, 0, 0); }
EXPORT int renameat2(int da, const char *a, int db, const char *b, unsigned flags) {
    return do_two("rename", da, a, db, b, 0, flags);
}
EXPORT int link(const char *a, const char *b) { return do_two("link", AT_FDCWD, a, AT_FDCWD, b, 1, 0); }
EXPORT int linkat(int da, const char *a, int db, const char *b, int flags) { return do_two("link", da, a, db, b, 1, flags); }

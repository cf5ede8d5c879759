/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the job's key comes from. Order: the config, GRADSYNC_KEY, the file
 * GRADSYNC_KEY_FILE, and on one machine a file of the user's own, made on first
 * use. The key's text is hashed, so the same text is the same key from anywhere.
 */
#include "bootstrap/bootstrap.h"
#include "base/error.h"
#include "bootstrap/keys.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MIN_TEXT = 16, MAX_FILE = 4096 };

#define MAKE_ONE "make one with: (umask 077; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n' > FILE)"

static int from_text(const char *text, size_t n, const char *name, unsigned char key[GSI_KEY_BYTES])
{
    /* The value itself is never shown. */
    if (n < MIN_TEXT)
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "the key in %s has %zu characters, fewer than %d; take a random one, such as the output of: "
                        "head -c 32 /dev/urandom | base64",
                        name, n, MIN_TEXT);
    gsi_text_key(key, text, n);
    return 0;
}

/* Reads an open key file and closes it. */
static int from_fd(int fd, const char *name, unsigned char key[GSI_KEY_BYTES])
{
    char text[MAX_FILE + 1];
    struct stat st;
    size_t n = 0;
    ssize_t got = 0;
    int r;

    if (fstat(fd, &st) < 0) {
        r = gsi_fail_errno(errno, "cannot examine the key file %s", name);
    } else if (!S_ISREG(st.st_mode)) {
        r = gsi_fail(GRADSYNC_ERR_AUTH, "the key file %s is not a regular file; name a file that holds the key", name);
    } else if (st.st_uid != geteuid() && st.st_uid != 0) {
        r = gsi_fail(GRADSYNC_ERR_AUTH, "the key file %s belongs to user %ld, who could change it; take a copy of it",
                     name, (long)st.st_uid);
    } else if (st.st_mode & 077) {
        r = gsi_fail(GRADSYNC_ERR_AUTH, "the key file %s can be read or written by others (mode %03o); chmod 600 it",
                     name, (unsigned)st.st_mode & 0777);
    } else {
        while (n < sizeof text && (got = read(fd, text + n, sizeof text - n)) != 0) {
            if (got < 0 && errno == EINTR)
                continue;
            if (got < 0)
                break;
            n += (size_t)got;
        }
        if (got < 0) {
            r = gsi_fail_errno(errno, "cannot read the key file %s", name);
        } else if (n > MAX_FILE) {
            r = gsi_fail(GRADSYNC_ERR_INVALID, "the key file %s is longer than %d bytes; it should hold one line", name,
                         MAX_FILE);
        } else {
            while (n > 0 && memchr(" \t\r\n", text[n - 1], 4))
                n--;
            r = from_text(text, n, name, key);
        }
    }
    close(fd);
    sodium_memzero(text, sizeof text);
    return r;
}

static int from_file(const char *path, unsigned char key[GSI_KEY_BYTES])
{
    /* O_NONBLOCK: a FIFO must not hold us up. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

    if (fd < 0 && errno == ENOENT)
        return gsi_fail(GRADSYNC_ERR_AUTH, "the key file %s (GRADSYNC_KEY_FILE) does not exist; " MAKE_ONE, path);
    if (fd < 0)
        return gsi_fail_errno(errno, "cannot open the key file %s (GRADSYNC_KEY_FILE)", path);
    return from_fd(fd, path, key);
}

/* ---- The per-user default ---- */

/* A directory of ours that nobody else can write to (mask 022) or enter (077). */
static int open_dir(int at, const char *name, unsigned mask)
{
    struct stat st;
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

    if (fd >= 0 && (fstat(fd, &st) < 0 || st.st_uid != geteuid() || (st.st_mode & mask))) {
        close(fd);
        errno = EPERM;
        return -1;
    }
    return fd;
}

static int make_dir(int at, const char *name, unsigned mask)
{
    if (mkdirat(at, name, 0700) < 0 && errno != EEXIST)
        return -1;
    return open_dir(at, name, mask);
}

/* Writes a fresh key under a name of its own. 0, or an errno. */
static int write_temp(int dir, char temp[40])
{
    unsigned char bytes[32], id[12];
    char hex[sizeof bytes * 2 + 1], suffix[sizeof id * 2 + 1];
    int err = 0;

    randombytes_buf(bytes, sizeof bytes);
    randombytes_buf(id, sizeof id);
    sodium_bin2hex(hex, sizeof hex, bytes, sizeof bytes);
    sodium_bin2hex(suffix, sizeof suffix, id, sizeof id);
    snprintf(temp, 40, ".key-%s", suffix);
    hex[sizeof hex - 1] = '\n';
    int fd = openat(dir, temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        err = errno;
    } else {
        /* The umask may have taken the owner's bits away; a key that is half written has no name yet. */
        ssize_t n = fchmod(fd, 0600) < 0 ? -1 : write(fd, hex, sizeof hex);
        if (n != (ssize_t)sizeof hex)
            err = n < 0 ? errno : ENOSPC;
        if (close(fd) < 0 && !err)
            err = errno;
        if (err)
            unlinkat(dir, temp, 0);
    }
    sodium_memzero(bytes, sizeof bytes);
    sodium_memzero(hex, sizeof hex);
    return err;
}

/* Gives a complete key file its name, unless another rank was faster: whoever comes
 * first wins, and every rank reads the file afterwards. 0, or an errno. */
static int make_key(int dir, const char *name)
{
    char temp[40];
    int err = write_temp(dir, temp);

    if (err)
        return err;
    if (linkat(dir, temp, dir, name, 0) < 0 && errno != EEXIST) {
        /* No hard links on this file system. */
        if (renameat2(dir, temp, dir, name, RENAME_NOREPLACE) == 0)
            return 0;
        err = errno == EEXIST ? 0 : errno;
    }
    unlinkat(dir, temp, 0);
    return err;
}

/* Reads dir/name, made if absent. Closes dir. */
static int default_in(int dir, const char *name, const char *shown, unsigned char key[GSI_KEY_BYTES])
{
    int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK), err = errno;

    if (fd < 0 && err == ENOENT) {
        err = make_key(dir, name);
        if (!err) {
            fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
            err = errno;
        }
    }
    close(dir);
    if (fd < 0 && err == ELOOP)
        return gsi_fail(GRADSYNC_ERR_AUTH, "the key file %s is a symbolic link; remove it", shown);
    if (fd < 0)
        return gsi_fail_errno(err, "cannot make or open this user's key file %s; or set GRADSYNC_KEY_FILE", shown);
    return from_fd(fd, shown, key);
}

static const char *get(gsi_getenv_fn lookup, void *arg, const char *name)
{
    const char *v = lookup(arg, name);

    return v && *v ? v : NULL;
}

static int from_default(gsi_getenv_fn lookup, void *arg, unsigned char key[GSI_KEY_BYTES])
{
    const char *xdg = get(lookup, arg, "XDG_RUNTIME_DIR"), *home = get(lookup, arg, "HOME"),
               *tmp = get(lookup, arg, "TMPDIR");
    char shown[512], name[32];
    int dir;

    if (xdg && xdg[0] == '/' && (dir = open_dir(AT_FDCWD, xdg, 022)) >= 0) {
        snprintf(shown, sizeof shown, "%s/gradsync.key", xdg);
        return default_in(dir, "gradsync.key", shown, key);
    }
    if (home && home[0] == '/' && (dir = open_dir(AT_FDCWD, home, 022)) >= 0) {
        int cache = make_dir(dir, ".cache", 022);
        int own = cache < 0 ? -1 : make_dir(cache, "gradsync", 077);
        close(dir);
        if (cache >= 0)
            close(cache);
        if (own >= 0) {
            snprintf(shown, sizeof shown, "%s/.cache/gradsync/key", home);
            return default_in(own, "key", shown, key);
        }
    }
    /* Others may have made the name first: only a directory that is ours and closed to them will do. */
    if (!tmp || tmp[0] != '/')
        tmp = "/tmp";
    snprintf(name, sizeof name, "gradsync-%lu", (unsigned long)geteuid());
    snprintf(shown, sizeof shown, "%s/%s/key", tmp, name);
    int at = open(tmp, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    dir = at < 0 ? -1 : make_dir(at, name, 077);
    int err = errno;
    if (at >= 0)
        close(at);
    if (dir < 0 && (err == EPERM || err == ELOOP || err == ENOTDIR))
        return gsi_fail(GRADSYNC_ERR_AUTH,
                        "%s/%s is not a directory of this user that others cannot enter; remove it, or set "
                        "GRADSYNC_KEY_FILE",
                        tmp, name);
    if (dir < 0)
        return gsi_fail_errno(err, "cannot make %s/%s for this user's key; set GRADSYNC_KEY_FILE", tmp, name);
    return default_in(dir, "key", shown, key);
}

int gsi_job_key(const char *text, gsi_getenv_fn lookup, void *arg, int one_machine, unsigned char key[GSI_KEY_BYTES])
{
    const char *v;
    int r = gsi_sodium_ready();

    if (r)
        return r;
    if (text && *text)
        return from_text(text, strlen(text), "gradsync_config.key", key);
    if ((v = get(lookup, arg, "GRADSYNC_KEY")))
        return from_text(v, strlen(v), "GRADSYNC_KEY", key);
    if ((v = get(lookup, arg, "GRADSYNC_KEY_FILE")))
        return from_file(v, key);
    if (one_machine)
        return from_default(lookup, arg, key);
    return gsi_fail(GRADSYNC_ERR_AUTH,
                    "the job spans machines and has no key; set GRADSYNC_KEY to the same random text on every rank, or "
                    "GRADSYNC_KEY_FILE to a file of mode 600 that holds it");
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Where the key comes from, and the file that is made for a user. */
#include "base/error.h"
#include "bootstrap/bootstrap.h"
#include "tap.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char root[] = "/tmp/gradsync-key-XXXXXX";

struct env {
    const char *name, *value;
};

static const char *lookup(void *arg, const char *name)
{
    for (const struct env *e = arg; e->name; e++)
        if (!strcmp(e->name, name))
            return e->value;
    return NULL;
}

static gradsync_error_info last;

static int key_of(const char *text, const struct env *env, int one_machine, unsigned char key[GSI_KEY_BYTES])
{
    memset(key, 0, GSI_KEY_BYTES);
    last = (gradsync_error_info)GRADSYNC_ERROR_INFO_INIT;
    int r = gsi_job_key(text, lookup, (void *)env, one_machine, key);
    if (r)
        gradsync_last_error(&last);
    return r;
}

static int same(const unsigned char *a, const unsigned char *b)
{
    return !memcmp(a, b, GSI_KEY_BYTES);
}

/* A name in the test's own directory; one of a few for each run, never freed. */
static const char *path(const char *name)
{
    static char text[64][128];
    static int next;

    if (next == 64)
        exit(99);
    snprintf(text[next], sizeof text[next], "%s/%s", root, name);
    return text[next++];
}

static void put(const char *file, const char *text, mode_t mode)
{
    int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) || fchmod(fd, mode) || close(fd))
        exit(99);
}

static void test_text(void)
{
    unsigned char a[GSI_KEY_BYTES], b[GSI_KEY_BYTES], c[GSI_KEY_BYTES], none[GSI_KEY_BYTES] = {0};
    struct env env[] = {{"GRADSYNC_KEY", "a key of some length"}, {NULL, NULL}}, nothing[] = {{NULL, NULL}};

    tap_ok(!key_of("a key of some length", nothing, 0, a) && !same(a, none), "a key in the config");
    tap_ok(!key_of(NULL, env, 0, b) && same(a, b), "the same text in GRADSYNC_KEY is the same key");
    tap_ok(!key_of("another key, longer than the first", env, 0, c) && !same(a, c), "the config wins");
    tap_ok(key_of("fifteen chars!!", nothing, 0, c) == GRADSYNC_ERR_INVALID && strstr(last.message, "15 characters") &&
               !strstr(last.message, "fifteen") && same(c, none),
           "15 characters are too few; the message does not show them");
    tap_ok(!key_of("sixteen chars!!!", nothing, 0, c), "16 are enough");
    tap_ok(key_of(NULL, nothing, 0, c) == GRADSYNC_ERR_AUTH && strstr(last.message, "GRADSYNC_KEY"),
           "no key and several machines: AUTH with the remedy");
}

static void test_file(void)
{
    unsigned char a[GSI_KEY_BYTES], b[GSI_KEY_BYTES];
    const char *file = path("file");
    char long_text[5001];
    struct env env[] = {{"GRADSYNC_KEY_FILE", file}, {NULL, NULL}};

    put(file, "a key of some length\n", 0600);
    tap_ok(!key_of(NULL, env, 0, a) && !key_of("a key of some length", env, 0, b) && same(a, b),
           "a file holds the same text, less its newline");
    chmod(file, 0640);
    tap_ok(key_of(NULL, env, 0, a) == GRADSYNC_ERR_AUTH && strstr(last.message, "chmod 600") &&
               strstr(last.message, "640"),
           "a file that the group can read: AUTH with the remedy");
    chmod(file, 0602);
    tap_ok(key_of(NULL, env, 0, a) == GRADSYNC_ERR_AUTH, "a file that others can write");
    chmod(file, 0400);
    tap_ok(!key_of(NULL, env, 0, a), "a file that its owner can only read");
    put(path("short"), "short\n", 0600);
    env[0].value = path("short");
    tap_ok(key_of(NULL, env, 0, a) == GRADSYNC_ERR_INVALID && strstr(last.message, "/short"), "a short file");
    memset(long_text, 'x', 5000);
    long_text[5000] = 0;
    put(path("long"), long_text, 0600);
    env[0].value = path("long");
    tap_ok(key_of(NULL, env, 0, a) == GRADSYNC_ERR_INVALID, "a long file");
    env[0].value = path("absent");
    tap_ok(key_of(NULL, env, 1, a) == GRADSYNC_ERR_AUTH && strstr(last.message, "does not exist") &&
               strstr(last.message, "umask 077"),
           "a file that is not there is not made: AUTH with the remedy");
    env[0].value = root;
    tap_ok(key_of(NULL, env, 0, a) == GRADSYNC_ERR_AUTH, "a directory");
    env[0].value = path("fifo");
    mkfifo(env[0].value, 0600);
    tap_ok(key_of(NULL, env, 0, a) == GRADSYNC_ERR_AUTH, "a FIFO does not hold us up");
}

static void test_default(void)
{
    unsigned char a[GSI_KEY_BYTES], b[GSI_KEY_BYTES];
    struct stat st;
    struct env xdg[] = {{"XDG_RUNTIME_DIR", path("run")}, {"HOME", "/nonexistent"}, {"TMPDIR", root}, {NULL, NULL}};
    struct env home[] = {{"HOME", path("home")}, {"TMPDIR", root}, {NULL, NULL}};
    struct env tmp[] = {{"HOME", "/nonexistent"}, {"TMPDIR", root}, {NULL, NULL}};
    char own[64];

    mkdir(path("run"), 0700);
    mkdir(path("home"), 0755);
    umask(0);
    tap_ok(!key_of(NULL, xdg, 1, a) && !stat(path("run/gradsync.key"), &st) && (st.st_mode & 07777) == 0600,
           "a key is made in XDG_RUNTIME_DIR, mode 600");
    tap_ok(!key_of(NULL, xdg, 1, b) && same(a, b), "and found again");
    umask(077);
    int made = key_of(NULL, home, 1, b);
    umask(022);
    tap_ok(!made && !same(a, b) && !stat(path("home/.cache/gradsync/key"), &st) && (st.st_mode & 07777) == 0600 &&
               !stat(path("home/.cache/gradsync"), &st) && (st.st_mode & 07777) == 0700,
           "in HOME, in a directory of mode 700");
    snprintf(own, sizeof own, "gradsync-%lu", (unsigned long)geteuid());
    tap_ok(!key_of(NULL, tmp, 1, a) && !stat(path(own), &st) && (st.st_mode & 07777) == 0700,
           "without a home: in a directory of one's own under TMPDIR");
    chmod(path(own), 0755);
    tap_ok(key_of(NULL, tmp, 1, a) == GRADSYNC_ERR_AUTH && strstr(last.message, own), "which others must not enter");
    chmod(path(own), 0700);
    rename(path(own), path("moved"));
    if (symlink("moved", path(own)))
        exit(99);
    tap_ok(key_of(NULL, tmp, 1, a) == GRADSYNC_ERR_AUTH, "and which must not be a link");
    unlink(path("run/gradsync.key"));
    if (symlink(path("home/.cache/gradsync/key"), path("run/gradsync.key")))
        exit(99);
    tap_ok(key_of(NULL, xdg, 1, a) == GRADSYNC_ERR_AUTH && strstr(last.message, "symbolic link"),
           "nor must the key file");
    chmod(path("run"), 0777);
    tap_ok(!key_of(NULL, xdg, 1, a) || last.code == GRADSYNC_ERR_AUTH, "a runtime directory open to all is not used");
    chmod(path("run"), 0700);
    tap_ok(key_of(NULL, xdg, 0, a) == GRADSYNC_ERR_AUTH && strstr(last.message, "spans machines"),
           "no default for several machines");
}

static int leftovers(const char *dir)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    int n = 0;

    while (d && (e = readdir(d)))
        n += !strncmp(e->d_name, ".key", 4);
    if (d)
        closedir(d);
    return n;
}

/* Ranks that start at once, and find no key yet. */
static void test_race(void)
{
    enum { RANKS = 8, ROUNDS = 20 };
    struct shared {
        unsigned char keys[RANKS][GSI_KEY_BYTES];
        int go;
    } *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct env env[] = {{"HOME", path("race")}, {NULL, NULL}};
    int good = 1, status;

    const char *dir = path("race/.cache/gradsync"), *file = path("race/.cache/gradsync/key");
    mkdir(path("race"), 0700);
    for (int round = 0; round < ROUNDS; round++) {
        memset(s, 0, sizeof *s);
        fflush(NULL);
        for (int i = 0; i < RANKS; i++)
            if (fork() == 0) {
                while (!__atomic_load_n(&s->go, __ATOMIC_ACQUIRE))
                    usleep(100);
                _exit(key_of(NULL, env, 1, s->keys[i]) ? 1 : 0);
            }
        __atomic_store_n(&s->go, 1, __ATOMIC_RELEASE);
        for (int i = 0; i < RANKS; i++)
            good &= wait(&status) > 0 && status == 0;
        for (int i = 1; i < RANKS; i++)
            good &= same(s->keys[0], s->keys[i]);
        good &= leftovers(dir) == 0;
        unlink(file);
    }
    tap_ok(good, "%d processes at once end with one key, and no other file, %d times", RANKS, ROUNDS);
    munmap(s, sizeof *s);
}

int main(void)
{
    char command[128];

    if (!mkdtemp(root))
        return 99;
    test_text();
    test_file();
    test_default();
    test_race();
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    if (system(command))
        tap_note("%s is left", root);
    return tap_done();
}

/* A server that costs next to nothing, so that a client's own cost is seen: every step, each live
 * stream gets one event of one token. Arguments: microseconds of a step (0: without a pause).
 * Prints its port, serves until its stdin ends, then prints "events cpu_seconds". */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST 4096
#define ROOM 262144

static const char HEAD[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
static const char EVENT[] =
    "data: {\"id\":\"cmpl-0123456789abcdef\",\"object\":\"text_completion\",\"created\":1700000000,"
    "\"model\":\"fast\",\"choices\":[{\"index\":0,\"text\":\" word\",\"logprobs\":null,"
    "\"finish_reason\":null}]}\n\n";
static const char MODELS[] = "{\"data\":[{\"id\":\"fast\"}]}";

struct stream {
    int fd;
    long left, asked;
    size_t used;
    char *text;
};
static struct stream streams[MOST];
static int count;
static long events;

static void say(int fd, const char *text, size_t size) {
    while (size) {
        ssize_t sent = send(fd, text, size, MSG_NOSIGNAL);
        if (sent > 0) {
            text += sent;
            size -= (size_t)sent;
        } else if (errno == EAGAIN) {
            struct pollfd full = {fd, POLLOUT, 0};
            poll(&full, 1, 1000);
        } else {
            return;
        }
    }
}

static void chunk(int fd, const char *text, size_t size) {
    char whole[1024];
    int length = snprintf(whole, sizeof whole, "%zx\r\n%.*s\r\n", size, (int)size, text);
    say(fd, whole, (size_t)length);
}

static void end(struct stream *s) {
    char usage[256];
    int size = snprintf(usage, sizeof usage,
                        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,"
                        "\"completion_tokens\":%ld}}\n\n", s->asked);
    chunk(s->fd, usage, (size_t)size);
    chunk(s->fd, "data: [DONE]\n\n", 14);
    say(s->fd, "0\r\n\r\n", 5);
}

/* Takes what a request says once it is whole. */
static void take(struct stream *s) {
    s->text[s->used] = 0;
    char *body = strstr(s->text, "\r\n\r\n");
    if (!body) return;
    char *length = strcasestr(s->text, "content-length:");
    long size = length && length < body ? atol(length + 15) : 0;
    if (s->text + s->used < body + 4 + size) return;
    if (!strncmp(s->text, "GET", 3)) {
        char answer[256];
        int n = snprintf(answer, sizeof answer,
                         "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                         "Content-Length: %zu\r\n\r\n%s", strlen(MODELS), MODELS);
        say(s->fd, answer, (size_t)n);
    } else {
        char *asked = strstr(body, "\"max_tokens\":");
        s->asked = s->left = asked ? atol(asked + 13) : 1;
        say(s->fd, HEAD, sizeof HEAD - 1);
    }
    s->used = 0;
}

static void drop(int i) {
    close(streams[i].fd);
    free(streams[i].text);
    streams[i] = streams[--count];
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void step(void) {
    for (int i = 0; i < count; i++) {
        struct stream *s = &streams[i];
        if (!s->left) continue;
        chunk(s->fd, EVENT, sizeof EVENT - 1);
        events++;
        if (!--s->left) end(s);
    }
}

int main(int argc, char **argv) {
    double every = argc > 1 ? atof(argv[1]) : 0, due = now();
    int door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof where;
    if (bind(door, (struct sockaddr *)&where, size) || listen(door, 1024)) return 1;
    getsockname(door, (struct sockaddr *)&where, &size);
    printf("%d\n", ntohs(where.sin_port));
    fflush(stdout);
    static struct pollfd ready[MOST + 2];
    for (;;) {
        int live = 0;
        for (int i = 0; i < count; i++) {
            ready[i] = (struct pollfd){streams[i].fd, POLLIN, 0};
            live |= streams[i].left > 0;
        }
        ready[count] = (struct pollfd){door, POLLIN, 0};
        ready[count + 1] = (struct pollfd){0, POLLIN, 0};
        double wait = live ? due - now() : 1e6;
        poll(ready, (nfds_t)count + 2, wait > 1000 ? (int)(wait / 1000) : 0);
        if (ready[count + 1].revents) break;
        for (int i = count - 1; i >= 0; i--) {
            if (!ready[i].revents) continue;
            struct stream *s = &streams[i];
            ssize_t got = recv(s->fd, s->text + s->used, ROOM - 1 - s->used, 0);
            if (got > 0) {
                s->used += (size_t)got;
                take(s);
            } else if (!got || errno != EAGAIN) {
                drop(i);
            }
        }
        int fd;
        while (count < MOST && (fd = accept4(door, 0, 0, SOCK_NONBLOCK)) >= 0)
            streams[count++] = (struct stream){.fd = fd, .text = malloc(ROOM)};
        if (now() >= due) {
            step();
            due = every > 0 && now() - due < 10 * every ? due + every : now() + every;
        }
    }
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    printf("%ld %.6f\n", events,
           (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
               (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
    return 0;
}

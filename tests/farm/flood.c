/* Floods one socket until it is killed, at the lowest priority; or plays a proxy beside that.
 *
 * flood strangers PATH UID: as user UID, connects to the Unix socket PATH and closes again, as fast as it can.
 * flood proxy PATH UID: as user UID, connects to PATH for each message that comes on its standard input, sends that message
 * and writes the first answer to its standard output, both as they travel: behind their length. No flood, but it is beside
 * one, and at the priority that it was started with. Ends with its input, or with the first connection that brings no answer.
 * flood metrics PORT COUNT: on COUNT connections to 127.0.0.1:PORT writes GET /metrics ten thousand times without waiting
 * for an answer, and reads what comes. A connection that ends is made anew.
 * flood farm PORT COUNT: the same with GET /farm.json.
 * flood bytes PORT COUNT: the same with a head that never ends, a byte at a time.
 *
 * Prints a line once the flood is under way: a hundred connections made, or as many as there are to be. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define REQUEST(path) "GET " path " HTTP/1.1\r\nHost: x\r\n\r\n"
#define REQUESTS 10000
#define MOST 256
#define MESSAGE (1 << 16)

static void
under_way(void)
{
  puts("under way");
  fflush(stdout);
}

/* Becomes user `uid`, with no group of the user before. */
static int
become(int uid)
{
  if (setgroups(0, NULL) != 0 || setgid(uid) != 0 || setuid(uid) != 0) {
    perror("setuid");
    return 0;
  }
  return 1;
}

/* A connection to the Unix socket `path`, or -1. */
static int
reach(const char *path)
{
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  int peer = socket(AF_UNIX, SOCK_STREAM, 0);
  strncpy(address.sun_path, path, sizeof address.sun_path - 1);
  if (connect(peer, (struct sockaddr *)&address, sizeof address) != 0) {
    perror("connect");
    return -1;
  }
  return peer;
}

static int
strangers(const char *path, int uid)
{
  long made = 0;
  if (!become(uid)) {
    return 1;
  }
  for (;;) {
    int peer = reach(path);
    if (peer < 0) {
      return 1;
    }
    close(peer);
    if (++made == 100) {
      under_way();
    }
  }
}

/* Passes one message from `from` to `to`, behind its length. */
static int
pass(int from, int to)
{
  static unsigned char message[4 + MESSAGE];
  ssize_t whole = 4;
  for (ssize_t got = 0; got < whole;) {
    ssize_t some = read(from, message + got, whole - got);
    if (some <= 0) {
      return 0;
    }
    got += some;
    if (got == 4) {
      uint32_t body;
      memcpy(&body, message, sizeof body);
      if (ntohl(body) > MESSAGE) {
        return 0;
      }
      whole += ntohl(body);
    }
  }
  return write(to, message, whole) == whole;
}

static int
proxy(const char *path, int uid)
{
  if (!become(uid)) {
    return 1;
  }
  /* Waits for the first message before there is a connection. */
  struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
  while (poll(&input, 1, -1) > 0 && (input.revents & POLLIN)) {
    int peer = reach(path);
    if (peer < 0 || !pass(STDIN_FILENO, peer) || !pass(peer, STDOUT_FILENO)) {
      return 1;
    }
    close(peer);
  }
  return 0;
}

static int
dial(int port)
{
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int peer = socket(AF_INET, SOCK_STREAM, 0);
  fcntl(peer, F_SETFL, O_NONBLOCK);
  /* Not waited for: an error shows when it is polled. */
  (void)!connect(peer, (struct sockaddr *)&address, sizeof address);
  return peer;
}

/* `request`, ten thousand times. */
static char *
many(const char *request)
{
  size_t length = strlen(request);
  char *all = malloc(REQUESTS * length + 1);
  for (int n = 0; n < REQUESTS; n++) {
    memcpy(all + n * length, request, length + 1);
  }
  return all;
}

/* Sends more of `all`, or of a head that never ends if it is null. Whether the connection stands. */
static int
feed(int peer, size_t *sent, const char *all, size_t length)
{
  if (all == NULL) {
    return send(peer, *sent == 0 ? "GET /" : "x", *sent == 0 ? 5 : 1, MSG_NOSIGNAL) > 0 && ++*sent > 0;
  }
  ssize_t took = send(peer, all + *sent, length - *sent, MSG_NOSIGNAL);
  if (took > 0) {
    *sent += took;
  }
  return took > 0;
}

static int
requests(int port, int count, const char *all)
{
  size_t length = all == NULL ? 0 : strlen(all);
  static char answer[1 << 16];
  struct pollfd polled[MOST];
  size_t sent[MOST] = {0};
  int fed[MOST] = {0}, begun = 0;
  for (int n = 0; n < count; n++) {
    polled[n] = (struct pollfd){.fd = dial(port), .events = POLLIN | POLLOUT};
  }
  while (poll(polled, count, -1) > 0) {
    for (int n = 0; n < count; n++) {
      short now = polled[n].revents;
      int stands = (now & (POLLERR | POLLNVAL)) == 0;
      if (stands && (now & (POLLIN | POLLHUP))) {
        stands = read(polled[n].fd, answer, sizeof answer) > 0;
      }
      if (stands && (now & POLLOUT)) {
        stands = feed(polled[n].fd, &sent[n], all, length);
        if (stands && !fed[n] && ++begun == count) {
          under_way();
        }
        fed[n] |= stands;
        if (all != NULL && sent[n] == length) {
          polled[n].events = POLLIN;
        }
      }
      if (!stands) {
        close(polled[n].fd);
        polled[n] = (struct pollfd){.fd = dial(port), .events = POLLIN | POLLOUT};
        sent[n] = 0;
      }
    }
  }
  perror("poll");
  return 1;
}

int
main(int argc, char *argv[])
{
  if (argc == 4 && strcmp(argv[1], "proxy") == 0) {
    /* A daemon that has closed the connection shows in what is read. */
    signal(SIGPIPE, SIG_IGN);
    return proxy(argv[2], atoi(argv[3]));
  }
  setpriority(PRIO_PROCESS, 0, 19);
  if (argc == 4 && strcmp(argv[1], "strangers") == 0) {
    return strangers(argv[2], atoi(argv[3]));
  }
  if (argc == 4 && atoi(argv[3]) > 0 && atoi(argv[3]) <= MOST) {
    const char *all = strcmp(argv[1], "metrics") == 0  ? many(REQUEST("/metrics"))
                      : strcmp(argv[1], "farm") == 0 ? many(REQUEST("/farm.json"))
                                                     : NULL;
    return requests(atoi(argv[2]), atoi(argv[3]), all);
  }
  fputs("see the comment at the top\n", stderr);
  return 2;
}

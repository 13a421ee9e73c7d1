/* Floods one socket until it is killed, at the lowest priority.
 *
 * flood strangers PATH UID: as user UID, connects to the Unix socket PATH and closes again, as fast as it can.
 * flood requests PORT COUNT: on COUNT connections to 127.0.0.1:PORT writes GET /metrics ten thousand times without waiting
 * for an answer, and reads what comes. A connection that ends is made anew.
 * flood bytes PORT COUNT: the same with a head that never ends, a byte at a time.
 *
 * Prints a line once the flood is under way: a hundred connections made, or as many as there are to be. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define REQUEST "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
#define REQUESTS 10000
#define LENGTH (sizeof REQUEST - 1)
#define MOST 256

static void
under_way(void)
{
  puts("under way");
  fflush(stdout);
}

static int
strangers(const char *path, int uid)
{
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  long made = 0;
  if (setuid(uid) != 0) {
    perror("setuid");
    return 1;
  }
  strncpy(address.sun_path, path, sizeof address.sun_path - 1);
  for (;;) {
    int peer = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(peer, (struct sockaddr *)&address, sizeof address) != 0) {
      perror("connect");
      return 1;
    }
    close(peer);
    if (++made == 100) {
      under_way();
    }
  }
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

/* Whether the connection stands. */
static int
feed(int peer, size_t *sent, int whole)
{
  static char all[REQUESTS * LENGTH];
  if (all[0] == 0) {
    for (int n = 0; n < REQUESTS; n++) {
      memcpy(all + n * LENGTH, REQUEST, LENGTH);
    }
  }
  if (!whole) {
    return send(peer, *sent == 0 ? "GET /" : "x", *sent == 0 ? 5 : 1, MSG_NOSIGNAL) > 0 && ++*sent > 0;
  }
  ssize_t took = send(peer, all + *sent, sizeof all - *sent, MSG_NOSIGNAL);
  if (took > 0) {
    *sent += took;
  }
  return took > 0;
}

static int
requests(int port, int count, int whole)
{
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
        stands = feed(polled[n].fd, &sent[n], whole);
        if (stands && !fed[n] && ++begun == count) {
          under_way();
        }
        fed[n] |= stands;
        if (sent[n] == REQUESTS * LENGTH) {
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
  setpriority(PRIO_PROCESS, 0, 19);
  if (argc == 4 && strcmp(argv[1], "strangers") == 0) {
    return strangers(argv[2], atoi(argv[3]));
  }
  if (argc == 4 && atoi(argv[3]) > 0 && atoi(argv[3]) <= MOST) {
    return requests(atoi(argv[2]), atoi(argv[3]), strcmp(argv[1], "requests") == 0);
  }
  fputs("see the comment at the top\n", stderr);
  return 2;
}

/* Connects to the Unix socket argv[1] as user argv[2] and prints how many bytes it was told before the end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int
main(int argc, char *argv[])
{
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  char buffer[4096];
  long told = 0, got;
  if (argc != 3 || setuid(atoi(argv[2])) != 0) {
    perror("setuid");
    return 1;
  }
  strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
  int peer = socket(AF_UNIX, SOCK_STREAM, 0);
  if (connect(peer, (struct sockaddr *)&address, sizeof address) != 0) {
    perror("connect");
    return 1;
  }
  /* An introduction in good order: kind "ats". It may have been shown the door already. */
  send(peer, "\0\0\0\7\n\5\n\3ats", 11, MSG_NOSIGNAL);
  while ((got = read(peer, buffer, sizeof buffer)) > 0) {
    told += got;
    if (told >= 10) {
      break;
    }
  }
  printf("%ld\n", told);
  return 0;
}

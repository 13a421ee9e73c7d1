/* A Traffic Server without traffic: exports the plugin API of one version as HOST says, loads the plugin, and does what
 * standard input tells it. Every call of the plugin is a line on standard output.
 *
 * HOST 9: C names. HOST 10: C++ names, mangled. HOST 11: C++ names, no session functions.
 */
#include <dlfcn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if HOST == 9
#define NAME(c, cpp)
#else
#define NAME(c, cpp) __asm__(cpp)
#endif

typedef int (*event_function)(void *, int, void *);
struct session_id {
  size_t len;
  char bytes[32];
};

static event_function hooked, reloaded, stopping;
static struct session_id held_id;
static unsigned char held[4096];
static int held_len;

int i2d_SSL_SESSION(const void *session, unsigned char **out);

__attribute__((unused)) static void
hex(const void *bytes, size_t len)
{
  for (size_t i = 0; i < len; i++) {
    printf("%02x", ((const unsigned char *)bytes)[i]);
  }
}

const char *TSTrafficServerVersionGet(void) NAME("", "_Z25TSTrafficServerVersionGetv");
const char *
TSTrafficServerVersionGet(void)
{
  return HOST == 9 ? "9.2.9" : HOST == 10 ? "10.1.0" : "11.0.0";
}

int TSTrafficServerVersionGetMajor(void) NAME("", "_Z30TSTrafficServerVersionGetMajorv");
int
TSTrafficServerVersionGetMajor(void)
{
  return HOST;
}

int TSPluginRegister(const char *const *info) NAME("", "_Z16TSPluginRegisterPK24TSPluginRegistrationInfo");
int
TSPluginRegister(const char *const *info)
{
  printf("register %s\n", info[0]);
  return 0;
}

void *TSThreadInit(void) NAME("", "_Z12TSThreadInitv");
void *
TSThreadInit(void)
{
  /* ATS keeps what it makes here until it ends, whatever becomes of the thread. */
  printf("thread\n");
  return &held;
}

void *TSContCreate(event_function f, void *mutex) NAME("", "_Z12TSContCreatePFiP10tsapi_cont7TSEventPvEP11tsapi_mutex");
void *
TSContCreate(event_function f, void *mutex)
{
  (void)mutex;
  return (void *)f;
}

void TSHttpHookAdd(int hook, void *cont) NAME("", "_Z13TSHttpHookAdd12TSHttpHookIDP10tsapi_cont");
void
TSHttpHookAdd(int hook, void *cont)
{
  printf("hook %d\n", hook);
  hooked = (event_function)cont;
}

void TSLifecycleHookAdd(int hook, void *cont) NAME("", "_Z18TSLifecycleHookAdd17TSLifecycleHookIDP10tsapi_cont");
void
TSLifecycleHookAdd(int hook, void *cont)
{
  printf("lifecycle %d\n", hook);
  stopping = (event_function)cont;
}

#if HOST == 9
void
TSMgmtUpdateRegister(void *cont, const char *name)
{
  printf("update %s\n", name);
  reloaded = (event_function)cont;
}
#else
void TSMgmtUpdateRegister(void *cont, const char *name, const char *file) __asm__("_Z20TSMgmtUpdateRegisterP10tsapi_contPKcS2_");
void
TSMgmtUpdateRegister(void *cont, const char *name, const char *file)
{
  printf("update %s%s\n", name, file ? file : "");
  reloaded = (event_function)cont;
}
#endif

int TSSslTicketKeyUpdate(char *data, int len) NAME("", "_Z20TSSslTicketKeyUpdatePci");
int
TSSslTicketKeyUpdate(char *data, int len)
{
  char line[2 * 4096 + 1] = "";
  for (int i = 0; i < len && i < 4096; i++) {
    sprintf(line + 2 * i, "%02x", (unsigned char)data[i]);
  }
  printf("keys %s\n", line);
  return 0;
}

int TSMgmtIntGet(const char *name, int64_t *value) NAME("", "_Z12TSMgmtIntGetPKcPl");
int
TSMgmtIntGet(const char *name, int64_t *value)
{
  /* Whatever the session cache is called, it is off. */
  if (strstr(name, "session_cache")) {
    *value = 0;
    return 0;
  }
  return -1;
}

void TSWarning(const char *format, ...) NAME("", "_Z9TSWarningPKcz");
void
TSWarning(const char *format, ...)
{
  va_list arguments;
  va_start(arguments, format);
  printf("warning ");
  vprintf(format, arguments);
  printf("\n");
  va_end(arguments);
}

void TSNote(const char *format, ...) NAME("", "_Z6TSNotePKcz");
void
TSNote(const char *format, ...)
{
  va_list arguments;
  va_start(arguments, format);
  printf("note ");
  vprintf(format, arguments);
  printf("\n");
  va_end(arguments);
}

void TSError(const char *format, ...) NAME("", "_Z7TSErrorPKcz");
void
TSError(const char *format, ...)
{
  va_list arguments;
  va_start(arguments, format);
  printf("error ");
  vprintf(format, arguments);
  printf("\n");
  va_end(arguments);
}

#if HOST < 11
int TSSslSessionGetBuffer(const struct session_id *id, char *buffer, int *len)
  NAME("", "_Z21TSSslSessionGetBufferPK14TSSslSessionIDPcPi");
int
TSSslSessionGetBuffer(const struct session_id *id, char *buffer, int *len)
{
  if (held_len == 0 || id->len != held_id.len || memcmp(id->bytes, held_id.bytes, id->len) != 0) {
    return 0;
  }
  if (*len > held_len) {
    *len = held_len;
  }
  memcpy(buffer, held, *len);
  return held_len;
}

int TSSslSessionInsert(const struct session_id *id, void *session, void *connection)
  NAME("", "_Z18TSSslSessionInsertPK14TSSslSessionIDP17tsapi_ssl_sessionP13tsapi_ssl_obj");
int
TSSslSessionInsert(const struct session_id *id, void *session, void *connection)
{
  unsigned char *out = held;
  held_id  = *id;
  held_len = i2d_SSL_SESSION(session, &out);
  printf("insert ");
  hex(id->bytes, id->len);
  printf(" ");
  hex(held, held_len);
  printf("%s\n", connection ? " with a connection" : "");
  return 0;
}

int TSSslSessionRemove(const struct session_id *id) NAME("", "_Z18TSSslSessionRemovePK14TSSslSessionID");
int
TSSslSessionRemove(const struct session_id *id)
{
  printf("remove ");
  hex(id->bytes, id->len);
  printf("\n");
  /* As if ATS called the hook for it: this must not travel to the farm. */
  hooked(NULL, 2002, (void *)id);
  return 0;
}
#endif

static size_t
unhex(const char *text, void *bytes, size_t room)
{
  size_t len = 0;
  for (; len < room && text[0] && text[1]; text += 2) {
    unsigned int byte;
    sscanf(text, "%2x", &byte);
    ((unsigned char *)bytes)[len++] = byte;
  }
  return len;
}

int
main(int argc, const char *argv[])
{
  static char line[20000], word[20], first[100], second[16000];
  setvbuf(stdout, NULL, _IOLBF, 0);
  void *plugin = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (!plugin) {
    printf("dlopen: %s\n", dlerror());
    return 1;
  }
  void (*init)(int, const char **) = (void (*)(int, const char **))dlsym(plugin, "TSPluginInit");
  init(argc - 1, argv + 1);
  printf("ready\n");
  while (fgets(line, sizeof line, stdin)) {
    struct session_id id = {0};
    first[0] = second[0] = 0;
    sscanf(line, "%19s %99s %15999s", word, first, second);
    id.len = unhex(first, id.bytes, sizeof id.bytes);
    if (!strcmp(word, "new")) {
      held_id  = id;
      held_len = unhex(second, held, sizeof held);
      hooked(NULL, 2001, &id);
    } else if (!strcmp(word, "get")) {
      hooked(NULL, 2000, &id);
    } else if (!strcmp(word, "removed")) {
      held_len = 0;
      hooked(NULL, 2002, &id);
    } else if (!strcmp(word, "evict")) {
      held_len = 0;
    } else if (!strcmp(word, "impossible")) {
      id.len = 33;
      hooked(NULL, 2000, &id);
      hooked(NULL, 2001, NULL);
      hooked(NULL, 4711, &id);
    } else if (!strcmp(word, "reload")) {
      reloaded(NULL, 60300, NULL);
    } else if (!strcmp(word, "stop")) {
      stopping(NULL, 60107, NULL);
    }
    printf("done %s\n", word);
  }
  return 0;
}

/* A Traffic Server without traffic: exports the plugin API of one version as HOST says, loads the plugin, and does what
 * standard input tells it. Every call of the plugin is a line on standard output.
 *
 * HOST 9: C names. HOST 10: C++ names, mangled. HOST 11: C++ names, no session functions.
 */
#include <dlfcn.h>
#include <openssl/ssl.h>
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

static event_function hooked, closing, reloaded, stopping;
static struct session_id held_id;
static unsigned char held[4096];
static int held_len;

__attribute__((unused)) static void
hex(const void *bytes, size_t len)
{
  for (size_t i = 0; i < len; i++) {
    printf("%02x", ((const unsigned char *)bytes)[i]);
  }
}

#ifdef OPENSSL_SAYS
/* As an OpenSSL that is linked into the program would: the plugin sees this one first. */
unsigned long
OpenSSL_version_num(void)
{
  return OPENSSL_SAYS;
}
#endif

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
  if (hook == 24 || hook == 27) {
    hooked = (event_function)cont;
  } else {
    closing = (event_function)cont;
  }
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

const char *TSConfigDirGet(void) NAME("", "_Z14TSConfigDirGetv");
const char *
TSConfigDirGet(void)
{
  return getenv("CONFIG_DIR");
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

/* A connection is its TLS state here. */
void *TSVConnSslConnectionGet(void *connection) NAME("", "_Z23TSVConnSslConnectionGetP10tsapi_cont");
void *
TSVConnSslConnectionGet(void *connection)
{
  return connection;
}

void TSVConnReenable(void *connection) NAME("", "_Z15TSVConnReenableP10tsapi_cont");
void
TSVConnReenable(void *connection)
{
  (void)connection;
  printf("reenabled\n");
}

static struct session_id
id_of(const SSL_SESSION *session)
{
  struct session_id id = {0};
  unsigned int len;
  const unsigned char *bytes = SSL_SESSION_get_id(session, &len);
  id.len                     = len;
  memcpy(id.bytes, bytes, len);
  return id;
}

/* ATS's callbacks of OpenSSL, which call the plugin's hook. */
static int
session_made(SSL *ssl, SSL_SESSION *session)
{
  (void)ssl;
  unsigned char *out = held;
  held_id            = id_of(session);
  held_len           = i2d_SSL_SESSION(session, &out);
  hooked(NULL, 2001, &held_id);
  return 0;
}

static SSL_SESSION *
session_asked_for(SSL *ssl, const unsigned char *bytes, int len, int *copy)
{
  (void)ssl;
  struct session_id id = {0};
  id.len               = len;
  memcpy(id.bytes, bytes, len);
  *copy = 0;
  hooked(NULL, 2000, &id);
  const unsigned char *at = held;
  int is_it               = held_len > 0 && held_id.len == id.len && memcmp(held_id.bytes, id.bytes, id.len) == 0;
  return is_it ? d2i_SSL_SESSION(NULL, &at, held_len) : NULL;
}

static void
session_dropped(SSL_CTX *context, SSL_SESSION *session)
{
  (void)context;
  struct session_id id = id_of(session);
  hooked(NULL, 2002, &id);
  if (held_id.len == id.len && memcmp(held_id.bytes, id.bytes, id.len) == 0) {
    held_len = 0;
  }
}

/* A key that both ends know, in place of a certificate. */
static unsigned int
server_key(SSL *ssl, const char *identity, unsigned char *key, unsigned int room)
{
  (void)ssl, (void)identity, (void)room;
  memset(key, 7, 16);
  return 16;
}

static unsigned int
client_key(SSL *ssl, const char *hint, char *identity, unsigned int identity_room, unsigned char *key, unsigned int room)
{
  (void)hint, (void)identity_room;
  strcpy(identity, "client");
  return server_key(ssl, identity, key, room);
}

static SSL_CTX *
context(const SSL_METHOD *method)
{
  SSL_CTX *made = SSL_CTX_new(method);
  SSL_CTX_set_max_proto_version(made, TLS1_2_VERSION);
  SSL_CTX_set_options(made, SSL_OP_NO_TICKET);
  SSL_CTX_set_cipher_list(made, "PSK-AES128-GCM-SHA256");
  SSL_CTX_set_psk_server_callback(made, server_key);
  SSL_CTX_set_psk_client_callback(made, client_key);
  return made;
}

/* A client's visit that ends without close_notify, unless it is to `keep` its session: when the handshake is over or, if `early`, when
 * the server has said its part. It comes back to the session of the last visit if `again`. */
static void
visit(int keep, int again, int early)
{
  static SSL_CTX *servers, *clients;
  static SSL_SESSION *last;
  if (!servers) {
    servers = context(TLS_server_method());
    clients = context(TLS_client_method());
    SSL_CTX_set_session_cache_mode(servers, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_set_session_id_context(servers, (const unsigned char *)"host", 4);
    SSL_CTX_sess_set_new_cb(servers, session_made);
    SSL_CTX_sess_set_get_cb(servers, session_asked_for);
    SSL_CTX_sess_set_remove_cb(servers, session_dropped);
  }
  SSL *server = SSL_new(servers), *client = SSL_new(clients);
  BIO *near, *far;
  BIO_new_bio_pair(&near, 0, &far, 0);
  SSL_set_bio(server, near, near);
  SSL_set_bio(client, far, far);
  SSL_set_accept_state(server);
  SSL_set_connect_state(client);
  if (again) {
    SSL_set_session(client, last);
  }
  for (int turn = 0; turn < 10 && !(early && turn == 1) && SSL_do_handshake(client) != 1; turn++) {
    SSL_do_handshake(server);
  }
  if (!early) {
    SSL_do_handshake(server);
    SSL_SESSION_free(last);
    last = SSL_get1_session(client);
  }
  printf("visit %s %s\n", SSL_session_reused(server) ? "resumed" : "made", SSL_is_init_finished(server) ? "whole" : "broken");
  if (keep) {
    SSL_shutdown(server);
  }
  BIO_shutdown_wr(far);
  char byte;
  SSL_read(server, &byte, 1);
  closing(NULL, 108, server);
  SSL_set_quiet_shutdown(client, 1);
  SSL_shutdown(client);
  SSL_free(client);
  SSL_free(server);
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
      /* ATS calls the hook before it removes. */
      hooked(NULL, 2002, &id);
      held_len = 0;
#if HOST < 11
    } else if (!strcmp(word, "visit")) {
      visit(!strcmp(first, "keep"), !strcmp(first, "again"), !strcmp(second, "early"));
#endif
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

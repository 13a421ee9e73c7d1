/*
 * An OpenSSL provider that is the default one without X25519: what a host in FIPS mode has. A configuration activates it in
 * place of the default provider. For tests alone.
 */
#include <string.h>

#include <openssl/core_dispatch.h>
#include <openssl/crypto.h>
#include <openssl/provider.h>

#define MOST 256

static OSSL_LIB_CTX *context;
static OSSL_PROVIDER *whole;
static OSSL_ALGORITHM key_types[MOST], exchanges[MOST];

static const OSSL_ALGORITHM *without(const OSSL_ALGORITHM *all, OSSL_ALGORITHM *kept)
{
    size_t count = 0;

    for (; all != NULL && all->algorithm_names != NULL && count + 1 < MOST; all++)
        if (strstr(all->algorithm_names, "X25519") == NULL)
            kept[count++] = *all;
    memset(&kept[count], 0, sizeof(kept[count]));
    return kept;
}

static const OSSL_ALGORITHM *query(void *unused, int operation, int *no_cache)
{
    const OSSL_ALGORITHM *all = OSSL_PROVIDER_query_operation(whole, operation, no_cache);

    (void)unused;
    switch (operation) {
    case OSSL_OP_KEYMGMT:
        return without(all, key_types);
    case OSSL_OP_KEYEXCH:
        return without(all, exchanges);
    default:
        return all;
    }
}

static int capabilities(void *unused, const char *capability, OSSL_CALLBACK *callback, void *argument)
{
    (void)unused;
    return OSSL_PROVIDER_get_capabilities(whole, capability, callback, argument);
}

static const OSSL_DISPATCH functions[] = {
    { OSSL_FUNC_PROVIDER_QUERY_OPERATION, (void (*)(void))query },
    { OSSL_FUNC_PROVIDER_GET_CAPABILITIES, (void (*)(void))capabilities },
    { 0, NULL },
};

int OSSL_provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *core, const OSSL_DISPATCH **out, void **provider)
{
    (void)handle;
    (void)core;
    context = OSSL_LIB_CTX_new();
    whole = context == NULL ? NULL : OSSL_PROVIDER_load(context, "default");
    if (whole == NULL)
        return 0;
    *provider = OSSL_PROVIDER_get0_provider_ctx(whole);
    *out = functions;
    return 1;
}

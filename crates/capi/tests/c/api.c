/*
 * The C API as a C program sees it: api EXPECTED, where EXPECTED is the text with which the demo model, most likely token
 * by most likely token, follows PROMPT in TOKENS tokens. Prints "ok", or the line that failed.
 */
#include <math.h>
#include <ntransformer.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROMPT "Once upon a time"
#define TOKENS 24

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            printf("line %d: %s; last error: %s\n", __LINE__, #condition, nt_last_error());                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* The call fails with this status, and the reason has this part. */
#define FAILS(call, expected, part)                                                                                    \
    do {                                                                                                               \
        CHECK((call) == (expected));                                                                                   \
        CHECK(strstr(nt_last_error(), part) != NULL);                                                                  \
    } while (0)

struct text {
    char bytes[8192];
    size_t len;
    int pieces;
    pthread_t caller;
};

static bool collect(const char *text, size_t len, void *user) {
    struct text *all = user;
    CHECK(len > 0 && strlen(text) == len && all->len + len < sizeof all->bytes);
    CHECK(pthread_equal(pthread_self(), all->caller));
    memcpy(all->bytes + all->len, text, len + 1);
    all->len += len;
    all->pieces++;
    return true;
}

static bool stop_at_once(const char *text, size_t len, void *user) {
    collect(text, len, user);
    return false;
}

static void *cancel(void *engine) {
    nt_cancel(engine);
    return NULL;
}

/* Another thread cancels, and has done so when this piece is dealt with. */
static bool cancelled_elsewhere(const char *text, size_t len, void *user) {
    pthread_t thread;
    (void)text, (void)len;
    CHECK(pthread_create(&thread, NULL, cancel, user) == 0 && pthread_join(thread, NULL) == 0);
    return true;
}

/* What would wait for itself is refused. */
static bool uses_its_engine(const char *text, size_t len, void *user) {
    size_t count;
    (void)len;
    FAILS(nt_tokenize(user, text, NT_ZERO_TERMINATED, 0, NULL, 0, &count), NT_STATUS_ARGUMENT, "callback");
    FAILS(nt_generate(user, text, len, NULL, NULL, NULL, NULL), NT_STATUS_ARGUMENT, "callback");
    nt_engine_free(user);
    CHECK(strstr(nt_last_error(), "callback cannot free") != NULL);
    CHECK(nt_engine_context(user) > 0);
    return true;
}

static nt_generation *greedy(size_t tokens) {
    nt_generation *generation = nt_generation_new();
    CHECK(nt_generation_set_temperature(generation, 0) == NT_STATUS_OK);
    CHECK(nt_generation_set_max_tokens(generation, tokens) == NT_STATUS_OK);
    return generation;
}

static void options_are_checked(void) {
    nt_options *options = nt_options_new();
    nt_generation *generation = nt_generation_new();
    FAILS(nt_options_set_device(options, "gpu"), NT_STATUS_ARGUMENT, "expected auto, cpu, cuda");
    FAILS(nt_options_set_device(options, NULL), NT_STATUS_ARGUMENT, "device is null");
    FAILS(nt_options_set_device(NULL, "cpu"), NT_STATUS_ARGUMENT, "options is null");
    FAILS(nt_options_set_context(NULL, 1), NT_STATUS_ARGUMENT, "options is null");
    FAILS(nt_options_set_streaming(NULL, true), NT_STATUS_ARGUMENT, "options is null");
    FAILS(nt_options_set_vram_budget(NULL, 1), NT_STATUS_ARGUMENT, "options is null");
    FAILS(nt_options_set_ram_budget(NULL, 1), NT_STATUS_ARGUMENT, "options is null");
    FAILS(nt_options_set_n_buffers(NULL, 1), NT_STATUS_ARGUMENT, "options is null");
    FAILS(nt_options_set_link_limit(NULL, 1), NT_STATUS_ARGUMENT, "options is null");
    FAILS(nt_options_set_link_limit(options, -1), NT_STATUS_ARGUMENT, "a link limit is -1");
    FAILS(nt_options_set_link_limit(options, NAN), NT_STATUS_ARGUMENT, "a link limit is NaN");
    FAILS(nt_options_set_disk_reads(NULL, "auto"), NT_STATUS_ARGUMENT, "options is null");
    FAILS(nt_options_set_disk_reads(options, "mmap"), NT_STATUS_ARGUMENT, "expected auto, io_uring, pread or page-cache");
    FAILS(nt_options_set_disk_reads(options, NULL), NT_STATUS_ARGUMENT, "disk reads is null");
    FAILS(nt_options_set_nvme(NULL, "auto"), NT_STATUS_ARGUMENT, "options is null");
    FAILS(nt_options_set_nvme(options, "nvme0n1"), NT_STATUS_ARGUMENT, "expected auto, or a PCI address such as 0000:3b:00.0");
    FAILS(nt_options_set_nvme(options, NULL), NT_STATUS_ARGUMENT, "drive is null");
    FAILS(nt_options_set_nvme_lba(NULL, 0), NT_STATUS_ARGUMENT, "options is null");
    FAILS(nt_options_set_nvme_namespace(NULL, 1), NT_STATUS_ARGUMENT, "options is null");
    FAILS(nt_options_set_nvme_namespace(options, 0), NT_STATUS_ARGUMENT, "namespaces are numbered from 1");
    FAILS(nt_options_set_nvme_gpu(NULL, "3b:00.0"), NT_STATUS_ARGUMENT, "options is null");
    FAILS(nt_options_set_nvme_gpu(options, "cuda:0"), NT_STATUS_ARGUMENT, "\"cuda:0\" is no PCI address");
    FAILS(nt_options_set_nvme_submit(NULL, "gpu"), NT_STATUS_ARGUMENT, "options is null");
    FAILS(nt_options_set_nvme_submit(options, "tpu"), NT_STATUS_ARGUMENT, "who submits \"tpu\": expected cpu or gpu");
    FAILS(nt_options_set_ram_access(NULL, "auto"), NT_STATUS_ARGUMENT, "options is null");
    FAILS(nt_options_set_ram_access(options, "dma"), NT_STATUS_ARGUMENT, "expected auto, copy or zero-copy");
    FAILS(nt_generation_set_temperature(generation, -1), NT_STATUS_ARGUMENT, "temperature is -1");
    FAILS(nt_generation_set_top_p(generation, 0), NT_STATUS_ARGUMENT, "top-p is 0");
    FAILS(nt_generation_set_top_p(NULL, 1), NT_STATUS_ARGUMENT, "generation is null");
    FAILS(nt_generation_set_top_k(NULL, 1), NT_STATUS_ARGUMENT, "generation is null");
    FAILS(nt_generation_set_seed(NULL, 1), NT_STATUS_ARGUMENT, "generation is null");
    FAILS(nt_generation_set_max_tokens(NULL, 1), NT_STATUS_ARGUMENT, "generation is null");
    FAILS(nt_generation_set_min_p(generation, 2), NT_STATUS_ARGUMENT, "min-p is 2");
    FAILS(nt_generation_set_repeat_penalty(generation, 0), NT_STATUS_ARGUMENT, "repeat penalty is 0");
    FAILS(nt_generation_set_repeat_last_n(NULL, 1), NT_STATUS_ARGUMENT, "generation is null");
    FAILS(nt_generation_set_frequency_penalty(NULL, 1), NT_STATUS_ARGUMENT, "generation is null");
    FAILS(nt_generation_set_presence_penalty(NULL, 1), NT_STATUS_ARGUMENT, "generation is null");
    FAILS(nt_generation_add_logit_bias(generation, 1, INFINITY), NT_STATUS_ARGUMENT, "a logit bias is inf");
    FAILS(nt_generation_set_grammar(generation, NULL, NT_ZERO_TERMINATED), NT_STATUS_ARGUMENT, "grammar is null");
    FAILS(nt_generation_set_json_schema(NULL, "{}", 2), NT_STATUS_ARGUMENT, "generation is null");
    FAILS(nt_generation_add_stop(generation, "", 0), NT_STATUS_ARGUMENT, "stop is empty");
    FAILS(nt_generation_add_stop(generation, "a\xff", 2), NT_STATUS_ARGUMENT, "stop is not UTF-8 at byte 1");
    nt_generation_free(generation);
    nt_generation_free(NULL);

    nt_engine *engine = (nt_engine *)options;
    CHECK(nt_options_set_device(options, "cpu") == NT_STATUS_OK);
    FAILS(nt_engine_load("/nonexistent/model.gguf", options, &engine), NT_STATUS_MODEL, "/nonexistent/model.gguf");
    CHECK(engine == NULL);
    FAILS(nt_engine_load(NULL, options, NULL), NT_STATUS_ARGUMENT, "engine is null");
    CHECK(nt_options_set_context(options, 1000000) == NT_STATUS_OK);
    FAILS(nt_engine_load(NULL, options, &engine), NT_STATUS_MODEL, "context_length");
    CHECK(nt_options_set_context(options, 0) == NT_STATUS_OK);
    CHECK(nt_options_set_vram_budget(options, 1) == NT_STATUS_OK);
    FAILS(nt_engine_load(NULL, options, &engine), NT_STATUS_DEVICE, "available");
    nt_options_free(options);
    nt_options_free(NULL);
    nt_engine_free(NULL);
    nt_cancel(NULL);
    CHECK(nt_engine_device(NULL) == NULL && nt_engine_context(NULL) == 0);
}

static void text_becomes_tokens_and_text(nt_engine *engine) {
    uint32_t tokens[64];
    char text[64];
    size_t count = 0, with_bos = 0, len = 0;
    memset(tokens, 0xee, sizeof tokens);
    CHECK(nt_tokenize(engine, PROMPT, NT_ZERO_TERMINATED, 0, NULL, 0, &count) == NT_STATUS_OK && count > 1);
    FAILS(nt_tokenize(engine, PROMPT, strlen(PROMPT), 0, tokens, count - 1, &with_bos), NT_STATUS_BUFFER, "needed");
    CHECK(with_bos == count && tokens[0] == 0xeeeeeeee);
    CHECK(nt_tokenize(engine, PROMPT, strlen(PROMPT), NT_TOKENIZE_BOS, tokens, 64, &with_bos) == NT_STATUS_OK);
    CHECK(with_bos == count + 1 && tokens[with_bos] == 0xeeeeeeee);

    memset(text, 'x', sizeof text);
    CHECK(nt_detokenize(engine, tokens + 1, count, NULL, 0, &len) == NT_STATUS_OK && len == strlen(PROMPT));
    FAILS(nt_detokenize(engine, tokens + 1, count, text, len, &len), NT_STATUS_BUFFER, "needed");
    CHECK(text[0] == 'x' && len == strlen(PROMPT));
    CHECK(nt_detokenize(engine, tokens + 1, count, text, len + 1, &len) == NT_STATUS_OK && strcmp(text, PROMPT) == 0);
    CHECK(nt_detokenize(engine, NULL, 0, text, 1, &len) == NT_STATUS_OK && len == 0 && text[0] == 0);

    const char *special = "<|end_of_text|>";
    CHECK(nt_tokenize(engine, special, NT_ZERO_TERMINATED, 0, NULL, 0, &count) == NT_STATUS_OK && count > 1);
    CHECK(nt_tokenize(engine, special, NT_ZERO_TERMINATED, NT_TOKENIZE_SPECIAL, NULL, 0, &count) == NT_STATUS_OK);
    CHECK(count == 1);

    FAILS(nt_tokenize(engine, "ab\xc3", 3, 0, tokens, 64, &count), NT_STATUS_ARGUMENT, "text is not UTF-8 at byte 2");
    FAILS(nt_tokenize(engine, NULL, NT_ZERO_TERMINATED, 0, tokens, 64, &count), NT_STATUS_ARGUMENT, "text is null");
    FAILS(nt_tokenize(engine, NULL, 3, 0, tokens, 64, &count), NT_STATUS_ARGUMENT, "text is null");
    FAILS(nt_tokenize(NULL, "a", 1, 0, tokens, 64, &count), NT_STATUS_ARGUMENT, "engine is null");
    FAILS(nt_tokenize(engine, "a", 1, 4, tokens, 64, &count), NT_STATUS_ARGUMENT, "flags 0x4");
    FAILS(nt_tokenize(engine, "a", 1, 0, tokens, 64, NULL), NT_STATUS_ARGUMENT, "count is null");
    FAILS(nt_detokenize(engine, NULL, 2, text, 64, &len), NT_STATUS_ARGUMENT, "tokens is null");
    FAILS(nt_detokenize(engine, tokens, SIZE_MAX / 2, text, 64, &len), NT_STATUS_ARGUMENT, "not possible");
}

static void a_text_is_continued(nt_engine *engine, const char *expected) {
    struct text text = {.caller = pthread_self()};
    nt_result result = {.struct_size = sizeof result};
    nt_generation *generation = greedy(TOKENS);
    CHECK(nt_generate(engine, PROMPT, NT_ZERO_TERMINATED, generation, collect, &text, &result) == NT_STATUS_OK);
    CHECK(strcmp(text.bytes, expected) == 0 && text.pieces > 1);
    CHECK(result.struct_size == sizeof result && result.stop == NT_STOP_LENGTH && result.new_tokens == TOKENS);
    CHECK(result.prompt_tokens > 1 && result.reused_tokens == 0);
    CHECK(result.prompt_seconds > 0 && result.decode_seconds > 0);

    /* The same again, as tokens: all but the last are in the cache. */
    uint32_t tokens[64];
    size_t count, computed = result.prompt_tokens;
    CHECK(nt_tokenize(engine, PROMPT, strlen(PROMPT), NT_TOKENIZE_BOS, tokens, 64, &count) == NT_STATUS_OK);
    text.len = 0;
    CHECK(nt_generate_tokens(engine, tokens, count, generation, collect, &text, &result) == NT_STATUS_OK);
    CHECK(strcmp(text.bytes, expected) == 0 && computed == count);
    CHECK(result.prompt_tokens == 1 && result.reused_tokens == count - 1);

    /* Up to a stop text, without a callback, and without a result. */
    CHECK(nt_generation_add_stop(generation, expected + 9, 6) == NT_STATUS_OK);
    text.len = 0;
    CHECK(nt_generate(engine, PROMPT, strlen(PROMPT), generation, collect, &text, &result) == NT_STATUS_OK);
    CHECK(result.stop == NT_STOP_STOP_STRING && text.len == 9 && strncmp(text.bytes, expected, 9) == 0);
    CHECK(nt_generate(engine, PROMPT, strlen(PROMPT), generation, NULL, NULL, NULL) == NT_STATUS_OK);

    FAILS(nt_generate(NULL, PROMPT, 1, generation, NULL, NULL, NULL), NT_STATUS_ARGUMENT, "engine is null");
    FAILS(nt_generate(engine, "\xff", 1, generation, NULL, NULL, NULL), NT_STATUS_ARGUMENT, "prompt is not UTF-8");
    FAILS(nt_generate_tokens(engine, tokens, 0, generation, NULL, NULL, NULL), NT_STATUS_CONTEXT, "prompt is empty");
    tokens[0] = UINT32_MAX;
    FAILS(nt_generate_tokens(engine, tokens, 1, generation, NULL, NULL, NULL), NT_STATUS_ARGUMENT, "token 4294967295");
    result.struct_size = 8;
    FAILS(nt_generate(engine, PROMPT, 1, generation, NULL, NULL, &result), NT_STATUS_ARGUMENT, "struct_size is 8");
    CHECK(nt_generation_set_max_tokens(generation, nt_engine_context(engine)) == NT_STATUS_OK);
    FAILS(nt_generate(engine, PROMPT, 4, generation, NULL, NULL, NULL), NT_STATUS_CONTEXT, "do not fit");
    nt_generation_free(generation);
}

static void settings_take_effect(nt_engine *engine, const char *expected) {
    struct text text = {.caller = pthread_self()};
    nt_result result = {.struct_size = sizeof result};
    nt_generation *generation = greedy(TOKENS);
    const char *grammar = "root ::= \" One\" \" two\"";
    CHECK(nt_generation_set_grammar(generation, grammar, NT_ZERO_TERMINATED) == NT_STATUS_OK);
    CHECK(nt_generate(engine, PROMPT, NT_ZERO_TERMINATED, generation, collect, &text, &result) == NT_STATUS_OK);
    CHECK(strcmp(text.bytes, " One two") == 0 && result.stop == NT_STOP_END);
    CHECK(nt_generation_set_json_schema(generation, "{\"const\": 7}", NT_ZERO_TERMINATED) == NT_STATUS_OK);
    text.len = 0;
    CHECK(nt_generate(engine, PROMPT, NT_ZERO_TERMINATED, generation, collect, &text, &result) == NT_STATUS_OK);
    CHECK(strcmp(text.bytes, "7") == 0);
    CHECK(nt_generation_set_grammar(generation, "root ::= (", NT_ZERO_TERMINATED) == NT_STATUS_OK);
    FAILS(nt_generate(engine, PROMPT, 4, generation, NULL, NULL, NULL), NT_STATUS_ARGUMENT, "the grammar: ");
    nt_generation_free(generation);

    /* The first token of the expected text, banned, does not come; nor does a token that is not there. */
    uint32_t tokens[64];
    size_t count;
    CHECK(nt_tokenize(engine, expected, NT_ZERO_TERMINATED, 0, tokens, 64, &count) == NT_STATUS_OK);
    generation = greedy(1);
    CHECK(nt_generation_add_logit_bias(generation, tokens[0], -INFINITY) == NT_STATUS_OK);
    text.len = 0;
    CHECK(nt_generate(engine, PROMPT, NT_ZERO_TERMINATED, generation, collect, &text, &result) == NT_STATUS_OK);
    CHECK(text.len > 0 && strncmp(text.bytes, expected, text.len) != 0);
    CHECK(nt_generation_add_logit_bias(generation, UINT32_MAX, 1) == NT_STATUS_OK);
    FAILS(nt_generate(engine, PROMPT, 4, generation, NULL, NULL, NULL), NT_STATUS_ARGUMENT, "no token 4294967295");
    nt_generation_free(generation);

    /* The same seed, the same text; another seed, another text. */
    struct text texts[3] = {{.caller = pthread_self()}, {.caller = pthread_self()}, {.caller = pthread_self()}};
    for (int i = 0; i < 3; i++) {
        generation = nt_generation_new();
        CHECK(nt_generation_set_max_tokens(generation, TOKENS) == NT_STATUS_OK);
        CHECK(nt_generation_set_seed(generation, i / 2) == NT_STATUS_OK);
        CHECK(nt_generate(engine, PROMPT, NT_ZERO_TERMINATED, generation, collect, &texts[i], NULL) == NT_STATUS_OK);
        nt_generation_free(generation);
    }
    CHECK(strcmp(texts[0].bytes, texts[1].bytes) == 0 && strcmp(texts[0].bytes, texts[2].bytes) != 0);
}

static void a_text_can_be_ended(nt_engine *engine) {
    struct text text = {.caller = pthread_self()};
    nt_result result = {.struct_size = sizeof result};
    nt_generation *long_text = greedy(500), *short_text = greedy(4);
    CHECK(nt_generate(engine, PROMPT, NT_ZERO_TERMINATED, long_text, stop_at_once, &text, &result) == NT_STATUS_OK);
    CHECK(result.stop == NT_STOP_CANCELLED && text.pieces == 1 && result.new_tokens < 10);
    CHECK(nt_generate(engine, PROMPT, NT_ZERO_TERMINATED, long_text, cancelled_elsewhere, engine, &result) == NT_STATUS_OK);
    CHECK(result.stop == NT_STOP_CANCELLED && result.new_tokens < 10);
    /* What was cancelled is over: the next text is a new one. */
    nt_cancel(engine);
    CHECK(nt_generate(engine, PROMPT, NT_ZERO_TERMINATED, short_text, uses_its_engine, engine, &result) == NT_STATUS_OK);
    CHECK(result.stop == NT_STOP_LENGTH && result.new_tokens == 4);
    nt_generation_free(long_text);
    nt_generation_free(short_text);
}

struct work {
    nt_engine *engine;
    const char *expected;
};

/* An engine may be used by a thread that did not load it. */
static void *elsewhere(void *user) {
    struct work *work = user;
    struct text text = {.caller = pthread_self()};
    nt_generation *generation = greedy(TOKENS);
    CHECK(strlen(nt_last_error()) == 0);
    CHECK(nt_generate(work->engine, PROMPT, NT_ZERO_TERMINATED, generation, collect, &text, NULL) == NT_STATUS_OK);
    CHECK(strcmp(text.bytes, work->expected) == 0);
    FAILS(nt_options_set_device(NULL, "cpu"), NT_STATUS_ARGUMENT, "options is null");
    nt_generation_free(generation);
    return NULL;
}

/* Weights that are streamed give the same text; what they may not take is not taken. */
static void a_model_is_streamed(const char *expected) {
    struct text text = {.caller = pthread_self()};
    nt_generation *generation = greedy(TOKENS);
    nt_options *options = nt_options_new();
    nt_engine *engine = NULL;
    CHECK(nt_options_set_device(options, "cpu") == NT_STATUS_OK && nt_options_set_context(options, 64) == NT_STATUS_OK);
    CHECK(nt_options_set_streaming(options, true) == NT_STATUS_OK);
    CHECK(nt_options_set_vram_budget(options, 7 << 20) == NT_STATUS_OK);
    CHECK(nt_options_set_n_buffers(options, 1) == NT_STATUS_OK);
    CHECK(nt_options_set_disk_reads(options, "page-cache") == NT_STATUS_OK);
    /* What is streamed comes from RAM: the drive, which is none that there is, is not looked for. */
    CHECK(nt_options_set_nvme(options, "ffff:ff:1f.7") == NT_STATUS_OK);
    CHECK(nt_options_set_nvme_lba(options, 8) == NT_STATUS_OK);
    CHECK(nt_options_set_nvme_namespace(options, 2) == NT_STATUS_OK);
    CHECK(nt_options_set_ram_access(options, "copy") == NT_STATUS_OK);
    /* The demo model is in no file: without RAM it cannot be streamed. */
    CHECK(nt_options_set_ram_budget(options, 0) == NT_STATUS_OK);
    FAILS(nt_engine_load(NULL, options, &engine), NT_STATUS_DEVICE, "RAM, for the streamed layers");
    CHECK(nt_options_set_ram_budget(options, UINT64_MAX) == NT_STATUS_OK);
    /* Some MB for each token over a link of 100 MB/s: more than a millisecond. */
    CHECK(nt_options_set_link_limit(options, 100e6) == NT_STATUS_OK);
    CHECK(nt_engine_load(NULL, options, &engine) == NT_STATUS_OK);
    nt_result result = {.struct_size = sizeof result};
    CHECK(nt_generate(engine, PROMPT, NT_ZERO_TERMINATED, generation, collect, &text, &result) == NT_STATUS_OK);
    CHECK(strcmp(text.bytes, expected) == 0 && result.decode_seconds > 0.01 * (TOKENS - 1));
    nt_engine_free(engine);
    nt_options_free(options);
    nt_generation_free(generation);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    CHECK(strlen(nt_version()) > 0 && strlen(nt_last_error()) == 0);
    options_are_checked();

    nt_options *options = nt_options_new();
    CHECK(nt_options_set_device(options, "cpu") == NT_STATUS_OK && nt_options_set_context(options, 600) == NT_STATUS_OK);
    nt_engine *engine = NULL;
    CHECK(nt_engine_load(NULL, options, &engine) == NT_STATUS_OK && engine != NULL);
    nt_options_free(options);
    CHECK(strncmp(nt_engine_device(engine), "cpu", 3) == 0 && nt_engine_context(engine) == 600);

    a_text_is_continued(engine, argv[1]);
    a_model_is_streamed(argv[1]);
    text_becomes_tokens_and_text(engine);
    settings_take_effect(engine, argv[1]);
    a_text_can_be_ended(engine);

    /* Two threads at once take turns; each has its own last error. */
    pthread_t threads[2];
    struct work work = {engine, argv[1]};
    FAILS(nt_options_set_device(NULL, "cpu"), NT_STATUS_ARGUMENT, "options is null");
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_create(&threads[i], NULL, elsewhere, &work) == 0);
    }
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    nt_engine_free(engine);
    puts("ok");
    return 0;
}

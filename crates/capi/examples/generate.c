/*
 * Continues a text: generate [MODEL.gguf [PROMPT]]. Without a model, the built-in demo model tells a story.
 *
 *   cargo build --release -p capi
 *   cc crates/capi/examples/generate.c -Icrates/capi/include -Ltarget/release -lntransformer_c -o generate
 *   LD_LIBRARY_PATH=target/release ./generate
 */
#include <ntransformer.h>
#include <stdio.h>

/* Prints a piece of the text as soon as it is there. */
static bool print(const char *text, size_t len, void *user) {
    FILE *out = user;
    return fwrite(text, 1, len, out) == len && fflush(out) == 0;
}

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : NULL;
    const char *prompt = argc > 2 ? argv[2] : "Once upon a time";

    nt_options *options = nt_options_new();
    nt_options_set_streaming(options, true); /* layers that do not fit on the GPU are streamed through it */
    nt_engine *engine;
    nt_status status = nt_engine_load(path, options, &engine);
    nt_options_free(options);
    if (status != NT_STATUS_OK) {
        fprintf(stderr, "error: %s\n", nt_last_error());
        return 1;
    }
    fprintf(stderr, "on %s\n", nt_engine_device(engine));

    nt_generation *generation = nt_generation_new();
    nt_generation_set_max_tokens(generation, 200);
    nt_generation_set_seed(generation, 1);
    nt_result result = {.struct_size = sizeof result};
    printf("%s", prompt);
    status = nt_generate(engine, prompt, NT_ZERO_TERMINATED, generation, print, stdout, &result);
    printf("\n");
    if (status == NT_STATUS_OK) {
        fprintf(stderr, "%zu tokens in %.2f s\n", result.new_tokens, result.prompt_seconds + result.decode_seconds);
    } else {
        fprintf(stderr, "error: %s\n", nt_last_error());
    }
    nt_generation_free(generation);
    nt_engine_free(engine);
    return status == NT_STATUS_OK ? 0 : 1;
}

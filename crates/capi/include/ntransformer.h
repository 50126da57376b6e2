/*
 * ntransformer's C API: runs GGUF language models, also models bigger than the GPU's memory.
 *
 * docs/c-api.md explains it, crates/capi/examples/generate.c uses it. Made from crates/capi/src by `cargo xtask header`.
 */

#ifndef NTRANSFORMER_H
#define NTRANSFORMER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** The length of a text that ends with a zero byte. */
#define NT_ZERO_TERMINATED SIZE_MAX

/**
 * For nt_tokenize(): start with the BOS token if the model expects one, as a prompt has to.
 */
#define NT_TOKENIZE_BOS 1

/**
 * For nt_tokenize(): special tokens that are written in the text become those tokens. Not for text that a user typed.
 */
#define NT_TOKENIZE_SPECIAL 2

/**
 * What a function answers. Where it is not NT_STATUS_OK, nt_last_error() has the reason.
 */
typedef enum {
  /**
   * Done.
   */
  NT_STATUS_OK = 0,
  /**
   * An argument is not what the function takes: a null pointer, text that is not UTF-8, a number out of range.
   */
  NT_STATUS_ARGUMENT = 1,
  /**
   * The model's file cannot be read, is damaged, or has something that is not supported.
   */
  NT_STATUS_MODEL = 2,
  /**
   * The device is not there, failed, or has too little memory.
   */
  NT_STATUS_DEVICE = 3,
  /**
   * Prompt and answer do not fit into the context, or there is no prompt.
   */
  NT_STATUS_CONTEXT = 4,
  /**
   * The caller's buffer is too small; the needed size is told.
   */
  NT_STATUS_BUFFER = 5,
  /**
   * A mistake in the engine itself. The engine that it happened in can only be freed.
   */
  NT_STATUS_INTERNAL = 6,
} nt_status;

/**
 * Why a text ended.
 */
typedef enum {
  /**
   * The model ended it.
   */
  NT_STOP_END = 0,
  /**
   * As many tokens as asked for, or the context is full.
   */
  NT_STOP_LENGTH = 1,
  /**
   * One of the stop texts came up.
   */
  NT_STOP_STOP_STRING = 2,
  /**
   * The callback answered false, or nt_cancel() was called.
   */
  NT_STOP_CANCELLED = 3,
} nt_stop;

/**
 * A model that is loaded.
 */
typedef struct nt_engine nt_engine;

/**
 * How a prompt is continued.
 */
typedef struct nt_generation nt_generation;

/**
 * How a model is loaded.
 */
typedef struct nt_options nt_options;

/**
 * What nt_generate() calls with each piece of the text: whole characters in UTF-8, `len` bytes and a zero byte. It runs on
 * the thread that called nt_generate(). The text is valid until it returns. Answering false ends the text. It must not
 * throw; of the functions that take the same engine it may call nt_cancel() and those that only tell something.
 */
typedef bool (*nt_text_callback)(const char *text, size_t len, void *user);

/**
 * What a generation did. Set `struct_size` to sizeof(nt_result) before the call: a newer library, whose struct has more
 * members, then writes only those that the program knows.
 */
typedef struct {
  /**
   * sizeof(nt_result).
   */
  size_t struct_size;
  /**
   * Why the text ended.
   */
  nt_stop stop;
  /**
   * Tokens of the prompt that were computed.
   */
  size_t prompt_tokens;
  /**
   * Tokens of the prompt that were in the KV cache from the generation before.
   */
  size_t reused_tokens;
  /**
   * New tokens.
   */
  size_t new_tokens;
  /**
   * Seconds from the start to the first new token.
   */
  double prompt_seconds;
  /**
   * Seconds that the other new tokens took.
   */
  double decode_seconds;
} nt_result;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Loads the model in the GGUF file at `path` (zero-terminated, the system's own encoding), or the built-in demo model where
 * `path` is null, and gives it in `engine`. `options` may be null. Takes as long as reading the file does. To be freed with
 * nt_engine_free().
 *
 * # Safety
 * `path` is null or zero-terminated, `options` null or from nt_options_new(), `engine` null or may be written.
 */
nt_status nt_engine_load(const char *path,
                         const nt_options *options,
                         nt_engine **engine);

/**
 * Frees an engine and the memory of its model; null is ignored. No other function may be using it: from a
 * callback of the engine nothing is freed, and nt_last_error() says so.
 *
 * # Safety
 * `engine` is null or from nt_engine_load(), and not used again.
 */
void nt_engine_free(nt_engine *engine);

/**
 * The name of the device that the model is on, in UTF-8; null for a null engine. Valid as long as the engine.
 *
 * # Safety
 * `engine` is null or from nt_engine_load().
 */
const char *nt_engine_device(const nt_engine *engine);

/**
 * Tokens that prompt and answer may have together; 0 for a null engine.
 *
 * # Safety
 * `engine` is null or from nt_engine_load().
 */
size_t nt_engine_context(const nt_engine *engine);

/**
 * Continues a text, `len` bytes of UTF-8 or NT_ZERO_TERMINATED. Special tokens that are written in it stay text.
 *
 * `generation`, `callback` and `result` may be null. A text that ends for any of nt_stop's reasons is NT_STATUS_OK.
 *
 * # Safety
 * `engine` is null or from nt_engine_load(), `prompt` null or of `len` bytes, `generation` null or from
 * nt_generation_new(), `result` null or with its struct_size set.
 */
nt_status nt_generate(const nt_engine *engine,
                      const char *prompt,
                      size_t len,
                      const nt_generation *generation,
                      nt_text_callback callback,
                      void *user,
                      nt_result *result);

/**
 * As nt_generate(), of `count` tokens such as nt_tokenize() gives.
 *
 * # Safety
 * As nt_generate(); `tokens` is null or has `count` elements.
 */
nt_status nt_generate_tokens(const nt_engine *engine,
                             const uint32_t *tokens,
                             size_t count,
                             const nt_generation *generation,
                             nt_text_callback callback,
                             void *user,
                             nt_result *result);

/**
 * Ends the texts that were asked for and are not complete: the one that is being generated within about a layer's time, those
 * that wait for their turn before they begin. Their nt_generate() returns with NT_STOP_CANCELLED. Texts that are asked for later
 * are not affected. May be called from any thread, and from a callback; does not wait. Not from a signal handler.
 *
 * # Safety
 * `engine` is null or from nt_engine_load().
 */
void nt_cancel(const nt_engine *engine);

/**
 * The reason why a function last failed on this thread, in UTF-8; empty if none has. Valid until the next failure on this
 * thread.
 */
const char *nt_last_error(void);

/**
 * New settings, those of the command line where nothing is said: temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, no
 * penalties, a random seed; and up to as many tokens as the context holds. To be freed with nt_generation_free().
 */
nt_generation *nt_generation_new(void);

/**
 * Frees settings; null is ignored.
 *
 * # Safety
 * `generation` is null or from nt_generation_new(), and not used again.
 */
void nt_generation_free(nt_generation *generation);

/**
 * New tokens at most.
 *
 * # Safety
 * `generation` is null or from nt_generation_new().
 */
nt_status nt_generation_set_max_tokens(nt_generation *generation, size_t tokens);

/**
 * Randomness, 0 or more; 0 always takes the most likely token.
 *
 * # Safety
 * `generation` is null or from nt_generation_new().
 */
nt_status nt_generation_set_temperature(nt_generation *generation, float temperature);

/**
 * Chooses among the k most likely tokens only; 0 for all.
 *
 * # Safety
 * `generation` is null or from nt_generation_new().
 */
nt_status nt_generation_set_top_k(nt_generation *generation, size_t k);

/**
 * Chooses among the most likely tokens that have probability p together, above 0 and up to 1; 1 for all.
 *
 * # Safety
 * `generation` is null or from nt_generation_new().
 */
nt_status nt_generation_set_top_p(nt_generation *generation,
                                  float p);

/**
 * Chooses among tokens that are at least p times as probable as the most likely one, 0 to 1; 0 for all.
 *
 * # Safety
 * `generation` is null or from nt_generation_new().
 */
nt_status nt_generation_set_min_p(nt_generation *generation,
                                  float p);

/**
 * Divides the logits of tokens that occurred among the last ones, once; 1 is off.
 *
 * # Safety
 * `generation` is null or from nt_generation_new().
 */
nt_status nt_generation_set_repeat_penalty(nt_generation *generation, float penalty);

/**
 * Lowers a token's logit for each time that it occurred among the last ones; 0 is off.
 *
 * # Safety
 * `generation` is null or from nt_generation_new().
 */
nt_status nt_generation_set_frequency_penalty(nt_generation *generation, float penalty);

/**
 * Lowers a token's logit if it occurred among the last ones; 0 is off.
 *
 * # Safety
 * `generation` is null or from nt_generation_new().
 */
nt_status nt_generation_set_presence_penalty(nt_generation *generation, float penalty);

/**
 * How many of the last tokens the penalties look at, the prompt's included: 64 if not set; 0 for none, SIZE_MAX for all.
 *
 * # Safety
 * `generation` is null or from nt_generation_new().
 */
nt_status nt_generation_set_repeat_last_n(nt_generation *generation,
                                          size_t tokens);

/**
 * The same seed gives the same text on the same device.
 *
 * # Safety
 * `generation` is null or from nt_generation_new().
 */
nt_status nt_generation_set_seed(nt_generation *generation, uint64_t seed);

/**
 * Adds to a token's logit; minus infinity bans the token.
 *
 * # Safety
 * `generation` is null or from nt_generation_new().
 */
nt_status nt_generation_add_logit_bias(nt_generation *generation, uint32_t token, float bias);

/**
 * Adds a text that ends the answer before it: `len` bytes, or NT_ZERO_TERMINATED.
 *
 * # Safety
 * `generation` is null or from nt_generation_new(); `stop` is null or has `len` bytes.
 */
nt_status nt_generation_add_stop(nt_generation *generation, const char *stop, size_t len);

/**
 * The answer follows this grammar, in llama.cpp's GBNF: `len` bytes, or NT_ZERO_TERMINATED. Replaces a grammar or schema
 * that was set. It is read when a text is generated, and refused there if it is wrong.
 *
 * # Safety
 * `generation` is null or from nt_generation_new(); `grammar` is null or has `len` bytes.
 */
nt_status nt_generation_set_grammar(nt_generation *generation,
                                    const char *grammar,
                                    size_t len);

/**
 * The answer is JSON that follows this JSON schema, `len` bytes or NT_ZERO_TERMINATED; "{}" is any JSON. As
 * nt_generation_set_grammar() otherwise.
 *
 * # Safety
 * `generation` is null or from nt_generation_new(); `schema` is null or has `len` bytes.
 */
nt_status nt_generation_set_json_schema(nt_generation *generation,
                                        const char *schema,
                                        size_t len);

/**
 * New options, with the first GPU if there is one, else the CPU; a context of what the model was trained for, 4096 at most;
 * and no streaming. To be freed with nt_options_free().
 */
nt_options *nt_options_new(void);

/**
 * Frees options; null is ignored. Engines that were loaded with them are not affected.
 *
 * # Safety
 * `options` is null or from nt_options_new(), and not used again.
 */
void nt_options_free(nt_options *options);

/**
 * Where to compute: "auto", "cpu", "cuda", "cuda:N", or "emulator" (the GPU kernels without a GPU: slow, for tests).
 *
 * # Safety
 * `options` is null or from nt_options_new(); `device` is null or zero-terminated.
 */
nt_status nt_options_set_device(nt_options *options,
                                const char *device);

/**
 * Tokens of prompt and answer together; 0 for what nt_options_new() says.
 *
 * # Safety
 * `options` is null or from nt_options_new().
 */
nt_status nt_options_set_context(nt_options *options, size_t tokens);

/**
 * Whether layers that do not fit into device memory are kept in RAM, and streamed through it.
 *
 * # Safety
 * `options` is null or from nt_options_new().
 */
nt_status nt_options_set_streaming(nt_options *options, bool streaming);

/**
 * Device memory to use at most, in bytes; 0 for what is free.
 *
 * # Safety
 * `options` is null or from nt_options_new().
 */
nt_status nt_options_set_vram_budget(nt_options *options, uint64_t bytes);

/**
 * RAM to use at most for layers that are streamed, in bytes; the others are streamed from the model's file. UINT64_MAX for what is
 * available, but for a reserve, which new options say.
 *
 * # Safety
 * `options` is null or from nt_options_new().
 */
nt_status nt_options_set_ram_budget(nt_options *options,
                                    uint64_t bytes);

/**
 * Layers that streamed ones have room for in device memory; 0 for as many as keep the link busy.
 *
 * # Safety
 * `options` is null or from nt_options_new().
 */
nt_status nt_options_set_n_buffers(nt_options *options, size_t layers);

/**
 * Slows the link to the device down to this many bytes a second, to see what another machine would do; 0 leaves it as it is.
 *
 * # Safety
 * `options` is null or from nt_options_new().
 */
nt_status nt_options_set_link_limit(nt_options *options,
                                    double bytes_per_second);

/**
 * How what stays on disk is read: "auto", "io_uring" or "pread" past the page cache, or "page-cache".
 *
 * # Safety
 * `options` is null or from nt_options_new(); `reads` is null or zero-terminated.
 */
nt_status nt_options_set_disk_reads(nt_options *options,
                                    const char *reads);

/**
 * How the device gets at what is in RAM: "copy", "zero-copy", or "auto", which copies unless there is no room for it.
 *
 * # Safety
 * `options` is null or from nt_options_new(); `access` is null or zero-terminated.
 */
nt_status nt_options_set_ram_access(nt_options *options,
                                    const char *access);

/**
 * The drive that what stays on disk is read from without the kernel, where the model was laid: "auto", the only one that is taken from
 * the kernel, or its PCI address, such as "0000:3b:00.0". Where this is not called, GPUNVME_PCI_BDF says it; without either, the
 * model's file is read.
 *
 * # Safety
 * `options` is null or from nt_options_new(); `drive` is null or zero-terminated.
 */
nt_status nt_options_set_nvme(nt_options *options,
                              const char *drive);

/**
 * The logical block of that drive that the model begins at. Where this is not called, GPUNVME_GGUF_LBA says it; without either, it is 0.
 *
 * # Safety
 * `options` is null or from nt_options_new().
 */
nt_status nt_options_set_nvme_lba(nt_options *options,
                                  uint64_t lba);

/**
 * The namespace of that drive that the model is on, from 1. Where this is not called, GPUNVME_NAMESPACE says it; without either, it is the one
 * that holds the model.
 *
 * # Safety
 * `options` is null or from nt_options_new().
 */
nt_status nt_options_set_nvme_namespace(nt_options *options,
                                        uint32_t id);

/**
 * The GPU that the drive may write to, by its PCI address; it has to be the one that computes. Where this is not called,
 * GPUNVME_GPU_BDF says it; without either, CUDA does.
 *
 * # Safety
 * `options` is null or from nt_options_new(); `gpu` is null or zero-terminated.
 */
nt_status nt_options_set_nvme_gpu(nt_options *options,
                                  const char *gpu);

/**
 * Who submits the commands to that drive: "cpu", as where this is not called, or "gpu", a kernel of the GPU that computes.
 *
 * # Safety
 * `options` is null or from nt_options_new(); `who` is null or zero-terminated.
 */
nt_status nt_options_set_nvme_submit(nt_options *options,
                                     const char *who);

/**
 * The library's version, such as "0.1.0".
 */
const char *nt_version(void);

/**
 * The tokens of a text, `len` bytes of UTF-8 or NT_ZERO_TERMINATED. `flags` are NT_TOKENIZE_..., or 0.
 *
 * Their number is given in `count`, also where `capacity` tokens are too few: then nothing is written to `tokens`, and the
 * answer is NT_STATUS_BUFFER, or NT_STATUS_OK where `tokens` is null, to ask for the number.
 *
 * # Safety
 * `engine` is null or from nt_engine_load(), `text` null or of `len` bytes, `tokens` null or of `capacity` elements,
 * `count` null or may be written.
 */
nt_status nt_tokenize(const nt_engine *engine,
                      const char *text,
                      size_t len,
                      uint32_t flags,
                      uint32_t *tokens,
                      size_t capacity,
                      size_t *count);

/**
 * The text of tokens, in UTF-8 and with a zero byte at its end. What is no character becomes U+FFFD.
 *
 * Its length without the zero byte is given in `len`, also where `capacity` bytes, which includes the zero byte, are too
 * few: then nothing is written to `text`, and the answer is NT_STATUS_BUFFER, or NT_STATUS_OK where `text` is null.
 *
 * # Safety
 * `engine` is null or from nt_engine_load(), `tokens` null or of `count` elements, `text` null or of `capacity` bytes,
 * `len` null or may be written.
 */
nt_status nt_detokenize(const nt_engine *engine,
                        const uint32_t *tokens,
                        size_t count,
                        char *text,
                        size_t capacity,
                        size_t *len);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* NTRANSFORMER_H */

"""llama.cpp's perplexity protocol: windows of n_ctx tokens, each begun with BOS, the second half scored."""

import math


def perplexity(nll, ids: list, bos: int, n_ctx: int = 512) -> tuple:
    """`ids` is the whole text with BOS in front; `nll(window)` gives -ln p(window[j+1] | window[..=j]) for every j of
    n_ctx - 1. A last window that is not full is dropped. Returns (perplexity, tokens scored)."""
    total, count, first = 0.0, 0, n_ctx // 2
    for start in range(0, len(ids) - n_ctx + 1, n_ctx):
        window = [bos] + ids[start + 1:start + n_ctx]
        scores = nll(window)[first:n_ctx - 1]
        total += float(sum(scores))
        count += len(scores)
    return math.exp(total / count), count

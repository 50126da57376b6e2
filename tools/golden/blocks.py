"""Golden vectors for the block formats, from PyPI `gguf` (0.19.0). Needs: pip install gguf numpy

Usage: python tools/golden/blocks.py [crates/quant/tests/data]

For each type, TYPE.blocks holds encoded blocks and TYPE.values what `gguf.quants.dequantize` makes of them (f32). The
blocks are random bytes, which is every bit pattern a decoder can meet, with scales forced finite; the first two blocks
are all zeros and all ones (but for the scale). For the types that `gguf.quants.quantize` encodes, TYPE.source holds the
f32 values that TYPE.encoded was made from.
"""

import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

# Where the half-precision scales lie in a block.
SCALES = {
    T.Q4_0: [0],
    T.Q4_1: [0, 2],
    T.Q5_0: [0],
    T.Q5_1: [0, 2],
    T.Q8_0: [0],
    T.Q2_K: [80, 82],
    T.Q3_K: [108],
    T.Q4_K: [0, 2],
    T.Q5_K: [0, 2],
    T.Q6_K: [208],
    T.IQ4_NL: [0],
    T.IQ4_XS: [0],
}
FLOATS = [T.F32, T.F16, T.BF16]
ENCODED = [*FLOATS, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0]


def blocks_of(ty, rng):
    elems, size = GGML_QUANT_SIZES[ty]
    count = 512 if ty in FLOATS else 2048 // elems
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    blocks[0], blocks[1] = 0, 255
    if ty in FLOATS:
        values = dequantize(blocks.reshape(1, -1), ty).reshape(-1)
        blocks[~np.isfinite(values)] = 0
    for at in SCALES.get(ty, []):
        d = rng.standard_normal(count).astype(np.float16)
        d[2], d[3] = 6e-8, -65504.0  # the smallest subnormal, the largest number
        blocks[:, at : at + 2] = d.view(np.uint8).reshape(count, 2)
    return blocks


def source_of(rng):
    """Gaussian rows, a zero block, ties of rounding, huge and tiny values, one sign only, a constant."""
    x = rng.standard_normal(512).astype(np.float32)
    x[32:64] = 0
    x[64:96] = np.arange(32, dtype=np.float32) - 15.5
    x[64] = 127
    x[96:128] *= 1e-6
    x[128:160] *= 1e4
    x[160:192] *= 1e-3
    x[192] = -40
    x[224:256] = np.arange(32, dtype=np.float32) / 2 - 8  # a scale of 1 in Q4_0
    x[256:288] = np.arange(32, dtype=np.float32) - 16  # a scale of 1 in Q5_0
    x[288:320] = np.arange(32, dtype=np.float32) % 31 / 2  # a scale of 1 in Q4_1, of 1/2 in Q5_1
    x[320:352] = np.abs(x[320:352]) + 1
    x[352:384] = -np.abs(x[352:384]) - 1
    x[384:416] = 0.75
    x[416:418] = 4, -4  # the largest magnitude twice: the first counts
    x[448:450] = -4, 4
    return x


def write(out):
    out.mkdir(parents=True, exist_ok=True)
    for ty in [*FLOATS, *SCALES]:
        rng = np.random.default_rng(int(ty) + 1)
        blocks = blocks_of(ty, rng)
        blocks.tofile(out / f"{ty.name}.blocks")
        dequantize(blocks.reshape(1, -1), ty).astype("<f4").tofile(out / f"{ty.name}.values")
        if ty in ENCODED:
            source = source_of(rng)
            source.astype("<f4").tofile(out / f"{ty.name}.source")
            quantize(source.reshape(1, -1), ty).tofile(out / f"{ty.name}.encoded")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "crates/quant/tests/data"))

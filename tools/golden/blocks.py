"""Golden vectors of the block formats: random and extreme blocks, and the values that PyPI `gguf` decodes them to."""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# Half-precision scales: zero, minus zero, the smallest and largest subnormals of both signs, one, minus one, the smallest normal, large values.
SCALES = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x3C00, 0xBC00, 0x0400, 0x7BFF, 0xFBFF]
# Byte offsets of a block's half-precision scales.
SCALE_OFFSETS = {"Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def ordinary_scales(rng, count):
    """Finite scales of the size that real models have, of both signs."""
    return (rng.standard_normal(count) * 0.05).astype(np.float16).view(np.uint16)


def quantised(name, rng, count):
    """`count` random blocks, and each extreme scale with random, all-zero, all-one and sign-bit payloads in turn."""
    size = GGML_QUANT_SIZES[GGMLQuantizationType[name]][1]
    blocks = rng.integers(0, 256, (count + len(SCALES), size), dtype=np.uint8)
    for i, payload in enumerate([None, 0x00, 0xFF, 0x80] * len(SCALES)):
        if i < len(SCALES) and payload is not None:
            blocks[count + i] = payload
    for k, offset in enumerate(SCALE_OFFSETS[name]):
        scales = np.concatenate([ordinary_scales(rng, count), np.roll(SCALES, k).astype(np.uint16)])
        blocks[:, offset:offset + 2] = scales[:, None].view(np.uint8).reshape(-1, 2)
    return blocks


def floats(name, rng, count):
    """Random values of every exponent (no NaN), zeros, subnormals and infinities."""
    if name == "F32":
        edge = np.array([0x00000000, 0x80000000, 0x00000001, 0x807FFFFF, 0x7F7FFFFF, 0x7F800000, 0xFF800000], np.uint32)
        bits = np.concatenate([rng.integers(0, 2**32, count, dtype=np.uint32), edge])
        bits = bits[~np.isnan(bits.view(np.float32))]
    else:
        bits = np.concatenate([rng.integers(0, 2**16, count, dtype=np.uint16), np.array(SCALES + [0x7C00, 0xFC00, 0x7F80, 0xFF80], np.uint16)])
        nan = np.isnan(bits.view(np.float16)) if name == "F16" else np.isnan((bits.astype(np.uint32) << 16).view(np.float32))
        bits = bits[~nan]
    return bits.view(np.uint8).reshape(len(bits), -1)


def write(folder):
    """Writes TYPE.blocks.bin (the blocks, one after the other) and TYPE.f32.bin (their values, little-endian)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ["F32", "F16", "BF16", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]:
        rng = np.random.default_rng(list(name.encode()))
        blocks = quantised(name, rng, 160 if name == "Q8_0" else 28) if name in SCALE_OFFSETS else floats(name, rng, 1500)
        # In one row, because `gguf` decodes F32 and F16 by reinterpreting a row.
        kind = GGMLQuantizationType[name]
        row = blocks.reshape(1, -1)
        row = row.view({"F32": np.float32, "F16": np.float16}.get(name, np.uint8))
        values = np.asarray(dequantize(row, kind), dtype="<f4").reshape(-1)
        elements, size = GGML_QUANT_SIZES[kind]
        assert blocks.nbytes // size * elements == len(values) and not np.isnan(values).any(), name
        (folder / f"{name.lower()}.blocks.bin").write_bytes(blocks.tobytes())
        (folder / f"{name.lower()}.f32.bin").write_bytes(values.tobytes())

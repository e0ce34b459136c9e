#!/usr/bin/env python3
"""Writes goldens/safetensors/: files as the safetensors and huggingface_hub packages make them.

usage: make_safetensors.py          (torch 2.8.0, safetensors 0.8.0, huggingface_hub 0.36)

Element i of a tensor is i - 2 where its type has negative numbers, i otherwise; what safetensors_test.cpp expects.
"""
import os

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "safetensors")

SIGNED = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "C64": torch.complex64,
}
UNSIGNED = {"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8}


def counting(dtype, shape, start):
    n = 1
    for dim in shape:
        n *= dim
    return (torch.arange(n, dtype=torch.float32) + start).to(dtype).reshape(shape)


def all_types():
    tensors = {name: counting(dtype, (2, 3), -2) for name, dtype in SIGNED.items()}
    tensors |= {name: counting(dtype, (2, 3), 0) for name, dtype in UNSIGNED.items()}
    tensors["BOOL"] = torch.tensor([[True, False, True], [False, False, True]])
    tensors["scalar"] = torch.tensor(7.5)
    tensors["empty"] = torch.zeros((3, 0, 2))
    tensors["deep"] = counting(torch.float32, (1, 2, 1, 3, 1, 2), 0)
    tensors["größe"] = counting(torch.float32, (5,), 0)
    save_file(tensors, os.path.join(HERE, "all_types.safetensors"), metadata={"format": "pt", "note": 'a "quoted"\ntext'})


def sharded():
    state = {f"model.language_model.layers.{i}.weight": counting(torch.bfloat16, (8, 4), i) for i in range(6)}
    state["lm_head.weight"] = counting(torch.float32, (16, 4), 0)
    state["language_model.model.norm.weight"] = counting(torch.bfloat16, (4,), 1)
    save_torch_state_dict(state, os.path.join(HERE, "sharded"), max_shard_size=300)


os.makedirs(os.path.join(HERE, "sharded"), exist_ok=True)
all_types()
sharded()

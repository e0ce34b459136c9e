#!/usr/bin/env python3
"""Goldens of quantised checkpoints: a tiny model in each published format, and the logits that
transformers 4.56.2 computes in float32 from the dequantised weights.

    make_quantised_goldens.py [OUT]     default OUT: quantised/ beside this file

Needs torch 2.8.0, transformers 4.56.2, compressed-tensors 0.11.0, bitsandbytes 0.47.0 (its CPU
functions), safetensors and numpy. Everything is made from fixed seeds.

What is written
---------------
OUT/<format>/config.json, model.safetensors
    the checkpoint, quantised by the format's own package (GPTQ: by the few lines of Gptq, below)
OUT/<format>/golden.safetensors
    input_ids (1,T), pixel_values (1,1,tiles,3,S,S), aspect_ratio_ids (1,1)
    logits (1,T,V) with the picture, logits_text (1,T,V) of the same ids without it
    dequantised.X (out,in) F32, the weights of two layers X

The dequantised weights are what the packages' own functions give with scales widened to float32, so
that they hold (number - zero) * scale without a rounding to 16 bits.
"""
import json
import os
import shutil
import sys

import bitsandbytes.functional as bnb
import numpy as np
import torch
from compressed_tensors.compressors.quantized_compressors.naive_quantized import (
    FloatQuantizationCompressor, IntQuantizationCompressor)
from compressed_tensors.compressors.quantized_compressors.pack_quantized import (
    PackedQuantizationCompressor, unpack_from_int32)
from compressed_tensors.quantization import (QuantizationArgs, QuantizationConfig,
                                             QuantizationScheme, QuantizationStatus)
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file
from transformers import MllamaConfig, MllamaForConditionalGeneration

HERE = os.path.dirname(os.path.abspath(__file__))
TEXT = "language_model.model.layers."
PREFIXES = [("language_model.model.", "model.language_model."),
            ("language_model.lm_head", "lm_head"), ("vision_model.", "model.vision_model."),
            ("multi_modal_projector", "model.multi_modal_projector")]
# Small, for the files are committed; 2 and 3 groups of 16 columns.
CONFIG = {
    "architectures": ["MllamaForConditionalGeneration"], "model_type": "mllama",
    "text_config": {
        "model_type": "mllama_text_model", "vocab_size": 41, "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 48, "cross_attention_layers": [1], "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "rope_theta": 500000.0, "rope_scaling": {"rope_type": "default"},
        "max_position_embeddings": 512, "tie_word_embeddings": False, "bos_token_id": 1,
        "eos_token_id": [2], "pad_token_id": 3
    }, "vision_config": {
        "model_type": "mllama_vision_model", "hidden_size": 8, "num_hidden_layers": 1,
        "num_global_layers": 1, "attention_heads": 2, "num_channels": 3, "intermediate_size": 12,
        "image_size": 8, "patch_size": 4, "max_num_tiles": 2, "norm_eps": 1e-5,
        "hidden_act": "gelu", "intermediate_layers_indices": [0], "vision_output_dim": 16,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]
    }, "image_token_index": 41, "torch_dtype": "bfloat16"
}
# Wide enough for the groups that are in use: 32, 64 and 128 columns.
WIDE = {
    **CONFIG, "text_config": {
        **CONFIG["text_config"], "hidden_size": 128, "intermediate_size": 256
    }
}


def memory_name(name):
    """What transformers calls a tensor or module of the files in memory."""
    for published, memory in PREFIXES:
        if name.startswith(published):
            return memory + name[len(published):]
    return name


def published_name(name):
    for published, memory in PREFIXES:
        if name.startswith(memory):
            return published + name[len(memory):]
    return name


def random_weights(seed, config=CONFIG):
    """{name in the files: tensor, bfloat16}"""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        state = MllamaForConditionalGeneration(MllamaConfig(**config)).state_dict()

    def one(name, shape):
        noise = torch.randn(shape, generator=generator)
        leaf = name.split(".")[-1]
        if "gate" in leaf and "proj" not in name:
            return 0.5 + 0.1 * noise
        if "norm" in name:
            return (leaf == "weight") + 0.2 * noise
        if leaf == "bias":
            return 0.2 * noise
        if "embedding" in name and "patch" not in name or "embed_tokens" in name:
            return noise
        return noise * (4.0 if "lm_head" in name else 1.0) / torch.Size(shape[1:]).numel()**0.5

    return {
        published_name(name): one(name, value.shape).to(torch.bfloat16)
        for name, value in sorted(state.items())
    }


def text_linears(weights):
    """The layers that recipes quantise: all of the text tower but lm_head."""
    return [name.removesuffix(".weight") for name in weights
            if name.startswith(TEXT) and "_proj." in name]


# ---------------------------------------------------------------------- compressed-tensors


def group_order(columns, group_size, seed):
    """A g_idx: as many columns in each group, in no order."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randperm(columns, generator=generator) // group_size).to(torch.int32)


def scale_and_zero(weight, args, g_idx):
    if args.strategy == "tensor":
        scale, zero = calculate_qparams(weight.min().reshape(1), weight.max().reshape(1), args)
        return scale.to(torch.bfloat16), zero
    size = args.group_size if args.strategy == "group" else weight.shape[1]
    ordered = weight if g_idx is None else weight[:, torch.argsort(g_idx, stable=True)]
    groups = ordered.reshape(len(weight), -1, size)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    return scale.to(torch.bfloat16), zero


class CompressedTensors:
    """`schemes`: {target: (args of the weights, compressor)}; the last one that fits a layer."""
    compressors = {
        "pack-quantized": PackedQuantizationCompressor,
        "int-quantized": IntQuantizationCompressor,
        "float-quantized": FloatQuantizationCompressor
    }

    def __init__(self, format_name, schemes, activations=None, ignore=(), order=()):
        self.format, self.schemes, self.activations = format_name, schemes, activations
        self.ignore, self.order = list(ignore), order
        self.compressor = self.compressors[format_name]()

    def args(self, layer):
        return [args for part, args in self.schemes.items() if part in layer + "Linear"][-1]

    def quantise(self, layer, weight):
        args = self.args(layer)
        ordered = any(part in layer for part in self.order)
        g_idx = group_order(weight.shape[1], args.group_size, 7) if ordered else None
        scale, zero = scale_and_zero(weight, args, g_idx)
        tensors = self.compressor.compress_weight(weight=weight, scale=scale, zero_point=zero,
                                                  g_idx=g_idx, quantization_args=args)
        tensors["weight_scale"] = scale
        if g_idx is not None:
            tensors["weight_g_idx"] = g_idx
        stored = {f".{name}": value for name, value in tensors.items()}
        return stored, self.dequantised(tensors, args)

    @staticmethod
    def dequantised(tensors, args):
        widened = dict(tensors, weight_scale=tensors["weight_scale"].float())
        if "weight_zero_point" not in tensors:
            packed = "weight_packed" in tensors
            compressor = PackedQuantizationCompressor if packed else IntQuantizationCompressor
            return compressor().decompress_weight(widened, args)
        shape = torch.Size(tensors["weight_shape"])  # the package does not decompress zeros itself
        scale = widened["weight_scale"]
        zeros = unpack_from_int32(tensors["weight_zero_point"], 4, (shape[0], scale.shape[1]),
                                  packed_dim=0)
        return dequantize(unpack_from_int32(tensors["weight_packed"], 4, shape), scale, zeros,
                          g_idx=tensors.get("weight_g_idx"))

    def config(self):
        groups = {}
        for i, (part, args) in enumerate(self.schemes.items()):
            target = part if part == "Linear" else f"re:.*{part}"
            groups[f"group_{i}"] = QuantizationScheme(targets=[target], weights=args,
                                                      input_activations=self.activations)
        config = QuantizationConfig(config_groups=groups, format=self.format, ignore=self.ignore,
                                    quantization_status=QuantizationStatus.COMPRESSED)
        return json.loads(config.model_dump_json())


# ---------------------------------------------------------------------------- bitsandbytes


class BitsAndBytes:

    def __init__(self, double):
        self.double = double

    def quantise(self, layer, weight):
        packed, state = bnb.quantize_4bit(weight, compress_statistics=self.double, quant_type="nf4")
        tensors = {".weight": packed}
        for name, value in state.as_dict(packed=True).items():
            tensors[f".weight.{name}"] = value.contiguous()
        state.dtype = torch.float32
        return tensors, bnb.dequantize_4bit(packed, state)

    def config(self):
        return {
            "quant_method": "bitsandbytes", "_load_in_4bit": True, "_load_in_8bit": False,
            "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": self.double, "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False, "llm_int8_threshold": 6.0,
            "llm_int8_skip_modules": ["lm_head", "multi_modal_projector", "vision_model"]
        }


# ------------------------------------------------------------------------------------ GPTQ


class Gptq:
    """The layout of GPTQModel's qlinear modules (https://github.com/ModelCloud/GPTQModel):

    number = clamp(round(w / scale) + zero, 0, 15), w = (number - zero) * scale;
    qweight[i // 8, row] |= number[row, i] << 4 (i % 8);
    qzeros[group, row // 8] |= zero[row, group] << 4 (row % 8), and for checkpoint_format gptq
    (version 1) the words less 0x11111111, as convert_gptq_v2_to_v1_format_module has it.
    """

    def __init__(self, version, group_size, activation_order):
        self.version, self.group_size, self.order = version, group_size, activation_order

    def quantise(self, layer, weight):
        w = weight.float().numpy()
        out_features, in_features = w.shape
        size = in_features if self.group_size == -1 else self.group_size
        g_idx = np.arange(in_features) // size
        if self.order:
            g_idx = group_order(in_features, size, 9).numpy()
        groups = [w[:, g_idx == g] for g in range(in_features // size)]
        low = np.stack([np.minimum(group.min(1), 0) for group in groups])  # (groups, out)
        high = np.stack([np.maximum(group.max(1), 0) for group in groups])
        low[0, :3] = 0  # zeros of 0: version 1 borrows from the neighbour
        scale = ((high - low) / 15).astype(np.float16)
        zero = np.clip(np.round(-low / scale.astype(np.float32)), 0, 15).astype(np.int64)
        each_scale, each_zero = scale[g_idx].T.astype(np.float32), zero[g_idx].T
        number = np.clip(np.round(w / each_scale) + each_zero, 0, 15).astype(np.int64)
        words = (zero.reshape(len(zero), -1, 8) << (4 * np.arange(8))).sum(-1)
        if self.version == 1:
            words = (words - 0x11111111) % 2**32
        columns = number.T.reshape(-1, 8, out_features)
        tensors = {
            ".qweight": (columns << (4 * np.arange(8)).reshape(8, 1)).sum(1), ".qzeros": words
        }
        for name, value in tensors.items():
            tensors[name] = torch.from_numpy(value.astype(np.uint32).view(np.int32))
        tensors[".scales"] = torch.from_numpy(scale)
        tensors[".g_idx"] = torch.from_numpy(g_idx.astype(np.int32))
        return tensors, torch.from_numpy(((number - each_zero) * each_scale).astype(np.float32))

    def config(self):
        return {
            "quant_method": "gptq", "bits": 4, "group_size": self.group_size,
            "desc_act": self.order, "sym": False, "lm_head": False, "true_sequential": True,
            "checkpoint_format": "gptq" if self.version == 1 else "gptq_v2", "pack_dtype": "int32",
            "meta": {"quantizer": ["gptqmodel:2.1.0"]}
        }


# ------------------------------------------------------------------------------------ goldens


def int4(**args):
    return QuantizationArgs(num_bits=4, type="int", **args)


def names_to_ignore(weights, in_memory):
    """What the package writes when a model is saved: the plain names of all linear layers left."""
    names = [name.removesuffix(".weight") for name, value in weights.items()
             if name.endswith("weight") and value.dim() == 2 and "embed" not in name
             and not name.startswith(TEXT)]
    return [memory_name(name) for name in names] if in_memory else names


def formats(weights):
    """{name: (format, layers to quantise, names as in memory)}"""
    recipe = ["re:.*lm_head", "re:multi_modal_projector.*", "re:vision_model.*"]
    everything = text_linears(weights)
    no_cross = [layer for layer in everything if "cross_attn" not in layer]
    per_token = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="token",
                                 dynamic=True)
    fp8_per_token = per_token.model_copy(update={"type": "float"})
    return {
        "int4_symmetric": (CompressedTensors(
            "pack-quantized", {"Linear": int4(symmetric=True, strategy="group", group_size=16)},
            ignore=recipe), everything, False),
        # Zero points; a channel's scale for some layers, groups in activation order for others.
        "int4_asymmetric": (CompressedTensors(
            "pack-quantized", {
                "Linear": int4(symmetric=False, strategy="group", group_size=16),
                "self_attn": int4(symmetric=False, strategy="channel"),
                "down_proj": int4(symmetric=False, strategy="group", group_size=16,
                                  actorder="group"),
                "up_proj": int4(symmetric=True, strategy="channel"),
            }, ignore=recipe, order=["down_proj"]), everything, False),
        "int8": (CompressedTensors(
            "int-quantized",
            {"Linear": QuantizationArgs(num_bits=8, type="int", symmetric=True,
                                        strategy="channel")},
            activations=per_token, ignore=names_to_ignore(weights, True)), everything, True),
        "fp8": (CompressedTensors(
            "float-quantized", {
                "Linear": QuantizationArgs(num_bits=8, type="float", symmetric=True,
                                           strategy="channel"),
                "down_proj": QuantizationArgs(num_bits=8, type="float", symmetric=True,
                                              strategy="tensor")
            }, activations=fp8_per_token,
            ignore=names_to_ignore(weights, False)), everything, False),
        "nf4": (BitsAndBytes(double=False), no_cross, True),
        "nf4_double": (BitsAndBytes(double=True), everything, False),
        "gptq": (Gptq(1, 16, True), no_cross, False),
        "gptq_v2": (Gptq(2, -1, False), no_cross, False),
        # Of WIDE: 4 groups of 32 columns, 2 of 64, and of 256 columns 2 of 128, these in no order.
        "int4_wide": (CompressedTensors(
            "pack-quantized", {
                "Linear": int4(symmetric=True, strategy="group", group_size=32),
                "self_attn": int4(symmetric=False, strategy="group", group_size=32),
                "up_proj": int4(symmetric=True, strategy="group", group_size=64),
                "gate_proj": int4(symmetric=False, strategy="group", group_size=64),
                "down_proj": int4(symmetric=False, strategy="group", group_size=128,
                                  actorder="group"),
            }, ignore=recipe, order=["down_proj"]), everything, False),
        "gptq_wide": (Gptq(2, 64, True), everything, False),
    }


@torch.no_grad()
def logits_of(weights, inputs, config):
    model = MllamaForConditionalGeneration(MllamaConfig(**config, attn_implementation="eager"))
    model.load_state_dict({memory_name(k): v.float() for k, v in weights.items()}, strict=True)
    model = model.float().eval()
    text = {"input_ids": inputs["input_ids"].clamp(max=40)}
    return model(**inputs, use_cache=False).logits, model(**text, use_cache=False).logits


def make_inputs(seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 41, (1, 9), generator=generator)
    ids[0, :2] = torch.tensor([41, 1])  # the picture, then the start token
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 1, 2, 3, 8, 8, generator=generator),
        "aspect_ratio_ids": torch.tensor([[3]]), "aspect_ratio_mask": torch.ones(1, 1, 2).long(),
        "cross_attention_mask": torch.ones(1, 9, 1, 2).long()
    }


def quantised(weights, how, layers):
    """The tensors to store, and the same weights as plain numbers."""
    stored, exact = dict(weights), dict(weights)
    for layer in layers:
        weight = stored.pop(f"{layer}.weight")
        tensors, dequantised = how.quantise(layer, weight)
        stored.update({layer + ending: value.contiguous() for ending, value in tensors.items()})
        error = (dequantised - weight.float()).norm() / weight.float().norm()
        assert dequantised.dtype == torch.float32 and error < 0.35, (layer, error)
        exact[f"{layer}.weight"] = dequantised
    return stored, exact


def write(out, weights, config, how, layers, in_memory):
    os.makedirs(out)
    stored, exact = quantised(weights, how, layers)
    golden = {}
    inputs = make_inputs(5)
    with_picture, text = logits_of(exact, inputs, config)
    for layer in (f"{TEXT}0.mlp.down_proj", f"{TEXT}0.self_attn.k_proj"):
        golden[f"dequantised.{layer}"] = exact[f"{layer}.weight"].contiguous()
    golden.update({k: inputs[k] for k in ("input_ids", "pixel_values", "aspect_ratio_ids")})
    golden.update(logits=with_picture, logits_text=text)
    if in_memory:
        stored = {memory_name(name): value for name, value in stored.items()}
    save_file(stored, f"{out}/model.safetensors", metadata={"format": "pt"})
    save_file({k: v.contiguous() for k, v in golden.items()}, f"{out}/golden.safetensors")
    with open(f"{out}/config.json", "w") as file:
        json.dump({**config, "quantization_config": how.config()}, file)
    for file in os.listdir(out):
        os.chmod(f"{out}/{file}", 0o644)


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else f"{HERE}/quantised"
    torch.set_num_threads(1)
    shutil.rmtree(root, ignore_errors=True)
    for name, (how, layers, in_memory) in formats(random_weights(1)).items():
        config = WIDE if name.endswith("_wide") else CONFIG
        write(f"{root}/{name}", random_weights(1, config), config, how, layers, in_memory)
        files = os.listdir(f"{root}/{name}")
        size = sum(os.path.getsize(f"{root}/{name}/{file}") for file in files)
        print(f"{name}: {len(layers)} layers, {size} bytes")


if __name__ == "__main__":
    main()

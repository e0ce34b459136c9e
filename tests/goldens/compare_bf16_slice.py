#!/usr/bin/env python3
"""Is `mllama forward --dtype bf16` as close to the float32 truth as transformers' own bfloat16 run?

    compare_bf16_slice.py BINARY [--goldens-only] [--work DIR] [--threads N]

First on the committed bfloat16 checkpoint (models/d_bf16, whose cases hold both truths), then on
a slice of the 11B model: a random checkpoint with its true sizes, but with three vision layers,
five text layers, one of them cross-attention, and 8,192 tokens (1.3e9 parameters, 2.7 GB on disk in
DIR, 6 GB of memory, minutes of one core).

For every request it prints the errors of both against float32, relative to the largest logit: the
largest and the root mean square. Exit status 1 if ours is the larger one in the mean of the
requests of a checkpoint, in either measure.
Packages as make_model_goldens.py, which it imports.
"""
import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile

import make_model_goldens as goldens
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, MllamaForConditionalGeneration

SLICE = {
    "text": {
        "vocab_size": 8192, "hidden_size": 4096, "num_hidden_layers": 5, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "cross_attention_layers": [3],
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 500000.0,
        "max_position_embeddings": 131072, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        }
    }, "vision": {
        "hidden_size": 1280, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 16,
        "num_channels": 3, "intermediate_size": 5120, "image_size": 560, "patch_size": 14,
        "max_num_tiles": 4, "norm_eps": 1e-5, "hidden_act": "gelu",
        "intermediate_layers_indices": [0, 1], "vision_output_dim": 3840,
        "supported_aspect_ratios": goldens.FOUR_TILES
    }, "unused_tiles": 0.0, "dtype": torch.bfloat16, "names": "published", "keys": "published",
    "shards": 1, "chat_template": "chat_template.jinja", "template_in": ["tokenizer_config.json"],
    "num_specials": 8192 - 400, "tokenizer_adds_start_token": False, "merges_as_strings": True,
    "resample": 2
}
REQUESTS = {
    "text": {"prompt": goldens.STORY, "images": []},
    "one tile": {"prompt": "<|image|>" + goldens.STORY, "images": ["small.png"]},
    "four tiles, text first": {
        "prompt": "What is this? <|image|>" + goldens.STORY, "images": ["large.png"]
    },
}


def ours(binary, checkpoint, request_file, root, threads):
    """Logits of `mllama forward --dtype bf16` for the request of a file; pictures are in root."""
    with tempfile.TemporaryDirectory() as work:
        command = [
            os.path.abspath(binary), "forward", "-m", os.path.abspath(checkpoint),
            "--dtype", "bf16", "--threads", str(threads), "--batch", os.path.abspath(request_file),
            "--date", goldens.DATE, "--out", f"{work}/out.safetensors"
        ]
        subprocess.run(command, cwd=root, check=True)
        return load_file(f"{work}/out.safetensors")["logits"]


def error(logits, truth):
    """(largest, root mean square) of the difference, relative to the largest logit"""
    difference = (logits.float() - truth).abs() / truth.abs().max()
    return torch.tensor([difference.max(), difference.pow(2).mean().sqrt()])


def report(name, rows):
    """rows: [(request, our error, transformers' error)]; True if ours is not larger in the mean."""
    print(f"{name}: errors against float32, relative to the largest logit (largest, rms)")
    mean = ("mean", *(sum(row[i] for row in rows) / len(rows) for i in (1, 2)))
    for request, mine, theirs in [*rows, mean]:
        print(f"  {request:24} mllama {mine[0]:.2e} {mine[1]:.2e}"
              f"   transformers {theirs[0]:.2e} {theirs[1]:.2e}")
    return bool((mean[1] <= mean[2]).all())


def compare_goldens(arguments):
    root = f"{goldens.HERE}/models"
    checkpoint = f"{root}/d_bf16"
    rows = []
    for name in goldens.CASES["d"]:
        case = load_file(f"{checkpoint}/case_{name}.safetensors")
        logits = ours(arguments.binary, checkpoint, f"{checkpoint}/case_{name}.jsonl", root,
                      arguments.threads)
        rows.append((name, error(logits, case["logits"]), error(case["logits_bf16"],
                                                                case["logits"])))
    return report("models/d_bf16", rows)


@torch.no_grad()
def transformers_logits(checkpoint, inputs, dtype):
    """{request: logits} with transformers' default attention."""
    model = MllamaForConditionalGeneration.from_pretrained(checkpoint,
                                                           dtype=dtype,
                                                           attn_implementation="sdpa").eval()
    logits = {}
    for name, tensors in inputs.items():
        logits[name] = model(**tensors, use_cache=False).logits.float()
        print(f"transformers {dtype} {name}", file=sys.stderr, flush=True)
    del model
    gc.collect()
    return logits


def process(checkpoint, request, root):
    processor = AutoProcessor.from_pretrained(checkpoint)
    pictures = [goldens.Image.open(f"{root}/{path}") for path in request["images"]]
    return dict(
        processor(text=[request["prompt"]],
                  images=[pictures] if pictures else None,
                  return_tensors="pt"))


def compare_slice(arguments, root):
    goldens.draw_picture(300, 420, "RGB", 1).save(f"{root}/small.png")
    goldens.draw_picture(900, 700, "RGB", 2).save(f"{root}/large.png")
    checkpoint = f"{root}/slice"
    goldens.write_checkpoint(SLICE, checkpoint, 0)
    inputs = {name: process(checkpoint, request, root) for name, request in REQUESTS.items()}
    mine = {}
    for number, (name, request) in enumerate(REQUESTS.items()):
        file_name = f"{root}/request_{number}.jsonl"
        with open(file_name, "w") as file:
            file.write(json.dumps(request) + "\n")
        mine[name] = ours(arguments.binary, checkpoint, file_name, root, arguments.threads)
    truth = transformers_logits(checkpoint, inputs, torch.float32)
    theirs = transformers_logits(checkpoint, inputs, torch.bfloat16)
    rows = [(name, error(mine[name], truth[name]), error(theirs[name], truth[name]))
            for name in REQUESTS]
    return report("slice of the 11B model", rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--goldens-only", action="store_true")
    parser.add_argument("--work", help="where the slice is written; default: a temporary folder")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    good = compare_goldens(arguments)
    if not arguments.goldens_only:
        with tempfile.TemporaryDirectory(dir=arguments.work) as root:
            good = compare_slice(arguments, root) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

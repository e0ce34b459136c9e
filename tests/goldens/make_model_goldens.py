#!/usr/bin/env python3
"""Goldens of the whole model: tiny random checkpoints and what transformers 4.56.2 makes of them.

    make_model_goldens.py [OUT [CHECKPOINT...]]     default OUT: models/ beside this file

Needs torch 2.8.0, transformers 4.56.2, tokenizers 0.22.2, Pillow and safetensors. Everything is
made from fixed seeds, in a minute or two; the chat templates are those in templates/.

What is written
---------------
OUT/pictures/*.png               the pictures; paths in requests are relative to OUT
OUT/<checkpoint>/                a checkpoint directory as published (CHECKPOINTS says what each is
                                 for), and in it
    case_<name>.jsonl            the request: a `--batch` file, one sample a line
    case_<name>.safetensors      what transformers answers, see below
    cases.json                   of each case: date, length of the prompts, finish_reason, text and
                                 margin of the greedy continuations, and what the case catches

Tensors of a case
-----------------
Always, as transformers' processor names and shapes them (batch B, right-padded to T; I64 but for
the pixels, which are F32; the last four only if there are pictures):
    input_ids, attention_mask    (B,T)
    cross_attention_mask         (B,T,I,tiles)
    aspect_ratio_ids             (B,I)
    aspect_ratio_mask            (B,I,tiles)
    pixel_values                 (B,I,tiles,3,S,S)
and
    loss                         () mean over the tokens of the batch; labels are input_ids, with
                                 padding and image tokens masked
Then, in a case of one sample. In a case of several each has them, and a loss, under the prefix
`sample_<i>.`: without padding, computed with that sample alone in the batch.
    logits                       (1,T,V), or logits_tail (1,16,V): the last 16 rows
    tokens                       (N) greedy continuation, N <= 48, with the end token it reached
    finally, where the case asks for them
    hidden_states.<k>            (1,T,H)
    attentions.<k>               (1,heads,T,keys)
    vision_model.last_hidden_state  (1,I,tiles,P,vision_output_dim)
    cross_attention_states       (I*tiles,P,H), behind the projector
    logits_meta                  (1,T,V) by Meta's rules, see below
    logits_bf16                  (1,T,V) BF16, for the bfloat16 checkpoint: transformers in bfloat16
                                 with its default attention

Where transformers 4.56.2 and Meta's implementation differ
----------------------------------------------------------
* A text row that may see no image (text before the first one, the start token included) attends
  to *all* positions of all images, padding tiles included; only the output of its MLP is
  multiplied by 0. Meta multiplies the attention output by 0 as well.
* Intermediate vision states: transformers 4.56.2 takes the *output* of local layer
  intermediate_layers_indices[k]; Meta, and transformers up to 4.54, take the input.
logits_meta is transformers with these two points patched, everything else is transformers'.

How transformers numbers hidden_states and attentions (modeling_mllama.py, utils/generic.py)
--------------------------------------------------------------------------------------------
* They are recorded from the decoder layers that ran, in order. hidden_states.0 is the input of
  the first layer that ran: the embeddings. hidden_states.k is the output of the k-th layer that
  ran, k = 1 .. n-1. hidden_states.n is the output of the last one *after* the final norm; the
  value before the norm is not there. n + 1 tensors.
* Without an image cross-attention layers are skipped: n is smaller and the numbers close up.
* attentions.k is of the k-th layer that ran (from 0), of either kind: softmax weights,
  (1, heads, T, T) for self-attention, (1, heads, T, I * tiles * P) for cross-attention with the
  keys image by image, tile by tile, padding tiles included, without the padding of patches to a
  multiple of 8. Heads are query heads (keys are repeated).
* A row that may see no image has the attention over all keys there, not zeros.
* Nothing of the vision tower is recorded.

Other semantics that the cases fix
----------------------------------
* Text: `<|begin_of_text|>` is put behind the leading `<|image|>` tokens, and only if the text has
  none anywhere. The published tokenizer adds none itself. c_three_tiles has a post-processor that
  would; the oracle is asked not to (add_special_tokens=False), so there is exactly one.
* cross_attention_mask: an image is seen from its own token to the next image token (exclusive),
  the last one to the end; a run of adjacent image tokens is seen together, each from its own
  position on. Only real tiles are 1. Ranges of last images reach to the end of the padded
  encoding: rows of right padding show what the last token sees.
* Samples without images in a batch with images are an error in transformers' processor. Here
  such a batch is assembled from its samples; their rows are aspect_ratio_ids 0, aspect_ratio_mask
  [1, 0, ..] (what the image processor gives a missing image), pixel_values 0,
  cross_attention_mask 0.
* In a batch transformers lets rows that may see no image attend to *missing* images as well, so
  its result depends on the batch. Expected here is the result of the sample alone.
* Generation: the mask row of a new token is a copy of the prompt's last row. A chat whose later
  turns bring images is one prompt, so its earliest turns attend to images that come later.
* loss: labels are shifted by one. A masked label drops the prediction *of* an image token or of
  padding; the prediction made *at* an image token, of the token behind it, counts.
* The padding of patches, (8 - n % 8) % 8, is never 0 for n = k * k + 1: squares are 0, 1 or 4
  modulo 8, so it is 7, 6 or 3. All three occur here (n = 17, 10, 37). With 0 transformers would
  mask every position (a slice [-0:]), but no square picture gets there.
* image_size need not be a multiple of patch_size: the convolution drops the last pixels of a tile
  (c_three_tiles).
"""
import contextlib
import json
import os
import shutil
import sys
import tempfile

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoProcessor, MllamaForConditionalGeneration, MllamaConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mllama import modeling_mllama
from transformers.utils import logging

torch.set_num_threads(1)
logging.set_verbosity_error()
logging.disable_progress_bar()
HERE = os.path.dirname(os.path.abspath(__file__))
DATE = "26 Jul 2024"
NEW_TOKENS = 48
TAIL = 16  # rows of logits_tail
SMALLEST_MARGIN = 3e-4  # of the two largest logits of a greedy step, relative to the largest of all
FEWEST_DISTINCT_TOKENS = 8  # in a continuation: a loop of one token tests little

# --------------------------------------------------------------------------------------- tokenizer

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIALS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>", "<|finetune_right_pad_id|>", "<|step_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"
]
CORPUS = """The picture shows a small red house beside a long river, and behind the house there \
are three green hills.
What is in this image? Describe the image in one sentence. Compare the two pictures and say \
which one is brighter.
Cutting Knowledge Date: December 2023. Today Date: 26 Jul 2024. You are a helpful assistant that \
answers with care.
How many people are standing on the bridge? There are five people; two of them are looking at \
the water below.
If I had to write a haiku for this one, it would be about the light of the morning and the \
colour of the leaves.
user assistant system ipython content image text question answer left right above below before \
after first second
The second image is taller than the first image. The first was wide, the last was square, and \
none of them was large.
Please read the numbers in the picture: 12, 307, 4096. What do they add up to? Look at the table \
and explain it."""


def make_tokenizer(vocab_size, adds_start_token, num_specials=24):
    """A byte-level BPE: num_specials special tokens end at vocab_size, where <|image|> stands."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - num_specials,
                                  show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([CORPUS] * 4, trainer)
    assert tokenizer.get_vocab_size() == vocab_size - num_specials
    reserved = [f"<|reserved_special_token_{i + 2}|>" for i in range(num_specials - len(SPECIALS))]
    document = json.loads(tokenizer.to_str())
    first = vocab_size - num_specials
    flags = {
        "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True
    }
    document["added_tokens"] = [{"id": first + i, "content": content, **flags}
                                for i, content in enumerate(SPECIALS + reserved + ["<|image|>"])]
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if adds_start_token:
        start = processors.TemplateProcessing(single="<|begin_of_text|> $A",
                                              special_tokens=[("<|begin_of_text|>", first)])
        tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, start])
    return tokenizer


def write_tokenizer(spec, out):
    tokenizer = make_tokenizer(spec["text"]["vocab_size"], spec["tokenizer_adds_start_token"],
                               spec.get("num_specials", 24))
    document = json.loads(tokenizer.to_str())
    if spec["merges_as_strings"]:
        document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    write_json(out, "tokenizer.json", document, indent=None)
    names = {
        "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
        "pad_token": "<|finetune_right_pad_id|>"
    }
    decoder = {
        str(token["id"]): {k: v
                           for k, v in token.items() if k != "id"}
        for token in document["added_tokens"]
    }
    config = {
        "added_tokens_decoder": decoder, **names, "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"], "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast"
    }
    with open(f"{HERE}/templates/{spec['chat_template']}") as file:
        template = file.read()
    if "tokenizer_config.json" in spec["template_in"]:
        config["chat_template"] = template
    if "chat_template.json" in spec["template_in"]:
        write_json(out, "chat_template.json", {"chat_template": template})
    if "chat_template.jinja" in spec["template_in"]:
        with open(f"{out}/chat_template.jinja", "w") as file:
            file.write(template)
    write_json(out, "tokenizer_config.json", config)
    write_json(out, "special_tokens_map.json", names)
    return tokenizer


def write_json(out, name, document, indent=1):
    with open(f"{out}/{name}", "w") as file:
        json.dump(document, file, ensure_ascii=False, indent=indent)


# ------------------------------------------------------------------------------------- checkpoints

FOUR_TILES = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
THREE_TILES = [[1, 1], [1, 2], [1, 3], [2, 1], [3, 1]]
# Wavelengths of the heads of 12 with theta 100 are 6.3, 13.5, 29.2, 62.8, 135 and 291: below 32 / 4
# unchanged, above 32 / 1 divided, between them interpolated. All three occur.
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32
}

A = {
    "text": {
        "vocab_size": 421, "hidden_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 88, "cross_attention_layers": [0, 2, 5],
        "rms_norm_eps": 0.01, "hidden_act": "silu", "rope_theta": 100.0,
        "rope_scaling": LLAMA3_ROPE, "max_position_embeddings": 4096
    }, "vision": {
        "hidden_size": 24, "num_hidden_layers": 3, "num_global_layers": 2, "attention_heads": 2,
        "num_channels": 3, "intermediate_size": 56, "image_size": 16, "patch_size": 4,
        "max_num_tiles": 4, "norm_eps": 0.02, "hidden_act": "gelu",
        "intermediate_layers_indices": [0, 2], "vision_output_dim": 72,
        "supported_aspect_ratios": FOUR_TILES
    }, "unused_tiles": 0.0, "dtype": torch.float32, "names": "published", "keys": "published",
    "shards": 1, "chat_template": "chat_template.jinja",
    "template_in": ["tokenizer_config.json", "chat_template.json"],
    "tokenizer_adds_start_token": False, "merges_as_strings": True, "resample": 2, "cases": "a"
}
CHECKPOINTS = {
    # As published: embeddings of unused tiles are zero, so padding tiles may be computed once for
    # all. Cross-attention first and last; grouped heads; all regimes of the llama3 RoPE. norm_eps
    # and rms_norm_eps are large, for layernorm_pre and layernorm_post keep 1e-5.
    "a_published": A,
    # Embeddings of unused tiles are not zero: the padding tiles of an image differ, none may stand
    # for another. No grouping of heads, two cross-attention layers in a row, default RoPE, tanh
    # GELU, intermediate layers that are neither sorted nor a prefix.
    "b_general": {
        "text": {
            "vocab_size": 390, "hidden_size": 40, "num_hidden_layers": 5, "num_attention_heads": 4,
            "num_key_value_heads": 4, "intermediate_size": 72, "cross_attention_layers": [1, 2],
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
            "rope_scaling": {"rope_type": "default"}, "max_position_embeddings": 4096
        }, "vision": {
            "hidden_size": 32, "num_hidden_layers": 4, "num_global_layers": 1, "attention_heads": 4,
            "num_channels": 3, "intermediate_size": 64, "image_size": 12, "patch_size": 2,
            "max_num_tiles": 4, "norm_eps": 1e-5, "hidden_act": "gelu_pytorch_tanh",
            "intermediate_layers_indices": [3, 1, 2], "vision_output_dim": 128,
            "supported_aspect_ratios": FOUR_TILES
        }, "unused_tiles": 0.5, "dtype": torch.float32, "names": "published", "keys": "published",
        "shards": 1, "chat_template": "chat_template_alt.jinja",
        "template_in": ["chat_template.jinja"], "tokenizer_adds_start_token": False,
        "merges_as_strings": False, "resample": 3, "cases": "b"
    },
    # Three tiles; one key-value head; sizes that are no multiples of 8; tiles whose side is no
    # multiple of the patch; names in memory, two shards with an index, other config keys, quick
    # GELU; a tokenizer that would add a second start token.
    "c_three_tiles": {
        "text": {
            "vocab_size": 373, "hidden_size": 36, "num_hidden_layers": 4, "num_attention_heads": 6,
            "num_key_value_heads": 1, "intermediate_size": 51, "cross_attention_layers": [3],
            "rms_norm_eps": 1e-3, "hidden_act": "gelu_pytorch_tanh", "rope_theta": 500000.0,
            "rope_scaling": {"rope_type": "default"}, "max_position_embeddings": 4096
        }, "vision": {
            "hidden_size": 20, "num_hidden_layers": 2, "num_global_layers": 2, "attention_heads": 2,
            "num_channels": 3, "intermediate_size": 37, "image_size": 14, "patch_size": 4,
            "max_num_tiles": 3, "norm_eps": 1e-3, "hidden_act": "quick_gelu",
            "intermediate_layers_indices": [1], "vision_output_dim": 40,
            "supported_aspect_ratios": THREE_TILES
        }, "unused_tiles": 0.0, "dtype": torch.float32, "names": "memory", "keys": "other",
        "shards": 2, "chat_template": "chat_template_v0_converter.jinja",
        "template_in": ["tokenizer_config.json"], "tokenizer_adds_start_token": True,
        "merges_as_strings": False, "resample": 1, "cases": "c"
    },
    # The first one again, stored in bfloat16.
    "d_bf16": {**A, "dtype": torch.bfloat16, "cases": "d"},
}


def write_configs(spec, tokenizer, out):
    ids = {
        name: tokenizer.token_to_id(f"<|{name}|>")
        for name in ("begin_of_text", "end_of_text", "eom_id", "eot_id", "finetune_right_pad_id",
                     "image")
    }
    ends = [ids["end_of_text"], ids["eom_id"], ids["eot_id"]]
    dtype = str(spec["dtype"]).removeprefix("torch.")
    other = spec["keys"] == "other"
    text = {
        "model_type": "mllama_text_model", "bos_token_id": ids["begin_of_text"],
        "eos_token_id": ends, "use_cache": True, "pad_token_id": ids["finetune_right_pad_id"],
        "tie_word_embeddings": False, **spec["text"]
    }
    vision = {"model_type": "mllama_vision_model", **spec["vision"]}
    if other:
        vision["num_attention_heads"] = vision.pop("attention_heads")
    config = {
        "architectures": ["MllamaForConditionalGeneration"], "model_type": "mllama",
        "text_config": text, "vision_config": vision,
        "image_token_id" if other else "image_token_index": ids["image"],
        "dtype" if other else "torch_dtype": dtype, "transformers_version": "4.45.0.dev0"
    }
    write_json(out, "config.json", config)
    write_json(
        out, "generation_config.json", {
            "bos_token_id": ids["begin_of_text"], "do_sample": True, "eos_token_id": ends,
            "temperature": 0.6, "top_p": 0.9, "pad_token_id": ids["finetune_right_pad_id"]
        })
    side = spec["vision"]["image_size"]
    write_json(
        out, "preprocessor_config.json", {
            "do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True,
            "do_resize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [
                0.26862954, 0.26130258, 0.27577711
            ], "image_processor_type": "MllamaImageProcessor",
            "max_image_tiles": spec["vision"]["max_num_tiles"], "resample": spec["resample"],
            "rescale_factor": 1 / 255, "size": {"height": side, "width": side}
        })


def random_weights(spec, state, seed):
    """{name in memory: tensor}: open gates, no trivial norm or bias, attention far from uniform."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape, std):
        return torch.randn(shape, generator=generator) * std

    def uniform(shape, low, high):
        return torch.rand(shape, generator=generator) * (high - low) + low

    def one(name, shape):
        leaf = name.split(".")[-1]
        if "gate" in leaf and "proj" not in name:
            return uniform(shape, 0.3, 0.8) * (-1 if uniform((), 0, 1) < 0.4 else 1)
        if "norm" in name:
            if leaf == "bias":
                return normal(shape, 0.3)
            return uniform(shape, 1.0, 2.0) if "q_norm" in name or "k_norm" in name else uniform(
                shape, 0.5, 1.5)
        if leaf == "bias":
            return normal(shape, 0.2)
        if "tile_embedding" in name or "tile_positional_embedding.embedding" in name:
            return zero_unused_tiles(spec, normal(shape, 0.5), spec["unused_tiles"])
        if "embedding" in name and "patch" not in name or "embed_tokens" in name:
            return normal(shape, 1.0)
        fan_in = torch.Size(shape[1:]).numel()
        gains = {"lm_head": 4.0, "q_proj": 1.6, "k_proj": 1.6}
        gain = next((gain for part, gain in gains.items() if part in name), 1.0)
        return normal(shape, gain / fan_in**0.5)

    return {
        name: one(name, value.shape).to(spec["dtype"]).contiguous()
        for name, value in sorted(state.items())
    }


def zero_unused_tiles(spec, table, unused):
    """`table` (aspect ratio ids, max_num_tiles * any), its unused tiles multiplied by `unused`."""
    tiles = spec["vision"]["max_num_tiles"]
    rows = table.reshape(table.shape[0], tiles, -1)
    for i, (high, wide) in enumerate([[0, 0]] + spec["vision"]["supported_aspect_ratios"]):
        rows[i, high * wide:] *= unused
    return rows.reshape(table.shape)


def published_name(name):
    if name.startswith("lm_head"):
        return "language_model." + name
    name = name.removeprefix("model.")
    if name.startswith("language_model"):
        return name.replace("language_model.", "language_model.model.", 1)
    return name


def write_weights(spec, out, seed):
    config = MllamaConfig.from_pretrained(out)
    with torch.device("meta"):
        state = MllamaForConditionalGeneration(config).state_dict()
    weights = random_weights(spec, state, seed)
    if spec["names"] == "published":
        weights = {published_name(name): value for name, value in weights.items()}
    names = sorted(weights)
    count = spec["shards"]
    if count == 1:
        save_file(weights, f"{out}/model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for shard in range(count):
        file_name = f"model-{shard + 1:05d}-of-{count:05d}.safetensors"
        mine = names[len(names) * shard // count:len(names) * (shard + 1) // count]
        save_file({name: weights[name]
                   for name in mine},
                  f"{out}/{file_name}",
                  metadata={"format": "pt"})
        weight_map.update({name: file_name for name in mine})
    total = sum(value.numel() * value.element_size() for value in weights.values())
    write_json(out, "model.safetensors.index.json",
               {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_checkpoint(spec, out, seed):
    os.makedirs(out, exist_ok=True)
    write_configs(spec, write_tokenizer(spec, out), out)
    write_weights(spec, out, seed)


# ------------------------------------------------------------------------------ pictures and cases

# name: (width, height, mode). The grids (high x wide) are those of a_published: four tiles of 16
# pixels. The other checkpoints cut them otherwise; between them every supported grid occurs.
PICTURES = {
    "dot": (5, 7, "RGB"),  # 1x1, enlarged until a side reaches the tile
    "square": (16, 16, "RGB"),  # 1x1, exactly a tile
    "wide": (30, 13, "RGB"),  # 1x2
    "tall": (11, 29, "RGB"),  # 2x1
    "strip": (62, 9, "L"),  # 1x4, grey
    "column": (7, 41, "RGB"),  # 3x1
    "large": (45, 39, "RGB"),  # 2x2, reduced
    "clear": (33, 31, "RGBA"),  # 2x2, laid on white
}


def write_pictures(out):
    os.makedirs(out, exist_ok=True)
    for seed, (name, (width, height, mode)) in enumerate(PICTURES.items()):
        draw_picture(width, height, mode, seed).save(f"{out}/{name}.png", optimize=True)


def draw_picture(width, height, mode, seed):
    """Waves and noise."""
    generator = torch.Generator().manual_seed(seed)
    channels = len(mode)
    rows = torch.arange(height).view(-1, 1, 1) / height
    columns = torch.arange(width).view(1, -1, 1) / width
    phase = torch.rand(4, 1, 1, channels, generator=generator) * 6.3
    waves = torch.sin(7 * rows + phase[0]) + torch.sin(9 * columns + phase[1])
    waves += torch.sin(20 * rows * columns + phase[2])
    noise = torch.randn(height, width, channels, generator=generator)
    pixels = (127 + 40 * waves + 20 * noise).clamp(0, 255).to(torch.uint8).numpy()
    return Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels, mode)


def picture(name):
    return f"pictures/{name}.png"


def raw(prompt, *pictures):
    return {"prompt": prompt, "images": [picture(name) for name in pictures]}


def turn(role, *parts):
    """A turn of a chat; a part that begins with @ names a picture."""

    def content(part):
        if part.startswith("@"):
            return {"type": "image", "path": picture(part[1:])}
        return {"type": "text", "text": part}

    return {"role": role, "content": [content(part) for part in parts]}


def chat(*turns):
    return {"messages": list(turns)}


EVERYTHING = ["hidden_states", "attentions", "vision"]
STORY = (
    "The picture shows a small red house beside a long river, and behind the house there are three "
    "green hills. How many people are standing on the bridge? There are five people; two of them "
    "are looking at the water below. ")

IMAGE_TEXT = raw("<|image|>If I had to write a haiku for this one", "tall")
TEXT_ONLY = raw("What is the colour of the leaves in the morning?")
CONSECUTIVE = raw("<|image|><|image|>Compare the two pictures.", "wide", "clear")
SEPARATED = raw("<|image|>The first image is wide. <|image|>The second is tall. Which one",
                "square", "tall")
TEXT_FIRST = raw("Look at this: <|image|> what is it? And <|image|><|image|>these", "strip", "dot",
                 "large")
START_GIVEN = raw("<|begin_of_text|>Before <|image|>after", "column")
LATER_TURNS = chat(turn("user", "How many hills are there?"), turn("assistant", "Three."),
                   turn("user", "@large", "And here?"), turn("assistant", "Five people."),
                   turn("user", "Compare ", "@wide", "@dot", " please."))
CHAT_TEXT = chat({"role": "system", "content": "You are a careful assistant."},
                 {"role": "user", "content": "What is 12 and 307?"})
LONG = raw("<|image|>" + STORY * 2 + "<|image|>" + STORY + "<|image|>" + STORY, "square", "large",
           "column")

# Cases of a checkpoint: {name: (samples, what to store besides logits, what the case catches)}
CASES = {
    "a": {
        "image_text": ([IMAGE_TEXT], EVERYTHING + ["meta"],
            "every part of the model; padding tiles and positions; a start token behind the image"),
        "text_only": ([TEXT_ONLY], ["hidden_states", "attentions"],
            "cross-attention layers skipped whole, the first and the last among them"),
        "images_consecutive": ([CONSECUTIVE], [],
            "adjacent images seen together; the first image's own row sees only itself"),
        "images_separated": ([SEPARATED], ["attentions"],
            "an image is no longer seen behind the next one"),
        "text_before_image": ([TEXT_FIRST], ["hidden_states", "attentions", "meta"],
            "rows that see no image attend to all keys and lose only the MLP; four tiles in a row"),
        "start_token_given": ([START_GIVEN], [],
            "a start token in the text is neither doubled nor moved; three tiles in a column"),
        "chat_later_turns": ([LATER_TURNS], ["tail", "hidden_states"],
            "images in later turns; three images of unlike tiles; the template"),
        "chat_text_only": ([CHAT_TEXT], ["tail"],
            "the template's system message and date"),
        "batch_mixed": ([TEXT_ONLY, IMAGE_TEXT, CONSECUTIVE], [],
            "none, one and two images in a batch: a sample does not depend on its batch"),
        "batch_images": ([TEXT_FIRST, START_GIVEN], [],
            "right padding; rows that see no image, next to a sample with more images"),
        "long_prompt": ([LONG], ["tail"],
            "RoPE far out, prefill in chunks, the visible image changes within a chunk"),
    },
    "b": {
        "image_text": ([IMAGE_TEXT], EVERYTHING,
            "padding tiles that differ; intermediate layers in the order of the list"),
        "text_only": ([TEXT_ONLY], [],
            "no cross-attention layer at the ends"),
        "images_separated": ([SEPARATED], [],
            "as in a_published, with padding tiles that differ"),
        "text_before_image": ([TEXT_FIRST], ["hidden_states"],
            "rows that see no image read padding tiles that differ"),
        "chat_later_turns": ([LATER_TURNS], ["tail"],
            "another template, from a file of its own"),
        "chat_text_only": ([CHAT_TEXT], ["tail"],
            "the same, with its system message"),
        "batch_mixed": ([IMAGE_TEXT, TEXT_ONLY, SEPARATED], [],
            "the sample without images in the middle"),
    },
    "c": {
        "image_text": ([IMAGE_TEXT], EVERYTHING,
            "heads of 6 and 10, one key-value head, odd widths, three tiles, dropped pixels"),
        "text_only": ([TEXT_ONLY], ["hidden_states"],
            "the skipped layer is the last: the final norm follows the one before"),
        "text_before_image": ([TEXT_FIRST], ["attentions"],
            "rows that see no image attend to three tiles of each"),
        "start_token_given": ([START_GIVEN], [],
            "a start token given and a tokenizer that would add one"),
        "chat_later_turns": ([LATER_TURNS], [],
            "a template without a system message; its start token and the tokenizer's"),
        "batch_images": ([CONSECUTIVE, START_GIVEN], [],
            "as in a_published, the longer sample with more images"),
    },
    "d": {
        "image_text": ([IMAGE_TEXT], [],
            "bfloat16 weights in float32 arithmetic; the error of bfloat16 arithmetic"),
        "text_before_image": ([TEXT_FIRST], [],
            "the same"),
        "text_only": ([TEXT_ONLY], [],
            "the same"),
    },
}

# -------------------------------------------------------------------------------------- the oracle


class Oracle:
    """transformers' model and processor of one checkpoint directory."""

    def __init__(self, spec, checkpoint, root):
        self.spec, self.root = spec, root
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.template = open(f"{HERE}/templates/{spec['chat_template']}").read()
        self.models = {
            name: self.load(checkpoint, name, torch.float32)
            for name in ("eager", "sdpa")
        }
        self.model = self.models["eager"]
        self.image_id = self.model.config.image_token_index
        self.bf16 = None
        if spec["dtype"] == torch.bfloat16:
            self.bf16 = self.load(checkpoint, "sdpa", torch.bfloat16)

    @staticmethod
    def load(checkpoint, attention, dtype):
        model, report = MllamaForConditionalGeneration.from_pretrained(
            checkpoint, dtype=dtype, attn_implementation=attention, output_loading_info=True)
        assert not any(report.values()), report
        return model.eval()

    def text_and_pictures(self, sample):
        if "prompt" in sample:
            return sample["prompt"], sample["images"]
        paths = [
            part["path"] for message in sample["messages"]
            if not isinstance(message["content"], str) for part in message["content"]
            if part["type"] == "image"
        ]
        text = self.processor.apply_chat_template(sample["messages"],
                                                  chat_template=self.template,
                                                  add_generation_prompt=True,
                                                  date_string=DATE)
        return text, paths

    def process(self, samples):
        """The processor's tensors of a batch of samples that all have images or all have none."""
        texts, pictures = zip(*(self.text_and_pictures(sample) for sample in samples))
        opened = [[Image.open(f"{self.root}/{path}") for path in paths] for paths in pictures]
        inputs = self.processor(text=list(texts),
                                images=opened if any(opened) else None,
                                padding=True,
                                return_tensors="pt",
                                add_special_tokens=not self.spec["tokenizer_adds_start_token"])
        start = self.processor.tokenizer.bos_token_id
        assert all((ids == start).sum() == 1 for ids in inputs["input_ids"])
        return dict(inputs)

    def labels(self, inputs):
        ids = inputs["input_ids"]
        return ids.masked_fill((inputs["attention_mask"] == 0) | (ids == self.image_id), -100)

    @torch.no_grad()
    def forward(self, inputs):
        """One sample: {name: tensor} of everything that a case may store."""
        self.check_implementations(inputs)
        out = self.model(**inputs,
                         labels=self.labels(inputs),
                         output_hidden_states=True,
                         output_attentions=True,
                         use_cache=False)
        result = {"loss": out.loss, "logits": out.logits}
        result.update({f"hidden_states.{k}": value for k, value in enumerate(out.hidden_states)})
        result.update({f"attentions.{k}": value for k, value in enumerate(out.attentions)})
        ran = self.spec["text"]["num_hidden_layers"]
        if "pixel_values" not in inputs:
            ran -= len(self.spec["text"]["cross_attention_layers"])
        assert len(out.attentions) == ran and len(out.hidden_states) == ran + 1
        if "pixel_values" in inputs:
            result.update(self.vision(inputs))
            with meta_rules(self.model):
                result["logits_meta"] = self.model(**inputs, use_cache=False).logits
        if self.bf16 is not None:
            result["logits_bf16"] = self.bf16(**inputs, use_cache=False).logits
        return result

    def vision(self, inputs):
        names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        state = self.model.model.vision_model(**{name: inputs[name]
                                                 for name in names}).last_hidden_state
        hidden = self.spec["text"]["hidden_size"]
        rows = self.model.model.multi_modal_projector(state).reshape(-1, state.shape[-2], hidden)
        return {"vision_model.last_hidden_state": state, "cross_attention_states": rows}

    def check_implementations(self, inputs):
        eager, sdpa = (self.models[name](**inputs, use_cache=False).logits
                       for name in ("eager", "sdpa"))
        assert (eager - sdpa).abs().max() < 1e-5 * eager.abs().max(), (eager - sdpa).abs().max()

    @torch.no_grad()
    def greedy(self, inputs):
        """The continuation of one sample: (tokens (N), logits of its steps (N, V)).

        Checked against a forward of the whole without caches.
        """
        length = inputs["input_ids"].shape[1]
        out = self.model.generate(**inputs,
                                  do_sample=False,
                                  temperature=None,
                                  top_p=None,
                                  max_new_tokens=NEW_TOKENS,
                                  output_logits=True,
                                  return_dict_in_generate=True)
        tokens, logits = out.sequences[0, length:], torch.cat(out.logits)
        whole = dict(inputs, input_ids=out.sequences, attention_mask=torch.ones_like(out.sequences))
        if "cross_attention_mask" in inputs:
            mask = inputs["cross_attention_mask"]
            whole["cross_attention_mask"] = torch.cat(
                [mask, mask[:, -1:].expand(-1, len(tokens), -1, -1)], dim=1)
        again = self.model(**whole, use_cache=False).logits[0, length - 1:-1]
        assert torch.equal(again.argmax(-1),
                           tokens) and (again - logits).abs().max() < 2e-5 * again.abs().max()
        return tokens, logits

    def ends(self):
        return self.model.generation_config.eos_token_id


@contextlib.contextmanager
def meta_rules(model):
    """Within it transformers computes as Meta's implementation does."""
    for module in model.modules():  # recording of outputs leaves each forward behind as an attribute, which would win
        module.__dict__.pop("forward", None)
    encoder = modeling_mllama.MllamaVisionEncoder
    layer = modeling_mllama.MllamaCrossAttentionDecoderLayer
    originals = encoder.forward, layer.forward

    def encoder_forward(self, hidden_states, attention_mask=None):
        inputs = []
        for encoder_layer in self.layers:
            inputs.append(hidden_states)
            hidden_states = encoder_layer(hidden_state=hidden_states, attention_mask=attention_mask)
        return BaseModelOutput(last_hidden_state=hidden_states, hidden_states=tuple(inputs))

    def layer_forward(self, hidden_states, *, full_text_row_masked_out_mask, **kwargs):
        sees_image = full_text_row_masked_out_mask[:, 0]  # (1, T, 1)
        zero_rows = self.cross_attn.register_forward_hook(lambda module, args, out:
                                                          (out[0] * sees_image, out[1]))
        result = originals[1](self,
                              hidden_states,
                              full_text_row_masked_out_mask=full_text_row_masked_out_mask,
                              **kwargs)
        zero_rows.remove()
        return result

    encoder.forward, layer.forward = encoder_forward, layer_forward
    try:
        yield
    finally:
        encoder.forward, layer.forward = originals


def margin(logits):
    """(N, V): the least distance of a row's two largest logits, relative to the largest of all."""
    two = logits.topk(2, dim=-1).values
    return ((two[:, 0] - two[:, 1]).min() / logits.abs().max()).item()


def unsuitable(oracle, cases):
    """Why the weights behind `oracle` make bad goldens, or None."""
    reasons = {"stop": 0, "length": 0}
    for name, (samples, _, _) in cases.items():
        for sample in samples:
            tokens, logits = oracle.greedy(oracle.process([sample]))
            if margin(logits) < SMALLEST_MARGIN:
                return f"{name}: margin {margin(logits):.1e}"
            stopped = tokens[-1].item() in oracle.ends()
            reasons["stop" if stopped else "length"] += 1
            if not stopped and len(set(tokens.tolist())) < FEWEST_DISTINCT_TOKENS:
                return f"{name}: {len(set(tokens.tolist()))} distinct tokens"
    good = 1 <= reasons["stop"] <= reasons["length"]
    return None if good else f"{reasons['stop']} of {sum(reasons.values())} continuations end early"


# ----------------------------------------------------------------------------------------- writing


def batch_inputs(oracle, samples, alone):
    """The processor's tensors of the batch. `alone`: those of each sample."""
    with_images = ["pixel_values" in inputs for inputs in alone]
    if all(with_images) or not any(with_images):
        return oracle.process(samples)
    rows = max(inputs["input_ids"].shape[1] for inputs in alone)
    pad = oracle.processor.tokenizer.pad_token_id
    illustrated = [inputs for inputs in alone if "pixel_values" in inputs]
    images = max(inputs["aspect_ratio_ids"].shape[1] for inputs in illustrated)
    tiles = oracle.spec["vision"]["max_num_tiles"]
    tensors = {
        name: torch.zeros(len(alone), *shape, dtype=torch.int64)
        for name, shape in {
            "attention_mask": (rows, ), "aspect_ratio_ids": (images, ), "aspect_ratio_mask": (
                images, tiles), "cross_attention_mask": (rows, images, tiles)
        }.items()
    }
    tensors["input_ids"] = torch.full((len(alone), rows), pad)
    tensors["pixel_values"] = torch.zeros(len(alone), images,
                                          *illustrated[0]["pixel_values"].shape[2:])
    tensors["aspect_ratio_mask"][:, :, 0] = 1
    for i, inputs in enumerate(alone):
        length = inputs["input_ids"].shape[1]
        tensors["input_ids"][i, :length] = inputs["input_ids"][0]
        tensors["attention_mask"][i, :length] = 1
        if "pixel_values" in inputs:
            count = inputs["aspect_ratio_ids"].shape[1]
            for name in ("aspect_ratio_ids", "aspect_ratio_mask", "pixel_values"):
                tensors[name][i, :count] = inputs[name][0]
            mask = inputs["cross_attention_mask"][0]
            tensors["cross_attention_mask"][i, :length, :count] = mask
            tensors["cross_attention_mask"][i, length:, :count] = mask[-1]
    return tensors


def wanted(results, store):
    """The tensors of one sample that its case stores."""
    names = ["logits_bf16"] + (["logits_meta"] if "meta" in store else [])
    kept = {} if "tail" in store else {"logits": results["logits"]}
    if "tail" in store:
        kept["logits_tail"] = results["logits"][:, -TAIL:]
    if "vision" in store:
        names += ["vision_model.last_hidden_state", "cross_attention_states"]
    prefixes = tuple(f"{name}." for name in ("hidden_states", "attentions") if name in store)
    for name, value in results.items():
        if name in names or name.startswith(prefixes):
            kept[name] = value
    return kept


def write_case(oracle, out, name, samples, store, catches):
    alone = [oracle.process([sample]) for sample in samples]
    results = [oracle.forward(inputs) for inputs in alone]
    greedy = [oracle.greedy(inputs) for inputs in alone]
    tensors = batch_inputs(oracle, samples, alone)
    counts = [(oracle.labels(inputs)[:, 1:] != -100).sum() for inputs in alone]
    tensors["loss"] = sum(count * result["loss"]
                          for count, result in zip(counts, results)) / sum(counts)
    for i, (result, (tokens, _)) in enumerate(zip(results, greedy)):
        prefix = f"sample_{i}." if len(samples) > 1 else ""
        kept = {**wanted(result, store), "tokens": tokens}
        if prefix:
            kept["loss"] = result["loss"]
        tensors.update({prefix + key: value for key, value in kept.items()})
    save_file({key: value.contiguous().clone()
               for key, value in tensors.items()}, f"{out}/case_{name}.safetensors")
    with open(f"{out}/case_{name}.jsonl", "w") as file:
        file.writelines(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    tokenizer = oracle.processor.tokenizer
    continuations = []
    for tokens, logits in greedy:
        stopped = tokens[-1].item() in oracle.ends()
        continuations.append({
            "finish_reason": "stop" if stopped else "length", "margin": round(margin(logits), 6),
            "text": tokenizer.decode(tokens,
                                     skip_special_tokens=True,
                                     clean_up_tokenization_spaces=False)
        })
    prompts = [len(inputs["input_ids"][0]) for inputs in alone]
    return {
        "name": name, "catches": catches, "date": DATE, "max_new_tokens": NEW_TOKENS,
        "prompt_tokens": prompts, "continuations": continuations
    }


def make_checkpoint(name, spec, root):
    cases = CASES[spec["cases"]]
    for seed in range(1000):
        with tempfile.TemporaryDirectory() as trial:
            write_checkpoint(spec, trial, seed)
            reason = unsuitable(Oracle(spec, trial, root), cases)
        if reason is None:
            break
        print(f"{name}: not seed {seed} ({reason})", flush=True)
    out = f"{root}/{name}"
    write_checkpoint(spec, out, seed)
    oracle = Oracle(spec, out, root)
    write_json(out, "cases.json",
               [write_case(oracle, out, case, *parts) for case, parts in cases.items()])
    for file in os.listdir(out):
        os.chmod(f"{out}/{file}", 0o644)
    print(f"{name}: seed {seed}", flush=True)


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else f"{HERE}/models"
    names = sys.argv[2:] or list(CHECKPOINTS)
    write_pictures(f"{root}/pictures")
    for name in names:
        shutil.rmtree(f"{root}/{name}", ignore_errors=True)
        make_checkpoint(name, CHECKPOINTS[name], root)


if __name__ == "__main__":
    main()

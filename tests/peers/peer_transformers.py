"""transformers, timed on the slice: bfloat16, its default attention (sdpa), called as its own
generate() would."""
import copy
import time

import torch
import transformers
from safetensors.torch import load_file
from transformers import MllamaForConditionalGeneration


class Transformers:
    def __init__(self, checkpoint, threads):
        torch.set_num_threads(threads)
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.model = MllamaForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        self.contexts = {}  # (tokens, picture): the cache behind that prompt
        self.vision_rows = None  # (4, num_patches, hidden_size) of a picture of four tiles
        with torch.inference_mode():
            for parameter in self.model.parameters():  # every page, before the clock runs
                parameter.sum()
            self.model(input_ids=self.prompt(32), logits_to_keep=1)

    def prompt(self, tokens, picture=False):
        """(1, tokens) random ids, behind an image token if there is a picture."""
        config = self.model.config
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(0, config.text_config.vocab_size, (1, tokens), generator=generator)
        if picture:
            ids[0, 0] = config.image_token_index
        return ids

    def picture(self, tiles):
        """A picture of noise as the image processor would give it: padded with tiles of zeros."""
        vision = self.model.config.vision_config
        shape = {1: [1, 1], 4: [2, 2]}[tiles]
        side = vision.image_size
        pixels = torch.zeros(1, 1, vision.max_num_tiles, vision.num_channels, side, side)
        pixels[:, :, :tiles].normal_(generator=torch.Generator().manual_seed(2))
        mask = (torch.arange(vision.max_num_tiles) < tiles).long()
        return {
            "pixel_values": pixels.to(torch.bfloat16),
            "aspect_ratio_ids": torch.tensor([[vision.supported_aspect_ratios.index(shape) + 1]]),
            "aspect_ratio_mask": mask.view(1, 1, -1),
        }

    @torch.inference_mode()
    def time_vision(self, tiles):
        """Seconds from pixel values to the vision rows that the text tower sees."""
        inputs = self.picture(tiles)
        start = time.perf_counter()
        rows = self.encode(inputs)
        seconds = time.perf_counter() - start
        if tiles == 4:
            self.vision_rows = rows
        return seconds

    def encode(self, inputs):
        """(4, num_patches, hidden_size) vision rows, as MllamaModel.forward makes them"""
        model = self.model.model
        rows = model.vision_model(**inputs).last_hidden_state
        rows = model.multi_modal_projector(rows)
        return rows.reshape(-1, rows.shape[-2], model.hidden_size)

    def cross_attention_mask(self, tokens):
        return torch.ones(1, tokens, 1, self.model.config.vision_config.max_num_tiles,
                          dtype=torch.long)

    def prefill(self, tokens, picture):
        inputs = {}
        if picture:
            inputs["cross_attention_states"] = self.vision_rows
            inputs["cross_attention_mask"] = self.cross_attention_mask(tokens)
        return self.model(input_ids=self.prompt(tokens, picture), use_cache=True, logits_to_keep=1,
                          **inputs)

    @torch.inference_mode()
    def time_prefill(self, tokens, picture=False):
        """Seconds from ids to the logits of the last; with keys and values of the picture, without
        the vision tower."""
        if picture and self.vision_rows is None:
            self.vision_rows = self.encode(self.picture(4))
        start = time.perf_counter()
        output = self.prefill(tokens, picture)
        seconds = time.perf_counter() - start
        self.contexts[tokens, picture] = output.past_key_values
        return seconds

    @torch.inference_mode()
    def time_decode(self, context, new_tokens, batch=1, picture=False):
        """Seconds of a step of `batch` sequences behind `context` tokens, mean of `new_tokens`."""
        if (context, picture) not in self.contexts:
            self.time_prefill(context, picture)
        cache = copy.deepcopy(self.contexts[context, picture])
        if batch > 1:
            cache.batch_repeat_interleave(batch)
        token = self.prompt(1).repeat(batch, 1)
        mask = self.cross_attention_mask(context + new_tokens + 1) if picture else None

        def step(position):
            inputs = {"cross_attention_mask": mask[:, :position + 1]} if picture else {}
            self.model(input_ids=token, past_key_values=cache, logits_to_keep=1,
                       cache_position=torch.tensor([position]), **inputs)

        step(context)  # before the clock runs
        start = time.perf_counter()
        for i in range(new_tokens):
            step(context + 1 + i)
        return (time.perf_counter() - start) / new_tokens

    @torch.inference_mode()
    def last_logits(self, request):
        """(vocab_size) logits of the last token for the inputs in a file of `mllama forward`."""
        inputs = load_file(request)
        kept = {"input_ids", "pixel_values", "aspect_ratio_ids", "aspect_ratio_mask",
                "cross_attention_mask"}
        inputs = {name: inputs[name] for name in kept & inputs.keys()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
        return self.model(**inputs, logits_to_keep=1).logits[0, -1].float().tolist()

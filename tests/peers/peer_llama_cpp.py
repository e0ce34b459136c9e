"""llama.cpp, timed on the text-only part of the slice, through the C interface that
llama-cpp-python binds."""
import ctypes
import random
import time
from importlib.metadata import version

import llama_cpp as llama
from safetensors import safe_open

LONGEST = 1024  # positions of a sequence that a context has room for


class LlamaCpp:
    def __init__(self, path, threads):
        self.version = f"llama.cpp of llama-cpp-python {version('llama-cpp-python')}"
        llama.llama_backend_init()
        self.threads = threads
        parameters = llama.llama_model_default_params()
        self.model = llama.llama_model_load_from_file(path.encode(), parameters)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.contexts = {}  # sequences: context with room for so many
        self.filled = {}  # sequences: tokens of the prompt in that context, in each sequence
        # Every page of the file, before the clock runs.
        self.decode(self.context(1), [(0, range(32))])

    def context(self, sequences):
        if sequences not in self.contexts:
            parameters = llama.llama_context_default_params()
            parameters.n_ctx = sequences * LONGEST
            parameters.n_seq_max = sequences
            parameters.n_batch = parameters.n_ubatch = LONGEST
            parameters.n_threads = parameters.n_threads_batch = self.threads
            context = llama.llama_init_from_model(self.model, parameters)
            if not context:
                raise RuntimeError("llama.cpp makes no context")
            self.contexts[sequences] = context
        return self.contexts[sequences]

    def prompt(self, tokens):
        generator = random.Random(1)
        return [generator.randrange(self.vocabulary) for _ in range(tokens)]

    def decode(self, context, sequences, start=0):
        """One call: for each (sequence, ids) the ids from position `start` on. Logits of the last
        id of each."""
        count = sum(len(ids) for _, ids in sequences)
        batch = llama.llama_batch_init(count, 0, 1)
        for sequence, ids in sequences:
            for i, token in enumerate(ids):
                at = batch.n_tokens
                batch.token[at] = token
                batch.pos[at] = start + i
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = sequence
                batch.logits[at] = i + 1 == len(ids)
                batch.n_tokens += 1
        code = llama.llama_decode(context, batch)
        llama.llama_synchronize(context)
        llama.llama_batch_free(batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")

    def fill(self, sequences, tokens):
        """The context for so many sequences, with the same prompt, and nothing else, in each."""
        context = self.context(sequences)
        memory = llama.llama_get_memory(context)
        if self.filled.get(sequences) != tokens:
            llama.llama_memory_clear(memory, True)
            self.decode(context, [(0, self.prompt(tokens))])
            for sequence in range(1, sequences):
                llama.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
            self.filled[sequences] = tokens
        for sequence in range(sequences):
            llama.llama_memory_seq_rm(memory, sequence, tokens, -1)  # what was decoded before
        return context

    def time_prefill(self, tokens):
        """Seconds from ids to the logits of the last."""
        self.filled.pop(1, None)
        start = time.perf_counter()
        self.fill(1, tokens)
        return time.perf_counter() - start

    def time_decode(self, context, new_tokens, batch=1):
        """Seconds of a step of `batch` sequences behind `context` tokens, mean of `new_tokens`."""
        tokens, context = context, self.fill(batch, context)
        sequences = [(sequence, self.prompt(1)) for sequence in range(batch)]
        self.decode(context, sequences, tokens)  # before the clock runs
        start = time.perf_counter()
        for i in range(new_tokens):
            self.decode(context, sequences, tokens + 1 + i)
        return (time.perf_counter() - start) / new_tokens

    def last_logits(self, request):
        """(vocab_size) logits of the last token for the ids in a file of `mllama forward`."""
        ids = safe_open(request, framework="pt").get_tensor("input_ids")[0].tolist()
        context = self.context(1)
        self.filled.pop(1, None)
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        self.decode(context, [(0, ids)])
        logits = llama.llama_get_logits_ith(context, -1)
        return list(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * self.vocabulary)).contents)

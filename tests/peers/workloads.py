"""What is timed: for each workload the request to a peer's worker, and where this engine's bench
reports it."""
from dataclasses import dataclass

SEQUENCES = 8  # that are decoded together; the bench's own number


@dataclass(frozen=True)
class Workload:
    name: str
    picture: bool  # needs the vision tower and the cross-attention layers: not for llama.cpp
    request: dict  # to a worker, see worker.py
    ours: tuple  # key of Mllama.bench

    @property
    def group(self):
        return "picture" if self.picture else "text"


def workloads(tokens, new_tokens):
    decode = {"do": "time_decode", "context": tokens, "new_tokens": new_tokens}
    behind = ", behind a picture"
    return [
        Workload("vision, 4 tiles", True, {"do": "time_vision", "tiles": 4}, ("vision", 4)),
        Workload("vision, 1 tile", True, {"do": "time_vision", "tiles": 1}, ("vision", 1)),
        Workload(f"prefill of {tokens}{behind}", True,
                 {"do": "time_prefill", "tokens": tokens, "picture": True}, ("prefill", tokens)),
        Workload(f"a token at {tokens}{behind}", True, decode | {"picture": True}, ("decode", 1)),
        Workload(f"prefill of {tokens}", False, {"do": "time_prefill", "tokens": tokens},
                 ("prefill", tokens)),
        Workload(f"a token at {tokens}", False, decode, ("decode", 1)),
        Workload(f"a token of {SEQUENCES} sequences together at {tokens}", False,
                 decode | {"batch": SEQUENCES}, ("decode", SEQUENCES)),
    ]

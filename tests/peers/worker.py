"""A peer in a process of its own: loads once, then answers requests, a line of JSON each way.

    worker.py transformers CHECKPOINT THREADS
    worker.py llama.cpp    GGUF       THREADS

First line out: {"ready": "version"}. Then for a line {"do": METHOD, ...keywords} what that method
of the peer returns, as {"result": ...}, or {"error": "..."}. What libraries print goes to standard
error.
"""
import json
import os
import sys


def load_peer(name, path, threads):
    if name == "transformers":
        from peer_transformers import Transformers
        return Transformers(path, threads)
    if name == "llama.cpp":
        from peer_llama_cpp import LlamaCpp
        return LlamaCpp(path, threads)
    raise ValueError(f"peer {name}: expected transformers or llama.cpp")


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value):
        print(json.dumps(value), file=answers, flush=True)

    try:
        peer = load_peer(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    except Exception as error:  # whatever it is, the table goes on without this peer
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": peer.version})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer({"result": getattr(peer, request.pop("do"))(**request)})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()

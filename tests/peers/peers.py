#!/usr/bin/env python3
"""Times transformers, llama.cpp and this engine on the same random weights, in turns.

Prints a table of ratios. `make peers` runs it in an environment that has the peers (run.sh);
README.md says what is compared, and how.
"""
import argparse
import datetime
import glob
import json
import math
import os
import shutil
import subprocess
import sys

from peer_mllama import Mllama
from table import markdown, table_rows
from workloads import workloads

HERE = os.path.dirname(os.path.abspath(__file__))
PICTURE = f"{HERE}/../../apps/demo/pictures"
GIGABYTES = 12  # of the slice and its GGUF files
# The weights of this engine that stand against a peer's, if it offers them; else bf16.
PEERS = {"transformers bf16": "bf16", "llama.cpp BF16": "bf16", "llama.cpp Q8_0": "int8",
         "llama.cpp Q4_0": "int4"}
# How far logits may be from this engine's, root mean square, of their size. Roundings of bf16 make
# one or two hundredths; a wrong layer or a wrong order makes 1. Weights of 8 and 4 bits are others.
TOLERANCE = {"transformers bf16": 0.05, "llama.cpp BF16": 0.05, "llama.cpp Q8_0": 0.1,
             "llama.cpp Q4_0": 0.5}


def say(*words):
    print(*words, file=sys.stderr, flush=True)


class Worker:
    """A peer in its own process; see worker.py. Errors of the peer are RuntimeError."""

    def __init__(self, peer, path, threads, log):
        self.log = open(log, "w")
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, f"{HERE}/worker.py", peer, path, str(threads)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment)
        self.version = self.answer("ready")

    def answer(self, key):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"ended with status {self.process.wait()}, see {self.log.name}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{answer['error']}, see {self.log.name}")
        return answer[key]

    def ask(self, request):
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: answer() says how
        return self.answer("result")

    def close(self):
        self.process.kill()  # it holds nothing but memory
        self.process.wait()
        self.log.close()


def make(script, out, *arguments):
    """Runs a script of this folder that makes `out`, unless it is there."""
    if os.path.exists(out):
        return
    say(f"making {out}")
    made = subprocess.run([sys.executable, f"{HERE}/{script}", *arguments], stdout=sys.stderr,
                          stderr=subprocess.PIPE, text=True)
    if made.returncode != 0:
        raise RuntimeError(f"{script}: {made.stderr.strip().splitlines()[-1]}")


def make_slice(work):
    """The checkpoint, and room for it. Returns its directory."""
    checkpoint = f"{work}/slice"
    if not os.path.exists(checkpoint) and shutil.disk_usage(work).free < GIGABYTES * 1e9:
        sys.exit(f"peers: {work}: expected {GIGABYTES} GB free; another folder: "
                 "make peers MLLAMA_PEERS_WORK=FOLDER")
    make("slice_checkpoint.py", checkpoint, checkpoint)
    return checkpoint


def start_workers(arguments, checkpoint):
    """{peer: Worker}, without those that cannot be had; the reason is printed."""
    workers = {}
    for peer in arguments.peers:
        name, weights = peer.split()
        try:
            path = checkpoint
            if name == "llama.cpp":
                path = f"{arguments.work}/slice-{weights}.gguf"
                for needed in dict.fromkeys(["BF16", weights]):
                    gguf = f"{arguments.work}/slice-{needed}.gguf"
                    make("gguf_slice.py", gguf, checkpoint, gguf, needed)
            say(f"loading {peer}")
            workers[peer] = Worker(name, path, arguments.threads,
                                   f"{arguments.work}/{peer.replace(' ', '-')}.log")
        except RuntimeError as error:
            say(f"skipped: {peer}: {error}")
    return workers


def drop(workers, peer, reason):
    say(f"skipped: {peer}: {reason}")
    workers.pop(peer).close()


def distance(logits, ours):
    """Root mean square of the difference, of the size of ours."""
    square = sum((a - b)**2 for a, b in zip(logits, ours, strict=True))
    return math.sqrt(square / sum(b * b for b in ours))


def check_answers(engine, workers, work):
    """Do all compute the same? {peer, request: distance of its logits to ours}. A peer that does
    not is dropped from workers."""
    from safetensors import safe_open
    far = {}
    picture = sorted(glob.glob(f"{PICTURE}/*.png"))[0]
    for text, image in (("the digit is three", None), ("<|image|>the digit is three", picture)):
        request = f"{work}/request.safetensors"
        engine.forward(text, image, request)
        with safe_open(request, framework="pt") as file:
            ours = file.get_tensor("logits")[0, -1].tolist()
        for peer in list(workers):
            if image and peer.startswith("llama.cpp"):
                continue
            what = "with a picture" if image else "text"
            try:
                logits = workers[peer].ask({"do": "last_logits", "request": request})
            except RuntimeError as error:
                drop(workers, peer, error)
                continue
            found = distance(logits, ours)
            far[f"{peer}, {what}"] = found
            say(f"{peer}, {what}: logits differ by {found:.4f} of their size, "
                f"at most {TOLERANCE[peer]} is allowed")
            if found > TOLERANCE[peer]:
                drop(workers, peer, "computes something else")
    return far


def time_worker(worker, list_, repeats):
    """{workload: seconds}, the best of `repeats`"""
    best = {}
    for _ in range(repeats):
        for workload in list_:
            seconds = worker.ask(workload.request)
            best[workload.name] = min(seconds, best.get(workload.name, seconds))
    return best


def time_engine(engine, list_, arguments, dtype):
    """The same of this engine, and what its bench says of itself and the machine."""
    found, report = engine.bench(arguments.tokens, arguments.new_tokens, arguments.repeats,
                                 list_[0].picture, dtype)
    about = {"version": f"mllama ({report['isa']})", "limits": report["limits"]}
    return {workload.name: found[workload.ours] for workload in list_}, about


def time_rounds(arguments, engine, workers, ours, keep):
    """Everyone in turns, group by group; keep(who, {workload: seconds}, about) takes each turn."""
    for number in range(arguments.rounds):
        for group in arguments.groups:
            list_ = [w for w in arguments.workloads if w.group == group]
            for peer, worker in list(workers.items()):
                if group == "picture" and peer.startswith("llama.cpp"):
                    continue
                say(f"round {number + 1} of {arguments.rounds}: {group}: {peer}")
                try:
                    seconds = time_worker(worker, list_, arguments.repeats)
                except RuntimeError as error:
                    drop(workers, peer, error)
                    continue
                keep(peer, seconds, {"version": worker.version})
            for who in dict.fromkeys(ours.values()):
                dtype = who.split()[-1]
                if not arguments.engine or (group == "picture" and dtype != "bf16"):
                    continue
                say(f"round {number + 1} of {arguments.rounds}: {group}: {who}")
                keep(who, *time_engine(engine, list_, arguments, dtype))


def offered_weights(engine, work):
    """{peer: "mllama DTYPE"}: what of this engine stands against it."""
    offered = {dtype for dtype in set(PEERS.values())
               if engine.offers(dtype, f"{work}/request.safetensors")}
    return {peer: f"mllama {dtype if dtype in offered else 'bf16'}"
            for peer, dtype in PEERS.items()}


def cpu_name():
    """Name, family and model of the processor: some hosts hide the rest of the name."""
    found = {}
    with open("/proc/cpuinfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    name = found.get("model name", "unknown")
    if "cpu family" not in found:
        return name
    return f"{name} (family {found['cpu family']}, model {found['model']})"


def physical_cores():
    """Of the processors that this process may use: one for each set of siblings."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
                cores.add(file.read())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def versions(measurements):
    return list(dict.fromkeys(m["version"] for m in measurements))


def best_limits(measurements):
    """Of the machine, as this engine's bench measured them between its runs."""
    best = {}
    for limits in (m["limits"] for m in measurements if "limits" in m):
        for name, value in limits.items():
            best[name] = max(value, best.get(name, value))
    return best


def describe(about):
    text = (f"{about['date']}, {about['cpu']}, {about['threads']} threads; "
            f"{', '.join(about['versions'])}. A slice of the 11B shapes: 4 of 32 self-attention "
            "layers, 1 of 8 cross-attention layers, 4 of 32 local and 1 of 8 global vision layers; "
            "the whole vocabulary.")
    limits = about["limits"]
    if limits:
        text += (f" Limits in the same runs: {limits['read_gb_s']:.1f} GB/s read, "
                 f"{limits['bf16_gflop_s']:.0f} GFLOP/s in bf16.")
    return text


def print_table(arguments, measurements, ours, about):
    rows = table_rows(measurements, [w.name for w in arguments.workloads], ours)
    about |= {"versions": versions(measurements), "limits": best_limits(measurements)}
    if arguments.json:
        print(json.dumps({**about, "rows": rows}))
    elif not rows:
        say("nothing to compare: no peer was timed, or this engine was not")
    else:
        print(f"{describe(about)}\n\n{markdown(rows)}")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True, help="the mllama program")
    parser.add_argument("--work", required=True, help=f"keeps the weights, {GIGABYTES} GB")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--rounds", type=int, default=3, help="turns of everyone; 0: table only")
    parser.add_argument("--repeats", type=int, default=2, help="in a turn, the best counts")
    parser.add_argument("--tokens", type=int, default=512, help="of the prompt; at most 900")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--groups", nargs="+", choices=["picture", "text"],
                        default=["picture", "text"])
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--no-engine", dest="engine", action="store_false",
                        help="time the peers only")
    parser.add_argument("--no-check", dest="check", action="store_false",
                        help="time without comparing logits first")
    parser.add_argument("--measurements",
                        help="add to this file, and make the table of all that is in it")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not 1 <= arguments.tokens <= 900:
        parser.error("--tokens: expected 1 to 900")
    arguments.binary, arguments.work = map(os.path.abspath, (arguments.binary, arguments.work))
    arguments.workloads = workloads(arguments.tokens, arguments.new_tokens)
    return arguments


def main():
    arguments = parse_arguments()
    os.makedirs(arguments.work, exist_ok=True)
    store = arguments.measurements or f"{arguments.work}/measurements.jsonl"
    if not arguments.measurements and os.path.exists(store):
        os.remove(store)
    about = {"date": datetime.date.today().isoformat(), "cpu": cpu_name(),
             "threads": arguments.threads}
    checkpoint = make_slice(arguments.work)
    engine = Mllama(arguments.binary, checkpoint, arguments.threads)
    ours = offered_weights(engine, arguments.work)
    workers = start_workers(arguments, checkpoint) if arguments.rounds > 0 else {}

    def keep(who, seconds, what):
        with open(store, "a") as file:
            for workload, value in seconds.items():
                say(f"    {workload}: {value:.3f} s")
                measurement = {"who": who, "workload": workload, "seconds": value} | what
                file.write(json.dumps(measurement) + "\n")

    try:
        if arguments.check and workers:
            about["distances"] = check_answers(engine, workers, arguments.work)
        time_rounds(arguments, engine, workers, ours, keep)
    finally:
        for worker in workers.values():
            worker.close()
    measurements = []
    if os.path.exists(store):
        with open(store) as file:
            measurements = [json.loads(line) for line in file]
    print_table(arguments, measurements, ours, about)


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(f"peers: {error}")

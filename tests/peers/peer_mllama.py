"""This engine, timed by its own `bench` command and asked for logits by `forward`."""
import json
import subprocess


class Mllama:
    def __init__(self, binary, checkpoint, threads):
        self.binary = binary
        self.options = ["-m", checkpoint, "--threads", str(threads)]

    def call(self, command, *arguments):
        done = subprocess.run([self.binary, command, *self.options, *arguments],
                              capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return done.stdout

    def bench(self, tokens, new_tokens, repeats, picture, dtype="auto"):
        """{(kind, tiles, tokens or sequences): seconds, the best of `repeats`}, and all that the
        bench says."""
        report = json.loads(
            self.call("bench", "--json", "--prompt-tokens", str(tokens), "--new-tokens",
                      str(new_tokens), "--repeats", str(repeats), "--images", str(int(picture)),
                      "--dtype", dtype))
        seconds = {}
        for row in report["vision"]:
            seconds["vision", row["tiles"]] = row["seconds"]
        for row in report["prefill"]:
            seconds["prefill", row["tokens"]] = row["seconds"]
        for row in report["decode"]:
            seconds["decode", row["batch"]] = row["batch"] / row["tokens_per_s"]  # of a step
        return seconds, report

    def forward(self, prompt, image, out):
        """Writes inputs and logits of a prompt to `out`."""
        images = ["--image", image] if image else []
        self.call("forward", "--prompt", prompt, *images, "--out", out, "--logits-to-keep", "1")

    def offers(self, dtype, out):
        """Whether weights can be held so: quantising them on loading is not always on offer."""
        try:
            self.call("forward", "--prompt", "a", "--dtype", dtype, "--out", out)
        except RuntimeError:
            return False
        return True

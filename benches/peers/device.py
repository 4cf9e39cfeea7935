"""Marionette on the device beside the peers that are installed: all systems alternate, a process each, for several rounds.

    device.py MODEL [--rounds N] [--dialogues FILE] [--peers FOLDER] [--out FILE.md]

MODEL is a Hugging Face folder of a GPT-2 or a Llama with its tokenizer (random weights do), or a GGUF file of a Llama. FOLDER holds the same
weights as the peers want them, where they are: `f32.gguf`, `q8_0.gguf`, `q4_0.gguf` and `own.gguf` (the file that MODEL is) for llama.cpp,
`ct2-float32` and `ct2-int8` for CTranslate2 (convert.py makes them). The packages of the peers are looked for in the interpreter that runs this.
FILE holds dialogues in ConvAI2's text format.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
BINARIES = HERE.parent.parent / "target" / "release"
PRECISIONS = ("fp32", "int8", "int4")
PROMPT = "hello there"
RATES = {"gpt2": 0.2, "llama": 0.03}  # of marionette's steps
CONTEXT = 2048  # the most tokens of a GGUF file's model

DECODE = {"decode8": "1.1 × llama.cpp Q8_0", "decode4": "1.1 × llama.cpp Q4_0", "decode32": "1.1 × llama.cpp f32"}
# What each family is to reach: a job's figure, and that of the bundle on disk.
TARGETS = {
    "gpt2": {
        **DECODE,
        "adapt": "fp32 1.9 ×, int8 5.5 × PyTorch",
        "adapt-peak": "fp32 2 ×, int8 3.3 × less than PyTorch",
        "ten": "int8 20 × less than PyTorch",
        "prefill": "int8 1.5 × the best peer in 8 bits",
        "peak": "int4 1.25 × less than llama.cpp Q4_0",
        "start": "int4 0.4 s",
        "bundle": "int4 90 MB, all graphs and adapters",
    },
    "llama": {**DECODE, "adapt": "fp32 1.8 ×, int8 5 × PyTorch"},
}


def has(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def run(command):
    """Standard output, wall-clock seconds and peak memory in MiB of a process; None where it failed."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as problem:
        start = time.perf_counter()
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=problem)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        said, complaint = (file.seek(0) or file.read().decode(errors="replace") for file in (output, problem))
    if process.returncode != 0:
        print(f"{' '.join(map(str, command))}: {complaint.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return said, seconds, usage.ru_maxrss / 1024


def figures(command):
    result = run(command)
    return json.loads(result[0].strip().splitlines()[-1]) if result else {}


def bits(system):
    """Of a weight, by the system's name; the types of llama.cpp with 2 to 6 bits count as 4, since no others are beside them."""
    found = re.search(r" (?:fp|int|float|bf|f|i?q)(\d+)", system)
    count = int(found[1]) if found else 32
    return 4 if count <= 6 else count


class Job:
    """What is measured: its systems, and of each a figure a round."""

    def __init__(self, title, unit, better):
        self.title, self.unit, self.better, self.target = title, unit, better, None
        self.found = {}

    def add(self, system, value):
        if value is not None:
            self.found.setdefault(system, []).append(value)

    def table(self):
        medians = {system: statistics.median(values) for system, values in self.found.items()}
        best_of = {"more": max, "less": min}[self.better]
        peers = {system: value for system, value in medians.items() if not system.startswith("marionette")}
        head = f"| system | {self.unit}, median | least – most | beside the best peer of as many bits, or else of all |"
        lines = [f"### {self.title}", "", head, "|---|---|---|---|"]
        for system, value in medians.items():
            alike = [other for name, other in peers.items() if bits(name) == bits(system)] or peers.values()
            best = best_of(alike, default=None)
            own = system.startswith("marionette") and best
            ratio = "–" if not own else f"{value / best if self.better == 'more' else best / value:.2f} ×"
            values = self.found[system]
            lines.append(f"| {system} | {value:.4g} | {min(values):.4g} – {max(values):.4g} | {ratio} |")
        return "\n".join([*lines, "", *([f"Aimed at: {self.target}.", ""] if self.target else [])])


def machine():
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    instructions = "AVX-512 with VNNI" if has_vnni() else "AVX2" if "avx2" in flags() else platform.machine()
    system = f"{platform.system()} {platform.release()}"
    return f"{cpu} ({instructions}), {os.cpu_count()} virtual cores, {memory:.0f} GiB, {system}"


def flags():
    return next((line.split(":")[1].split() for line in open("/proc/cpuinfo") if line.startswith("flags")), [])


def has_vnni():
    return "avx512_vnni" in flags()


def shape(config):
    """Layers, width, vocabulary, and of a layer the weights of queries, keys and values and those of its other matrices."""
    if config["model_type"] == "llama":
        width, heads = config["hidden_size"], config["num_attention_heads"]
        groups, head = config.get("num_key_value_heads") or heads, config.get("head_dim") or width // heads
        asked, others = width * head * (heads + 2 * groups), width * head * heads + 3 * width * config["intermediate_size"]
        layers = config["num_hidden_layers"]
    else:
        # 3 + 1 + 4 + 4 times width squared.
        width, layers = config["n_embd"], config["n_layer"]
        asked, others = 3 * width**2, width**2 + 2 * width * (config.get("n_inner") or 4 * width)
    return layers, width, config["vocab_size"], asked, others


def limits_text(config, jobs, weights, limits):
    """Each figure of ours as work done in a second, against what the machine does at most."""
    layers, width, vocabulary, asked, others = shape(config)
    # Forward for every token, and back but for the first layer's queries, keys and values. The head, both ways, for a quarter of the
    # tokens.
    operations = 2 * (2 * layers * (asked + others) - asked) + 4 * width * vocabulary / 4
    gflop, gb = (statistics.median(limits[what]) for what in ("gflop", "gb"))
    lines = [
        "### Where the machine stops",
        "",
        f"PyTorch multiplies f32 matrices at {gflop:.0f} GFLOP/s (1536 × 1536) and reads memory at {gb:.0f} GB/s (a sum over 256 MiB). "
        + (
            "Instructions for dot products of bytes (VNNI) do four times as many operations. "
            if has_vnni()
            else "Without instructions for dot products of bytes (VNNI), products of 16-bit integers do twice as many operations. "
        )
        + "Counted are the frozen matrices' products alone, "
        "and, while decoding, each weight read once a token.",
        "",
        "| what | a second | of the machine's |",
        "|---|---|---|",
    ]
    median = lambda job, name: statistics.median(jobs[job].found.get(name, [0.0]))
    for precision, bits in zip(PRECISIONS, (32, 8, 4)):
        done = 1e-9 * operations * median("adapt", f"marionette {precision}")
        most = gflop if bits == 32 else (4 if has_vnni() else 2) * gflop
        lines.append(f"| adapt {precision} | {done:.0f} G operations | {100 * done / most:.0f} % |")
    for precision, bits in zip(PRECISIONS, (32, 8, 4)):
        read = 1e-9 * weights[precision] * median(f"decode{bits}", f"marionette {precision}")
        lines.append(f"| decode {precision} | {read:.1f} GB | {100 * read / gb:.0f} % |")
    return lines


def described(config):
    layers, width, vocabulary, *_ = shape(config)
    family = {"gpt2": "GPT-2", "llama": "Llama"}[config["model_type"]]
    return f"A {family} of {layers} layers, width {width} and {vocabulary} tokens."


def loss_text(losses, size, rate):
    """What the ten dialogues' epoch did to the loss; a step takes so many of them."""
    said = ", ".join(f"{name} {change}" for name, change in losses.items())
    return (
        f"The epoch's loss on the replies of the first of the ten dialogues, as many as a step takes ({size}): {said}. "
        f"Whole dialogues in steps of {size} with a learning rate of {rate}, and an example a reply in steps of 4 with 0.01."
    )


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", type=pathlib.Path)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--dialogues", type=pathlib.Path)
    arguments.add_argument("--peers", type=pathlib.Path, default=pathlib.Path("/nonexistent"))
    arguments.add_argument("--out", type=pathlib.Path)
    options = arguments.parse_args()
    marionette, peer = BINARIES / "marionette", [sys.executable, HERE / "peer.py"]
    packages = {name: has(name) for name in ("torch", "transformers", "peft", "ctranslate2", "llama_cpp_python")}

    jobs = {
        "adapt": Job("Adapt, 4 rows of 128 tokens", "tokens/s", "more"),
        "adapt-peak": Job("Adapt, peak memory", "MiB", "less"),
        "ten": Job("Ten dialogues, one epoch, from start to saved persona", "s", "less"),
        "prefill": Job("Prefill, 64 tokens", "tokens/s", "more"),
        "decode8": Job("Decode, 128 tokens, 8 bits", "tokens/s", "more"),
        "decode4": Job("Decode, 128 tokens, 4 bits", "tokens/s", "more"),
        "decode32": Job("Decode, 128 tokens, 32 bits", "tokens/s", "more"),
        "peak": Job("Generate, peak memory", "MiB", "less"),
        "start": Job("Process start to first token (llama.cpp: from loading on, without Python's start)", "s", "less"),
        "start-peak": Job("Process start to first token, peak memory (llama.cpp: with Python's)", "MiB", "less"),
    }
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model = options.model
        if model.suffix == ".gguf":
            model = folder / "model"
            bring = [BINARIES / "marionette-export", "import", options.model, "--out", model]
            if run([*bring, "--context", CONTEXT]) is None and run(bring) is None:  # the file's own may be shorter
                sys.exit(1)
        config = json.loads((model / "config.json").read_text(encoding="utf8"))
        if (targets := TARGETS.get(config["model_type"])) is None:
            sys.exit(f"{options.model} is a {config['model_type']}, expected one of {', '.join(TARGETS)}")
        rate = RATES[config["model_type"]]
        for name, job in jobs.items():
            job.target = targets.get(name)
        sizes, weights, losses, limits = {}, {}, {}, {"gflop": [], "gb": []}
        for precision in PRECISIONS:
            bundle = folder / precision
            if run([BINARIES / "marionette-export", model, "--precision", precision, "--out", bundle]) is None:
                sys.exit(1)
            sizes[precision] = sum(file.stat().st_size for file in bundle.iterdir()) / 1e6
            weights[precision] = sum((bundle / file).stat().st_size for file in ("weights.bin", "adapters.safetensors"))
        ten = folder / "ten.txt"
        if options.dialogues:
            dialogues = options.dialogues.read_text(encoding="utf8").splitlines(keepends=True)
            starts = [index for index, line in enumerate(dialogues) if line.startswith("1 ")]
            ten.write_text("".join(dialogues[: starts[10] if len(starts) > 10 else None]), encoding="utf8")

        def generate(name, command):
            found = figures(command)
            jobs["prefill"].add(name, found.get("prefill_tokens_per_s"))
            if decode := jobs.get(f"decode{bits(name)}"):
                decode.add(name, found.get("decode_tokens_per_s"))
            jobs["peak"].add(name, found.get("peak_rss_mib"))

        def adapt(name, command):
            found = figures(command)
            jobs["adapt"].add(name, found.get("adapt_tokens_per_s"))
            jobs["adapt-peak"].add(name, found.get("peak_rss_mib"))

        manifest = json.loads((folder / "fp32" / "manifest.json").read_text(encoding="utf8"))
        per_step = manifest["inner_loop"]["dialogues_per_step"]
        ggufs = {}
        if packages["llama_cpp_python"]:
            files = [(kind, options.peers / f"{kind}.gguf") for kind in ("f32", "q8_0", "q4_0")]
            ggufs = {f"llama.cpp {kind}": path for kind, path in files if path.is_file()}
            own = options.peers / "own.gguf"
            if own.is_file() and (kind := figures([*peer, "gguf-type", own]).get("type")):
                ggufs[f"llama.cpp {kind} (the file itself)"] = own

        for round_ in range(options.rounds):
            print(f"round {round_ + 1} of {options.rounds}", file=sys.stderr)
            for precision in PRECISIONS:
                name, bundle = f"marionette {precision}", folder / precision
                bench = [marionette, "bench", bundle, "--threads", 2, "--json", "--only"]
                generate(name, [*bench, "generate"])
                adapt(name, [*bench, "adapt"])
                first = [marionette, "generate", bundle, "--prompt", PROMPT, "--max-tokens", 1, "--threads", 2]
                if result := run(first):
                    jobs["start"].add(name, result[1])
                    jobs["start-peak"].add(name, result[2])
                if options.dialogues:
                    learn = [marionette, "adapt", bundle, "--persona", "ten", "--dialogues", ten, "--epochs", 1, "--even-if-worse"]
                    if result := run([*learn, "--inner-lr", rate, "--threads", 2, "--home", folder / "home"]):
                        jobs["ten"].add(name, result[1])
                        losses[name] = result[0].split(" on ")[0].split("loss ")[1].replace("->", "to")
                        seconds = float(result[0].split(" steps, ")[1].split(" s ")[0])
                        jobs["ten"].add(f"{name}, the steps and the loss after them", seconds)
            if packages["torch"] and packages["transformers"]:
                generate("PyTorch fp32", [*peer, "torch", model])
                adapt("PyTorch fp32", [*peer, "torch-adapt", model])
                if packages["peft"]:
                    adapt("PEFT LoRA fp32", [*peer, "torch-lora", model])
                if options.dialogues:
                    if result := run([*peer, "torch-ten", model, ten, folder / "fp32"]):
                        found = json.loads(result[0].strip().splitlines()[-1])
                        jobs["ten"].add("PyTorch fp32, from start to last step", result[1] - found["losses_s"])
                        jobs["ten"].add("PyTorch fp32, the steps alone", found["ten_dialogues_s"])
                        losses["PyTorch fp32"] = f"{found['loss_before']:.4f} to {found['loss_after']:.4f}"
                found = figures([*peer, "limits"])
                limits["gflop"].append(found.get("gflop_per_s", 0.0))
                limits["gb"].append(found.get("gb_per_s", 0.0))
            for kind in ("float32", "int8"):
                if packages["ctranslate2"] and (path := options.peers / f"ct2-{kind}").is_dir():
                    generate(f"CTranslate2 {kind}", [*peer, "ct2", path, kind])
            for name, path in ggufs.items():
                generate(name, [*peer, "llama", path])
                found = figures([*peer, "llama-start", path, folder / "fp32", PROMPT])
                jobs["start"].add(name, found.get("first_token_s"))
                jobs["start-peak"].add(name, found.get("peak_rss_mib"))

    missing = [name for name, version in packages.items() if version is None]
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    text = [
        f"# {options.model.resolve().name.removesuffix('.gguf')} on the device, beside others",
        "",
        f"{described(config)} {datetime.date.today()}; {machine()}; two threads. {versions or 'No peers installed'}.",
        f"Written by `benches/peers/device.py MODEL --dialogues FILE --peers FOLDER --out docs/{options.out.name if options.out else 'device.md'}`: "
        f"{options.rounds} rounds in which all systems alternate, a process each; ratios are of medians, above 1 where marionette is better.",
        "",
        *(job.table() for job in jobs.values() if job.found),
        *([loss_text(losses, per_step, rate), ""] if losses else []),
        "### Bundle on disk",
        "",
        *(f"- {precision}: {size:.1f} MB" for precision, size in sizes.items()),
        "",
        *([f"Aimed at: {targets['bundle']}.", ""] if "bundle" in targets else []),
        *(limits_text(config, jobs, weights, limits) if limits["gflop"] else []),
    ]
    if missing:
        text += ["", f"Left out, since they are not installed: {', '.join(missing)}."]
        print(f"`pip install` for {sys.executable}: {', '.join(missing)}", file=sys.stderr)
    text = "\n".join(text) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf8")
    print(text)


if __name__ == "__main__":
    main()

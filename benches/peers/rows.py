"""Several conversations at once on this machine: marionette's rows, each a persona with adapters of its own, beside llama.cpp's sequences.

    python benches/peers/rows.py BUNDLE MODEL.gguf [--rows 1,2,4,8] [--rounds 3] [--threads 2] [--program target/release/marionette]

BUNDLE is of eight bits and MODEL.gguf the same model as Q8_0. llama.cpp's server gives each of its slots a sequence of one context and reads a
token of each in one batch; that is what is done here, without the HTTP around it. (It reads slots whose LoRA adapters differ one after the
other; here it has none.) The systems alternate, a process each; the table is of medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

PROMPT, NEW = 64, 128


def llama(path, rows, threads):
    """Tokens a second of so many sequences, greedy: the median of five, after one to warm up."""
    import llama_cpp
    import numpy

    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_seq_max = rows * (PROMPT + NEW), rows
    settings.n_batch = settings.n_ubatch = max(PROMPT, rows)
    settings.n_threads = settings.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, settings)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(settings.n_batch, 0, 1)

    def read(tokens):
        """Of each (token, position, sequence, whether logits are wanted)."""
        batch.n_tokens = len(tokens)
        for index, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.logits[index] = token, position, wanted
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        if llama_cpp.llama_decode(context, batch) != 0:
            sys.exit("llama_decode failed")

    def most_likely(index):
        logits = llama_cpp.llama_get_logits_ith(context, index)
        return int(numpy.ctypeslib.as_array(logits, shape=(vocabulary,)).argmax())

    times = []
    for _ in range(6):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        following = []
        for row in range(rows):
            prompt = [((row + index) * 7919 % vocabulary, index, row, index == PROMPT - 1) for index in range(PROMPT)]
            read(prompt)
            following.append(most_likely(PROMPT - 1))
        begun = time.perf_counter()
        for step in range(NEW - 1):
            read([(token, PROMPT + step, row, 1) for row, token in enumerate(following)])
            following = [most_likely(row) for row in range(rows)]
        times.append(time.perf_counter() - begun)
    return rows * (NEW - 1) / statistics.median(times[1:])


def marionette(program, bundle, rows, threads):
    command = [program, "bench", bundle, "--only", "generate", "--rows", str(rows), "--threads", str(threads), "--json"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(found)["rows"][0]["tokens_per_s"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle")
    parser.add_argument("gguf")
    parser.add_argument("--rows", default="1,2,4,8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--program", default="target/release/marionette")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(llama(options.gguf, options.one, options.threads))
        return
    numbers = [int(rows) for rows in options.rows.split(",")]
    found = {(system, rows): [] for system in ("marionette", "llama.cpp") for rows in numbers}
    for _ in range(options.rounds):
        for rows in numbers:
            rate = marionette(options.program, options.bundle, rows, options.threads)
            found["marionette", rows].append(rate)
            itself = [sys.executable, __file__, options.bundle, options.gguf, "--threads", str(options.threads), "--one", str(rows)]
            alone = subprocess.run(itself, check=True, capture_output=True, text=True).stdout
            found["llama.cpp", rows].append(float(alone.split()[-1]))
    print("| rows | marionette, tokens/s | times one row | llama.cpp, tokens/s | times one row | ratio |")
    print("|---|---|---|---|---|---|")
    medians = {key: statistics.median(rates) for key, rates in found.items()}
    for rows in numbers:
        ours, theirs = medians["marionette", rows], medians["llama.cpp", rows]
        first, others = (medians[system, numbers[0]] for system in ("marionette", "llama.cpp"))
        print(f"| {rows} | {ours:.1f} | {ours / first:.2f} | {theirs:.1f} | {theirs / others:.2f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()

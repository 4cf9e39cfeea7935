"""Perplexity of GGUF files by llama.cpp, on the tokens on which the example `precisions` measures marionette's.

    cargo run --release -p marionette-benches --example precisions -- MODEL DIALOGUES 4 32 tokens=TOKENS.jsonl
    perplexity.py TOKENS.jsonl FILE.gguf...

A line of TOKENS.jsonl is a dialogue: its token ids, and which of them count. The files are those of convert.py.
"""

import argparse
import json
import math
import pathlib

import numpy
from llama_cpp import Llama


def perplexity(file, dialogues):
    longest = max(len(dialogue["ids"]) for dialogue in dialogues)
    model = Llama(str(file), n_ctx=longest, n_batch=longest, logits_all=True, verbose=False)
    losses = []
    for dialogue in dialogues:
        ids = dialogue["ids"]
        model.reset()
        model.eval(ids)
        logits = numpy.array(model.scores[: len(ids)], dtype=numpy.float64)
        # A token is foretold by those before it.
        for position in (at for at, counts in enumerate(dialogue["target"]) if counts):
            row = logits[position - 1]
            greatest = row.max()
            losses.append(greatest + math.log(numpy.exp(row - greatest).sum()) - row[ids[position]])
    return math.exp(numpy.mean(losses)), len(losses)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=pathlib.Path)
    parser.add_argument("files", type=pathlib.Path, nargs="+")
    arguments = parser.parse_args()
    dialogues = [json.loads(line) for line in arguments.tokens.read_text().splitlines()]
    print("| file | perplexity | tokens |\n|---|---|---|")
    for file in arguments.files:
        value, number = perplexity(file, dialogues)
        print(f"| {file.name} | {value:.3f} | {number} |", flush=True)


if __name__ == "__main__":
    main()

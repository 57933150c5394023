"""Where losses and their gradients fail, and the error of sdjax's gradients against float64.

    python benchmarks/numerics.py [--sizes=512,2048,8192] [--quick] [--out=runs/numerics.md]

Prints two Markdown tables. The second takes minutes at 8,192 rows; `--quick` takes half a minute.
"""

from pathlib import Path

from absl import app, flags
from peers import precision, symptoms
from peers.hard_cases import hard_cases
from peers.subjects import BY_NAME
from peers.tables import markdown

SIZES = flags.DEFINE_list("sizes", ["512", "2048", "8192"], "Rows B of the second table.")
QUICK = flags.DEFINE_bool("quick", False, "256 rows alone in the second table.")
OUT = flags.DEFINE_string("out", "", "File to write the tables to as well.")
COLUMNS = {
    "sdjax dense": "sdjax dense",
    "sdjax tiled": "sdjax tiled",
    "optax ntxent": "optax ntxent (one label)",
    "SupContrast form": "SupContrast form, SD",
    "MulSupCon form": "MulSupCon form",
    "pytorch-metric-learning": "pytorch-metric-learning, overlap",
}
RELATIVES = {
    f"{name} {core}": f"sdjax {name}, {core}"
    for name in ("prototype", "msc", "mscwrg", "mscrg", "label_wise")
    for core in ("dense", "tiled")
} | {"herocon": "sdjax herocon"}
ROBUSTNESS = f"""# Losses: numerics

## What fails

16 rows of 8 numbers, τ from {symptoms.TEMPERATURES[0]} to {symptoms.TEMPERATURES[-1]:g},
embeddings in {", ".join(symptoms.DTYPES)}; a loss computes in the dtype that it is given, without
PyTorch's autocast, which would put exponentials and logarithms into float32. "ok" is a finite value
and gradient that are not 0 where they should not be, the value within 10% and the gradient within
50% of the same loss in float64 at the same rounded embeddings. A condition without a dtype holds
for all three.
"""
OF_RELATIVES = """The other losses of sdjax, in both cores where they have both:
"""
PRECISION = """
## Error of the gradient of `sdjax.sd_loss`

‖g − g64‖ / ‖g64‖ at the same rounded embeddings, D = 256; a bfloat16 gradient is itself rounded,
which alone is 1.7e-03. "Near duplicates": clusters of 16 rows, 1% apart, each with one label set.
"""


def robustness_table(columns: dict[str, str]) -> str:
    rows = []
    for name, batch in hard_cases().items():
        cells = [symptoms.cell(BY_NAME[subject], batch) for subject in columns.values()]
        rows.append([name, *cells])
    return markdown(["", *columns], rows, text_columns=1 + len(columns))


def precision_table(sizes: list[int]) -> str:
    rows = []
    for size in sizes:
        for kind, (z, labels) in precision.batches(size).items():
            for temperature in precision.TEMPERATURES:
                cells = []
                for dtype in precision.DTYPES:
                    cells += precision.errors(z, labels, dtype, temperature)
                rows.append([f"B = {size:,}, {kind}, τ = {temperature:g}", *cells])
    dtypes, names = precision.DTYPES, precision.IMPLEMENTATIONS
    return markdown(["", *(f"{name}, {dtype}" for dtype in dtypes for name in names)], rows)


def main(argv: list[str]) -> None:
    del argv
    text = "\n".join(
        [ROBUSTNESS, robustness_table(COLUMNS), OF_RELATIVES, robustness_table(RELATIVES)]
    )
    print(text)
    sizes = [256] if QUICK.value else [int(size) for size in SIZES.value]
    accuracy = PRECISION + "\n" + precision_table(sizes)
    print(accuracy)
    if OUT.value:
        path = Path(OUT.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + accuracy)


if __name__ == "__main__":
    app.run(main)

"""Memory and time of label-wise attention, all labels at once and in chunks.

    python benchmarks/label_attention.py

Value and gradient of the mean binary cross-entropy with respect to the states of the tokens and to
all parameters. Memory is that of temporaries, as the compiler plans it (`memory_analysis`); nothing
of it is run but with --run, which takes the times of one step.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags
from flax import nnx

from sdjax.models.encoders import TokenStates
from sdjax.models.label_attention import LabelAttention

LABELS = flags.DEFINE_integer("labels", 8921, "Number of labels C.")
TOKENS = flags.DEFINE_integer("tokens", 3072, "Tokens of a text T.")
BATCH = flags.DEFINE_integer("batch", 8, "Texts B.")
WIDTH = flags.DEFINE_integer("width", 768, "Of states, queries and keys.")
CHUNKS = flags.DEFINE_list("chunks", ["0", "1024", "512", "256"], "Labels at once; 0: all.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
RUN = flags.DEFINE_bool("run", False, "Also take the time of a step.")


def compiled(chunk: int) -> tuple[Any, Any]:
    """The compiled step, and shapes of what it takes."""
    options: dict[str, Any] = {"width": WIDTH.value, "chunk": chunk, "dtype": DTYPE.value}

    def make() -> LabelAttention:
        return LabelAttention(WIDTH.value, LABELS.value, rngs=nnx.Rngs(0), **options)

    graph, params = nnx.split(nnx.eval_shape(make))

    def loss(params: Any, states: jax.Array, mask: jax.Array, labels: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params)(TokenStates(states, mask))
        return optax.sigmoid_binary_cross_entropy(logits, labels).mean()

    shape = (BATCH.value, TOKENS.value)
    given = (
        params,
        jax.ShapeDtypeStruct((*shape, WIDTH.value), DTYPE.value),
        jax.ShapeDtypeStruct(shape, jnp.bool_),
        jax.ShapeDtypeStruct((BATCH.value, LABELS.value), jnp.float32),
    )
    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*given).compile(), given


def main(argv: list[str]) -> None:
    del argv
    print(f"| labels at once | temporaries, GB |{' seconds |' * RUN.value}")
    print(f"|---|---|{'---|' * RUN.value}")
    for chunk in map(int, CHUNKS.value):
        step, given = compiled(chunk or LABELS.value)
        memory = step.memory_analysis().temp_size_in_bytes / 1e9
        row = f"| {chunk or 'all'} | {memory:.2f} |"
        if RUN.value:
            arrays = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), given)
            start = time.monotonic()
            jax.block_until_ready(step(*arrays))
            row += f" {time.monotonic() - start:.1f} |"
        print(row, flush=True)


if __name__ == "__main__":
    app.run(main)

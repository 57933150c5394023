"""Contrastive losses beside sdjax's, and the harness that measures them in subprocesses.

Used by two commands, from the root of the repository:

    python benchmarks/losses.py      speed and memory
    python benchmarks/numerics.py    values and gradients that fail, error against float64

They need `pip install torch pytorch-metric-learning` beside `sdjax[train]`; a subject whose package
is missing is reported as not available. The harness reads Linux's /proc.

One module is one subject, with `prepare(z, labels, num_classes, temperature, **options)` giving a
`Step`, which computes value and gradient and waits for both:

    sdjax_losses     sdjax
    plain_jax        the Similarity-Dissimilarity loss in a few lines of jax.numpy
    optax_ntxent     optax's NT-Xent, single-label
    products         the matrix products of a tiled loss and nothing else: the limit
    supcontrast      PyTorch, the masked form of Khosla et al. 2020
    mulsupcon        PyTorch, the expanded form of Zhang & Wu, AAAI 2024
    metric_learning  the SupConLoss of pytorch-metric-learning

Modules of PyTorch forms are written from the papers' equations; they hold no code of others.

The harness: `subjects` (the table of what is measured), `case` (sizes and data), `worker` (the
subprocess), `pool` (its parent: caps on time and memory), `schedule` (order of measurements),
`memory`, `load` (of other programs), `tables`, `plots`, `float64` (reference values), `hard_cases`
(batches that break losses), `symptoms` (what breaks on them), `precision` (error of gradients).
"""

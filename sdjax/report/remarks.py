"""One sentence where a figure is not what theory, or a reader, would expect of it."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sdjax import relations
from sdjax.report import figures, pairs
from sdjax.report.label_scatter import FEWEST_POSITIVES

LEAST_DIFFERENCE = 0.01  # of similarities, and of weights, that is more than chance
NAMES_SHOWN = 5


def weights_by_relation(loss: str, table: pairs.PairTable, threshold: float) -> dict[int, float]:
    """The mean weight that `loss` gives the pairs of each relation that occurs.

    Of a loss whose weights depend on the batch, or that has none, only what is known of all:
    1 for identical and 0 for disjoint label sets.
    """
    present = {code for code in figures.RELATIONS if table.totals()[code - 1]}
    if loss not in relations.WEIGHTS:
        return {code: weight for code, weight in ((1, 0.0), (2, 1.0)) if code in present}
    weights = pairs.all_weights(table, threshold)[loss]
    return {code: spread.mean for code, spread in pairs.weight_spread(table, weights).items()}


def order_of_similarities(
    name: str, similarity: Mapping[int, tuple[float, float]], weights: Mapping[int, float]
) -> str:
    """Which relations of more weight than others have a lower mean similarity; "" for none.

    Args:
      name: of the embeddings.
      similarity: mean and standard deviation, by relation.
      weights: mean weights, by relation.
    """
    found = []
    codes = sorted(weights.keys() & similarity.keys(), key=lambda code: -weights[code])
    for place, high in enumerate(codes):
        for low in codes[place + 1 :]:
            closer, farther = similarity[high][0], similarity[low][0]
            heavier = weights[high] - weights[low] > LEAST_DIFFERENCE
            if heavier and farther - closer > LEAST_DIFFERENCE:
                names = [figures.RELATIONS[code].name for code in (high, low)]
                found.append(
                    f"{names[0]} (weight {weights[high]:.2f}) is less similar than {names[1]} "
                    f"({weights[low]:.2f}), {closer:.3f} against {farther:.3f}"
                )
    if not found:
        return ""
    return f"In {name} the order of similarities is not that of the weights: {'; '.join(found)}."


def worse_than_chance(
    label_names: Sequence[str],
    average_precision: NDArray[np.floating],
    positives: NDArray[np.integer],
    num_rows: int,
) -> str:
    """Which labels with a few positives rank worse than at random; "" for none."""
    known = positives >= FEWEST_POSITIVES
    places = np.flatnonzero(known & (average_precision < positives / max(num_rows, 1)))
    if not len(places):
        return ""
    worst = places[np.argsort(average_precision[places] - positives[places] / num_rows)]
    shown = ", ".join(label_names[int(place)] for place in worst[:NAMES_SHOWN])
    more = ", ..." if len(places) > NAMES_SHOWN else ""
    return (
        f"Of the labels with at least {FEWEST_POSITIVES} test examples, {len(places):,} are ranked "
        f"worse than at random: {shown}{more}."
    )

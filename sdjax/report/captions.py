"""What stands below the figures of the report."""

from sdjax.report import embedding, figures, label_scatter, pairs

LEARNING = (
    "Above: the training loss of each phase, on its own scale; where a phase adds two losses, "
    "their sum and each of them. A value is the mean over the steps since the one before; where "
    "there are many, the pale line holds them and the dark one their running mean. Below: metrics "
    "on the validation split; the star marks the best mAP, the dashed line, where it is known, the "
    "step that was tested, and phases, where there are several, are named at the top of their "
    "stretch."
)
WEIGHTS = (
    "What each loss of the family makes of the training pairs, a panel a weight function. Dot and "
    "number: mean weight over the pairs of that relation; thick bar: the middle half; thin line: "
    "from least to greatest. R1 has weight 0 in all of them. MulSupCon is missing because its "
    "weights depend on the batch."
)
EMBEDDINGS = (
    "Two embeddings of the test examples: h, what the encoder gives and the classifier reads, and "
    "z, its projection, which the contrastive loss compares."
)
NEIGHBORS = (
    "Test rows, drawn at random among those with a label, and the rows of train that are nearest "
    "to each by the cosine of h. Labels that a neighbour shares with the test row are **bold**; "
    "Jaccard is the share of common labels among those of both."
)
PICTURES = "To the left the test row. Above its neighbours the cosine, below them the labels."
STALE_PROJECTION = (
    " The projection is that of pretraining: fine-tuning has changed the encoder under it since."
)


def labels(num_labels: int) -> str:
    """Of the scatter of labels, of which `num_labels` have a positive test example."""
    text = (
        "Each dot is a label that has a positive test example; labels to the left are rare in "
        "training. The red dash is the label's share of the test examples, which is the average "
        "precision of a random ranking: what lies between the two is what the model has learnt."
    )
    if num_labels > label_scatter.STEMS_UP_TO:
        text += " The lines are means over labels of like frequency."
    if num_labels > label_scatter.ANNOTATE_UP_TO:
        return text + (
            f" Named are the best and the worst of the labels with at least "
            f"{label_scatter.FEWEST_POSITIVES} test examples."
        )
    return text + " A name that would cover something is left out; the table has them all."


def shares(table: pairs.PairTable) -> str:
    """Of the shares of the relations in the pairs of `table`."""
    sampled = (
        f" Counted in {table.rows:,} of {table.of_rows:,} rows, drawn at random."
        if table.rows < table.of_rows
        else ""
    )
    meanings = "; ".join(f"{s.name}: {s.meaning}" for s in figures.RELATIONS.values())
    return (
        "Every ordered pair (anchor, candidate) of training examples stands in one of five "
        f"relations. {meanings}. Above: all pairs; below: only the pairs that share a label, "
        f"which a contrastive loss pulls together. R4 and R5 mirror each other.{sampled}"
    )


def embedding_map(name: str, num_examples: int) -> str:
    """Of the map of the embeddings `name`, "h" or "z", of so many test examples."""
    sampled = (
        f" Shown are {embedding.MAX_POINTS:,} of {num_examples:,} examples, drawn at random."
        if num_examples > embedding.MAX_POINTS
        else ""
    )
    if name == "z":
        return f"The same of z.{sampled}"
    return (
        "The embeddings h of the test examples, scaled to unit length, on their first two "
        "principal components: the same points in every panel, coloured by their relation to that "
        "panel's anchor (star). Below each panel: how many examples stand in each relation. A good "
        "embedding has R2 next to the star, R3 to R5 around it by how much they share, R1 (gray) "
        "far off. Two components show only the stated part of the variance; the table below is of "
        f"the full embedding.{sampled}"
    )

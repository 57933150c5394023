"""Reports without figures: to build and to draw them takes most of the time of a short run."""


def leave_figures_empty(setattr=setattr):
    """Has reports hold empty files in place of figures; `setattr` may be that of a monkeypatch."""
    from matplotlib.figure import Figure

    from sdjax.report import curves, embedding, figures, label_scatter, pairs

    for module, name in (
        (curves, "learning_curves"),
        (pairs, "relation_shares"),
        (pairs, "relation_weights"),
        (label_scatter, "label_scatter"),
        (embedding, "embedding_map"),
    ):
        setattr(module, name, lambda *_: Figure())
    setattr(figures, "save", lambda figure, path: path.touch())

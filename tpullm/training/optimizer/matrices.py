"""Which parameters an optimizer takes for matrices, and what their two sides are, by logical axes alone."""

from tpullm.mesh.layout import unstacked_axes

# Tables and the router: a token, a position or an expert has a row of its own, which few tokens of a batch move.
TABLES = {"vocabulary", "position", "routes"}


def is_matrix(axes: tuple[str, ...]) -> bool:
    """Whether a parameter with these logical axes is a matrix (decayed) and not a scale or a bias."""
    return "embed" in axes and len(unstacked_axes(axes)) > 1


def is_hidden(axes: tuple[str, ...]) -> bool:
    """Whether it is a matrix between hidden activations (of attention, an MLP, an expert), and no table nor router."""
    return is_matrix(axes) and not TABLES & set(unstacked_axes(axes))


def own(axes: tuple[str, ...]) -> tuple[int, ...]:
    """The dimensions of one parameter of those that are stacked by layer and by expert; the others come first."""
    return tuple(range(len(axes) - len(unstacked_axes(axes)), len(axes)))


def sides(axes: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which dimensions of a matrix are its inputs and which its outputs: together `own`.

    `embed` is one side, all others together are the other: `("layers", "embed", "heads", "head")` is, for each layer,
    a matrix of `embed` inputs and `heads * head` outputs.
    """
    dimensions = own(axes)
    if axes[dimensions[0]] == "embed":
        return dimensions[:1], dimensions[1:]
    assert axes[dimensions[-1]] == "embed", f"{axes}: `embed` stands between others"
    return dimensions[:-1], dimensions[-1:]

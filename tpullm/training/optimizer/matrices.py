"""Which parameters an optimizer treats as matrices, and their input and output dimensions, by logical axes alone."""

from tpullm.mesh.layout import unstacked_axes

# Tables and the router: each token, position or expert has its own row, whose gradient comes from few tokens.
TABLES = {"vocabulary", "position", "routes"}


def is_matrix(axes: tuple[str, ...]) -> bool:
    """Whether a parameter with these logical axes is a matrix (decayed) and not a scale or a bias."""
    return bool({"embed", "rank"} & set(axes)) and len(unstacked_axes(axes)) > 1


def is_second_of_adapter(axes: tuple[str, ...]) -> bool:
    """Whether it is the second matrix of a low-rank adapter, `[R, *outputs]`."""
    return unstacked_axes(axes)[0] == "rank"


def is_hidden(axes: tuple[str, ...]) -> bool:
    """Whether it is a matrix between hidden activations (of attention, an MLP, an expert), not a table or router."""
    return is_matrix(axes) and not TABLES & set(unstacked_axes(axes))


def own(axes: tuple[str, ...]) -> tuple[int, ...]:
    """The dimensions of one parameter; those that stack layers and experts come before them."""
    return tuple(range(len(axes) - len(unstacked_axes(axes)), len(axes)))


def sides(axes: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The input dimensions and the output dimensions of a matrix; together they are `own`.

    `embed` is one side and all others are the other side: `("layers", "embed", "heads", "head")` is, for each layer,
    a matrix of `embed` inputs and `heads * head` outputs. In a matrix of an adapter `rank` is one side.
    """
    dimensions = own(axes)
    if axes[dimensions[0]] in ("embed", "rank"):
        return dimensions[:1], dimensions[1:]
    if axes[dimensions[-1]] == "rank":
        return dimensions[:-1], dimensions[-1:]
    assert axes[dimensions[-1]] == "embed", f"{axes}: `embed` stands between others"
    return dimensions[:-1], dimensions[-1:]

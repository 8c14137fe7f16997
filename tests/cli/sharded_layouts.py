"""The shapes that eight devices have of each parameter of a recipe: `sharded_layouts RECIPE MESH`, as JSON."""

import json
import sys

import jax
import numpy as np

from tpullm.formats.huggingface.tensors import flat
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import make_mesh
from tpullm.recipe.parsing import load

if __name__ == "__main__":
    recipe = load(sys.argv[1])
    architecture = Architecture(recipe.model.resolved(recipe.tokenizer.vocabulary_size))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), architecture.shapes)
    params = jax.device_put(zeros, architecture.shardings(make_mesh(json.loads(sys.argv[2]))))
    print(json.dumps({name: list(leaf.addressable_shards[0].data.shape) for name, leaf in flat(params).items()}))

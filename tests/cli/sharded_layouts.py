"""The shapes that eight devices have of each parameter of a recipe: `sharded_layouts RECIPE MESH`, as JSON."""

import json
import sys

import jax

from tpullm.formats.huggingface.tensors import flat
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import make_mesh
from tpullm.recipe.parsing import load

if __name__ == "__main__":
    recipe = load(sys.argv[1])
    architecture = Architecture(recipe.model.resolved(recipe.tokenizer.vocabulary_size))
    with jax.set_mesh(mesh := make_mesh(json.loads(sys.argv[2]))):
        params = jax.jit(architecture.init, out_shardings=architecture.shardings(mesh))(jax.random.key(0))
    print(json.dumps({name: list(leaf.addressable_shards[0].data.shape) for name, leaf in flat(params).items()}))

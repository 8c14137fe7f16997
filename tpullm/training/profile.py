"""Record what host and devices do in some steps, for xprof (TensorBoard's profile page) and ui.perfetto.dev."""

import tempfile
from pathlib import Path

import jax

from tpullm.system import storage
from tpullm.system.log import say


class Profile:
    """Records the steps from `first` to `last`, which `pretrain.profile` names as `FIRST:LAST`.

    Args:
        steps: the recipe's words; empty records nothing.
        folder: for `plugins/profile/TIME/{*.xplane.pb, perfetto_trace.json.gz}`.
    """

    def __init__(self, steps: str, folder: Path):
        self.first, self.last = map(int, steps.split(":")) if steps else (0, 0)
        self._folder, self._local = folder, None

    def begin(self) -> None:
        """Start to record, in a folder of this machine."""
        self._local = tempfile.TemporaryDirectory(prefix="tpullm-")
        jax.profiler.start_trace(self._local.name, create_perfetto_trace=True)

    def end(self) -> None:
        """Write what was recorded, if anything was."""
        if self._local is None:
            return
        jax.profiler.stop_trace()
        with storage.atomic_directory(self._folder) as temporary, self._local as made:
            for file in sorted(path for path in Path(made).rglob("*") if path.is_file()):
                target = temporary / file.relative_to(made)
                target.parent.mkdir(parents=True, exist_ok=True)
                storage.copy(file, target)
        self._local = None
        say(f"steps {self.first:,} to {self.last:,} are recorded in {self._folder}; open it with xprof or Perfetto")

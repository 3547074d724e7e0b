"""Weights in several files."""

import json

import numpy as np
from safetensors.numpy import save_file

from alignax.models import shards


def test_large_weights_are_several_files_with_their_index(tmp_path):
    save_file({"old": np.ones(3)}, tmp_path / shards.WEIGHTS)
    named = {f"t{i}": np.full((i + 1, 4), i, np.float32) for i in range(5)}
    seen = []

    def done():
        # The old weights stand until all of the new ones are on disk.
        seen.append((tmp_path / shards.WEIGHTS).exists())
        assert shards.files(tmp_path) == [tmp_path / shards.WEIGHTS]

    shards.write(tmp_path, iter(named.items()), done=done, size=100)
    assert seen == [True]
    files = shards.files(tmp_path)
    assert [file.name for file in files] == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    assert files[0].stat().st_mode == (tmp_path / shards.INDEX).stat().st_mode
    index = json.loads((tmp_path / shards.INDEX).read_text())
    assert list(index["weight_map"]) == list(named)
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in named.values())
    shards.write(tmp_path, iter(named.items()), done=lambda: None)
    assert shards.files(tmp_path) == [tmp_path / shards.WEIGHTS]
    assert not (tmp_path / shards.INDEX).exists()

"""Finds near-duplicates as the studio does: `python near_studio.py FILE FOLDER`. See benchmarks/datasets.py."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
from cost import Cost

from studio.datasets import comparing

rows, signatures = Path(sys.argv[1]), Path(sys.argv[2]) / "signatures"
with Cost() as cost:
    with rows.open() as file:
        sample = [json.loads(line)["text"] for line, _ in zip(file, range(3000), strict=False)]
    with rows.open() as file, comparing.Sketches(signatures, comparing.common_pairs(sample)) as sketches:
        for line in file:
            sketches.add(json.loads(line)["text"])
    roots = comparing.clusters(signatures, sketches.count)
found = {int(row): int(roots[row]) for row in np.flatnonzero(roots != np.arange(len(roots)))}
(Path(sys.argv[2]) / "found.json").write_text(json.dumps(found))
cost.tell()

"""Finds near-duplicates with datasketch: `python near_datasketch.py FILE FOLDER`. See benchmarks/datasets.py."""

import json
import re
import sys
from pathlib import Path

from cost import Cost
from datasketch import MinHash, MinHashLSH

WORDS = re.compile(r"\w+")

with Cost() as cost:
    index, found = MinHashLSH(threshold=0.8, num_perm=128), {}
    with Path(sys.argv[1]).open() as file:
        for row, line in enumerate(file):
            words = WORDS.findall(json.loads(line)["text"].lower())
            sketch = MinHash(num_perm=128)
            sketch.update_batch([f"{one} {other}".encode() for one, other in zip(words, [*words[1:], ""], strict=True)])
            earlier = index.query(sketch)
            if earlier:
                found[row] = min(earlier)
            index.insert(row, sketch, check_duplication=False)
(Path(sys.argv[2]) / "found.json").write_text(json.dumps(found))
cost.tell()

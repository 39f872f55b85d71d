"""Opens a page of a version six times: `python studio_page.py ROWS.PARQUET AFTER FILTERS`. See benchmarks/datasets.py."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from studio.datasets import rows
from studio.datasets.flags import flag_named

filters = json.loads(sys.argv[3])
if "flags" in filters:
    filters["flags"] = int(flag_named(filters["flags"]) or 0)
took = []
for _ in range(6):
    began = time.perf_counter()
    page = rows.page(Path(sys.argv[1]), after=int(sys.argv[2]), limit=50, **filters)
    took.append(time.perf_counter() - began)
    assert page[0]["index"] > int(sys.argv[2])
print(json.dumps(took))

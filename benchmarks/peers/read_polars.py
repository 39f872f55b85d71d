"""Reads a JSONL file with polars: `python read_polars.py FILE FOLDER`. See benchmarks/datasets.py."""

import sys

import polars
from cost import Cost

with Cost() as cost:
    frame = polars.read_ndjson(sys.argv[1])
cost.tell()

"""Reads a JSONL file with datasets, into an empty cache: `python read_datasets.py FILE FOLDER`. See benchmarks/datasets.py."""

import sys

import datasets
from cost import Cost

datasets.disable_progress_bars()
with Cost() as cost:
    rows = datasets.load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
cost.tell()

"""python -m studio.worker path/to/order.json: does one order and says how it ended. Exit code 1 where it failed."""

import os
import sys
from pathlib import Path

from studio.lifeline import die_with_parent
from studio.worker.process import be_ended_first, limit_memory, private_stdout, stop_at_signals
from studio.worker.running import run_order

die_with_parent()
stop = stop_at_signals()
pipe = private_stdout()
be_ended_first()
limit_memory(os.environ.get("ADAPTER_STUDIO_MEMORY_LIMIT"))
sys.exit(0 if run_order(Path(sys.argv[1]), pipe=pipe, stop=stop) else 1)

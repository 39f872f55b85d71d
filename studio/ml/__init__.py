"""The torch side: loading, tokens, loop, checkpoints, merge, gguf. Runs in worker processes only; no Django."""

import logging
import os

# Read by huggingface_hub when it is first imported, so it stands here, above everything that may import it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# peft imports it wherever it is installed. It warns at every product of an 8-bit layer, and of a kernel that it would have to fetch.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

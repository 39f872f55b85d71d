"""The torch side: loading, tokens, loop, checkpoints, merge, gguf. Runs in worker processes only; no Django."""

import os

# Read by huggingface_hub when it is first imported, so it stands here, above everything that may import it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

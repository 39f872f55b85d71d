"""The order "build": a base and an adapter into files to take home, with the figures that prove them. Leaves them in `job.out`.

What can be refused is refused before anything runs. Each type stands in a folder of its own, with what lies beside it. What the three
kinds of file need and how they are made stands in build_gguf.py, build_adapter.py and build_merged.py. Torch is loaded once there is room:
a build that waits takes some 80 MB.
"""

from typing import Any

from studio.ml.gguf import budget, build_adapter, build_gguf, build_merged, needs
from studio.ml.gguf.build import begun
from studio.storage import remove_folder
from studio.training.job import Job, Stopped
from studio.training.orders import BuildPayload

KINDS = {"gguf": build_gguf, "gguf_adapter": build_adapter, "merged": build_merged}


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """Returns `{"builds": {quantization: {"file", "size", "verification": {...}, "tensor_types", "kernels"}}}`.

    A file that fails its check stays, with the reasons. Raises UserError before anything runs for what cannot be built, and for a full
    disk. What a killed or paused attempt had written stays in the order's `state`; after a stop or an error nothing is left there.
    """
    order = BuildPayload.model_validate(payload)
    kind, build = KINDS[order.kind], begun(order, job)
    sizes = kind.sizes(build)
    needs.refuse_full_disk(job.out, kind.disk(build, sizes), state=build.state)
    need = min(needs.memory_for_checking(build.base, largest=max(sizes)), budget.limit())
    try:
        with budget.reserved(need, job=job, limit=budget.limit(), folder=budget.ledger()):
            return {"builds": kind.make(build, memory=needs.memory_for_reference(need))}
    except Stopped:
        if not job.pausing():
            remove_folder(build.state)
        raise
    except BaseException:
        remove_folder(build.state)
        raise

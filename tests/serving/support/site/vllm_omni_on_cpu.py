"""vLLM-Omni on a CPU, for tests: a platform's name, and a loop that needs no device streams."""


def platform() -> str:
    """The platform, as vLLM-Omni wants it from a plugin: the name of a class."""
    return "vllm_omni_on_cpu_platform.CPUPlatform"


def register() -> None:
    """The worker's loop for results, as one that needs no device streams."""
    from vllm_omni.diffusion.worker.diffusion_worker import WorkerProc

    WorkerProc._async_output_loop = _output_loop


def _output_loop(worker) -> None:
    """Results to the client as they come; the original copies them on a side stream first."""
    from vllm_omni.diffusion.ipc import pack_diffusion_output_shm
    from vllm_omni.diffusion.worker.diffusion_worker import AsyncDiffusionOutput, AsyncOutputKind

    while (item := worker._async_output_queue.get()) is not None:
        output, identity, _ = item
        pack_diffusion_output_shm(output)
        worker._enqueue_result(
            AsyncDiffusionOutput(
                kind=AsyncOutputKind.OUTPUT_READY, async_output_id=identity, output=output
            )
        )
        with worker._async_output_done:
            worker._async_output_pending = max(0, worker._async_output_pending - 1)
            worker._async_output_done.notify_all()

"""LVSA as an attention backend of vLLM-Omni, for any length and size in one server.

`plugin` registers it in each of the engine's processes; the user says
``--diffusion-attention-backend LVSA``. `backend` is what the engine calls, `attention` what runs.
Everything else is read: options from the engine's configuration (`options`, `published`), the
model's training horizon from its checkpoint (`checkpoint`), the grid and the denoising step from
each request (`sequence`, `request`, `hooks`).
"""

"""The classes of diffusers, an extra: imported when one is needed, and quietly."""

from __future__ import annotations

from typing import Any

from elbocli.errors import UsageError
from elbocli.files.reading import quiet

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
"""Files in a folder of one of its models."""


def diffusers_class(name: str, where: object, what: str) -> Any:
    """A class of diffusers. where, what: the file or folder that needs it, and what it is. Raises UsageError without diffusers."""
    with quiet():
        try:
            import diffusers

            return getattr(diffusers, name)
        except (ImportError, RuntimeError) as error:
            raise UsageError(
                f"{where}: {what} needs the extra 'latents': pip install 'elbocli[latents]' ({' '.join(str(error).split())[:120]})"
            ) from error

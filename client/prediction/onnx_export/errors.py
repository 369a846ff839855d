"""Why a model is not exported."""

from importlib.util import find_spec


class ExportRefused(Exception):
    """There is no ONNX file. The message says in one sentence why, and what to do."""


def check_installed() -> None:
    """Raises ExportRefused where a package of the extra is missing; the other modules import them."""
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ExportRefused(
            f"Exporting wants {', '.join(missing)}, which is not installed; install collegium[export]"
        )

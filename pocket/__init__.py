"""The pocket model: a small world with exact ground truth, and a small Stable Diffusion pipeline trained on it."""

from pathlib import Path

__all__ = ["control_folder", "judge_file", "model_folder"]


def model_folder() -> Path:
    """The shipped ``StableDiffusionPipeline`` folder: pass it to ``from_pretrained``."""
    return Path(__file__).parent / "model"


def judge_file() -> Path:
    """The shipped judge weights (safetensors), which ``pocket.judge.load_judge`` reads."""
    return Path(__file__).parent / "judge.safetensors"


def control_folder() -> Path:
    """The shipped ControlNet of Canny edges: a folder that ``ControlNetModel.from_pretrained`` reads."""
    return Path(__file__).parent / "control"

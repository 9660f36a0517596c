"""Which weights can be had besides the shipped ones: source, pinned revision, files, licence, purpose. The one place that says so.

What is not known for sure is left empty: a file without sha256 is checked against what the hub states when it is downloaded, and
from then on against what was installed. Facts were looked up in public pages, in 2025 and 2026; no weights were downloaded for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from portrait_shared.errors import PortraitDiffusionError

Commercial = Literal["allowed", "not allowed", "unclear"]
Kind = Literal["portrait4d", "panohead", "eg3d"]
"""How `models convert --as` reads a checkpoint; see `checkpoint_kinds`."""


@dataclass(frozen=True)
class ModelFile:
    """A file of a model: path below the model's folder, size in bytes (`exact`, or rounded; 0: unknown), published sha256 ("": unknown)."""

    path: str
    size: int = 0
    sha256: str = ""
    exact: bool = False


@dataclass(frozen=True)
class Hub:
    """A repository of the Hugging Face hub.

    revision: a commit (40 hex digits) where one is known, else a branch, of which the installation notes the commit;
    folder: where in the repository the files lie.
    """

    repository: str
    revision: str
    kind: Literal["model", "space"] = "model"
    folder: str = ""

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit."""
        return len(self.revision) == 40

    @property
    def page(self) -> str:
        """The page a person may look at."""
        return f"https://huggingface.co/{'spaces/' if self.kind == 'space' else ''}{self.repository}"


@dataclass(frozen=True)
class WebPage:
    """A page that a person downloads from by hand: there is no address a program could fetch."""

    page: str


@dataclass(frozen=True)
class Model:
    """One entry of the catalogue.

    purpose: what this program does with it, or will; note: what one should know of the licence or the files;
    convert: set for pickled checkpoints, which `models convert` turns into safetensors before anything reads them.
    """

    name: str
    title: str
    purpose: str
    source: Hub | WebPage
    licence: str
    licence_page: str
    commercial: Commercial
    files: tuple[ModelFile, ...]
    note: str = ""
    convert: Kind | None = None

    @property
    def size(self) -> int:
        """Bytes of all files whose size is known."""
        return sum(file.size for file in self.files)

    @property
    def size_text(self) -> str:
        """The size for people: "4.3 GB", "about 2.5 GB", "over 3.6 GB", "size unknown"."""
        heavy = [file for file in self.files if file.path.endswith((".safetensors", ".bin", ".pkl"))]
        if not all(file.size for file in heavy):
            return f"over {self.size / 1e9:.1f} GB" if self.size else "size unknown"
        return f"{'' if all(file.exact for file in heavy) else 'about '}{self.size / 1e9:.1f} GB"


def _small(*paths: str) -> tuple[ModelFile, ...]:
    return tuple(ModelFile(path) for path in paths)


_DIFFUSERS_SMALL = _small(
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
)

CATALOGUE = (
    Model(
        name="sd15",
        title="Stable Diffusion 1.5",
        purpose="denoiser, codec and text encoder of stages 2 and 3 at full scale",
        source=Hub("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),
        licence="CreativeML OpenRAIL-M",
        licence_page="https://huggingface.co/spaces/CompVis/stable-diffusion-license",
        commercial="allowed",
        note="the licence forbids some uses (its attachment A), and so must whoever passes the weights on",
        files=(
            *_DIFFUSERS_SMALL,
            ModelFile(
                "text_encoder/model.safetensors",
                492265874,
                "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334",
                exact=True,
            ),
            ModelFile(
                "unet/diffusion_pytorch_model.safetensors",
                3438167540,
                "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1",
                exact=True,
            ),
            ModelFile(
                "vae/diffusion_pytorch_model.safetensors",
                334643276,
                "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c",
                exact=True,
            ),
        ),
    ),
    Model(
        name="sd15-normal",
        title="Stable Diffusion 1.5 adapted to normal maps (HumanNorm)",
        purpose="denoiser of normal maps in stage 2 at full scale",
        source=Hub("xanderhuang/normal-adapted-sd1.5", "a44f486d748a4bd0b46fc90113b5612afc58e0c4"),
        licence="Apache-2.0 on its card; made from Stable Diffusion 1.5 (CreativeML OpenRAIL-M)",
        licence_page="https://huggingface.co/xanderhuang/normal-adapted-sd1.5",
        commercial="allowed",
        note="the terms of Stable Diffusion 1.5 hold for it too",
        files=(
            *_DIFFUSERS_SMALL,
            ModelFile("text_encoder/pytorch_model.bin"),
            ModelFile("unet/diffusion_pytorch_model.bin", 3_440_000_000),
            ModelFile("vae/diffusion_pytorch_model.bin", 167_000_000),
        ),
    ),
    Model(
        name="brushnet",
        title="BrushNet, segmentation masks",
        purpose="start of the explicit and the implicit branch of stage 3 at full scale",
        source=Hub("TencentARC/BrushNet", "0bfe588b24e5c47d97eb8dcafdb48d8e8223faec", "space", "data/ckpt/segmentation_mask_brushnet_ckpt"),
        licence="Apache-2.0 (its repository)",
        licence_page="https://github.com/TencentARC/BrushNet/blob/main/LICENSE",
        commercial="allowed",
        files=(ModelFile("config.json"), ModelFile("diffusion_pytorch_model.safetensors", 2_480_000_000)),
    ),
    Model(
        name="brushnet-x",
        title="BrushNetX (BrushEdit)",
        purpose="the same as brushnet, a later training of it",
        source=Hub("TencentARC/BrushEdit", "0d6ac4a3cabfbad65c87f5ed1e01fd4766cbb549", folder="brushnetX"),
        licence="other (its card names no licence text)",
        licence_page="https://huggingface.co/TencentARC/BrushEdit",
        commercial="unclear",
        note="ask its authors before any commercial use",
        files=(ModelFile("config.json"), ModelFile("diffusion_pytorch_model.safetensors", 2_480_000_000)),
    ),
    Model(
        name="portrait4d",
        title="Portrait4D static, 512 px",
        purpose="prior of stage 1 as in the paper (--prior portrait4d)",
        source=Hub("bEijuuu/Portrait4D", "main"),
        licence="MIT on its card",
        licence_page="https://huggingface.co/bEijuuu/Portrait4D",
        commercial="unclear",
        note="parts of its source code are NVIDIA's, for research and evaluation only; the card says MIT of the weights",
        files=(ModelFile("portrait4d-static-genhead512.pkl"),),
        convert="portrait4d",
    ),
    Model(
        name="panohead",
        title="PanoHead",
        purpose="prior of stage 1, heads from all sides (--prior panohead)",
        source=WebPage("https://github.com/SizheAn/PanoHead#getting-started"),
        licence="CC BY-NC-SA 4.0 and NVIDIA's EG3D licence (research and evaluation only)",
        licence_page="https://github.com/SizheAn/PanoHead/tree/main/LICENSES",
        commercial="not allowed",
        files=(ModelFile("easy-khair-180-gpc0.8-trans10-025000.pkl"),),
        convert="panohead",
    ),
    Model(
        name="eg3d",
        title="EG3D, FFHQ rebalanced, 512 px",
        purpose="generator of faces from the front (in Python)",
        source=WebPage("https://catalog.ngc.nvidia.com/orgs/nvidia/teams/research/models/eg3d"),
        licence="NVIDIA Source Code Licence for EG3D (research and evaluation only)",
        licence_page="https://github.com/NVlabs/eg3d/blob/main/LICENSE.txt",
        commercial="not allowed",
        files=(ModelFile("ffhqrebalanced512-128.pkl"),),
        convert="eg3d",
    ),
)


def find_model(name: str) -> Model:
    """Return the entry by name; PortraitDiffusionError ``model-unknown`` for any other name."""
    for model in CATALOGUE:
        if model.name == name:
            return model
    known = ", ".join(model.name for model in CATALOGUE)
    raise PortraitDiffusionError("model-unknown", f"there is no model named {name!r}", f"Use one of {known}")

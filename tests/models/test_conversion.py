"""Pickled checkpoints become safetensors: every tensor, every bit, and the conventions of the planes."""

from __future__ import annotations

import json
import pickle
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from portrait_backend.cli import main
from portrait_backend.models.checkpoint_kinds import KINDS
from portrait_backend.models.conversion import METADATA_KEY, convert_checkpoint, read_checkpoint
from portrait_backend.radiance.head import TriPlane
from portrait_shared.errors import PortraitDiffusionError
from tests.models.pickled_networks import eg3d_shapes, network_pickle, portrait4d_shapes

SHAPES = {"eg3d": eg3d_shapes(), "panohead": eg3d_shapes(3), "portrait4d": portrait4d_shapes()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", list(SHAPES))
def test_a_network_pickle_becomes_its_state_dict(tmp_path: Path, kind: str, protocol: int) -> None:
    content, expected = network_pickle(SHAPES[kind], protocol)
    (tmp_path / "network.pkl").write_bytes(content)
    assert "torch_utils" not in sys.modules and "dnnlib" not in sys.modules
    done = convert_checkpoint(tmp_path / "network.pkl", kind, tmp_path / "out.safetensors")
    assert done.network == "G_ema" and done.tensors == len(expected) and "scratch" not in expected
    assert_same(load_file(tmp_path / "out.safetensors"), expected)
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        record = json.loads(file.metadata()[METADATA_KEY])
    assert (
        record["kind"] == kind and record["source_sha256"] == done.source_sha256 and record["planes"]["depth"] == (1, 3)[kind == "panohead"]
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["network.pkl", "out.safetensors"]


def odd_tensors() -> dict[str, torch.Tensor]:
    """Views, shared storage, other types, scalars, nothing."""
    base = torch.arange(24.0)
    return OrderedDict(
        whole=base, part=base[4:16].view(3, 4), turned=base[4:16].view(3, 4).T, scalar=torch.tensor(7), none=torch.empty(0, 3),
        half=torch.ones(3, dtype=torch.float16), brain=torch.ones(2, dtype=torch.bfloat16) / 3, truth=torch.tensor([True, False]),
        double=torch.ones(2, dtype=torch.float64) / 3, bytes=torch.tensor([1, 255], dtype=torch.uint8),
    )  # fmt: skip


@pytest.mark.parametrize("way", ["zip", "older stream", "plain pickle"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_state_dicts_in_every_way_torch_stores_them(tmp_path: Path, way: str, wrapped: bool) -> None:
    tensors = odd_tensors()
    content = {"epoch": 3, "optimizer": {"lr": 1e-3}, "state_dict": tensors} if wrapped else tensors
    path = tmp_path / "weights.pth"
    if way == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way == "zip")
    network, found = read_checkpoint(path)
    assert network == ("state_dict" if wrapped else "state dict")
    assert_same(found, dict(tensors))
    assert all(value.is_contiguous() for value in found.values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_module_is_read_without_its_class(tmp_path: Path, zipped: bool) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    torch.save(module, tmp_path / "module.pt", _use_new_zipfile_serialization=zipped)
    assert_same(read_checkpoint(tmp_path / "module.pt")[1], dict(module.state_dict()))


@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_arrays(tmp_path: Path, protocol: int) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "b": np.array([True]),
    }
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(arrays, protocol=protocol))
    assert_same(read_checkpoint(tmp_path / "w.pkl")[1], {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()})


def test_another_network_is_said_with_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "n.pkl").write_bytes(network_pickle(SHAPES["eg3d"])[0])
    for kind, reason in (
        ("panohead", r"b256.*is \(96, 8, 1, 1\) instead of \(288, any, 1, 1\)"),
        ("portrait4d", "no tensor is named encoder_global"),
    ):
        with pytest.raises(PortraitDiffusionError, match=reason) as caught:
            convert_checkpoint(tmp_path / "n.pkl", kind, tmp_path / "out.safetensors")
        assert caught.value.code == "checkpoint-unexpected"
    with pytest.raises(PortraitDiffusionError) as caught:
        convert_checkpoint(tmp_path / "n.pkl", "sd15", tmp_path / "out.safetensors")
    assert caught.value.code == "checkpoint-kind-unknown"
    assert [p.name for p in tmp_path.iterdir()] == ["n.pkl"]


def test_an_existing_file_stays(tmp_path: Path) -> None:
    (tmp_path / "n.pkl").write_bytes(network_pickle(SHAPES["eg3d"])[0])
    (tmp_path / "out.safetensors").write_bytes(b"precious")
    with pytest.raises(PortraitDiffusionError) as caught:
        convert_checkpoint(tmp_path / "n.pkl", "eg3d", tmp_path / "out.safetensors")
    assert caught.value.code == "output-not-empty" and (tmp_path / "out.safetensors").read_bytes() == b"precious"
    with pytest.raises(PortraitDiffusionError) as caught:
        convert_checkpoint(tmp_path / "n.pkl", "eg3d", tmp_path / "no/such/folder/out.safetensors")
    assert caught.value.code == "output-not-writable"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "n.pkl").write_bytes(network_pickle(SHAPES["eg3d"])[0])
    arguments = ["models", "convert", str(tmp_path / "n.pkl"), "--as", "eg3d", "-o", str(tmp_path / "out.safetensors")]
    assert main(arguments) == 0
    assert f"{len(SHAPES['eg3d'])} tensors" in capsys.readouterr().out
    assert main(arguments) == 2


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_conventions_are_ones_that_a_tri_plane_takes(kind: str) -> None:
    planes = KINDS[kind].planes
    head_planes = TriPlane(
        torch.zeros(3, planes.channels * planes.depth, 4, 4), planes.depth, planes.axes, planes.half_extent, planes.reduce
    )
    assert head_planes.sample(torch.zeros(1, 3)).shape == (1, 32)

"""What all tests share: no network, and a tiny study whose teacher and features are made once."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import shutil
from pathlib import Path

import pytest
import torch
from tiny import tiny_run

from nni_bertnas import quiet_libraries
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure

quiet_libraries()
_THREADS = torch.get_num_threads()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What reads a finished study is slow, as the study was searched for; what waits for NNI longest begins first."""
    for item in items:
        if isinstance(item, pytest.Function) and "finished" in item.fixturenames:
            item.add_marker("slow")
        if "BERTNAS_LONG" not in os.environ and item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="a minute and more; set BERTNAS_LONG=1"))
    items.sort(key=lambda item: "integration" not in item.path.parts)


def pytest_runtest_setup() -> None:
    """Commands give the process other threads, and some processors another last bit then."""
    torch.set_num_threads(_THREADS)


pytest_runtest_call = pytest_runtest_setup


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny study with its teacher and features made; tests must not change them."""
    run = tiny_run(tmp_path_factory.mktemp("built"))
    ensure(run, "features")
    return run


@pytest.fixture(scope="module")
def built_copy(built: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root like that of `built`, with teacher and features, of a module's own; for :func:`tiny.tiny_run`."""
    root = tmp_path_factory.mktemp("copy") / "root"
    shutil.copytree(built.root.parents[1], root)
    return root

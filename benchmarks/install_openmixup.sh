#!/bin/sh
# Install openmixup 0.2.9 beside what the environment of a Python holds:
#
#     sh benchmarks/install_openmixup.sh path/to/python
#
# A plain `pip install openmixup` fails: it asks for an mmcv whose operators must be compiled.
# They are left out here, and openmixup's own list of requirements is replaced by what it imports.
set -eu
python=${1:?"give the path of a python"}

"$python" -m pip install "setuptools<80" wheel torch torchvision timm
MMCV_WITH_OPS=0 "$python" -m pip install --no-build-isolation mmcv==1.7.2
"$python" -m pip install --no-deps openmixup==0.2.9
"$python" -m pip install \
    einops opencv-contrib-python-headless scikit-learn scikit-image matplotlib scipy pandas seaborn \
    six attrs importlib-metadata tqdm tensorboard future

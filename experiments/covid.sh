#!/usr/bin/env bash
# The real chain: CIFAR-10 > KTH-TIPS > CT of COVID-19 (healthy or infected, by patient).
#
#     experiments/covid.sh DATA WORKDIR [texture_only] [more flags]
#
# DATA holds cifar10/, kth_tips_gray/ and covid_ct/ as experiments/README.md describes.
# The materials of KTH-TIPS are one sample each, so its groups are scale and pose: the
# number of the image, equal in all classes, is what train and test do not share.
set -euo pipefail
data="$1" workdir="$2" variant="${3:-}"
shift "$(($# < 3 ? $# : 3))"
exec python -m twostage_jax.main \
    --config="configs/folders.py${variant:+:$variant}" --workdir="$workdir" \
    --config.stages.natural.data.path="$data/cifar10" \
    --config.stages.texture.data.path="$data/kth_tips_gray" \
    --config.stages.texture.data.group_regex='scale_(\d+_im_\d+)' \
    --config.stages.target.data.path="$data/covid_ct" \
    --config.study.seeds="(0, 1, 2, 3, 4)" \
    --config.study.fractions="(1.0, 0.5, 0.25, 0.1)" \
    --config.study.folds=3 "$@"

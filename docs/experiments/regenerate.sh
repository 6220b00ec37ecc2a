#!/usr/bin/env bash
# Writes the tables, figures and numbers of these pages anew from the results beside them; trains nothing.
set -euo pipefail
cd "$(dirname "$0")"
write() { # folder, suite, pages
    for page in "${@:3}"; do overture bench "$2" --out "results/$1" --tables "$page" > /dev/null; done
}
write cliff cliff cliff.md claims.md
for suite in uniform-vcq few-images prior-sizes; do write fashion-mnist-16 "$suite" codebooks.md claims.md; done
for suite in prologue prologue-vcq; do write fashion-mnist-16 "$suite" prologue.md claims.md; done
write cifar10-16 cifar-codebooks codebooks.md claims.md
write cifar10-16 cifar-prologue prologue.md claims.md

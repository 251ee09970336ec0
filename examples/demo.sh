#!/bin/sh
# Two edits of one video with the embedded model: the second prompt reuses everything that does not depend on it.
# `--engine direct`: two runs at one desk need no Prefect server, which takes some ten seconds to start.
set -eu
cd "$(dirname "$0")/.."
mkdir -p out
TOKENFLOW_STORE="${TOKENFLOW_STORE:-out/store}"
export TOKENFLOW_STORE

echo "first edit: everything is computed"
tf run examples/ball.mp4 --engine direct --source-prompt "a red ball on grass" --prompt "a purple ball on grass" -o out/edit-1.mp4
echo
echo "second edit: decode, invert, extract and match are reused"
tf run examples/ball.mp4 --engine direct --source-prompt "a red ball on grass" --prompt "a red ball on snow" -o out/edit-2.mp4
echo
tf sheet examples/ball.mp4 out/edit-1.mp4 out/edit-2.mp4 -o out/sheet.png \
    --label "source" --label "a purple ball on grass" --label "a red ball on snow" >/dev/null
echo "videos         out/edit-1.mp4  out/edit-2.mp4"
echo "contact sheet  out/sheet.png"

#!/usr/bin/env bash
# From nothing to a trained model: a coordinator and three hospitals, each in a folder of its own, over TLS.
#
# Run it in an empty folder, with Collegium installed and on the PATH:
#
#     bash three-hospitals.sh
#
# It takes some minutes. Everything here is what people do at their machines; only the telephone calls are missing,
# by which they compare the fingerprints that the commands print. PORT says where the server listens (9443).
set -euo pipefail

port="${PORT:-9443}"
hospitals="hospital-1 hospital-2 hospital-3"

echo "== Images: each hospital has its own. Here they are synthetic."
collegium-simulate prepare phantom --out images --num-hospitals 3 --patients 60 --image-size 64 --seed 1

echo "== The coordinator makes the consortium: root key, certificates, server.toml."
collegium-server init coordinator --host localhost --port "$port"

echo "== Each hospital makes its site: keys, journal, a request for the coordinator, site.toml with its policy."
for name in $hospitals; do
  mkdir "$name"
  cp coordinator/tls/ca.pem coordinator/root.pub "$name/"
  collegium-client init "$name/site" --name "$name" --server "localhost:$port" \
    --ca "$name/ca.pem" --root "$name/root.pub" \
    --images "images/$name/images" --labels "images/$name/labels.csv" --key PatientID
done

echo "== The coordinator admits each hospital, and gives all of them the roster."
for name in $hospitals; do
  collegium-server admit "$name/site/$name.request.toml" --config coordinator/server.toml
done
for name in $hospitals; do
  cp coordinator/roster.toml "$name/"
  collegium-client join "$name/roster.toml" --config "$name/site/site.toml"
done

echo "== The coordinator writes the study down and signs it; each hospital gets the proposal."
cat > coordinator/study.toml <<'STUDY'
name = "three-hospitals"
title = "Opacities in synthetic radiographs, three small hospitals"

[task]
kind = "binary-classification"
label = "finding"
positive = ["opacity"]
negative = ["clear"]

[patients]
roles = "hash"
min_training = 20

[image]
modalities = ["DX", "CR"]
channels = 1
rows = 32
columns = 32
intensity = "percentiles"

[model]
architecture = "small-cnn"
width = 8

[training]
num_rounds = 4
local_steps = 4
sample_rate = 0.4
learning_rate = 1.0

[privacy]
mode = "local"
epsilon = 8.0
delta = 1e-3
num_patients = 500
max_grad_norm = 1.0

[evaluation]
validation_rounds = [4]
num_bins = 10
epsilon = 4.0

[aggregation]
weights = "equal"
num_sites_max = 3
min_cohort = 2
threshold = 2
num_colluding = 0
update_bound = 2.0
round_timeout_seconds = 60.0
STUDY
collegium-server propose coordinator/study.toml --config coordinator/server.toml
for name in $hospitals; do
  cp coordinator/study.proposal.toml "$name/"
done

echo "== Each hospital looks at its images, has the study explained, and approves it."
for name in $hospitals; do
  collegium-client index --study "$name/study.proposal.toml" --config "$name/site/site.toml" --strict
  collegium-client review "$name/study.proposal.toml" --config "$name/site/site.toml" \
    --approve --by "Dr Example"
done

echo "== The hospitals start their sites."
sites=()
stop() { kill "${sites[@]}" 2>/dev/null || true; wait 2>/dev/null || true; }
trap stop EXIT
for name in $hospitals; do
  collegium-client start --config "$name/site/site.toml" > "$name/terminal.log" 2>&1 &
  sites+=("$!")
done

echo "== The coordinator runs the study."
collegium-server run --config coordinator/server.toml

echo "== What each hospital can show afterwards: what it spent, and a journal that others hold receipts of."
for name in $hospitals; do
  collegium-client ledger --config "$name/site/site.toml"
  collegium-client journal export "$name/receipts.json" --receipts --config "$name/site/site.toml"
done
collegium-client journal verify --config hospital-1/site/site.toml \
  --receipts hospital-2/receipts.json --receipts hospital-3/receipts.json

echo "== The model and its figures:"
ls coordinator/state/runs/*/model.safetensors coordinator/state/runs/*/result.json

#!/usr/bin/env bash
# Two hosts in network namespaces of this machine (Linux, root): torchrun on each trains a tiny run together.
# The first half ends by SIGTERM on both hosts, as Slurm's requeue does it; the same commands then go on to the end.
#
#     sudo benchmarks/two_hosts.sh FOLDER
set -euo pipefail
folder=$(realpath -m "${1:?give a folder for the run}")
mkdir -p "$folder"
trap 'ip netns delete host0 2>/dev/null || true; ip netns delete host1 2>/dev/null || true' EXIT
for host in 0 1; do ip netns add "host$host"; done
ip link add wire0 netns host0 type veth peer name wire1 netns host1
for host in 0 1; do
    ip -n "host$host" addr add "10.77.0.$((host + 1))/24" dev "wire$host"
    ip -n "host$host" link set "wire$host" up
    ip -n "host$host" link set lo up
done

start() { # host: its process, in the background
    ip netns exec "host$1" env OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME="wire$1" TP_SOCKET_IFNAME="wire$1" \
        torchrun --nnodes 2 --nproc-per-node 1 --node-rank "$1" --master-addr 10.77.0.1 --master-port 29500 \
        -m overture run quickstart --tiny --only vcq --device cpu --out "$folder/run" \
        --tokenizer-training.steps 300 >"$folder/host$1.log" 2>&1 &
}

start 0; first=$!
start 1; second=$!
until ls "$folder"/run/vcq/metrics.jsonl >/dev/null 2>&1 && grep -q '"tokenizer"' "$folder/run/vcq/metrics.jsonl"; do sleep 0.5; done
kill -TERM "$first" "$second"
wait "$first" || true
wait "$second" || true
echo "stopped: $(ls -d "$folder"/run/vcq/tokenizer/step-*)"
start 0; first=$!
start 1; second=$!
wait "$first"
wait "$second"
echo "done: $(ls "$folder/run/report.html")"
